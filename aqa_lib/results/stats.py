"""Tell a difference from noise: intervals for one score, tests between two, and what seeds add.

`evaluation -> [stats] -> report`. Numbers in, numbers out. The paper gives points without intervals, and its
own second run moves speech by 6 points; on 333 questions a 95 % interval extends 5 points to either side.

Three kinds of noise, kept apart: which questions were asked (`wilson`, `paired_bootstrap`, `mcnemar`,
`over_questions`), which seed the training had (`over_seeds`), and how often one looked (`holm`).
"""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from ..runtime.errors import AqaError

LEVEL = 0.95
RESAMPLES = 10_000


def wilson(right: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Bound one model's accuracy, 0 to 1: the Wilson score interval for `right` of `n` questions.

    It covers how this very model would do on other questions of the same kind, but not how another training run would.

    >>> [round(bound, 3) for bound in wilson(645, 1000)]
    [0.615, 0.674]
    """
    if not 0 <= right <= n or n < 1:
        raise AqaError(f"{right} right of {n} is not a count of answers; there must be at least one question.")
    low, high = proportion_confint(right, n, alpha=1 - level, method="wilson")
    return float(low), float(high)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Bound the mean of `a - b` on the same questions: (difference, low, high), percentile bootstrap.

    a, b: (n,) one score per question, 0 or 1, or a mean over seeds.

    >>> paired_bootstrap([1, 1, 1, 1], [0, 0, 0, 0])
    (1.0, 1.0, 1.0)
    """
    a, b = _pair(a, b)
    return over_questions(a - b, level, resamples, seed)


def over_questions(
    scores: Sequence[float], level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Bound the mean of one number per question: (mean, low, high), percentile bootstrap over the questions.

    For several seeds, give each question's mean over the seeds. Putting all their answers into one `wilson`
    instead would count every question once per seed, and the interval would be too narrow.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 1 or len(scores) < 2:
        raise AqaError(f"an interval cannot be computed over {scores.size} questions; give two or more.")
    done = stats.bootstrap(
        (scores,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // len(scores)),  # 16 MB at a time
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(scores.mean()), float(done.confidence_interval.low), float(done.confidence_interval.high)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Test whether two models are right equally often on the same questions: McNemar's exact p-value.

    Only the questions that one model gets right and the other wrong count.

    >>> mcnemar([1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0])
    0.03125
    """
    a, b = _pair(a, b)
    if not set(np.unique([a, b])) <= {0.0, 1.0}:
        raise AqaError("McNemar's test takes right or wrong; for means over seeds use paired_bootstrap.")
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    if only_a + only_b == 0:
        return 1.0
    return min(1.0, float(statsmodels_mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for having looked at all of them (Holm), in their order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    if len(p_values) == 0:
        return []
    return [float(p) for p in multipletests(p_values, method="holm")[1].round(12)]


def over_seeds(means: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """Bound what other training seeds would average to: (mean, low, high), Student's t over one score per seed.

    The test set is held fixed. With one seed nothing is known about the others: the bounds are NaN.

    >>> [round(value, 3) for value in over_seeds([0.6, 0.7, 0.8])]
    [0.7, 0.452, 0.948]
    """
    means = np.asarray(means, dtype=float)
    if means.size < 1:
        raise AqaError("no seeds to average over; give one score per seed.")
    if means.size < 2:
        return float(means[0]), float("nan"), float("nan")
    if np.ptp(means) == 0:
        return (float(means[0]),) * 3
    low, high = stats.t.interval(level, means.size - 1, loc=means.mean(), scale=stats.sem(means))
    return float(means.mean()), float(low), float(high)


def permutation(a: Sequence[float], b: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Test whether the mean of `a - b` over the same questions could be chance: sign-flip p-value.

    McNemar's test for scores that are not just right or wrong: means over seeds. Never below 1 / (resamples + 1).

    >>> permutation([1, 1, 1, 1, 1, 1, 0.5], [0, 0, 0, 0, 0, 0, 0.5])
    0.03125
    """
    a, b = _pair(a, b)
    differences = (a - b)[a != b]
    if not len(differences):
        return 1.0
    return float(
        stats.permutation_test(
            (differences, np.zeros_like(differences)),
            lambda x, y, axis: (x - y).mean(axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, 2_000_000 // len(differences)),
            rng=np.random.default_rng(seed),
        ).pvalue
    )


def between_seeds(a: Sequence[float], b: Sequence[float], untrained: bool = False) -> float:
    """Test whether two methods differ by more than their training seeds do: Welch's p-value.

    a, b: one score per seed. untrained: `b` is one model that no seed has touched (the base), so it is a
    constant. NaN if a method has only one seed, which says nothing about the others.

    >>> round(between_seeds([0.50, 0.52, 0.51], [0.70, 0.69, 0.71]), 5)
    2e-05
    >>> round(between_seeds([0.50, 0.52, 0.51], [0.40], untrained=True), 5)
    0.00274
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if len(a) < 2 or (len(b) < 2 and not untrained):
        return float("nan")
    if np.ptp(a) == np.ptp(b) == 0:
        return float(a[0] == b[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nearly identical seeds
        test = stats.ttest_1samp(a, b.mean()) if untrained else stats.ttest_ind(a, b, equal_var=False)
    return float(test.pvalue)


def _pair(a: Sequence[float], b: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim != 1:
        raise AqaError(f"{a.size} scores against {b.size}: a paired test needs both on the same questions.")
    return a, b

"""Statistics against known values, closed forms and simulation."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from aqa_lib.results import stats


def test_wilson_against_its_formula_and_a_textbook_value():
    right, n, z = 645, 1000, scipy_stats.norm.ppf(0.975)
    p = right / n
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = ((centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n))
    assert stats.wilson(right, n) == pytest.approx(expected, abs=1e-12)
    assert stats.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert stats.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert stats.wilson(10, 10)[1] == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "half"), [(1000, 3.0), (333, 5.2)])
def test_the_width_that_the_facts_name(n, half):
    low, high = stats.wilson(round(0.645 * n), n)
    assert 50 * (high - low) == pytest.approx(half, abs=0.1)


@pytest.mark.parametrize(("right", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_count(right, n):
    with pytest.raises(ValueError, match="not a count of answers"):
        stats.wilson(right, n)


def test_bootstrap_is_paired():
    rng = np.random.default_rng(1)
    b = rng.integers(0, 2, 500)
    a = b.copy()
    a[:20] = 1 - a[:20]  # two models that differ on 20 questions of 500
    difference, low, high = stats.paired_bootstrap(a, b)
    assert difference == np.mean(a - b)
    deviation = np.std(a - b) / np.sqrt(500)
    assert (low, high) == pytest.approx((difference - 1.96 * deviation, difference + 1.96 * deviation), abs=0.004)
    unpaired = np.sqrt(a.var() / 500 + b.var() / 500)
    assert high - low < 0.5 * 2 * 1.96 * unpaired
    assert stats.paired_bootstrap(b, a) == pytest.approx((-difference, -high, -low), abs=0.004)
    assert stats.paired_bootstrap(a, b) == (difference, low, high)  # same seed, same interval
    assert stats.paired_bootstrap(a, a) == (0.0, 0.0, 0.0)


def test_bootstrap_covers_the_truth():
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        a, b = rng.random(300) < 0.6, rng.random(300) < 0.5
        _, low, high = stats.paired_bootstrap(a, b, resamples=500, seed=trial)
        covered += low <= 0.1 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_mcnemar_is_the_sign_test_of_the_discordant_pairs():
    a = [1] * 15 + [0] * 5 + [1] * 30 + [0] * 10
    b = [0] * 15 + [1] * 5 + [1] * 30 + [0] * 10
    assert stats.mcnemar(a, b) == pytest.approx(scipy_stats.binomtest(5, 20, 0.5).pvalue)
    assert stats.mcnemar(a, b) == pytest.approx(0.041389, abs=1e-6)
    assert stats.mcnemar(a, b) == stats.mcnemar(b, a)
    assert stats.mcnemar(a, a) == 1.0
    assert stats.mcnemar([1, 0], [0, 1]) == 1.0  # never above one


@pytest.mark.parametrize(("a", "b"), [([1, 0], [1]), ([[1, 0]], [[0, 1]]), ([0.5, 1], [1, 0])])
def test_mcnemar_refuses_what_is_not_paired_or_not_binary(a, b):
    with pytest.raises(ValueError, match="paired test|right or wrong"):
        stats.mcnemar(a, b)


def test_holm_by_hand():
    # sorted 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, then never smaller than the one before
    assert stats.holm([0.04, 0.005, 0.03, 0.01]) == [0.06, 0.02, 0.06, 0.03]
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_over_seeds_by_hand():
    mean, low, high = stats.over_seeds([60, 62, 67])  # mean 63, s = sqrt(13), t(2) = 4.3027
    assert mean == 63
    assert high - mean == pytest.approx(4.302653 * np.sqrt(13 / 3), rel=1e-6) == mean - low
    assert stats.over_seeds([5, 5]) == (5, 5, 5)
    one = stats.over_seeds([61.0])
    assert one[0] == 61.0 and np.isnan(one[1]) and np.isnan(one[2])
    with pytest.raises(ValueError, match="no seeds"):
        stats.over_seeds([])


def test_answers_of_several_seeds_are_not_more_questions():
    right = np.random.default_rng(0).integers(0, 2, 200).astype(float)  # three seeds that answer alike
    _, low, high = stats.over_questions(right)
    pooled = stats.wilson(int(3 * right.sum()), 600)
    alone = stats.wilson(int(right.sum()), 200)
    assert high - low == pytest.approx(alone[1] - alone[0], abs=0.01)
    assert high - low > 1.5 * (pooled[1] - pooled[0])
    with pytest.raises(ValueError, match="two or more"):
        stats.over_questions([1.0])


def test_permutation_agrees_with_mcnemar_on_right_and_wrong():
    rng = np.random.default_rng(3)
    a, b = rng.random(400) < 0.60, rng.random(400) < 0.53
    assert stats.permutation(a, b) == pytest.approx(stats.mcnemar(a, b), abs=0.02)
    assert stats.permutation(a, a) == 1.0
    assert stats.permutation(np.ones(50), np.zeros(50)) == pytest.approx(1 / 10_001, rel=1.1)
    assert stats.permutation(a, b) == stats.permutation(a, b)  # a fixed seed
    with pytest.raises(ValueError, match="paired test"):
        stats.permutation([1, 0], [1])


def test_permutation_is_honest_where_nothing_differs():
    rng = np.random.default_rng(0)
    small = [stats.permutation(*(rng.integers(0, 4, (2, 100)) / 3), resamples=200) < 0.05 for _ in range(200)]
    assert np.mean(small) <= 0.10


def test_between_seeds_against_scipy_and_its_edges():
    a, b = [60.0, 62.0, 67.0], [50.0, 51.0]
    expected = scipy_stats.ttest_ind(a, b, equal_var=False).pvalue
    assert stats.between_seeds(a, b) == pytest.approx(expected) == stats.between_seeds(b, a)
    assert stats.between_seeds(a, [50.0], untrained=True) == scipy_stats.ttest_1samp(a, 50).pvalue
    assert np.isnan(stats.between_seeds([1.0], [2.0, 3.0])) and np.isnan(stats.between_seeds(a, [50.0]))
    assert stats.between_seeds([1.0, 1.0], [1.0, 1.0]) == 1.0
    assert stats.between_seeds([1.0, 1.0], [2.0, 2.0]) == 0.0

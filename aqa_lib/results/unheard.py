"""Look for labels that cannot be heard: what a trained model answers when a question is asked several times.

`evaluate --decoding sample, once per seed -> [unheard]`. AVQA's answers were written by people who watched the video,
and how many of them cannot be heard is unknown. Two signs show without anybody listening. A label that contradicts the
sound is one that a trained model never gives, however often it is asked. A label that the sound says nothing about is
given about as often as chance would have it: hardly ever wrong in all tries, but right in few. In the tiny world, where
the truth is known, both signs hold (`data/results/unheard.json`). Both overcount: a question may simply be too hard.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..predictions import Predictions, PredictionsError, group
from ..runtime import escape
from . import stats
from .comparison import interval, known, paired
from .scoring import Rate


@dataclass(frozen=True)
class Tries:
    """How some questions fared. never: those that no try got right; right: percent of all tries, with bounds."""

    never: Rate
    right: tuple[float, float, float]

    def to_dict(self) -> dict:
        """Give both as plain numbers, for JSON."""
        return {"wrong_in_all": self.never.to_dict(), "right": known(self.right)}


def tries(runs: Sequence[Predictions], key: str = "question_relation", rule: str = "strict") -> dict[str, Tries]:
    """Sum up several tries by the group that `key` names, and under "all" together.

    runs: one model's, on the same questions, sampled with different seeds. Intervals are over questions. Raises
    PredictionsError for fewer than two runs, for runs sampled with the same seed, and for questions without the key.
    """
    if len(runs) < 2:
        raise PredictionsError("one file is only one try: give several, sampled with different seeds.")
    seeds = [run.settings.get("seed") for run in runs]
    if None in seeds or len(set(seeds)) < len(seeds):
        raise PredictionsError(
            f"the files' sampling seeds are {', '.join(map(str, seeds))}: make each with --decoding sample and its "
            "own --seed; the same answers twice are only one try."
        )
    right = paired(runs, rule).mean(0)  # (n,)
    groups = {row["id"]: group(row, key) for row in runs[0].rows}
    of = np.array([groups[name] for name in sorted(groups)])
    if not any(of):
        raise PredictionsError(f"{runs[0].name}: no row has {key!r}; name a field that the questions have.")
    some = {name or f"(no {key})": right[of == name] for name in sorted(set(of))} | {"all": right}
    return {name: _summed(share) for name, share in some.items()}


def _summed(share: np.ndarray) -> Tries:
    """Sum up (n,) shares of right tries, one per question."""
    unbounded = (100 * float(share[0]), float("nan"), float("nan"))
    over = stats.over_questions(100 * share) if len(share) > 1 else unbounded
    return Tries(Rate(int((share == 0).sum()), len(share)), over)


def markdown(found: dict[str, Tries], number: int, key: str = "question_relation") -> str:
    """Write the counts as Markdown."""
    head = f"| {escape.markdown(key)} | questions | wrong in all {number} tries (%) [95 %] | right, of all tries (%) |"
    lines = [head, "|---|---|---|---|"]
    lines += [
        f"| {escape.markdown(name)} | {made.never.n} | {made.never} | {interval(made.right)} |"
        for name, made in found.items()
    ]
    return "\n".join(lines) + "\n"

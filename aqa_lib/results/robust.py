"""Tell how far a score hangs on the order of the choices and the words of the instruction.

`evaluate --robust -> [robust] -> score`. Two rates over the variants in which every question is asked, both from
arXiv 2510.04584: correctness, the mean over questions of the share of variants that are answered rightly; consistency,
the mean over questions of the share of pairs of variants that get the same answer. There the questions and choices are
paraphrased by a language model; here only the instruction is, in fixed words (`prompt.REWORDED`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from .. import prompt
from ..predictions import ORDERS, WORDINGS, Predictions, control_path, meta_path, read
from . import stats
from .comparison import check_beside, interval, known, paired

KINDS = {"order of the choices": ORDERS, "words of the instruction": WORDINGS}


@dataclass(frozen=True)
class Robustness:
    """One kind of change. variants: how often each question was asked, as in the run itself included.

    correct, consistent: percent, with bounds over questions. scores: percent right of each variant, the run's first.
    """

    name: str
    variants: int
    n: int
    correct: tuple[float, float, float]
    consistent: tuple[float, float, float]
    scores: tuple[float, ...]

    @property
    def moves(self) -> float:
        """How far the score moves: its highest minus its lowest, in points."""
        return max(self.scores) - min(self.scores)

    def to_dict(self) -> dict:
        """Return everything as plain numbers, for JSON."""
        rates = {"correctness_rate": known(self.correct), "consistency_rate": known(self.consistent)}
        return {"variants": self.variants, "n": self.n, **rates, "scores": list(self.scores), "moves": self.moves}


def measure(name: str, runs: Sequence[Predictions], rule: str = "official") -> Robustness:
    """Measure the same questions asked in several ways; the first run is the one that the others vary."""
    right = paired(runs, rule)  # (variants, n)
    said = [{row["id"]: prompt.normalise(row["prediction"]) for row in run.rows} for run in runs]
    ids = sorted({one for answers in said for one in answers})
    pairs = list(combinations(range(len(runs)), 2))
    same = [[_same(said[a], said[b], one) for one in ids] for a, b in pairs]  # (pairs, n)
    scores = tuple(100 * float(score) for score in right.mean(1))
    correct, consistent = (_over_questions(100 * np.mean(shares, 0)) for shares in (right, same))
    return Robustness(name, len(runs), right.shape[1], correct, consistent, scores)


def _same(a: Mapping[str, str], b: Mapping[str, str], name: str) -> bool:
    return name in a and name in b and a[name] == b[name]


def _over_questions(shares: np.ndarray) -> tuple[float, float, float]:
    return stats.over_questions(shares) if len(shares) > 1 else (float(shares[0]), float("nan"), float("nan"))


def beside(path: str | Path) -> list[Robustness]:
    """Measure what `evaluate --robust` left next to a file of predictions, one kind after the other, then all.

    Raises PredictionsError for a file that was made with another model or other settings.
    """
    if not meta_path(path).exists():
        return []
    run, found, everything = read(path), [], []
    for name, variants in KINDS.items():
        others = [read(file) for variant in variants if (file := control_path(path, variant)).exists()]
        for other in others:
            check_beside(run, other)
        everything += others
        found += [measure(name, [run, *others])] if others else []
    return [*found, measure("both", [run, *everything])] if len(found) > 1 else found


def markdown(found: Sequence[Robustness]) -> str:
    """Write the rates as a small table."""
    lines = [
        "| changed | asked | correctness rate | consistency rate | scores | moves by |",
        "|---|---|---|---|---|---|",
    ]
    for some in found:
        rates = f"{interval(some.correct)} | {interval(some.consistent)}"
        scores = ", ".join(f"{score:.1f}" for score in some.scores)
        lines.append(f"| {some.name} | {some.variants} times | {rates} | {scores} | {some.moves:.1f} |")
    lines += ["", "Correctness: mean share of right answers. Consistency: mean share of pairs with the same answer."]
    return "\n".join(lines) + "\n"

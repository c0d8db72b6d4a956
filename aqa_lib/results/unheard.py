"""Count the questions that a model gets wrong in every one of several tries, by what their answer is about.

`evaluate --decoding sample, once a seed -> [unheard]`. AVQA's answers were written by people who watched the video, and
how many of them cannot be heard is unknown. A trained model that never gives the label, however often it is asked, is
the best sign of such a label that can be had without listening; it is an upper bound, because the question may simply
be too hard for the model. `question_relation` (Sound, View or Both) tells the two apart: what can be heard should be
right at least once. On the tiny world the truth is known, so the sign can be checked (`data/results/unheard.json`).
"""

from collections.abc import Sequence

from .. import escape
from ..predictions import Predictions, PredictionsError, group
from .comparison import paired
from .scoring import Rate


def never_right(runs: Sequence[Predictions], key: str = "question_relation", rule: str = "strict") -> dict[str, Rate]:
    """Count the questions that no run gets right, by the group that `key` names, and "all" of them.

    runs: of one model, on the same questions, sampled with different seeds. Raises PredictionsError for fewer than two
    runs, runs that sampled alike, and questions without the key.
    """
    if len(runs) < 2:
        raise PredictionsError("one file is one try: give several, sampled with different seeds.")
    seeds = [run.settings.get("seed") for run in runs]
    if None in seeds or len(set(seeds)) < len(seeds):
        raise PredictionsError(
            f"the files' sampling seeds are {', '.join(map(str, seeds))}: make each with --decoding sample and a "
            "--seed of its own; the same answers twice are one try."
        )
    missed = ~paired(runs, rule).any(0)  # (n,)
    groups = {row["id"]: group(row, key) for row in runs[0].rows}
    of = [groups[name] for name in sorted(groups)]
    if not any(of):
        raise PredictionsError(f"{runs[0].name}: no row has {key!r}; name a field that the questions have.")
    names = sorted(set(of))
    counts = {name: [bool(m) for m, g in zip(missed, of, strict=True) if g == name] for name in names}
    counts["all"] = [bool(m) for m in missed]
    return {name or f"(no {key})": Rate(sum(some), len(some)) for name, some in counts.items()}


def markdown(found: dict[str, Rate], tries: int, key: str = "question_relation") -> str:
    """Write the counts as Markdown."""
    lines = [f"| {escape.markdown(key)} | questions | wrong in all of {tries} tries (%) [95 %] |", "|---|---|---|"]
    lines += [f"| {escape.markdown(name)} | {rate.n} | {rate} |" for name, rate in found.items()]
    return "\n".join(lines) + "\n"

"""Read what the methods' trials measured, and show it: accuracy, wrong labels, entropy left, time.

`course.methods -> [methods] -> docs/laboratory.md`. One line of `methods.jsonl` is one training, with one sign for each
test question ("1" right, "0" wrong).
"""

from collections.abc import Sequence

import numpy as np

from .comparison import interval
from .dose import difference, percent, read, table

__all__ = ["labelled", "markdown", "read", "vote"]

NAMES = {
    "grpo": "GRPO", "dr-grpo": "Dr. GRPO", "clip-higher": "GRPO, clip-higher", "dynamic": "GRPO, dynamic sampling",
    "overlong": "GRPO, overlong filtering", "dapo": "DAPO (all three, token mean)", "gspo": "GSPO", "cispo": "CISPO",
    "rloo": "RLOO", "reinforce": "REINFORCE, batch baseline",
}  # fmt: skip
UNLABELLED = {
    "format-only": "format alone, no labels", "majority": "majority vote and format, no labels",
    "grpo": "GRPO, right labels",
}  # fmt: skip
RATE = 2e-4  # of the methods' trials


def _verdicts(rows: Sequence[dict]) -> np.ndarray:
    return np.array([[sign == "1" for sign in row["last"]] for row in sorted(rows, key=lambda row: row["seed"])])


def _shared(rows: Sequence[dict], others: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """Keep the rows of seeds that both have."""
    seeds = {row["seed"] for row in rows} & {row["seed"] for row in others}
    rows, others = ([row for row in some if row["seed"] in seeds] for some in (rows, others))
    return rows, others


def labelled(rows: Sequence[dict]) -> list[dict]:
    """List the methods that learn from labels: percent right, also minus GRPO's on the same seeds, and means."""
    found = []
    for method, name in NAMES.items():
        row: dict = {"method": name}
        for wrong, words in ((0.0, "right labels"), (0.3, "30 % wrong")):
            some, base = (
                [row for row in rows if (row["method"], row["wrong"], row["rate"]) == (which, wrong, RATE)]
                for which in (method, "grpo")
            )
            row[words] = f"{interval(percent(_verdicts(some)))} ({len(some)})" if some else ""
            some, base = _shared(some, base)
            against = some and method != "grpo"
            row[f"{words}, minus GRPO"] = (
                interval(difference(_verdicts(some), _verdicts(base)), signed=True) if against else ""
            )
        mine = [row for row in rows if row["method"] == method and row["rate"] == RATE]
        if mine:
            found.append(row | _means(mine))
    return found


def vote(rows: Sequence[dict], base: str) -> list[dict]:
    """List the trainings on their own majority's answer; base: the untrained model's verdicts."""
    before = np.array([[sign == "1" for sign in base]])
    found = [{"training": "base, untrained", "rate": "", "right": interval(percent(before)), "gain": ""}]
    sound = [row for row in rows if row["wrong"] == 0]
    for method, name in UNLABELLED.items():
        for rate in sorted({row["rate"] for row in sound if row["method"] == method}):
            some = [row for row in sound if row["method"] == method and row["rate"] == rate]
            verdicts = _verdicts(some)
            row = {
                "training": name,
                "rate": f"{rate:g}",
                "right": f"{interval(percent(verdicts))} ({len(some)})",
                "gain": interval(difference(verdicts, before), signed=True),
            }
            found.append(row | _means(some))
    keys = [*found[-1]]
    return [{key: row.get(key, "") for key in keys} for row in found]


def _means(rows: Sequence[dict]) -> dict:
    """Average what was measured beside the verdicts, over all of a method's trainings."""

    def mean(name: str) -> float:
        return float(np.mean([row[name] or 0.0 for row in rows]))

    return {
        "entropy left (nats per token)": f"{mean('entropy'):.3f}",
        "groups that agree": f"{mean('agreeing'):.0%}",
        "tokens clipped": f"{mean('clipped'):.1%}",
        "steps": f"{mean('steps_taken'):.0f}",
        "seconds": f"{mean('seconds'):.0f}",
    }


def markdown(rows: Sequence[dict]) -> str:
    """Write both tables as Markdown; percent right [95 % over questions] (seeds)."""
    bases = [row["last"] for row in rows if row["method"] == "base"]
    return f"{table(labelled(rows))}\n\n{table(vote(rows, bases[0]) if bases else [])}\n"

"""Read what the laboratory measured, and show it: accuracy against wrong labels, learning rate and questions seen.

`course.lab -> [dose] -> notebook 04, README`. One line of `dose.jsonl` is one training run, with one digit per test
question ("1" right, "0" wrong), for its last weights and for the checkpoint that held-out questions chose.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ..runtime.errors import AqaError
from . import stats
from .comparison import interval
from .plotting import METHOD_COLOURS, STYLE, Picture

DOSE, RATE, STEPS = 0.3, 1e-4, 150  # in a curve that varies something else
FIXED = {"wrong": DOSE, "rate": RATE, "steps": STEPS}
NAMES = {
    "sft": "SFT", "sft-lora": "SFT LoRA", "grpo": "GRPO", "sft-filtered": "SFT, medium questions", "raft": "RAFT",
    "dft": "DFT",
}  # fmt: skip
AXES = {
    "wrong": "wrong training labels (share)",
    "rate": "learning rate (30 % wrong labels)",
    "steps": "optimizer steps of 16 questions\n(30 % wrong labels)",
}


def read(file: str | Path) -> list[dict]:
    """Read the rows of finished trials; [] if there are none yet. A line that a kill cut short is left out."""
    file = Path(file)
    whole = file.read_text(encoding="utf-8") if file.exists() else ""
    try:
        return [json.loads(line) for line in whole.split("\n")[:-1]]
    except ValueError as error:
        raise AqaError(f"{file}: has a line that is not JSON; move the file away to start over.") from error


def curve(rows: Sequence[dict], method: str, along: str, weights: str = "last") -> dict[float, np.ndarray]:
    """Collect a curve: for each value of `along` ("wrong", "rate" or "steps") the verdicts, (seeds, n).

    weights: "last", or "chosen" by held-out questions. Everything else is as in `FIXED`.
    """
    fixed = {key: value for key, value in FIXED.items() if key != along}
    found: dict[float, list] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        if row["method"] == method and all(row[key] == value for key, value in fixed.items()):
            found.setdefault(row[along], []).append([sign == "1" for sign in row[weights]])
    return {value: np.array(found[value]) for value in sorted(found)}


def percent(verdicts: np.ndarray) -> tuple[float, float, float]:
    """Average verdicts, (seeds, n), in percent, with a 95 % bootstrap interval over questions."""
    return stats.over_questions(100 * verdicts.mean(0))


def plot(
    rows: Sequence[dict],
    along: Sequence[str] = ("wrong", "rate", "steps"),
    methods: Sequence[str] = ("sft", "sft-lora", "grpo"),
    path: str | Path | None = None,
) -> Figure:
    """Plot accuracy along each axis: last weights as lines with 95 % intervals over questions, held-out choice dashed.

    Each small dot is one seed. Saves to `path` if given.
    """
    with rc_context(STYLE | {"svg.hashsalt": "aqa_lib"}):
        figure = Picture(figsize=(4 * len(along) + 1.5, 3.6), layout="constrained")
        axes = figure.subplots(1, len(along), sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, along, strict=True):
            for method in methods:
                colour = METHOD_COLOURS[method]
                last, chosen = (curve(rows, method, name, weights) for weights in ("last", "chosen"))
                if not last:
                    continue
                mean, low, high = np.array([percent(verdicts) for verdicts in last.values()]).T
                spread = np.maximum([mean - low, high - mean], 0)
                axis.errorbar([*last], mean, spread, color=colour, marker="o", capsize=3, label=NAMES[method])
                axis.plot([*chosen], [100 * v.mean() for v in chosen.values()], "--", color=colour, linewidth=1)
                seeds = [(x, 100 * seed.mean()) for x, verdicts in last.items() for seed in verdicts]
                axis.scatter(*zip(*seeds, strict=True), s=8, color=colour, alpha=0.5, zorder=3)
            axis.set(xlabel=AXES[name], xscale="linear" if name == "wrong" else "log")
        axes[0].set_ylabel("right test answers (percent)")
        found = [axis.get_legend_handles_labels() for axis in axes]
        names = {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}
        axes[-1].legend(names.values(), names, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        if path:
            figure.savefig(path, metadata={"Date": None} if Path(path).suffix == ".svg" else None)
    return figure


def points(rows: Sequence[dict], along: str, methods: Sequence[str] = ("sft", "sft-lora", "grpo")) -> list[dict]:
    """List a curve's points for a table: percent right with 95 % interval, and GRPO minus SFT if both exist."""
    curves = {method: curve(rows, method, along) for method in methods}
    found_rows = []
    for value in sorted({value for found in curves.values() for value in found}):
        row = {along: f"{value:g}"}
        for method, found in curves.items():
            verdicts = found.get(value)
            row[NAMES[method]] = "" if verdicts is None else f"{interval(percent(verdicts))} ({len(verdicts)})"
        found = _difference(rows, ("grpo", "last"), ("sft", "last"), along, value)
        row["GRPO - SFT"] = interval(found, signed=True) if found else ""
        found_rows.append(row)
    return found_rows


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Subtract verdicts, (seeds, n) each, in points, with a paired 95 % bootstrap interval over questions."""
    return stats.paired_bootstrap(100 * a.mean(0), 100 * b.mean(0))


def _difference(rows: Sequence[dict], a: tuple, b: tuple, along: str, value: float) -> tuple | None:
    """Subtract two (method, weights) at a point of a curve, over the seeds that both have; None without any."""
    fixed = FIXED | {along: value}
    at = [row for row in rows if all(row[key] == fixed[key] for key in fixed)]
    seeds = {row["seed"] for row in at if row["method"] == a[0]} & {row["seed"] for row in at if row["method"] == b[0]}
    both = [row for row in at if row["seed"] in seeds]
    return difference(*(curve(both, method, along, weights)[value] for method, weights in (a, b))) if seeds else None


def repaired(rows: Sequence[dict]) -> list[dict]:
    """List SFT and its repairs at 30 % wrong labels next to GRPO: percent right, and the difference to GRPO."""
    found_rows = []
    for method, weights in [
        ("grpo", "last"), ("sft", "last"), ("sft", "chosen"), ("sft-lora", "last"), ("sft-filtered", "last"),
        ("raft", "last"), ("dft", "last"),
    ]:  # fmt: skip
        verdicts = curve(rows, method, "wrong", weights).get(DOSE)
        against = _difference(rows, (method, weights), ("grpo", "last"), "wrong", DOSE)
        if against is None:
            continue
        name = NAMES[method] + (", stopped early" if weights == "chosen" else "")
        row = {"method": name, "right": interval(percent(verdicts)), "seeds": len(verdicts)}
        if method != "grpo":
            points, low, high = against
            verdict = "ties" if low <= 0 <= high else "wins" if low > 0 else "loses"
            row |= {"minus GRPO": interval((points, low, high), signed=True), "against GRPO": verdict}
        found_rows.append({key: row.get(key, "") for key in ("method", "right", "seeds", "minus GRPO", "against GRPO")})
    return found_rows


def mechanism(rows: Sequence[dict]) -> list[dict]:
    """List what each method's trainings left behind at 30 % wrong labels: means over seeds."""
    found_rows = []
    for method, name in NAMES.items():
        some = [row for row in rows if row["method"] == method and "kl" in row]
        if not some:
            continue
        asked = sum(row["wrong_asked"] for row in some)
        found_rows.append(
            {
                "method": name,
                "wrong label repeated": f"{100 * sum(row['wrong_repeated'] for row in some) / asked:.1f} %",
                "right answer given": f"{100 * sum(row['wrong_righted'] for row in some) / asked:.1f} %",
                "KL to the base (nats per token)": f"{np.mean([row['kl'] for row in some]):.2f}",
                "captions less likely by (nats per token)": f"{np.mean([row['captions_lost'] for row in some]):.3f}",
                "seeds": len(some),
            }
        )
    return found_rows


def markdown(rows: Sequence[dict]) -> str:
    """Write all tables as Markdown; percent right [95 % over questions] (seeds)."""
    parts = []
    for along in FIXED:
        parts += [table(points(rows, along)), ""]
    parts += [table(repaired(rows)), "", table(mechanism(rows))]
    return "\n".join(parts) + "\n"


def table(rows: Sequence[Mapping]) -> str:
    """Write rows with the same keys as Markdown."""
    if not rows:
        return "(not run)"
    lines = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row.values()))} |" for row in rows)])

"""Read what was measured on real recordings, and show it: sounds that were trained on, what else changed, the labels.

`course.real -> [real] -> notebook 08, docs/real_recordings.md`. One line of `real.jsonl` is one trial, with one digit
for each test question ("1" right, "0" wrong), and `alignment.json` is the report of `assembly.align`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from .comparison import interval
from .dose import difference, percent, read, table
from .plotting import METHOD_COLOURS, PAGE, STYLE, Picture
from .scoring import Rate

__all__ = [
    "choose",
    "ears",
    "gains",
    "hearing",
    "markdown",
    "plot",
    "rates",
    "read",
    "scores",
    "spent",
    "unsaid",
    "verdicts",
]

NAMES = {"grpo": "GRPO", "sft": "SFT"}
TASKS = ("sound", "speech", "music", "all")
OUTSIDE, ENGLISH = "none of the choices", "English (nats per token)"
WITHOUT = {"silence": "base, silence instead of sound", "any_of_8": "base, right in one of 8 tries"}


def _base(rows: Sequence[dict]) -> dict | None:
    return next((row for row in rows if row["method"] == "base"), None)


def choose(rows: Sequence[dict]) -> dict[str, float]:
    """Choose each method's rate by its held-out questions, with seed 0 and right labels; the gentler of equals."""
    found: dict[str, tuple[int, float]] = {}
    for row in rows:
        if row["method"] in NAMES and (row["seed"], row["wrong"]) == (0, 0.0):
            found[row["method"]] = max(found.get(row["method"], (-1, 0.0)), (row["held_out"]["right"], -row["rate"]))
    return {method: -rate for method, (_, rate) in found.items()}


def groups(rows: Sequence[dict]) -> dict[tuple[str, float], list[dict]]:
    """Gather the seeds of each method and share of wrong labels, at the rate that was chosen."""
    found: dict[tuple[str, float], list[dict]] = {}
    for method, rate in choose(rows).items():
        mine = [row for row in rows if (row["method"], row["rate"]) == (method, rate)]
        for row in sorted(mine, key=lambda row: (row["wrong"], row["seed"])):
            found.setdefault((method, row["wrong"]), []).append(row)
    return found


def verdicts(rows: Sequence[dict], task: str = "all") -> np.ndarray:
    """Return which test answers were right, (seeds, n), of a task's questions or of all."""
    return np.array(
        [
            [sign == "1" for sign, of in zip(row["last"], row["asked"], strict=True) if task in (of, "all")]
            for row in rows
        ]
    )


def scores(rows: Sequence[dict]) -> list[dict]:
    """List what each model gets right of the test, by task, in percent [95 %]."""
    found, base = [], _base(rows)
    if base:
        heads = {"base": base["tasks"]} | {name: base[key] for key, name in WITHOUT.items()}
        for name, counts in heads.items():
            cells = {task: _rate(counts[task]) for task in TASKS if task in counts}
            outside, words = f"{base['outside']['percent']:.1f}", f"{base['english']:.2f}"
            more = {OUTSIDE: outside, ENGLISH: words} if name == "base" else {OUTSIDE: "", ENGLISH: ""}
            found.append({"model": name} | cells | more | {"seeds": ""})
    for (method, wrong), some in groups(rows).items():
        name = NAMES[method] + (f", {100 * wrong:g} % wrong labels" if wrong else "")
        cells = {task: interval(percent(verdicts(some, task))) for task in TASKS if task in some[0]["tasks"]}
        outside = np.mean([row["outside"]["percent"] for row in some])
        more = {OUTSIDE: f"{outside:.1f}", ENGLISH: f"{np.mean([row['english'] for row in some]):.2f}"}
        found.append({"model": name} | cells | more | {"seeds": len(some)})
    return found


def _rate(count: Mapping) -> str:
    return str(Rate(count["right"], count["n"]))


def gains(rows: Sequence[dict], task: str = "all") -> list[dict]:
    """List each method's gain over the base on a task's test questions, in points [95 %], and GRPO minus SFT."""
    found, base, all_groups = [], _base(rows), groups(rows)
    for (method, wrong), some in all_groups.items():
        row = {"method": NAMES[method], "wrong labels": f"{100 * wrong:g} %"}
        if base:
            start = verdicts([base], task)
            row["minus base"] = interval(difference(verdicts(some, task), start), signed=True)
            each = 100 * (verdicts(some, task).mean(1) - start.mean())
            row["by seed"] = ", ".join(f"{gain:+.1f}" for gain in each)
        other = {one["seed"]: one for one in all_groups.get(("sft", wrong), [])}
        both = [one for one in some if one["seed"] in other]
        row["minus SFT"] = ""
        if method != "sft" and both:
            against = [other[one["seed"]] for one in both]
            row["minus SFT"] = interval(difference(verdicts(both, task), verdicts(against, task)), signed=True)
        found.append(row)
    return found


def hearing(report: Mapping) -> list[dict]:
    """List an alignment's report: of each fact, what a probe hears, and what the model said before and says after."""
    found = []
    for fact, row in report["facts"].items():
        n = row["n"]
        cells = {words: _of(row[key], n) for words, key in SAID.items()}
        found.append({"fact": fact, "held-out clips": n} | cells)
    return found


SAID = {
    "the probe hears (%)": "heard", "the model says, before": "before", "after": "after",
    "always the same": "most_common",
}  # fmt: skip


def _of(right: int | None, n: int) -> str:
    return "" if right is None else str(Rate(right, n))


def plot(rows: Sequence[dict], path: str | Path | None = None) -> Figure:
    """Plot the right answers by task: the base's as a line, each method's means with 95 % intervals, seeds as dots."""
    base, all_groups = _base(rows), groups(rows)
    with rc_context(STYLE | {"svg.hashsalt": "aqa_lib"}):
        tasks = [task for task in TASKS if any(task in row["tasks"] for row in rows)]
        deep = -(-len(tasks) // 2)
        figure = Picture(figsize=(PAGE, 2.4 * deep + 0.4), layout="constrained")
        axes = figure.subplots(deep, 2, sharey=True, squeeze=False)
        for axis in axes.flat[len(tasks) :]:
            axis.set_visible(False)
        for axis, task in zip(axes.flat, tasks, strict=False):
            places = [f"{NAMES[method]}\n{100 * wrong:g} %" for method, wrong in all_groups]
            for place, ((method, _), some) in enumerate(all_groups.items()):
                right = verdicts(some, task)
                mean, low, high = percent(right)
                spread = [[max(0, mean - low)], [max(0, high - mean)]]
                axis.errorbar([place], [mean], spread, color=METHOD_COLOURS[method], marker="o", capsize=3)
                seeds = 100 * right.mean(1)
                axis.scatter([place + 0.2] * len(seeds), seeds, s=8, color=METHOD_COLOURS[method], alpha=0.5)
            if base:
                axis.axhline(100 * verdicts([base], task).mean(), color="grey", linewidth=1, linestyle="--")
            axis.set(title=task, xticks=range(len(places)), xticklabels=places, ylim=(0, 100))
        figure.supylabel("right test answers (percent)")
        figure.supxlabel("method, and its share of wrong labels; dashed: the base")
        if path:
            figure.savefig(path, metadata={"Date": None} if Path(path).suffix == ".svg" else None)
    return figure


def markdown(rows: Sequence[dict]) -> str:
    """Write all tables as Markdown."""
    parts = [table(scores(rows)), "", "All test questions:", "", table(gains(rows)), "", "Sounds alone:", ""]
    return "\n".join([*parts, table(gains(rows, "sound"))]) + "\n"


def ears(rows: Sequence[dict]) -> list[dict]:
    """List what a linear probe, fit on the alignment's clips, names of the test clips from the encoder's states."""
    heard = (_base(rows) or {}).get("heard", {})
    return [{"fact": fact, "test clips": row["n"], "the probe names (%)": _rate(row)} for fact, row in heard.items()]


def unsaid(rows: Sequence[dict]) -> list[dict]:
    """List how many right and wrong training labels the base says in none of eight tries: those teach GRPO nothing."""
    counts = (_base(rows) or {}).get("unsaid", {})
    never = "never said in 8 tries (%)"
    return [{"training label": label, "questions": row["n"], never: _rate(row)} for label, row in counts.items()]


def rates(rows: Sequence[dict]) -> list[dict]:
    """List what chose the rates: with seed 0 and right labels, held-out and test questions right, in percent [95 %]."""
    chosen, found = choose(rows), []
    for row in rows:
        if row["method"] in NAMES and (row["seed"], row["wrong"]) == (0, 0.0):
            mark = " (chosen)" if row["rate"] == chosen[row["method"]] else ""
            cells = {"held-out sounds": _rate(row["held_out"]), "test sounds": _rate(row["tasks"]["sound"])}
            found.append({"method": NAMES[row["method"]], "rate": f"{row['rate']:g}{mark}"} | cells)
    return found


def spent(rows: Sequence[dict]) -> list[dict]:
    """List what the trials took: mean seconds a step and a trial, and the most memory."""
    found = []
    for method, name in NAMES.items():
        some = [row for row in rows if row["method"] == method]
        if some:
            step, whole = (np.mean([row[key] or 0 for row in some]) for key in ("step_seconds", "seconds"))
            most = max(row["gigabytes"] for row in some)
            cells = {"seconds a step": f"{step:.1f}", "minutes a trial, with its tests": f"{whole / 60:.1f}"}
            found.append({"method": name, "trials": len(some)} | cells | {"GB": f"{most:.1f}"})
    return found

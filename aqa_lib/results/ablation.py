"""Ask whether thinking aloud helps: prompt 2 against prompt 3, from finished files alone.

`grpo -> evaluation -> comparison -> [ablation]`. Reads predictions (one file per seed) and, from the folder named like
the file without its suffix, what training wrote there: `metrics.csv` and `completions.jsonl`. The paper shows curves of
one run each and says that thinking does not help; here every number has an interval, and two questions that the paper
leaves open are added: does the thought lead to the answer, and what did it cost?
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import predictions, reward
from ..predictions import Predictions
from ..runtime.escape import figure as label_of
from ..runtime.escape import markdown as text_of
from . import comparison, stats
from .plotting import STYLE, Picture, colour_of, read_metrics, smooth
from .scoring import data_version, judge
from .thoughts import agreement, relation, thought

NONE = (float("nan"),) * 3  # no value, no interval
Bounds = tuple[float, float, float]  # mean, low, high
Series = tuple[np.ndarray, np.ndarray]  # steps, values
CURVES = {  # what is followed over training: its label, and the names it has in metrics.csv
    "accuracy reward": ("rewards/accuracy/mean", "rewards/faithful_accuracy/mean"),
    "format reward": tuple(f"rewards/{f}{k}/mean" for f in ("", "faithful_") for k in ("format", "think_format")),
    "group deviation": ("reward_std",),
    "groups of equal rewards": ("frac_reward_zero_std",),
    "answer length (tokens)": ("completions/mean_length",),
    "answers cut": ("completions/clipped_ratio",),
}


@dataclass(frozen=True)
class Arm:
    """One way of asking: runs that differ only in their seeds, and where they were trained (the base: nowhere)."""

    name: str
    recipe: comparison.Recipe
    folders: tuple[Path, ...]

    @property
    def runs(self) -> tuple[Predictions, ...]:
        return self.recipe.runs


def gather(files: Iterable[str | Path], rule: str = "official") -> list[Arm]:
    """Read predictions on the same questions, and group the seeds of each method and prompt."""
    runs = [predictions.read(file) for file in files]
    if not runs:
        raise predictions.PredictionsError("nothing to compare; give predictions of prompt 2 and of prompt 3.")
    arms = []
    for recipe in comparison.recipes_of(runs, rule):
        first = recipe.runs[0]
        name = comparison.describe(first) if first.labels.get("method") else recipe.name
        folders = (Path(run.name).with_suffix("") for run in recipe.runs)
        arms.append(Arm(name, recipe, tuple(folder for folder in folders if (folder / "metrics.csv").is_file())))
    return arms


def by_length(arm: Arm, bins: int = 3, rule: str = "official") -> list[tuple[int, int, int, Bounds]]:
    """Measure accuracy by the length of the thought: (shortest, longest, replies, percent right) for each bin.

    Lengths are in words; bins hold roughly equal numbers of replies, and equal lengths stay together. Hard questions
    may draw long thoughts, so this says what goes with length, not what length does.
    """
    rows = [(len(thought(row["model_output"]).split()), row) for run in arm.runs for row in run.rows]
    rows = [(length, row) for length, row in rows if length]
    if not rows:
        return []
    lengths = np.array([length for length, _ in rows])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1]))
    place, found = np.searchsorted(edges, lengths), []
    for number in np.unique(place):
        inside = [row for (_, row), here in zip(rows, place, strict=True) if here == number]
        bounds = _over_questions((row["id"], 100.0 * judge(row, rule)) for row in inside)
        found.append((*(int(f(lengths[place == number])) for f in (min, max)), len(inside), bounds))
    return found


# -- the table --------------------------------------------------------------------------------------------------------


def measure(arm: Arm, rule: str = "official") -> dict[str, Bounds]:
    """Measure an arm on the test questions: name to (mean, low, high), 95 % over questions; NaN if unknown."""

    def over(value: Callable[[dict], float | None]) -> Bounds:
        rows = ((row["id"], value(row)) for run in arm.runs for row in run.rows)
        return _over_questions((name, number) for name, number in rows if number is not None)

    formed = reward.form_of(arm.runs[0].settings.get("style"))

    def related(*kinds: str) -> Bounds:
        known = ((row["id"], relation(row["model_output"], row["choices"])) for run in arm.runs for row in run.rows)
        return _over_questions((name, 100.0 * (kind in kinds)) for name, kind in known if kind)

    seconds = [run.meta["seconds"] / len(run.rows) for run in arm.runs if "seconds" in run.meta]
    return {
        f"accuracy, {rule} rule (%)": arm.recipe.over_questions,
        "accuracy over seeds (%)": arm.recipe.over_seeds if len(arm.runs) > 1 else NONE,
        "replies in the form asked for (%)": over(lambda row: 100 * formed([None], [row["model_output"] or ""])[0]),
        "replies cut off at the maximum length (%)": over(lambda row: 100.0 * (not row.get("ended", True))),
        "reply (tokens)": over(lambda row: row.get("tokens")),
        "thought (words)": over(lambda row: len(thought(row["model_output"]).split()) or None),
        "thought names the answer given (%)": related("alone", "among"),
        "thought names it and no other choice (%)": related("alone"),
        "thought names only other choices (%)": related("others"),
        "time per question (s)": _over_seeds(seconds),
    }


def measure_training(arm: Arm) -> dict[str, Bounds]:
    """Measure an arm's training: name to (mean, low, high), 95 % over seeds; {} if it was not trained."""
    if not arm.folders:
        return {}
    logs = [read_metrics(folder / "metrics.csv") for folder in arm.folders]
    found: dict[str, Bounds] = {}
    for label in CURVES:
        if series := _series(logs, label):
            found[f"{label}, first step"] = _over_seeds([values[0] for _, values in series])
            last = [values[-max(1, len(values) // 5) :].mean() for _, values in series]
            found[f"{label}, last fifth"] = _over_seeds(last)
    steps = [log["step_time"] for log in logs if "step_time" in log]
    found["training time (min)"] = _over_seeds([spent(*series) / 60 for series in steps])
    lengths = [log["completions/mean_length"] for log in logs if "completions/mean_length" in log]
    found["training answer (tokens, mean)"] = _over_seeds([spent(*s) / s[0][-1] for s in lengths])
    tokens = [log["num_tokens"][1][-1] / 1e6 for log in logs if "num_tokens" in log]
    found["training tokens (millions)"] = _over_seeds(tokens)
    return {name: bounds for name, bounds in found.items() if not np.isnan(bounds[0])}


def _series(logs: Sequence[dict[str, Series]], label: str) -> list[Series]:
    """Take one of `CURVES` from every log that has it, by the first of its names."""
    found = (next((log[name] for name in CURVES[label] if name in log), None) for log in logs)
    return [series for series in found if series is not None]


def spent(steps: Sequence[float], values: Sequence[float]) -> float:
    """Add up, over all steps, a mean that was logged every few steps.

    >>> spent([1, 10], [2.0, 3.0])
    29.0
    """
    return float(np.sum(np.diff(steps, prepend=0) * values))


def _over_questions(values: Iterable[tuple[str, float]]) -> Bounds:
    """Average (question, value) for each question, then over the questions, with a bootstrap interval."""
    by_question: dict[str, list[float]] = defaultdict(list)
    for name, value in values:
        by_question[name].append(value)
    means = [float(np.mean(found)) for _, found in sorted(by_question.items())]
    if len(means) < 2:
        return (means[0], *NONE[1:]) if means else NONE
    return stats.over_questions(means)


def _over_seeds(values: Sequence[float]) -> Bounds:
    return stats.over_seeds(values) if len(values) else NONE


def markdown(arms: Sequence[Arm], rule: str = "official") -> str:
    """Format arms side by side: the test, training, accuracy by length of thought, and paired tests of all pairs."""
    first = arms[0].runs[0]
    lines = ["# Does thinking aloud help?", "", f"{text_of(data_version(first))}, {len(first.rows)} questions.", ""]
    lines += _columns("test, mean [95 % over questions]", arms, [measure(arm, rule) for arm in arms])
    training = [measure_training(arm) for arm in arms]
    if any(training):
        lines += _columns("training, mean [95 % over seeds]", arms, training)
    for arm in arms:
        if groups := by_length(arm, rule=rule):
            lines += [
                f"{text_of(arm.name)}: accuracy by length of thought",
                "",
                "| words | replies | right (%) |",
                "|---" * 3 + "|",
            ]
            lines += [f"| {a} to {b} | {n} | {comparison.interval(bounds)} |" for a, b, n, bounds in groups]
            lines += [""]
    if len(arms) > 1:
        pairs = [comparison.difference(b.recipe, a.recipe) for a, b in combinations(arms, 2)]
        names = [f"{text_of(b.name)} - {text_of(a.name)}" for a, b in combinations(arms, 2)]
        lines += ["| difference | points | p | p, corrected |", "|---" * 4 + "|"]
        for name, d, corrected in zip(names, pairs, stats.holm([d.p for d in pairs]), strict=True):
            points = comparison.interval((d.points, d.low, d.high), signed=True)
            lines.append(f"| {name} | {points} | {stats.p_text(d.p)} | {stats.p_text(corrected)} |")
        lines += [""]
    lines += ["A thought names a choice that appears in it word for word. Times depend on the machine."]
    return "\n".join(lines) + "\n"


def _columns(title: str, arms: Sequence[Arm], columns: Sequence[dict[str, Bounds]]) -> list[str]:
    """Write one table with a column per arm; rows that no arm has are left out."""
    names = dict.fromkeys(name for column in columns for name in column)
    lines = [f"| {title} | {' | '.join(text_of(arm.name) for arm in arms)} |", "|---" * (len(arms) + 1) + "|"]
    for name in names:
        cells = ["" if np.isnan(column.get(name, NONE)[0]) else _number(column[name]) for column in columns]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _number(bounds: Bounds) -> str:
    """Write (mean, low, high) with as many digits as its size calls for.

    >>> _number((0.1234, 0.1, 0.2)), _number((12.34, float("nan"), float("nan")))
    ('0.123 [0.100, 0.200]', '12.3')
    """
    digits = 1 if bounds[0] == 0 or abs(bounds[0]) >= 10 else 2 if abs(bounds[0]) >= 1 else 3
    mean, low, high = (f"{value:.{digits}f}" for value in bounds)
    return mean if np.isnan(bounds[1]) else f"{mean} [{low}, {high}]"


# -- the figure -------------------------------------------------------------------------------------------------------


def plot(arms: Sequence[Arm], path: str | Path | None = None, rule: str = "official") -> Figure:
    """Draw training curves, agreement, and accuracy by length of thought and by cost; saves to `path` if given."""
    with rc_context(STYLE | {"svg.hashsalt": "aqa_lib"}):  # the same files give the same bytes
        figure = Picture(figsize=(8, 10), layout="constrained")  # two in a row: legible on a narrow page
        axes = figure.subplots(4, 2)
        panels = {label: label for label in CURVES if label != "groups of equal rewards"}
        panels |= {"accuracy reward": "accuracy reward (0 to 1)", "format reward": "format reward (0 to 1)"}
        panels |= {"group deviation": "deviation of the reward\nwithin a group", "answers cut": "answers cut (0 to 1)"}
        for axis, (label, words) in zip(axes.flat, panels.items(), strict=False):
            for place, arm in enumerate(arms):
                colour = colour_of(arm.name, place)
                logs = [read_metrics(folder / "metrics.csv") for folder in arm.folders]
                _band(axis, _series(logs, label), arm.name, colour)
            axis.set(xlabel="optimizer step", ylabel=words)
        agrees, length, cost = axes.flat[5:8]
        for place, arm in enumerate(arms):
            colour = colour_of(arm.name, place)
            _band(agrees, [s for folder in arm.folders if len((s := agreement_curve(folder))[0])], arm.name, colour)
            if groups := by_length(arm, rule=rule):
                _points(length, [(a + b) / 2 for a, b, *_ in groups], [g[-1] for g in groups], arm.name, colour, "o-")
            tokens = measure(arm, rule)["reply (tokens)"]
            if not np.isnan(tokens[0]):
                _points(cost, [tokens[0]], [arm.recipe.over_questions], arm.name, colour, "o")
        agrees.set(
            xlabel="optimizer step", ylabel="sampled thoughts that name\nthe answer given (0 to 1)", ylim=(0, 1.05)
        )
        length.set(xlabel="length of the thought (words)", ylabel="right (percent, 95 %)")
        cost.set(xlabel="length of the reply (tokens)", ylabel="right (percent, 95 %)")
        cost.legend(frameon=False, fontsize="small")
        if path:
            figure.savefig(path, metadata={"Date": None} if Path(path).suffix == ".svg" else None)
    return figure


def agreement_curve(folder: Path) -> Series:
    """Follow agreement over training: steps, and the share of one group's thoughts that name the answer given."""
    file, steps, values = folder / "completions.jsonl", [], []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        row = json.loads(line)
        found = agreement((text, row["choices"]) for text in row["completions"])
        if found.n:
            steps.append(row["step"] + 1)
            values.append((found.alone + found.among) / found.n)
    return np.array(steps), np.array(values)


def _band(axis: Axes, series: Sequence[Series], name: str, colour: str) -> None:
    """Draw the mean over seeds at the steps that all of them have, with its 95 % interval over seeds."""
    if not series:
        return
    steps = sorted(set.intersection(*({int(step) for step in steps} for steps, _ in series)))
    table = np.array([[dict(zip(map(int, s), v, strict=True))[step] for step in steps] for s, v in series])
    if len(steps) > 40:
        table = np.array([smooth(row) for row in table])
    if not steps:
        return
    axis.plot(steps, table.mean(0), color=colour, label=label_of(name))
    if len(table) > 1:
        _, low, high = np.array([stats.over_seeds(column) for column in table.T]).T
        axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set_ylim(*_limits(axis, table))


def _limits(axis: Axes, table: np.ndarray) -> tuple[float, float]:
    """Let the seeds set the range: an interval from few seeds may be far wider than anything observed."""
    seen = [line.get_ydata() for line in axis.lines] + [table.ravel()]
    low, high = min(map(np.min, seen)), max(map(np.max, seen))
    margin = 0.1 * (high - low) or 0.1
    return low - margin, high + margin


def _points(axis: Axes, x: Sequence[float], bounds: Sequence[Bounds], name: str, colour: str, form: str) -> None:
    mean, low, high = np.array(bounds, dtype=float).T
    spread = np.nan_to_num([mean - low, high - mean])
    axis.errorbar(x, mean, np.maximum(spread, 0), fmt=form, color=colour, capsize=3, markersize=4, label=label_of(name))


def write(files: Iterable[str | Path], folder: str | Path, rule: str = "official") -> list[Arm]:
    """Write `ablation.md` and `ablation.svg` into a folder; see `gather` for the files."""
    arms, folder = gather(files, rule), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plot(arms, folder / "ablation.svg", rule)
    text = markdown(arms, rule) + "\n![the ablation](ablation.svg)\n"
    (folder / "ablation.md").write_text(text, encoding="utf-8", newline="\n")
    return arms

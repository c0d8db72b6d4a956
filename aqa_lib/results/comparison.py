"""Compare finished runs on the same questions: which differences are real, and what the controls say.

`scoring -> [comparison] -> report`. Runs that differ only in their seeds are one recipe. A difference between
two recipes is called real if, corrected for all pairs looked at, it is larger than other questions would
explain (McNemar's exact test; a permutation test if there are several seeds) and, with several seeds, larger
than other seeds would explain (Welch's test). The paper compares single runs by their scores alone.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from .. import prompt
from ..predictions import CONTROLS, WITHOUT_SOUND, Predictions, PredictionsError, control_path, meta_path, read
from ..runtime.escape import markdown
from . import stats
from .scoring import Rate, data_version, judge, questions_of

SIGNIFICANT = 0.05
SEEDS = ("train_seed", "seed")  # of training, of sampling


@dataclass(frozen=True)
class Recipe:
    """Runs that differ only in their seeds. right: (seeds, n), per question; untrained: no seed has touched it."""

    name: str
    runs: tuple[Predictions, ...]
    right: np.ndarray
    untrained: bool

    @property
    def seeds(self) -> list[float]:
        """Percent right, one number per seed."""
        return [100 * float(mean) for mean in self.right.mean(1)]

    @property
    def over_questions(self) -> tuple[float, float, float]:
        """Mean and interval over questions: Wilson for one run, a bootstrap of the questions for several."""
        if len(self.runs) == 1:
            rate = Rate(int(self.right.sum()), self.right.shape[1])
            return rate.percent, *rate.interval
        return stats.over_questions(100 * self.right.mean(0))

    @property
    def over_seeds(self) -> tuple[float, float, float]:
        """Mean and interval over seeds, on these questions; the bounds are NaN for one run."""
        return stats.over_seeds(self.seeds)


@dataclass(frozen=True)
class Difference:
    """Recipe a minus recipe b in points; p: the larger of the two below, p_holm: corrected for all pairs."""

    a: str
    b: str
    points: float
    low: float
    high: float
    p_questions: float
    p_seeds: float
    p: float
    p_holm: float = float("nan")

    @property
    def real(self) -> bool:
        return self.p_holm < SIGNIFICANT


@dataclass(frozen=True)
class Comparison:
    """Recipes on the same questions, and the differences between all pairs of them."""

    data: str
    n: int
    rule: str
    recipes: tuple[Recipe, ...]
    differences: tuple[Difference, ...]

    def to_dict(self) -> dict:
        """Return everything as plain numbers and strings, for JSON; what is not known is None."""
        recipes = [
            {
                "name": recipe.name,
                "files": [run.name for run in recipe.runs],
                "percent_by_seed": recipe.seeds,
                "over_questions": list(recipe.over_questions),
                "over_seeds": known(recipe.over_seeds),
            }
            for recipe in self.recipes
        ]
        differences = [
            {k: v if isinstance(v, str) else known([v])[0] for k, v in asdict(d).items()} | {"real": d.real}
            for d in self.differences
        ]
        return {"data": self.data, "n": self.n, "rule": self.rule} | {
            "recipes": recipes,
            "differences": differences,
        }

    def markdown(self) -> str:
        """Format it as two tables and a few lines on how to read them."""
        lines = [f"{markdown(self.data)}, {self.n} questions, {self.rule} rule, percent [95 % interval]", ""]
        lines += ["| run | seeds | over questions | over seeds |", "|---|---|---|---|"]
        for recipe in self.recipes:
            over_seeds = interval(recipe.over_seeds) if len(recipe.runs) > 1 else "one run"
            questions = interval(recipe.over_questions)
            lines.append(f"| {markdown(recipe.name)} | {len(recipe.runs)} | {questions} | {over_seeds} |")
        if self.differences:
            lines += ["", "| difference | points | p | p, corrected | real |", "|---|---|---|---|---|"]
        for d in self.differences:
            points = interval((d.points, d.low, d.high), signed=True)
            verdict = "yes" if d.real else "no"
            p = f"{stats.p_text(d.p)} | {stats.p_text(d.p_holm)}"
            lines.append(f"| {markdown(d.a)} - {markdown(d.b)} | {points} | {p} | {verdict} |")
        lines += ["", "Over questions: what other questions would change."]
        lines += ["Over seeds: what other seeds would change (Student's t)."]
        if self.differences:
            lines += [
                f"Real: Holm-corrected p < {SIGNIFICANT} in a paired test over questions and, where there",
                "are several seeds, over seeds too. Points: bootstrap over questions.",
            ]
        alone = [r.name for r in self.recipes if len(r.runs) == 1 and not r.untrained]
        if len(self.recipes) > 1 and alone:
            lines.append(f"One seed only, so nothing is known about other seeds: {markdown(', '.join(alone))}.")
        return "\n".join(lines) + "\n"


def interval(values: Sequence[float], signed: bool = False) -> str:
    """Write (mean, low, high) as text.

    >>> interval((12.34, -1, 20), signed=True), interval((50.0, float("nan"), float("nan")))
    ('+12.3 [-1.0, +20.0]', '50.0')
    """
    if math.isnan(values[0]):
        return "–"  # there is none
    mean, low, high = (f"{value:+.1f}" if signed else f"{value:.1f}" for value in values)
    return mean if math.isnan(values[1]) else f"{mean} [{low}, {high}]"


def known(values: Sequence[float]) -> list[float | None]:
    """Give numbers for JSON, which has no nan: None in its place."""
    return [None if math.isnan(value) else float(value) for value in values]


def verdicts(run: Predictions, rule: str = "official") -> dict[str, bool]:
    """Judge every row, by id; raises PredictionsError if answers are withheld or ids occur twice."""
    rights = {row["id"]: judge(row, rule) for row in run.rows}
    if len(rights) < len(run.rows):
        raise PredictionsError(f"{run.name}: ids occur twice, so its rows cannot be paired; make them unique.")
    if not all(row["answer"] for row in run.rows):
        raise PredictionsError(f"{run.name}: answers are withheld, so nothing can be compared.")
    return rights


def paired(runs: Sequence[Predictions], rule: str = "official") -> np.ndarray:
    """Judge runs on the same questions: (runs, n) bool; a question that a run has not reached counts as wrong.

    Raises PredictionsError unless all runs answer the same questions: two versions never share a table.
    """
    for other in runs[1:]:
        if questions_of(other) != questions_of(runs[0]):
            raise PredictionsError(
                f"{runs[0].name} is on {data_version(runs[0])} and {other.name} on {data_version(other)}: "
                "different questions never share a table; score them separately."
            )
    rights = [verdicts(run, rule) for run in runs]
    ids = sorted({name for right in rights for name in right})
    return np.array([[right.get(name, False) for name in ids] for right in rights])


def recipes_of(runs: Sequence[Predictions], rule: str = "official") -> tuple[Recipe, ...]:
    """Group runs that differ only in their seeds, in the order of their first runs.

    Runs belong together if their metadata names the same `method` and the same settings. Raises
    PredictionsError if a run is given twice.
    """
    right, groups = paired(runs, rule), {}
    for index, run in enumerate(runs):
        method = run.labels.get("method")
        alike = (
            "style",
            "audio",
            "shuffle_choices",
            "decoding",
            "temperature",
            "max_completion_length",
            "scale",
        )
        kind = (method, *((run.settings | run.labels).get(key) for key in alike)) if method else (run.name,)
        groups.setdefault(kind, []).append(index)
    recipes = []
    for members in groups.values():
        first = runs[members[0]]
        seeds = [(runs[i].labels.get("train_seed"), runs[i].settings.get("seed")) for i in members]
        if len(set(seeds)) < len(seeds):
            names = ", ".join(runs[i].name for i in members)
            raise PredictionsError(
                f"{names}: these {describe(first)} runs have a seed in common; give each seed once, and use "
                "another method name for what was trained differently."
            )
        name, method = Path(first.name).name.removesuffix(".jsonl"), first.labels.get("method")
        name = describe(first) if method and len(members) > 1 else name
        recipes.append(Recipe(name, tuple(runs[i] for i in members), right[members], method == "base"))
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):  # files of the same name in several folders: say what they are, or else where
        names = [describe(r.runs[0]) if r.runs[0].labels.get("method") else r.runs[0].name for r in recipes]
        names = names if len(set(names)) == len(names) else [r.runs[0].name for r in recipes]
        recipes = [replace(recipe, name=name) for recipe, name in zip(recipes, names, strict=True)]
    return tuple(recipes)


def describe(run: Predictions) -> str:
    """Name a run by its method, its prompt and what was done to its input."""
    settings = run.settings
    extra = [f"{settings['audio']} audio"] if settings.get("audio", "heard") != "heard" else []
    extra += ["shuffled choices"] if settings.get("shuffle_choices") is not None else []
    extra += ["sampled"] if settings.get("decoding") == "generation_config" else []
    return ", ".join([str(run.labels.get("method", "")), f"prompt {settings.get('style')}", *extra])


def difference(a: Recipe, b: Recipe) -> Difference:
    """Compare two recipes, question by question."""
    of_a, of_b = 100 * a.right.mean(0), 100 * b.right.mean(0)
    points, low, high = stats.paired_bootstrap(of_a, of_b)
    if len(a.runs) == len(b.runs) == 1:
        p_questions, p_seeds = stats.mcnemar(a.right[0], b.right[0]), float("nan")
    else:
        p_questions = stats.permutation(of_a, of_b)
        many, few = (a, b) if len(a.runs) > 1 else (b, a)
        p_seeds = stats.between_seeds(many.seeds, few.seeds, untrained=few.untrained and len(few.runs) == 1)
    p = p_questions if math.isnan(p_seeds) else max(p_questions, p_seeds)
    return Difference(a.name, b.name, points, low, high, p_questions, p_seeds, p)


def compare(runs: Sequence[Predictions | str | Path], rule: str = "official") -> Comparison:
    """Compare runs, or files of them, on the same questions; the top of this module says what "real" means.

    Raises PredictionsError if the questions differ, answers are withheld, or a run is given twice.
    """
    runs = [run if isinstance(run, Predictions) else read(run) for run in runs]
    if not runs:
        raise PredictionsError("nothing to compare; give two or more files of predictions.")
    recipes = recipes_of(runs, rule)
    differences = [difference(b, a) for a, b in combinations(recipes, 2)]  # the later minus the earlier
    corrected = stats.holm([d.p for d in differences])
    differences = [replace(d, p_holm=p) for d, p in zip(differences, corrected, strict=True)]
    return Comparison(data_version(runs[0]), recipes[0].right.shape[1], rule, recipes, tuple(differences))


@dataclass(frozen=True)
class Control:
    """One control of a run. difference: run minus control, in points; changed: answers whose text differs.

    where_wrong: how the run does on the questions that the control gets wrong. Where the control is silence, these are
    the questions that the model itself cannot answer without the sound.
    """

    name: str
    official: Rate
    difference: tuple[float, float, float]
    changed: Rate
    where_wrong: Rate

    def to_dict(self) -> dict:
        rates = {name: getattr(self, name).to_dict() for name in ("official", "changed", "where_wrong")}
        return rates | {"difference": list(self.difference)}


def check_beside(run: Predictions, other: Predictions) -> None:
    """Raise PredictionsError unless a file next to a run is the same model's, on the same questions."""
    same = ("weights", "questions", "style", "decoding", "max_completion_length")
    if strange := [key for key in same if other.settings.get(key) != run.settings.get(key)]:
        raise PredictionsError(
            f"{other.name}: is not a control of {run.name} ({', '.join(strange)} differ); run it again."
        )


def controls(path: str | Path) -> list[Control]:
    """Measure the controls next to a file of predictions, as `evaluation.predict_controls` writes them.

    Raises PredictionsError for a control that was made with another model or other settings.
    """
    if not meta_path(path).exists():
        return []
    run, found = read(path), []
    for name in CONTROLS:
        beside = control_path(path, name)
        if not beside.exists():
            continue
        other = read(beside)
        check_beside(run, other)
        ours, theirs = paired([run, other])
        there = {row["id"]: row["prediction"] for row in other.rows}
        both = [(row["prediction"], there[row["id"]]) for row in run.rows if row["id"] in there]
        changed = sum(prompt.normalise(a) != prompt.normalise(b) for a, b in both)
        points = stats.paired_bootstrap(100 * ours, 100 * theirs)
        where_wrong = Rate(int(ours[~theirs].sum()), int((~theirs).sum()))
        found.append(Control(name, Rate(int(theirs.sum()), len(theirs)), points, Rate(changed, len(both)), where_wrong))
    return found


def controls_markdown(found: Sequence[Control]) -> str:
    """Format all controls; one without a file reads "not run"."""
    lines = ["| control | official rule | run minus control | run, where the control is wrong | answers changed |"]
    lines += ["|---|---|---|---|---|"]
    made = {control.name: control for control in found}
    for name in CONTROLS:
        if control := made.get(name):
            points, where = interval(control.difference, signed=True), control.where_wrong
            last = f"{where} of {where.n}" if name in WITHOUT_SOUND else ""
            lines.append(f"| {name} | {control.official} | {points} | {last} | {control.changed} |")
        else:
            lines.append(f"| {name} | not run | | | |")
    return "\n".join(lines) + "\n"

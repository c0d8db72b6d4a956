"""Put the paper's table next to ours, gathered from result files: Markdown, CSV and a plot with intervals.

`comparison -> [report]`. The paper's figures are typed once, in `paper`, and marked as theirs; none of ours is
typed: a row without a result file reads "not run". Figures on different questions never share a table, so
theirs stand next to ours only on the version of MMAU Test-mini on which they were measured. What the paper
says about their order is tested on any data (`findings`).
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from statsmodels.stats.proportion import confint_proportions_2indep

from ..predictions import CONTROLS, Predictions, PredictionsError, group, meta_path, read
from ..runtime import escape
from . import mmau, stats
from .comparison import Difference, Recipe, controls, difference, interval, recipes_of
from .paper import FINDINGS, THEIR_N, THEIRS, Theirs
from .plotting import COLOURS, INK, PAGE, STYLE, Picture
from .scoring import data_version, questions_of, score

TASKS = ("sound", "music", "speech")
NOT_RUN = "not run"


@dataclass(frozen=True)
class Row:
    """One row of a table. status: "theirs", "ours" or "not run"; figures: percent by task and "average"."""

    name: str
    status: str
    figures: dict[str, float] = field(default_factory=dict)
    over_questions: tuple[float, float, float] | None = None
    over_seeds: tuple[float, float, float] | None = None
    by_seed: tuple[float, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)  # n, seeds, model, data, commit, date, ...
    replies: dict[str, str] = field(default_factory=dict)  # strict, format, unreadable, controls
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Finding:
    """One claim of the paper. theirs: their difference in points with an interval from their figures."""

    claim: str
    theirs: tuple[float, float, float]
    ours: Difference | None
    verdict: str


@dataclass(frozen=True)
class Table:
    """All rows on the same questions."""

    data: str
    rule: str
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()


def gather(sources: Iterable[str | Path]) -> list[Predictions]:
    """Read the result files among `sources`: files of predictions, and folders that are searched for ours.

    Controls are left to their runs, and files with withheld answers are left out. Raises PredictionsError for a
    source that does not exist, or a named file that does not say how it was made.
    """
    files = []
    for source in map(Path, sources):
        if source.is_dir():
            records = sorted(source.rglob(f"*{meta_path('')}"))
            files += [
                path for record in records if (path := Path(str(record).removesuffix(str(meta_path(""))))).exists()
            ]
        elif meta_path(source).exists():
            files.append(source)
        else:
            raise PredictionsError(
                f"{source}: neither a folder nor a predictions file with its .meta.json; use score for predictions "
                "made elsewhere."
            )
    runs = [read(file) for file in dict.fromkeys(files) if file.stat().st_size]
    plain = {"audio": "heard", "shuffle_choices": None}
    runs = [run for run in runs if all(run.settings.get(key) == value for key, value in plain.items())]
    return [run for run in runs if all(row["answer"] for row in run.rows)]


def build(runs: Sequence[Predictions], rule: str = "official") -> list[Table]:
    """Make one table for each set of questions; the paper's own version comes first, with their figures in it."""
    by_data: dict[str, list[Predictions]] = {}
    for run in runs:
        by_data.setdefault(questions_of(run), []).append(run)
    tables = [_table(of_one, rule) for of_one in by_data.values()]
    if not any(table.data == mmau.OLD for table in tables):
        tables.append(_table([], rule))
    return sorted(tables, key=lambda table: table.data != mmau.OLD)


def _table(runs: Sequence[Predictions], rule: str) -> Table:
    data = data_version(runs[0]) if runs else mmau.OLD
    rows = [_ours(recipe, rule) for recipe in (recipes_of(runs, rule) if runs else ())]
    ordered, taken = [], {}
    for theirs in THEIRS:
        if data == mmau.OLD:
            figures = {**{task: getattr(theirs, task) for task in TASKS}, "average": theirs.average}
            low, high = stats.wilson(round(theirs.average / 100 * THEIR_N), THEIR_N)
            bounds = (theirs.average, 100 * low, 100 * high)
            ordered.append(Row(theirs.name, "theirs", figures, bounds, facts={"n": str(THEIR_N)}))
        if theirs.method is None:
            continue
        fitting = [row for row in rows if _fits(row, theirs) and row not in taken.values()]
        for row in fitting:
            taken.setdefault(theirs.name, row)
            ordered.append(replace(row, name=_name(theirs, data, row)))
        if not fitting:
            ordered.append(Row(_name(theirs, data), NOT_RUN))
    left = [row for row in rows if not any(row.recipe is other.recipe for other in ordered)]
    notes = tuple(f"{run.name}: {note}" for run in runs for note in score(run).notes)
    return Table(data, rule, (*ordered, *left), _findings(taken), notes)


def _name(theirs: Theirs, data: str, row: Row | None = None) -> str:
    """Name our row after theirs, but for their model's name on other data, and for another prompt with SFT."""
    name = theirs.name if data.startswith("MMAU") else theirs.name.removeprefix("Qwen2-Audio, ")
    style = row.recipe.runs[0].settings["style"] if row else 1
    return name if theirs.style or style == 1 else f"{name}, ours with prompt {style}"


def _fits(row: Row, theirs: Theirs) -> bool:
    run = row.recipe.runs[0]
    return run.labels.get("method") == theirs.method and theirs.style in (None, run.settings.get("style"))


def _ours(recipe: Recipe, rule: str) -> Row:
    """Turn the runs of one recipe into a row; every figure comes from their files."""
    first, scores = recipe.runs[0], [score(run) for run in recipe.runs]
    tasks = {row["id"]: group(row, "task") for row in first.rows}
    of = np.array([tasks[name] for name in sorted(tasks)])
    right = 100 * recipe.right.mean(0)
    figures = {task: float(right[of == task].mean()) for task in dict.fromkeys((*TASKS, *of)) if (of == task).any()}
    figures["average"] = float(right.mean())

    def each(values: Iterable) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))

    made = [run.meta.get("environment", {}) for run in recipe.runs]
    facts = {
        "n": str(recipe.right.shape[1]),
        "seeds": each(run.labels.get("train_seed", run.settings.get("seed")) for run in recipe.runs),
        "model": each(run.labels.get("model") for run in recipe.runs),
        "scale": each(run.labels.get("scale") for run in recipe.runs),
        "data": data_version(first),
        "data sha256": each((run.settings.get("data_sha256") or questions_of(run))[:12] for run in recipe.runs),
        "commit": each((e.get("commit") or "unknown")[:10] + (" + changes" if e.get("dirty") else "") for e in made),
        "date": each(run.meta.get("finished", "unfinished")[:10] for run in recipe.runs),
        "files": each(Path(run.name).name for run in recipe.runs),
    }
    replies = {
        rule: _mean(getattr(s, key).percent for s in scores)
        for rule, key in (("strict", "strict"), ("format", "tagged"), ("unreadable", "unreadable"))
    }
    replies |= {"first choice": f"{scores[0].first_choice:.1f}", "uniform guess": f"{scores[0].uniform:.1f}"}
    beside = [{control.name: control for control in controls(run.name)} for run in recipe.runs]
    for name in CONTROLS:
        found = [of_run[name] for of_run in beside if name in of_run]
        replies[name] = _mean(control.official.percent for control in found)
        if name == "shuffled":
            replies["answers changed"] = _mean(control.changed.percent for control in found)
        if name == "silent":
            replies["where silence is wrong"] = _mean(control.where_wrong.percent for control in found)
    return Row(
        recipe.name,
        "ours",
        figures,
        recipe.over_questions,
        recipe.over_seeds,
        tuple(recipe.seeds),
        facts,
        replies,
        recipe,
    )


def _mean(values: Iterable[float]) -> str:
    values = list(values)
    return f"{sum(values) / len(values):.1f}" if values else NOT_RUN


def _findings(taken: dict[str, Row]) -> tuple[Finding, ...]:
    """Test the paper's claims on our runs, Holm-corrected for all that could be tested."""
    figures = {theirs.name: theirs.average for theirs in THEIRS}
    pairs = [(a, b) for _, a, b, _ in FINDINGS]
    made = {(a, b): difference(taken[a].recipe, taken[b].recipe) for a, b in pairs if a in taken and b in taken}
    corrected = stats.holm([d.p for d in made.values()])
    made = {pair: replace(d, p_holm=p) for (pair, d), p in zip(made.items(), corrected, strict=True)}
    found = []
    for claim, a, b, sign in FINDINGS:
        counts = [round(figures[name] / 100 * THEIR_N) for name in (a, b)]
        low, high = confint_proportions_2indep(counts[0], THEIR_N, counts[1], THEIR_N, method="newcomb")
        theirs, ours = (figures[a] - figures[b], 100 * low, 100 * high), made.get((a, b))
        found.append(Finding(claim, theirs, ours, _verdict(ours, sign)))
    return tuple(found)


def _verdict(ours: Difference | None, sign: int) -> str:
    if ours is None:
        return NOT_RUN
    if ours.real:
        return "holds" if ours.points * sign > 0 else "does not hold"
    return "not shown" if sign > 0 else "holds: no gain is shown"


def markdown(tables: Sequence[Table]) -> str:
    """Write the tables as Markdown; see `build`."""
    lines = ["# The paper next to ours", ""]
    lines += [
        "Percent right [95 % interval]. Theirs: R1-AQA, arXiv 2503.11197; their intervals are computed here",
        f"from their averages over {THEIR_N} questions. Ours: gathered from result files. Over questions:",
        "what other questions would change. Over seeds: what other training seeds would (Student's t).",
    ]
    for table in tables:
        lines += ["", f"## {escape.markdown(table.data)} ({table.rule} rule)", "", *scores(table)]
        ours = [row for row in table.rows if row.status == "ours"]
        for title, key in (("Replies and controls, ours", "replies"), ("Where ours come from", "facts")):
            if ours:
                names = list(getattr(ours[0], key))
                lines += [
                    "",
                    f"### {title}",
                    "",
                    f"| row | {' | '.join(names)} |",
                    "|---" * (len(names) + 1) + "|",
                ]
                for row in ours:
                    cells = map(escape.markdown, (row.name, *getattr(row, key).values()))
                    lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "### Findings", "", *claims(table)]
        lines += ["", *(f"Note: {escape.markdown(note)}" for note in table.notes)] if table.notes else []
    return "\n".join(lines) + "\n"


def title(table: Table) -> str:
    """Write what a table is about, as Markdown."""
    return f"**{escape.markdown(table.data)}**"


def scores(table: Table) -> list[str]:
    """Write a table's rows as lines of Markdown."""
    tasks = list(dict.fromkeys(task for row in table.rows for task in row.figures if task != "average")) or list(TASKS)
    head = [
        "row",
        "whose",
        *(escape.markdown(task) or "(no task)" for task in tasks),
        "average, over questions",
        "over seeds",
        "n",
        "seeds",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in table.rows:
        cells = [f"{row.figures[task]:.1f}" if task in row.figures else "" for task in tasks]
        over_seeds = interval(row.over_seeds) if len(row.by_seed) > 1 else ""
        average = interval(row.over_questions) if row.over_questions else ""
        seeds = f"{len(row.by_seed)}" if row.by_seed else ""
        cells = [escape.markdown(row.name), row.status, *cells, average, over_seeds, row.facts.get("n", ""), seeds]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def claims(table: Table) -> list[str]:
    """Write what became of the paper's claims as lines of Markdown.

    Their differences are left out if the table is on another version of the same test.
    """
    lines = [
        "| the paper says | their points | our points | p, corrected | ours says |",
        "|---|---|---|---|---|",
    ]
    other_version = table.data.startswith("MMAU") and table.data != mmau.OLD
    for finding in table.findings:
        theirs = "on another version" if other_version else interval(finding.theirs, signed=True)
        ours, p = NOT_RUN, ""
        if finding.ours:
            ours = interval((finding.ours.points, finding.ours.low, finding.ours.high), signed=True)
            p = stats.p_text(finding.ours.p_holm)
        lines.append(f"| {finding.claim} | {theirs} | {ours} | {p} | {finding.verdict} |")
    lines += [
        "",
        f"Their points: on {mmau.OLD}, one run each; the interval treats their two runs as unpaired.",
    ]
    return lines


def csv_text(tables: Sequence[Table]) -> str:
    """Write all rows as one CSV, with the data named in each; "not run" rows have no figures."""
    rows = []
    for table in tables:
        for row in table.rows:
            made = {
                "data": table.data,
                "rule": table.rule,
                "row": row.name,
                "status": row.status,
            } | row.figures
            for name, bounds in (("questions", row.over_questions), ("seeds", row.over_seeds)):
                if bounds and not math.isnan(bounds[1]):
                    made |= {f"low over {name}": bounds[1], f"high over {name}": bounds[2]}
            extra = {key: value for key, value in row.facts.items() if key != "data"} | row.replies
            rows.append(made | {key: "" if value == NOT_RUN else value for key, value in extra.items()})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return file.getvalue()


def plot(tables: Sequence[Table], path: str | Path | None = None) -> Figure:
    """Draw the averages with their intervals over questions, one panel per table; saves to `path` if given."""
    shown = [(table, [row for row in table.rows if row.figures]) for table in tables]
    shown = [(table, rows) for table, rows in shown if rows]
    heights = [len(rows) + 2 for _, rows in shown]
    with rc_context(STYLE):
        figure = Picture(figsize=(PAGE, 0.3 * sum(heights)), layout="constrained")
        axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
        for (table, rows), ax in zip(shown, axes, strict=True):
            for whose, marker, colour, face in (
                ("theirs", "s", INK, "none"),
                ("ours", "o", COLOURS[0], COLOURS[0]),
            ):
                places = [(place, row) for place, row in enumerate(rows) if row.status == whose]
                if not places:
                    continue
                y, bounds = [place for place, _ in places], np.array([row.over_questions for _, row in places])
                spread = [bounds[:, 0] - bounds[:, 1], bounds[:, 2] - bounds[:, 0]]
                style = {"fmt": marker, "color": colour, "markerfacecolor": face, "capsize": 3}
                ax.errorbar(bounds[:, 0], y, xerr=np.maximum(spread, 0), label=whose, **style)
                seeds = [(value, place) for place, row in places if len(row.by_seed) > 1 for value in row.by_seed]
                if seeds:
                    ax.scatter(*zip(*seeds, strict=True), s=14, color=COLOURS[1], zorder=3, label="one seed")
            ax.set_yticks(range(len(rows)), [escape.figure(row.name) for row in rows])
            ax.invert_yaxis()
            ax.set(xlim=(-2, 102), xlabel="right answers, percent (95 % interval over questions)")
            ax.set_title(escape.figure(table.data))
            ax.legend(loc="lower left", fontsize="small", frameon=False)
            ax.grid(axis="x", alpha=0.3)
    if path:
        with rc_context({"svg.hashsalt": "aqa_lib"}):  # the same rows give the same bytes
            figure.savefig(path, metadata={"Date": None} if Path(path).suffix == ".svg" else None)
    return figure


def write(sources: Iterable[str | Path], folder: str | Path, rule: str = "official") -> list[Table]:
    """Gather result files and write `report.md`, `report.csv` and `report.svg` into a folder."""
    tables = build(gather(sources), rule)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plot(tables, folder / "report.svg")
    (folder / "report.csv").write_text(csv_text(tables), encoding="utf-8", newline="\n")
    (folder / "report.md").write_text(markdown(tables) + "\n![averages](report.svg)\n", encoding="utf-8", newline="\n")
    return tables

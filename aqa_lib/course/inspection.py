"""Look at a run's errors one by one: listen, read, compare with another run, and note the cause.

Last step of the flow: `evaluation -> causes -> [inspection]`. Plain functions select rows and write them as HTML;
`browse` only puts controls around them. The paper gives accuracies and shows no error. Whatever comes from a model, a
question or a file name goes through `escape.html` and is shown as text, so that a reply such as
`<img src=x onerror=...>` is read and not run.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import ipywidgets as widgets

from .. import audio, predictions, prompt
from ..dataset import Question
from ..escape import NO_MATH, html, plain
from ..evaluation import choice_probabilities
from ..predictions import Predictions, group
from ..results import comparison, plotting
from ..results.causes import CAUSES, UNTAGGED, is_choice, kind, read_tags, tag
from ..runtime.errors import AqaError
from . import show

KINDS = ("wrong", "unreadable", "right", "all")
PAIRS = ("all", "both right", "only A", "only B", "neither")  # which of two runs is right
ORDERS = ("as asked", "longest reply first", "least sure of the right choice first")
LEFT = 'style="text-align: left"'  # Jupyter's tables are for numbers


# -- which rows ------------------------------------------------------------------------------------------------------


def pairs(a: Predictions, b: Predictions, rule: str = "official") -> dict[str, str]:
    """Say of every question which of two runs has it right: "both right", "only A", "only B", "neither".

    A question that a run has not reached is wrong. Raises PredictionsError unless both answer the same questions.
    """
    names = {(True, True): "both right", (True, False): "only A", (False, True): "only B", (False, False): "neither"}
    right = comparison.paired([a, b], rule)  # (2, n), in the order of the ids
    ids = sorted({row["id"] for run in (a, b) for row in run.rows})
    return {name: names[tuple(both)] for name, both in zip(ids, right.T.tolist(), strict=True)}


def select(
    rows: Iterable[dict],
    task: str = "all",
    wanted: str = "all",
    order: str = "as asked",
    rule: str = "official",
    probabilities: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict]:
    """Keep a task's rows of one kind (`KINDS`), in one of the `ORDERS`.

    probabilities: `choice_probabilities` by the row's id; the last order needs them. Raises ValueError for an unknown
    kind or order.
    """
    if wanted not in KINDS:
        raise AqaError(f"kind {wanted!r} is unknown; choose {', '.join(KINDS)}.")
    if order not in ORDERS:
        raise AqaError(f"order {order!r} is unknown; choose {', '.join(ORDERS)}.")
    kept = [row for row in rows if task == "all" or group(row, "task") == task]
    kept = [row for row in kept if wanted == "all" or kind(row, rule) == wanted]
    if order == "longest reply first":
        kept.sort(key=lambda row: -len(row["model_output"] or ""))
    elif order == "least sure of the right choice first":
        kept.sort(key=lambda row: (probabilities or {}).get(row["id"], {}).get(row["answer"], 1.0))
    return kept


# -- HTML ------------------------------------------------------------------------------------------------------------


def alert(sentence: object) -> str:
    """Show a sentence that says what is wrong."""
    return f'<p role="alert" {NO_MATH}><strong>Please note:</strong> <bdi>{html(sentence)}</bdi></p>'


def sound(question: Question | None) -> str:
    """Show a question's clip: player, waveform and mel; or a sentence that says why that cannot be."""
    if question is None or question.audio is None:
        return alert("no clip is known for this question; give the questions that the run was asked.")
    name = question.audio.name if isinstance(question.audio, Path) else question.id
    try:
        clip = audio.load(question.audio, question.meta.get("start"), question.meta.get("end"), name)
    except audio.AudioError as error:
        return alert(error)
    file = io.BytesIO()
    picture = plotting.sounds({"": clip})
    picture.savefig(file, format="webp", pil_kwargs={"quality": 80})  # a sixth of a PNG
    data = base64.b64encode(file.getvalue()).decode()
    label = plain(", ".join([name, f"{clip.seconds:.1f} s", *clip.notes]))
    image = f'<img alt="Waveform and mel spectrogram of {html(label)}" src="data:image/webp;base64,{data}">'
    return show.player(clip, label) + image


def card(
    question: Question | None,
    rows: Mapping[str, Mapping],
    probabilities: Mapping[str, Mapping[str, float]] | None = None,
    rule: str = "official",
) -> str:
    """Write one question as HTML: its clip, its choices, and what each run replied.

    rows: the runs' names and their rows on this question, one or more. probabilities: `choice_probabilities` by run,
    where known.
    """
    first, probabilities = next(iter(rows.values())), probabilities or {}
    about = ", ".join(
        filter(None, [str(first["id"]), *(group(first, key) for key in ("task", "difficulty", "category"))])
    )
    head = "".join(f'<th scope="col" {LEFT}><bdi>{html(name)}</bdi></th>' for name in rows)
    lines = []
    for choice in dict.fromkeys(first["choices"]):
        gold = " <strong>&#10004; right answer</strong>" if choice.strip() == first["answer"].strip() else ""
        cells = [_cell(row, choice, probabilities.get(name, {}).get(choice)) for name, row in rows.items()]
        cells = [f'<th scope="row" {LEFT[:-1]}; font-weight: normal"><bdi>{html(choice)}</bdi>{gold}</th>', *cells]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f"<article {NO_MATH}>"
        f"<p><small>Question <bdi>{html(about)}</bdi></small><br>"
        f'<strong dir="auto">{html(first["question"])}</strong></p>'
        f"{sound(question)}"
        f'<table><thead><tr><th scope="col" {LEFT}>choice</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
        f"{''.join(_reply(name, row, rule) for name, row in rows.items())}</article>"
    )


def _cell(row: Mapping, choice: str, probability: float | None) -> str:
    said = "&#9679; answered " if prompt.matches(row["prediction"], choice, row["choices"]) else ""
    share = (
        ""
        if probability is None
        else f'<meter aria-hidden="true" value="{probability:.3f}"></meter> {100 * probability:.0f} %'
    )
    return f"<td {LEFT}>{said}{share}</td>"


def _reply(name: str, row: Mapping, rule: str) -> str:
    notes = [f"{row['tokens']} tokens"] if "tokens" in row else []
    notes += ["cut at the longest length"] if row.get("ended") is False and row["model_output"] is not None else []
    notes += ["none of the choices"] if row["prediction"] and not is_choice(row) else []
    notes += [str(row["error"])] if row.get("error") else []
    reply = "<em>no reply</em>" if row["model_output"] is None else html(row["model_output"])
    return (
        f"<p><bdi>{html(name)}</bdi>: <strong>{kind(row, rule)}</strong> "
        f"<small>{html(', '.join(notes))}</small></p>"
        f'<pre dir="auto" style="white-space: pre-wrap">{reply}</pre>'
    )


def table(rows: Iterable[Mapping], rule: str = "official", causes: Mapping[str, str] | None = None) -> str:
    """List rows as an HTML table: task, question, right answer, reply, kind; and their causes, where given."""
    columns = ["task", "question", "right answer", "reply", "kind", *(["cause"] if causes is not None else [])]
    lines = []
    for row in rows:
        cells = [group(row, "task"), row["question"], row["answer"], row["model_output"] or "", kind(row, rule)]
        cells += [causes.get(row["id"], "")] if causes is not None else []
        lines.append("<tr>" + "".join(f'<td dir="auto" {LEFT}>{html(cell)}</td>' for cell in cells) + "</tr>")
    head = "".join(f'<th scope="col" {LEFT}>{column}</th>' for column in columns)
    return f"<table {NO_MATH}><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


# -- the browser -----------------------------------------------------------------------------------------------------


class Browser:
    """What `browse` shows. view: its widgets; rows: those that the controls leave; at: which of them is on the card."""

    def __init__(self, runs, questions, models, rule):
        if not runs:
            raise AqaError('there is no run to browse; give {"name": "file of predictions"}.')
        if strange := set(models) - set(runs):
            raise AqaError(f"models names {min(strange)!r}, which is none of the runs {', '.join(runs)}.")
        self.paths, self.models, self.rule = dict(runs), models, rule
        self.runs = {name: predictions.read(path) for name, path in runs.items()}
        self.questions = {question.id: question for question in questions}
        self.known = {name: {} for name in runs}  # choice_probabilities, by run and question id
        self.rows, self.at, self.card, self._filling = [], 0, "", False

        def choose(description, options):
            style = {"description_width": "initial"}
            return widgets.Dropdown(options=options, description=description, style=style)

        tasks = sorted({group(row, "task") for run in self.runs.values() for row in run.rows} - {""})
        self.run = choose("run A", list(runs))
        self.other = choose("run B", [("none", ""), *((name, name) for name in runs)])
        self.pair = choose("right", PAIRS)
        self.task = choose("task", ["all", *tasks])
        self.kind = choose("kind", KINDS)
        self.order = choose("order", ORDERS if set(models) == set(runs) else ORDERS[:-1])
        self.previous, self.next = widgets.Button(description="Previous"), widgets.Button(description="Next")
        self.place, self.saved = widgets.Label(), widgets.Label()
        self.page = widgets.HTML()
        self.cause = choose("cause", [(UNTAGGED, ""), *((name, name) for name in CAUSES)])
        self.note = widgets.Text(description="note", continuous_update=False)
        filters = [self.run, self.other, self.pair, self.task, self.kind, self.order]
        controls = [filters[:3], filters[3:], [self.previous, self.next, self.place]]
        tags = widgets.HBox([self.cause, self.note, self.saved])
        self.view = widgets.VBox([*map(widgets.HBox, controls), self.page, tags])
        for control in filters:
            control.observe(lambda change: self.act(self.filter), "value")
        for control in (self.cause, self.note):
            control.observe(lambda change: self.act(self.save), "value")
        self.previous.on_click(lambda button: self.act(self.show, self.at - 1))
        self.next.on_click(lambda button: self.act(self.show, self.at + 1))
        self.act(self.filter)

    def _repr_mimebundle_(self, **options):
        return self.view._repr_mimebundle_(**options)

    def act(self, step, *arguments) -> None:
        """Do what a control asks for; what is wrong is told above the card, since Jupyter hides a callback's error."""
        try:
            step(*arguments)
        except ValueError as error:
            self.page.value = alert(error) + self.card

    def filter(self) -> None:
        """Choose the rows that the controls ask for, and show the first."""
        self.rows, self.card, run = [], "", self.runs[self.run.value]
        self.pair.disabled = not self.other.value
        rows = select(run.rows, self.task.value, self.kind.value, rule=self.rule)
        if self.other.value and self.pair.value != "all":
            found = pairs(run, self.runs[self.other.value], self.rule)
            rows = [row for row in rows if found[row["id"]] == self.pair.value]
        known = {}
        if self.order.value == ORDERS[-1]:
            known = {row["id"]: self.probabilities(self.run.value, row) for row in rows}
        self.rows = select(rows, order=self.order.value, probabilities=known)
        self.show(0)

    def probabilities(self, name: str, row: Mapping) -> dict[str, float]:
        """Give a run's probability of each choice, computed once; {} without its model or the clip."""
        question, known = self.questions.get(row["id"]), self.known[name]
        if question is None or name not in self.models:
            return {}
        if row["id"] not in known:
            settings, question = self.runs[name].settings, replace(question, choices=tuple(row["choices"]))
            asked = settings.get("style", 2), settings.get("audio", "heard")
            try:
                known[row["id"]] = choice_probabilities(*self.models[name], question, *asked)
            except audio.AudioError:  # the card says so
                known[row["id"]] = {}
        return known[row["id"]]

    def show(self, at: int) -> None:
        """Show one of the chosen rows, and what was noted about it."""
        self.at, n = at, len(self.rows)
        self.card = self.draw(self.rows[at]) if n else "<p>No question is left; choose another task or kind.</p>"
        self.page.value, self.place.value, self.saved.value = self.card, f"{at + 1 if n else 0} of {n}", ""
        self.previous.disabled, self.next.disabled = at <= 0, at >= n - 1
        self.cause.disabled = self.note.disabled = not n
        if n:
            tags = read_tags(self.paths[self.run.value]).get(self.rows[at]["id"], {"cause": "", "note": ""})
            self._filling = True  # what the file says need not be saved
            self.cause.value, self.note.value = tags["cause"], tags["note"]
            self._filling = False

    def draw(self, row: Mapping) -> str:
        """Write a row's card, run B's reply beside run A's where there is a run B."""
        names = filter(None, (self.run.value, self.other.value))
        rows = {name: theirs for name in names for theirs in self.runs[name].rows if theirs["id"] == row["id"]}
        known = {name: self.probabilities(name, theirs) for name, theirs in rows.items()}
        return card(self.questions.get(row["id"]), rows, known, self.rule)

    def save(self) -> None:
        """Keep the cause and the note of the row on the card; they belong to run A."""
        if self.rows and not self._filling:
            self.saved.value = ""
            tag(self.paths[self.run.value], self.rows[self.at]["id"], self.cause.value, self.note.value)
            self.page.value, self.saved.value = self.card, "Saved."


def browse(
    runs: Mapping[str, str | Path],
    questions: Sequence[Question] = (),
    models: Mapping[str, tuple] | None = None,
    rule: str = "official",
) -> Browser:
    """Browse runs in a notebook: choose, listen, read, set two side by side, note causes.

    runs: names and files of predictions. questions: those that were asked, for their clips. models: each run's
    `(model, processor)`, for the probabilities of the choices; computed as questions are looked at. rule: "official" or
    "strict". Notes about run A are kept in `causes.tags_path` of its file. Raises PredictionsError for a file that
    cannot be read.
    """
    return Browser(runs, questions, models or {}, rule)

"""Put controls around a run's errors: filter, order, step, listen, compare with another run, and note the cause.

`inspection -> [browser] -> notebook 07`. Every card has a cause and a note of its own (`Tags`): what is chosen while
the next card is on its way still reaches the question that it was chosen for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .. import audio, predictions
from ..dataset import Question
from ..evaluation import choice_probabilities
from ..predictions import group
from ..results.causes import CAUSES, UNTAGGED, read_tags, tag
from ..runtime.errors import AqaError
from . import widgets
from .inspection import KINDS, ORDERS, PAIRS, TOLD, alert, card, pairs, select

RIGHT, NOT_RIGHT = ("right",), ("wrong", "unreadable", "all")
POSSIBLE = dict(zip(PAIRS, (KINDS, RIGHT, RIGHT, NOT_RIGHT, NOT_RIGHT), strict=True))  # run A's kinds in each box
KEPT = 8  # earlier cards whose cause and note still listen
WHOLE = {"description_width": "initial"}  # descriptions are not cut


def choose(description: str, options: Sequence, width: str = "auto") -> "widgets.Dropdown":
    """Make a dropdown with its whole description; options: values, or (text, value) pairs."""
    return widgets.Dropdown(
        options=options, description=description, style=WHOLE, layout=widgets.Layout(width=width, flex="1 1 auto")
    )


def with_page(view: "widgets.Widget", page: str, options: Mapping) -> dict:
    """Show a view where there is a kernel; beside it, its page as HTML, for those who read what was run elsewhere."""
    words = "<p><em>(run this cell for the controls)</em></p>"
    return {**view._repr_mimebundle_(**options), "text/html": words + page, "text/plain": "a page with controls"}


class Tags:
    """The cause and the note of one question in one run's file of predictions."""

    def __init__(self, path: str | Path, name: str):
        self.path, self.name = path, name
        self.cause = choose("cause", [(UNTAGGED, ""), *((cause, cause) for cause in CAUSES)])
        self.note = widgets.Text(description="note", continuous_update=False, style=WHOLE)
        self.note.layout = widgets.Layout(width="auto", flex="2 1 auto")

    def read(self) -> None:
        """Show what was noted before. Raises PredictionsError where the file of tags is damaged."""
        known = read_tags(self.path).get(self.name, {"cause": "", "note": ""})
        self.cause.value, self.note.value = known["cause"], known["note"]

    def listen(self, changed: Callable) -> None:
        """Call `changed(self)` when a person chooses or writes."""
        for control in (self.cause, self.note):
            control.observe(lambda change: changed(self), "value")

    def save(self) -> None:
        tag(self.path, self.name, self.cause.value, self.note.value)

    def close(self) -> None:
        self.cause.close()
        self.note.close()


class Browser:
    """What `browse` shows. view: its widgets; rows: those that the controls leave; at: which of them is on the card."""

    def __init__(self, runs, questions, models, rule):
        if not runs:
            raise AqaError('there is no run to browse; give {"name": "file of predictions"}.')
        if strange := set(models) - set(runs):
            raise AqaError(f"models names {min(strange)!r}, which is not one of the runs {', '.join(runs)}.")
        self.paths, self.models, self.rule = dict(runs), models, rule
        self.runs = {name: predictions.read(path) for name, path in runs.items()}
        self.questions = {question.id: question for question in questions}
        self.known = {name: {} for name in runs}  # choice_probabilities, by run and question id
        self.rows, self.at, self.card, self.earlier, self.narrowing = [], 0, "", [], False

        tasks = sorted({group(row, "task") for run in self.runs.values() for row in run.rows} - {""})
        self.run = choose("run A", list(runs))
        self.other = choose("run B", [("none", ""), *((name, name) for name in runs)])
        self.pair = choose("right", PAIRS)
        self.task = choose("task", ["all", *tasks])
        self.kind = choose("kind", KINDS)
        self.order = choose("order", ORDERS if set(models) == set(runs) else ORDERS[:-1])
        short = {"layout": widgets.Layout(width="7em", flex="0 0 auto")}
        self.previous = widgets.Button(description="Previous", **short)
        self.next = widgets.Button(description="Next", **short)
        self.place, self.saved = widgets.Label(), widgets.Label()
        self.page, self.tags = widgets.HTML(), Tags("", "")
        self.filters = [self.run, self.other, self.pair, self.task, self.kind, self.order]
        wrapped = {"layout": widgets.Layout(flex_flow="row wrap")}
        self.steps = widgets.HBox(**wrapped)
        self.view = widgets.VBox([widgets.HBox(self.filters, **wrapped), self.steps, self.page])
        self.view.add_class("aqa-browser")
        for control in self.filters:
            control.observe(lambda change: self.act(self.filter), "value")
        self.previous.on_click(lambda button: self.act(self.show, self.at - 1))
        self.next.on_click(lambda button: self.act(self.show, self.at + 1))
        self.act(self.filter)

    def _repr_mimebundle_(self, **options):
        return with_page(self.view, self.card, options)

    def act(self, step: Callable, *arguments) -> None:
        """Do what a control asks for; what is wrong (`TOLD`) is told above the card."""
        try:
            step(*arguments)
        except TOLD as error:
            self.page.value = alert(error) + self.card

    def filter(self) -> None:
        """Choose the rows that the controls ask for, and show the first."""
        if self.narrowing:
            return
        self.narrow()
        self.rows, run = [], self.runs[self.run.value]
        try:
            rows = select(run.rows, self.task.value, self.kind.value, rule=self.rule)
            if self.box != "all":
                found = pairs(run, self.runs[self.other.value], self.rule)
                rows = [row for row in rows if found[row["id"]] == self.box]
            if self.order.value == ORDERS[-1]:
                self.ask(rows)
            self.rows = select(rows, order=self.order.value, probabilities=self.known[self.run.value])
        finally:
            self.show(0)

    @property
    def box(self) -> str:
        """Which of the two runs has to be right; "all" where there is one run."""
        return self.pair.value if self.other.value else "all"

    def narrow(self) -> None:
        """Offer the kinds of reply that run A has in the chosen box: where only A is right, nothing of A's is wrong."""
        self.pair.disabled, possible = not self.other.value, POSSIBLE[self.box]
        if tuple(self.kind.options) != possible:
            before, self.narrowing = self.kind.value, True
            self.kind.options = possible
            self.kind.value = before if before in possible else possible[0]
            self.narrowing = False

    def ask(self, rows: Sequence[Mapping]) -> None:
        """Compute the probabilities of rows of run A; meanwhile the controls rest, and the count says how far it is."""
        name = self.run.value
        missing = [row for row in rows if row["id"] not in self.known[name]]
        with self.busy():
            for number, row in enumerate(missing):
                if number % 10 == 0:
                    self.place.value = f"asking the model: {number} of {len(missing)}"
                self.probabilities(name, row)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Disable all controls; afterwards those are enabled that were."""
        controls = [*self.filters, self.previous, self.next, self.tags.cause, self.tags.note]
        before = [control.disabled for control in controls]
        for control in controls:
            control.disabled = True
        try:
            yield
        finally:
            for control, disabled in zip(controls, before, strict=True):
                control.disabled = disabled

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
        """Show one of the chosen rows, with a cause and a note of its own."""
        self.at, n = at, len(self.rows)
        self.card = self.draw(self.rows[at]) if n else "<p>No question is left; choose another task or kind.</p>"
        self.earlier = [*self.earlier, self.tags]
        while len(self.earlier) > KEPT:
            self.earlier.pop(0).close()
        self.tags = Tags(self.paths[self.run.value], self.rows[at]["id"] if n else "")
        self.tags.cause.disabled = self.tags.note.disabled = not n
        self.previous.disabled, self.next.disabled = at <= 0, at >= n - 1
        self.place.value, self.saved.value = f"{at + 1 if n else 0} of {n}", ""
        try:
            if n:
                self.tags.read()
        finally:
            if n:
                self.tags.listen(lambda tags: self.act(self.save, tags))
            own = [self.tags.cause, self.tags.note, self.saved]
            self.steps.children = [self.previous, self.next, self.place, *own]
            self.page.value = self.card

    def draw(self, row: Mapping) -> str:
        """Write a row's card, run B's reply beside run A's where there is a run B."""
        names = filter(None, (self.run.value, self.other.value))
        rows = {name: theirs for name in names for theirs in self.runs[name].rows if theirs["id"] == row["id"]}
        known = {name: self.probabilities(name, theirs) for name, theirs in rows.items()}
        return card(self.questions.get(row["id"]), rows, known, self.rule)

    def save(self, tags: Tags) -> None:
        """Keep a cause and a note of run A's: those on the card, or those that were on it when they were chosen."""
        self.saved.value = ""
        tags.save()
        self.page.value, self.saved.value = self.card, "Saved." if tags is self.tags else "Saved for the previous card."


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

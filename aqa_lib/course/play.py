"""You against the model: ten clips, answered by ear, then the truth and what the models replied.

`predictions, inspection -> [play] -> notebooks 00, 07`. `Match` keeps the rounds and the tally and knows no widgets;
`Game` puts buttons around it. The buttons are made anew for every clip, so that a late click answers no other one.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .. import audio
from ..dataset import Question
from ..results import stats
from ..results.causes import kind
from ..runtime.errors import AqaError
from ..runtime.escape import NO_MATH, html
from . import show, widgets
from .browser import with_page
from .inspection import LEFT, TOLD, alert

ROUNDS = 10
RIGHT, WRONG = "&#10004;", "&#10008;"
YOU = "you"


class Match:
    """Rounds of one game.

    questions: to draw `rounds` from. runs: each model's rows of predictions, by the name that is shown. at: the round,
    from 0; given: your answers so far. Raises AqaError where a model has not answered a question that was drawn.
    """

    def __init__(self, questions: Sequence[Question], runs: Mapping[str, Sequence[Mapping]], rounds=ROUNDS, seed=0):
        if YOU in runs:
            raise AqaError(f'no model can be named "{YOU}" here; give the run another name.')
        if not 0 < rounds <= len(questions):
            raise AqaError(f"rounds must be between 1 and the {len(questions)} questions that there are, got {rounds}.")
        drawn = np.random.default_rng(seed).choice(len(questions), rounds, replace=False)
        self.questions = [questions[i] for i in drawn]
        self.rows = {name: {row["id"]: row for row in rows} for name, rows in runs.items()}
        for name, rows in self.rows.items():
            if missing := [question.id for question in self.questions if question.id not in rows]:
                raise AqaError(
                    f"{name} has no prediction for question {missing[0]}; give its predictions on these questions."
                )
        self.at, self.given = 0, []

    @property
    def question(self) -> Question:
        return self.questions[self.at]

    @property
    def answered(self) -> bool:
        """Whether you have answered this round."""
        return len(self.given) > self.at

    @property
    def over(self) -> bool:
        return len(self.given) == len(self.questions)

    def answer(self, choice: str) -> None:
        """Take your answer to this round; only the first counts."""
        if choice not in self.question.choices:
            raise AqaError(f"{choice!r} is not one of the choices.")
        if not self.answered:
            self.given.append(choice)

    def step(self) -> None:
        """Go on to the next round, once this one is answered."""
        if self.answered and not self.over:
            self.at += 1

    def rights(self) -> dict[str, list[bool]]:
        """Say of every player which of the rounds that you have answered it has right."""
        played = self.questions[: len(self.given)]
        mine = [question.answer == choice for question, choice in zip(played, self.given, strict=True)]
        return {YOU: mine} | {
            name: [kind(rows[question.id], "strict") == "right" for question in played]
            for name, rows in self.rows.items()
        }


def score(right: int, n: int) -> str:
    """Say a score with its 95 % interval.

    >>> score(3, 4), score(0, 0)
    ('3 of 4: 75 % [30, 95]', '-')
    """
    if not n:
        return "-"
    low, high = stats.wilson(right, n)
    return f"{right} of {n}: {100 * right / n:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def page(match: Match) -> str:
    """Write the round as HTML: question and sound; once it is answered, the truth, all answers and the tally."""
    question = match.question
    try:
        clip = audio.load(question.audio, question.meta.get("start"), question.meta.get("end"), name="the clip")
        sound = show.player(clip, f"clip {match.at + 1} of {len(match.questions)}")
    except audio.AudioError as error:
        sound = alert(error)
    asked = f'<p><strong dir="auto">{html(question.question)}</strong></p>{sound}'
    return f"<article {NO_MATH}>{asked}{_truth(match) if match.answered else ''}</article>"


def _truth(match: Match) -> str:
    """Write the truth of an answered round, and the tally up to it."""
    question, rights = match.question, match.rights()
    rows = {name: rows[question.id] for name, rows in match.rows.items()}
    said = {YOU: match.given[match.at]} | {name: row["model_output"] or "(nothing)" for name, row in rows.items()}
    lines = [
        f'<tr><th scope="row" {LEFT}>{html(name)}</th><td {LEFT}>{RIGHT if rights[name][match.at] else WRONG} '
        f"{html(said[name])}</td><td {LEFT}>{score(sum(rights[name]), len(rights[name]))}</td></tr>"
        for name in said
    ]
    head = "".join(f'<th scope="col" {LEFT}>{name}</th>' for name in ("", "said", "right so far [95 % interval]"))
    end = f"<p>{html(verdict(rights))}</p>" if match.over else ""
    return (
        f"<p>The answer is <strong>{html(question.answer)}</strong>.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>{end}"
    )


def verdict(rights: Mapping[str, Sequence[bool]]) -> str:
    """Close a game with no more than so few clips can show: McNemar's test of you against each model.

    >>> print(verdict({"you": [True] * 10, "base": [False] * 8 + [True] * 2, "grpo": [True] * 9 + [False]}))
    Between you and base the difference is more than luck (p = 0.0078). Between you and grpo 10 clips cannot decide
    (p = 1).
    """
    mine, said = rights[YOU], []
    for name, theirs in rights.items():
        if name != YOU:
            p = stats.mcnemar(mine, theirs)
            known = "the difference is more than luck" if p < 1 - stats.LEVEL else f"{len(mine)} clips cannot decide"
            said.append(f"Between you and {name} {known} (p = {p:.2g}).")
    return " ".join(said)


class Game:
    """A match with buttons: one for each choice, then the next clip, then another ten. view: its widgets."""

    def __init__(self, questions: Sequence[Question], runs: Mapping[str, Sequence[Mapping]], rounds=ROUNDS, seed=0):
        self.questions, self.runs, self.rounds, self.seed = list(questions), dict(runs), rounds, seed
        self.page, self.row = widgets.HTML(), widgets.HBox(layout=widgets.Layout(flex_flow="row wrap"))
        self.view = widgets.VBox([self.page, self.row])
        self.view.add_class("aqa-game")
        self.buttons: list[widgets.Button] = []
        self.begin()

    def _repr_mimebundle_(self, **options):
        choices = " &middot; ".join(html(button.description) for button in self.buttons)
        return with_page(self.view, f"{self.page.value}<p>{choices}</p>", options)

    def begin(self) -> None:
        """Draw the clips of a game."""
        self.match = Match(self.questions, self.runs, self.rounds, self.seed)
        self.seed += 1  # another ten next time
        self.show()

    def answer(self, choice: str) -> None:
        self.match.answer(choice)
        self.show()

    def step(self) -> None:
        self.match.step()
        self.show()

    def show(self) -> None:
        """Show the round with the buttons that it needs."""
        for button in self.buttons:
            button.close()
        if self.match.over:
            wanted = {f"Play another {self.rounds}": self.begin}
        elif self.match.answered:
            wanted = {"Next clip": self.step}
        else:
            wanted = {choice: lambda choice=choice: self.answer(choice) for choice in self.match.question.choices}
        self.buttons = [self._button(words, act, self.now) for words, act in wanted.items()]
        self.page.value, self.row.children = page(self.match), self.buttons

    @property
    def now(self) -> tuple:
        """Which game, which clip, and whether it is answered: what a button was made for."""
        return id(self.match), self.match.at, self.match.answered

    def _button(self, words: str, act: Callable, made_for: tuple) -> "widgets.Button":
        button = widgets.Button(description=words, layout=widgets.Layout(width="auto"))
        button.on_click(lambda button: self.act(act, made_for))
        return button

    def act(self, act: Callable, made_for: tuple) -> None:
        """Do what a button is for, unless its clip has passed; what is wrong (`TOLD`) is told above the round."""
        try:
            if made_for == self.now:
                act()
        except TOLD as error:
            self.page.value = alert(error) + self.page.value

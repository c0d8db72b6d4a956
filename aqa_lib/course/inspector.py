"""Step through a training: one question of a step, its answers, and what training made of them, token by token.

`training, logps -> [inspector] -> notebooks`. A run keeps one group of answers a log, in `completions.jsonl`. Here each
of them stands with its reward and its advantage, and with every token's probability before training and after. The
tokens are those of the answer's text: now and then a model writes the same text with other tokens.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import audio, inputs, loss, sft
from ..dataset import Question
from ..logps import completion_logps
from ..runtime.errors import AqaError
from ..runtime.escape import NO_MATH, html
from . import show, widgets
from .inspection import TOLD, alert

LIKELIER, LESS = "0, 114, 178", "213, 94, 0"  # blue and orange, as elsewhere
LEGEND = (
    "Under each token its probability before and after training, in percent. Blue: likelier now; orange: less likely."
)
LEFT = 'style="text-align: left; vertical-align: top"'  # Jupyter's tables are for numbers


def step_through(
    run: str | Path, questions: Sequence[Question], before: nn.Module, after: nn.Module, processor
) -> "Steps":
    """Show the groups of answers that a GRPO run kept: a slider in a notebook, a few of them on a page.

    run: the training's folder. questions: those it was trained on. before, after: the base and the trained model.
    Raises AqaError where the run has kept no answers.
    """
    return Steps(Path(run), questions, before, after, processor)


class Steps:
    """What `step_through` shows. rows: the kept groups; view: the widgets."""

    def __init__(self, run: Path, questions: Sequence[Question], before: nn.Module, after: nn.Module, processor):
        self.rows, self.style, self.scale = read(run)
        self.questions = {question.id: question for question in questions}
        self.models, self.processor = (before, after), processor
        self.page = cache(self.write)
        options = [(f"step {row['step'] + 1}", place) for place, row in enumerate(self.rows)]
        layout = {"width": "500px"}
        self.slider = widgets.SelectionSlider(options=options, continuous_update=False, layout=layout)
        self.card = widgets.HTML(self.page(0))
        self.slider.observe(lambda change: self.show(change["new"]), "value")
        self.view = widgets.VBox([self.slider, self.card])

    def _repr_mimebundle_(self, **options):
        data = self.view._repr_mimebundle_(**options)
        return data | {"text/html": self.static()}

    def show(self, place: int) -> None:
        """Show a group; what is wrong (`TOLD`) is told in its place."""
        try:
            self.card.value = self.page(place)
        except TOLD as error:
            self.card.value = alert(error)

    def static(self) -> str:
        """Write a few groups for a page that has no kernel: first, middle and last, and whose rewards differ most."""
        last = len(self.rows) - 1
        deviations = [float(loss.spread(torch.tensor([row["rewards"]], dtype=torch.float64), 1)) for row in self.rows]
        spread = max(range(1, last + 1), key=lambda place: deviations[place], default=0)
        places = sorted({0, spread, (last + 1) // 2, last})
        return "".join(
            f"<details{'' if place else ' open'}><summary>Step {self.rows[place]['step'] + 1}</summary>"
            f"{self.page(place)}</details>"
            for place in places
        )

    def write(self, place: int) -> str:
        """Write a group as HTML: the question, its clip, and a line for each answer, with how often it came."""
        row = self.rows[place]
        about = f"{row['question']} {' / '.join(row['choices'])}"
        head = f"<p><strong>{html(about)}</strong> &#183; right: <em>{html(row['answer'])}</em></p>"
        if (question := self.questions.get(row["id"])) is None:
            return _page(head, "<p>This question was not among those given, so the models cannot be asked.</p>")
        advantages = loss.group_advantages(torch.tensor([row["rewards"]]), self.scale)[0].tolist()
        answers = Counter(zip(row["completions"], row["rewards"], advantages, strict=True))
        try:
            clip = audio.load(question.audio, question.meta.get("start"), question.meta.get("end"))
            tokens, *logps = self.probabilities(question, [text for text, _, _ in answers])
        except audio.AudioError as error:
            return _page(head, f"<p>{html(error)}</p>")
        lines = "".join(
            f"<tr><td {LEFT}>{times}</td><td {LEFT}>{reward:g}</td><td {LEFT}>{advantage:+.2f}</td>"
            f"<td {LEFT}>{_answer(*parts)}</td></tr>"
            for ((_, reward, advantage), times), *parts in zip(answers.items(), tokens, *logps, strict=True)
        )
        names = "".join(f'<th scope="col" {LEFT}>{name}</th>' for name in ("times", "reward", "advantage", "answer"))
        table = f"<table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"
        return _page(head, show.player(clip), table, f"<p><small>{LEGEND}</small></p>")

    @torch.no_grad()
    def probabilities(self, question: Question, answers: Sequence[str]) -> tuple[list[list[str]], Tensor, Tensor]:
        """Return the answers' tokens as texts, and their log-probabilities before and after, (G, C) each."""
        tokenizer = self.processor.tokenizer
        ids = [tokenizer(text + sft.ending(self.processor), add_special_tokens=False).input_ids for text in answers]
        width = max(map(len, ids))
        padded = torch.tensor([[[*answer, *[0] * (width - len(answer))] for answer in ids]])  # (1, G, C)
        mask = torch.arange(width) < torch.tensor([len(answer) for answer in ids])[:, None]
        prompts = inputs.collate(self.processor, [inputs.prepare(self.processor, question, self.style)])
        logps = []
        for model in self.models:
            device, training = model.device, model.training
            model.eval()
            ended = torch.ones(1, len(ids), dtype=torch.bool, device=device)
            group = inputs.Rollouts(prompts.to(device), padded.to(device), mask[None].to(device), ended)
            logps.append(completion_logps(model, group)[0][0].cpu())
            model.train(training)
        return [[tokenizer.decode([token]) for token in answer] for answer in ids], *logps


def read(run: Path) -> tuple[list[dict], int, str]:
    """Read what a run kept: its groups, in order, its prompt style, and how it scaled advantages."""
    path, record = run / "completions.jsonl", run / "run.json"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        options = json.loads(record.read_text(encoding="utf-8"))["options"]
    except (OSError, ValueError, KeyError) as error:
        raise AqaError(
            f"{run} is not the folder of a GRPO run that kept its answers ({error}); give another."
        ) from error
    if not rows:
        raise AqaError(f"{path} holds no answers; train with log_completions, at least until the first log.")
    for row in rows:
        row["rewards"] = [math.nan if reward is None else reward for reward in row["rewards"]]
    return rows, options["prompt_style"], options["scale_rewards"]


def _page(*parts: str) -> str:
    return f"<article {NO_MATH}>{''.join(parts)}</article>"


def _answer(tokens: Sequence[str], before: Tensor, after: Tensor) -> str:
    """Write an answer token by token, and the probability of the whole of it."""
    n = len(tokens)
    parts = [_token(*part) for part in zip(tokens, before[:n].exp().tolist(), after[:n].exp().tolist(), strict=True)]
    whole = " &#8594; ".join(_percent(float(logps[:n].sum().exp())) for logps in (before, after))
    return f"{''.join(parts)}<br><small>all of it: {whole} %</small>"


def _token(token: str, before: float, after: float) -> str:
    colour = LIKELIER if after > before else LESS
    shade = f"rgba({colour}, {0.6 * abs(after - before):.2f})"
    style = f"display: inline-block; white-space: pre; padding: 0 .3em; background: {shade}"
    return f'<span style="{style}">{html(token)}<br><small>{_percent(before)} &#8594; {_percent(after)}</small></span>'


def _percent(share: float) -> str:
    """Write a share in percent.

    >>> [_percent(share) for share in (0.5, 0.004, 0.00001)]
    ['50', '0.4', '&lt; 0.1']
    """
    percent = 100 * share
    return f"{percent:.0f}" if percent >= 1 else f"{percent:.1f}" if percent >= 0.1 else "&lt; 0.1"

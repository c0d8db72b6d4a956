"""Look at a run's errors one by one: select them, and show each as a card with its sound and its replies.

Last step of the flow: `evaluation -> causes -> [inspection] -> browser`. Plain functions select rows and write them as
HTML; `browser.browse` only puts controls around them. The paper gives accuracies and shows no error. Whatever comes
from a model, a question or a file name goes through `escape.html` and is shown as text, so that a reply such as
`<img src=x onerror=...>` is read and not run.
"""

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import audio, prompt
from ..dataset import Question
from ..predictions import Predictions, group
from ..results import comparison, plotting
from ..results.causes import is_choice, kind
from ..runtime.errors import AqaError
from ..runtime.escape import NO_MATH, html, plain
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


TOLD = (ValueError, OSError)  # AqaErrors among them: what a control's callback tells on its page, as Jupyter hides it


def alert(sentence: object) -> str:
    """Show a sentence that says what is wrong."""
    return f'<p role="alert" {NO_MATH}><strong>Please note:</strong> <bdi>{html(sentence)}</bdi></p>'


def sound(question: Question | None) -> str:
    """Show a question's clips: player, waveform and mel; or a sentence that says why that cannot be."""
    if question is None or question.audio is None:
        return alert("no clip is known for this question; give the questions that the run was asked.")
    return "".join(_sound(question, source) for source in question.clips)


def _sound(question: Question, source: Path | bytes) -> str:
    """Show one of a question's clips."""
    name = source.name if isinstance(source, Path) else question.id
    try:
        clip = audio.load(source, question.meta.get("start"), question.meta.get("end"), name)
    except audio.AudioError as error:
        return alert(error)
    file = io.BytesIO()
    picture = plotting.sounds({"": clip})
    picture.savefig(file, format="webp", pil_kwargs={"quality": 80})  # a sixth of a PNG
    label = plain(", ".join([name, f"{clip.seconds:.1f} s", *clip.notes]))
    about = f'style="max-width: 100%" alt="Waveform and mel spectrogram of {html(label)}"'
    return show.player(clip, label) + f'<img {about} src="{data_url(file, "webp")}">'


def data_url(file: io.BytesIO, kind: str) -> str:
    """Put a picture into the address of an `<img>`. kind: as "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


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
        f'<div style="display: flex; flex-wrap: wrap; gap: 0 1.5em"><div>{sound(question)}</div>'
        f'<div style="flex: 1 1 20em"><table><thead><tr><th scope="col" {LEFT}>choice</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
        f"{''.join(_reply(name, row, rule) for name, row in rows.items())}</div></div></article>"
    )


def _cell(row: Mapping, choice: str, probability: float | None) -> str:
    said = "&#9679; answered " if prompt.matches(row["prediction"], choice, row["choices"]) else ""
    share = (
        ""
        if probability is None
        else f'<span style="white-space: nowrap"><meter aria-hidden="true" value="{probability:.3f}"></meter> '
        f"{100 * probability:.0f} %</span>"
    )
    return f"<td {LEFT}>{said}{share}</td>"


def _reply(name: str, row: Mapping, rule: str) -> str:
    notes = [f"{row['tokens']} tokens"] if "tokens" in row else []
    notes += ["cut off at the maximum length"] if row.get("ended") is False and row["model_output"] is not None else []
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

"""Name the causes of errors: noted by a person in a file, guessed by rule, counted with intervals.

`predictions -> scoring -> [causes] -> inspection`. The notes lie next to the predictions, by question id, and outlive
a reload, a new model and a new notebook. The paper counts right answers and says nothing about the wrong ones.
"""

import json
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from .. import prompt
from ..dataset import show
from ..predictions import Predictions, PredictionsError, group
from ..runtime import locks
from ..runtime.errors import AqaError
from ..runtime.escape import figure as label_of
from ..runtime.files import write_whole
from . import plotting
from .scoring import Rate, judge

CAUSES = {  # and how to tell
    "misheard": "the answer depends on the clip, but mistakes it for another choice",
    "ignored the audio": "the answer is the same without the clip",
    "outside the choices": "an answer was read, but it is not one of the choices",
    "unreadable form": "no answer could be read: several tags, an unclosed one, or nothing",
    "ambiguous question": "a person listening could choose the same",
    "wrong in the data": "the clip contradicts the answer marked as right",
    "other": "see the note",
}
UNTAGGED = "not tagged"


def kind(row: Mapping, rule: str = "official") -> str:
    """Say whether a row is "right", "wrong", "unreadable" (no answer could be read) or "withheld" (none is known).

    >>> kind({"prediction": "A dog.", "answer": "a dog", "choices": ["a dog", "rain"]})
    'right'
    """
    if not row["answer"]:
        return "withheld"
    if judge(row, rule):
        return "right"
    return "wrong" if row["prediction"] else "unreadable"


def is_choice(row: Mapping) -> bool:
    """Return whether what was read from a reply is one of the choices."""
    return prompt.choice_of(row["prediction"], row["choices"]) is not None


def tags_path(path: str | Path) -> Path:
    """Return the path of the tags that belong to a file of predictions."""
    return Path(f"{path}.tags.json")


def read_tags(path: str | Path) -> dict[str, dict[str, str]]:
    """Read what was noted about a file of predictions: `{id: {"cause": ..., "note": ...}}`; {} if nothing was.

    Raises PredictionsError if the file of tags is damaged.
    """
    beside = tags_path(path)
    try:
        tags = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid JSON"
        raise PredictionsError(
            f"{beside}: cannot be read ({reason}); repair it, or move it away to start over."
        ) from error
    if not isinstance(tags, dict):
        raise PredictionsError(f"{beside}: is not a JSON object of tags; repair it, or move it away to start over.")
    for name, entry in tags.items():
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("note"), str)
            or entry.get("cause") not in _allowed()
        ):
            raise PredictionsError(
                f"{beside}: {show(name)} has no note, or its cause is none of {', '.join(CAUSES)}; fix or remove it."
            )
    return tags


def _allowed() -> tuple[str, ...]:
    return ("", *CAUSES)


def tag(path: str | Path, name: str, cause: str = "", note: str = "") -> None:
    """Note the cause of an error next to a file of predictions, or remove the note ("" for both).

    name: the question's id. cause: one of `CAUSES`, or "". The file is replaced atomically, and never if it is damaged.
    Raises AqaError for an unknown cause, PredictionsError if the file cannot be read or written.
    """
    if cause not in _allowed():
        raise AqaError(f"cause {show(cause)} is unknown; choose {', '.join(CAUSES)}, and say more in the note.")
    beside = tags_path(path)
    try:
        with locks.hold(locks.beside(beside), str(beside), wait=30):
            tags = read_tags(path)  # again: another notebook may have written since
            tags.pop(name, None)
            if cause or note:
                tags[name] = {"cause": cause, "note": note}
            write_whole(beside, json.dumps(tags, indent=1))
    except OSError as error:
        raise PredictionsError(
            f"{beside}: cannot be written ({error.strerror}); make it writable, then tag again."
        ) from error


def noted(path: str | Path) -> dict[str, str]:
    """Read the causes that were noted about a file of predictions, by question id."""
    return {name: entry["cause"] for name, entry in read_tags(path).items() if entry["cause"]}


def suggest(run: Predictions, silent: Predictions | None = None, rule: str = "official") -> dict[str, str]:
    """Guess the cause of every error by rule, by question id: where to start listening, not a finding.

    silent: the same model's answers to silence; without them no error counts as "ignored the audio".
    """
    deaf = {row["id"]: prompt.normalise(row["prediction"]) for row in silent.rows} if silent else {}
    guesses = {}
    for row in run.rows:
        found = kind(row, rule)
        if found == "unreadable":
            guesses[row["id"]] = "unreadable form"
        elif found == "wrong" and not is_choice(row):
            guesses[row["id"]] = "outside the choices"
        elif found == "wrong":
            same = deaf.get(row["id"]) == prompt.normalise(row["prediction"])
            guesses[row["id"]] = "ignored the audio" if same else "misheard"
    return guesses


def count(
    run: Predictions, causes: Mapping[str, str], by: str = "task", rule: str = "official"
) -> dict[str, dict[str, Rate]]:
    """Count causes among all questions of a run: "all", and by task or another of `predictions.GROUPS`.

    causes: by question id, as `noted` and `suggest` give them; an error without one counts as "not tagged".
    """
    groups = {"all": list(run.rows)}
    for row in run.rows:
        groups.setdefault(group(row, by), []).append(row)
    errors = [row["id"] for row in run.rows if kind(row, rule) in ("wrong", "unreadable")]
    causes = dict.fromkeys(errors, UNTAGGED) | dict(causes)
    found = {causes.get(row["id"]) for row in run.rows}
    names = [name for name in (*CAUSES, UNTAGGED) if name in found]
    return {
        value: {name: Rate(sum(causes.get(row["id"]) == name for row in rows), len(rows)) for name in names}
        for value, rows in groups.items()
    }


def plot(counts: Mapping[str, Mapping[str, Rate]], path: str | Path | None = None) -> Figure:
    """Plot the share of questions lost to each cause, one mark for each task or run, with 95 % Wilson intervals.

    counts: what `count` returns (by task), or each run's "all": `{"base": count(...)["all"], ...}`. Saves to `path` if
    given.
    """
    found = {name for rates in counts.values() for name in rates}
    names = [name for name in (*CAUSES, UNTAGGED) if name in found]
    with rc_context(plotting.STYLE):
        figure = plotting.Picture(figsize=(plotting.PAGE, 1.4 + 0.5 * len(names)), layout="constrained")
        axis = figure.subplots()
        for number, ((value, rates), marker) in enumerate(zip(counts.items(), cycle("osD^v"), strict=False)):
            n = next((rate.n for rate in rates.values()), 0)
            shown = [rates.get(name, Rate(0, n)) for name in names]
            share = np.array([rate.percent for rate in shown])
            low, high = np.array([rate.interval for rate in shown]).reshape(-1, 2).T
            bounds = [np.maximum(share - low, 0), np.maximum(high - share, 0)]
            label = f"{label_of(value)} (n = {n})"
            height = np.arange(len(names)) + 0.6 * ((number + 0.5) / len(counts) - 0.5)  # side by side
            style = {"fmt": marker, "color": plotting.colour_of(value, number), "markersize": 4, "capsize": 3}
            axis.errorbar(share, height, xerr=bounds, label=label, **style)
        axis.set(xlabel="questions lost to the cause (percent)", xlim=(-1, None), yticks=range(len(names)))
        axis.set_yticklabels(names)
        axis.invert_yaxis()
        figure.legend(frameon=False, loc="outside upper center", ncols=3)
        if path:
            figure.savefig(path)
    return figure

"""Find the questions that need their sound: those that models get wrong without it.

`evaluation -> [dependence] -> prepare --audio-dependent`. Published models that are given silence are right about half
the time, and what can be answered without listening teaches no listening. AudioMCQ (arXiv 2509.21060) asks three models
with a silent clip; a question that at least two of them get right has a weak audio contribution, the others are the
strong split. Here the tries may be several models', one model's at temperature 1, or both.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from .. import evaluation
from ..dataset import Question
from ..predictions import CONTROLS, WITHOUT_SOUND
from ..runtime.errors import AqaError

TRIES = 3  # of one model, as AudioMCQ has three models


def majority(tries: int) -> int:
    """Return the least number of wrong tries that AudioMCQ's strong split asks for: 2 of 3.

    >>> [majority(tries) for tries in (1, 2, 3, 4, 5)]
    [1, 1, 2, 2, 3]
    """
    return (tries + 1) // 2


def check(models: int, tries: int, wrong: int | None, without: str) -> None:
    """Refuse numbers of tries that mean nothing; raises AqaError."""
    if tries < 1 or (wrong is not None and not 1 <= wrong <= models * tries):
        raise AqaError(f"wrong in {wrong} of {models * tries} tries: give at least 1 try, and from 1 to all of them.")
    if without not in WITHOUT_SOUND:
        raise AqaError(f"without {without!r} is unknown; choose {' or '.join(WITHOUT_SOUND)}.")


def answered_unheard(
    models: Iterable[Callable[[], tuple]],
    questions: Sequence[Question],
    path: str | Path,
    tries: int = TRIES,
    wrong: int | None = None,
    without: str = "silent",
    **options,
) -> Mapping[str, str]:
    """Ask questions without their sound; return those that are wrong too seldom, with what was found, by id.

    models: functions that load a (model, processor), called one after the other. tries: of each model; several are
    sampled at temperature 1, one is greedy. wrong: how many tries must be wrong for a question to be kept; half of all,
    rounded up, if not given. without: "silent" clips, or "text-only". path: the tries are kept next to this file, and
    one that is there already is resumed. options: further ones of `evaluation.predict`. Raises AqaError for numbers
    that mean nothing, PredictionsError for tries of another model or on other questions.
    """
    right = dict.fromkeys((question.id for question in questions), 0)
    decoding = "sample" if tries > 1 else "greedy"
    count = 0
    for number, load in enumerate(models, 1):
        model, processor = load()
        for seed in range(tries):
            file = Path(f"{path}.{without}-{number}-{seed + 1}.jsonl")
            asking = options | CONTROLS[without] | {"decoding": decoding, "seed": seed}
            for row in evaluation.predict(model, processor, questions, file, **asking):
                right[row["id"]] += bool(row["correct"])
            count += 1
    wanted = majority(count) if wrong is None else wrong
    check(count, 1, wanted, without)
    clip = "silence" if without == "silent" else "text alone"
    return {
        name: f"right in {times} of {count} tries on {clip}, and wanted wrong in {wanted}"
        for name, times in right.items()
        if count - times < wanted
    }

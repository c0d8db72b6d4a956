"""Read audio questions from files into one record, and split them without leaks.

Second step of the flow: `audio -> dataset -> prompt -> model -> ...`. Nothing is decoded here; a
`Question` holds a path (or the file's bytes) for `audio.load`. The paper's code trusts every row; here
every row is checked before an hour of training is spent on it, and all bad rows are told at once. Like
the paper, `read_avqa` writes `audio` for `video`. Unlike the paper, which ranked its checkpoints on
the test set, `split` makes a held-out part to rank on.
"""

import hashlib
import json
import logging
import math
import os
import random
import re
import reprlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .escape import UNPRINTABLE
from .runtime.errors import AqaError

AVQA = {"id": "id", "audio": "audio_path", "question": "question_text", "choices": "multi_choice"}
AVQA |= {"answer": "answer", "task": "task"}
GENERIC = {name: name for name in ("id", "audio", "question", "choices", "answer", "task")}
MMAU = GENERIC | {"audio": "audio_id"}
SHOWN = 20  # bad rows named in one message
MAX_TEXT = 10_000  # characters in one field; the paper's whole prompt holds 512 tokens
# Read by the tokenizer or by the rewards as more than words, wherever it stands.
MARKUP = re.compile(r"<\|\w+\|>|</?(?:answer|think)>")

_repr = reprlib.Repr()
_repr.maxstring = 100
show = _repr.repr  # bounded, and control characters escaped: fit for a message

logger = logging.getLogger(__name__)


class DataError(AqaError):
    """Questions that cannot be used: one line for each bad row, with its file, its line and its fault."""


@dataclass(frozen=True)
class Question:
    """One multiple-choice question on one clip.

    `audio` is a resolved path, a sound file's bytes, or None. `answer` is the right choice's text, "" where
    it is withheld. `meta` keeps the row's other fields as they were, and the audio path as it was written;
    its `start` and `end`, where given, are the part of the clip that is meant, in seconds.
    """

    id: str
    audio: Path | bytes | None
    question: str
    choices: tuple[str, ...]
    answer: str
    task: str = ""
    meta: dict = field(default_factory=dict, hash=False)


def read_avqa(path, audio_root=None, on_error="raise", check_audio=True) -> list[Question]:
    """Read AVQA in R1-AQA's form: JSON lines of `question_text, multi_choice, answer` (index), `audio_path`.

    `video` becomes `audio` in the question, as in the paper. The task is the row's `task`, else its
    `question_type`. Audio paths are relative to `audio_root` (default: the file's folder) and may not
    lead out of it; `check_audio=False` accepts clips that are not there. Raises DataError with all bad
    rows, or, with `on_error="skip"`, warns of them and returns the others; a list as `on_error` takes the
    faults instead of a warning.
    """
    questions = _questions(_rows(path), path, AVQA, (int,), audio_root, on_error, check_audio)
    return [
        replace(
            q,
            question=q.question.replace("video", "audio"),
            task=q.task or str(q.meta.get("question_type") or "").lower(),
        )
        for q in questions
    ]


def read_mmau(path, audio_root=None, on_error="raise", check_audio=True) -> list[Question]:
    """Read MMAU's JSON: a list of `id, audio_id, question, choices, answer` (text), `task` and more.

    Equal choices are legal, as MMAU has them; no answer (the 9000-question test set) becomes "".
    `category` stays as given: a text, in 13 rows a list. The rest as in `read_avqa`.
    """
    return _questions(_rows(path), path, MMAU, (str,), audio_root, on_error, check_audio)


def read(path, audio_root=None, on_error="raise", check_audio=True, columns=None) -> list[Question]:
    """Read JSON or JSON lines of any known form: AVQA's, MMAU's, or one row per question with named columns.

    `columns` maps our names (id, audio, question, choices, answer, task) to the file's where they
    differ, as in `{"audio": "audio_path"}` for MMAR; the answer is then a choice's text or its index.
    The rest as in `read_avqa`.
    """
    rows = _rows(path)
    first = next((row for _, row in rows if isinstance(row, dict)), {})
    if columns is None and "question_text" in first and "multi_choice" in first:
        return read_avqa(path, audio_root, on_error, check_audio)
    if columns is None and "audio_id" in first:
        return read_mmau(path, audio_root, on_error, check_audio)
    columns = _mapping(columns, {key for _, row in rows if isinstance(row, dict) for key in row}, path)
    return _questions(rows, path, columns, (int, str), audio_root, on_error, check_audio)


def read_hub(name_or_dataset, split="train", columns=None, on_error="raise", audio_root=".") -> list[Question]:
    """Read a data set of the Hugging Face hub, by name or loaded, with `columns` mapped as in `read`.

    Clips stay encoded, as bytes in memory: take a slice, `split="train[:1000]"`, of what does not fit. Rows
    that name a file instead must name one inside `audio_root`.
    """
    import datasets  # a second to import, and only this reader needs it

    data, source = name_or_dataset, "the data set"
    if isinstance(data, str):
        data, source = datasets.load_dataset(data, split=split), f"{data} ({split})"
    if not isinstance(data, datasets.Dataset):
        raise DataError(f"{source} is a {type(data).__name__}: give one split of it, a datasets.Dataset")
    columns = _mapping(columns, data.column_names, source)
    media = {name for name, feature in data.features.items() if hasattr(feature, "decode")}
    data = data.remove_columns(sorted(media - {columns["audio"]}))
    if columns["audio"] in media:  # decoding is audio.load's work; here it would also need FFmpeg
        data = data.cast_column(columns["audio"], datasets.Audio(decode=False))
    rows = [(f"{source} row {number}", row) for number, row in enumerate(data, 1)]
    return _questions(rows, source, columns, (int, str), audio_root, on_error, check_audio=True)


def split(questions: Sequence[Question], fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """Divide questions into (train, held out), with all questions on one clip on the same side.

    fraction: held-out part of the questions, 0 <= fraction < 1; clips are added whole until it is
    reached. Who is held out depends on the seed and the questions' ids alone, not on their order or the
    folder they are in; both parts keep the given order. Raises ValueError where there is only one clip
    to divide.
    """
    if not 0 <= fraction < 1:
        raise AqaError(f"the held-out fraction is {fraction}: give a number from 0 up to, not including, 1")
    clips = defaultdict(list)
    for question in questions:
        clips[_clip_key(question)].append(question.id)
    if fraction and len(clips) < 2:
        raise AqaError(f"{len(clips)} clip cannot be divided: give questions on two or more clips")
    held, count, wanted = set(), 0, max(1, round(fraction * len(questions))) if fraction else 0
    for key in sorted(clips, key=lambda key: (_digest(f"{seed} {min(clips[key])}".encode()), key)):
        if count >= wanted or len(held) == len(clips) - 1:
            break
        held.add(key)
        count += len(clips[key])
    sides = [_clip_key(question) in held for question in questions]
    return (
        [question for question, out in zip(questions, sides, strict=True) if not out],
        [question for question, out in zip(questions, sides, strict=True) if out],
    )


def relabel(questions: Sequence[Question], share: float, seed: int = 0) -> list[Question]:
    """Replace the answers of a share of questions by another of their choices, as a careless watcher would.

    share: 0 to 1; exactly round(share * n) questions get a wrong answer, chosen by the seed. Their meta then holds
    `right`, the answer that was replaced. Questions keep their order. Raises ValueError for a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise AqaError(f"the share of wrong labels is {share}: give a number from 0 to 1")
    rng = random.Random(f"{seed} relabel")
    wrong = set(rng.sample(range(len(questions)), round(share * len(questions))))
    result = []
    for index, question in enumerate(questions):
        if index in wrong:
            other = [choice for choice in question.choices if choice != question.answer]
            meta = question.meta | {"right": question.answer}
            question = replace(question, answer=rng.choice(other), meta=meta)
        result.append(question)
    return result


def _clip_key(question: Question) -> str:
    if isinstance(question.audio, bytes):
        return _digest(question.audio)
    return os.path.realpath(question.audio) if question.audio else f"no clip {question.id}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _rows(path) -> list[tuple[str, object]]:
    """Read (place, row) from JSON or JSON lines; an unreadable line gives its ValueError as the row."""
    try:
        data = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if data.lstrip().startswith(b"["):
        rows = _parse(data)
        if isinstance(rows, ValueError):
            raise DataError(f"{path} line {getattr(rows.__cause__, 'lineno', 1)}: {rows}")
        return [(f"{path} row {number}", row) for number, row in enumerate(rows, 1)]
    lines = enumerate(data.splitlines(), 1)  # of bytes: no line ends at a U+2028 inside a text
    return [(f"{path} line {number}", _parse(line)) for number, line in lines if line.strip()]


def _parse(data: bytes) -> object:
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        return ValueError("is not UTF-8 text: save it as UTF-8")
    except json.JSONDecodeError as error:
        fault = ValueError(f"is not JSON ({error.msg} at column {error.colno})")
        fault.__cause__ = error
        return fault
    except (ValueError, RecursionError):  # a number of over 4300 digits, or brackets without end
        return ValueError("is not JSON that can be read: a number is too long or lists too deep")


def _mapping(columns: dict | None, present: Iterable[str], source) -> dict:
    """Complete the user's column names, and check the needed ones once instead of in every row."""
    unknown = set(columns or {}) - set(GENERIC)
    if unknown:
        raise DataError(f"columns names {min(unknown)!r}, which is none of {', '.join(GENERIC)}")
    needed = {"question", "choices"} | set(columns or {})
    columns = GENERIC | (columns or {})
    missing = sorted(columns[name] for name in needed if columns[name] not in present)
    if missing:
        has = ", ".join(sorted(present)[:SHOWN])
        raise DataError(f"{source} has no column {missing[0]!r}: map our names to its ({has}) by `columns`")
    return columns


def _questions(  # noqa: C901 (one row after the other, every fault told)
    rows, source, columns, answers, audio_root, on_error, check_audio
) -> list[Question]:
    """Turn (place, row) pairs into questions; `answers` are the types that an answer may have."""
    if on_error not in ("raise", "skip") and not isinstance(on_error, list):
        raise AqaError(f"on_error is {on_error!r}: choose 'raise' or 'skip'")
    root = os.path.realpath(Path(source).parent if audio_root is None else audio_root)
    if check_audio and not os.path.isdir(root):
        raise DataError(f"the audio folder {root} does not exist: name the folder of the clips by audio_root")
    questions, faults, seen = [], [], {}
    for number, (place, row) in enumerate(rows, 1):
        try:
            question = _question(row, columns, answers, str(number), root, check_audio)
            if question.id in seen:
                raise ValueError(f"id {show(question.id)} was already used by {seen[question.id]}")
        except ValueError as error:
            faults.append(f"{place}: {error}")
        else:
            seen[question.id] = place
            questions.append(question)
    if not rows:
        raise DataError(f"{source} holds no questions")
    if faults:
        more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        listing = "\n".join(faults[:SHOWN] + more)
        if on_error == "raise" or not questions:
            raise DataError(f"{len(faults)} of {len(rows)} questions cannot be used:\n{listing}")
        if isinstance(on_error, list):
            on_error += faults
        else:
            logger.warning("skipped %d of %d questions:\n%s", len(faults), len(rows), listing)
    return questions


def _question(row, columns, answers, number, root, check_audio) -> Question:
    """Check one row; raises ValueError with the first fault."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"is {show(row)}: give an object with {', '.join(columns.values())}")
    given = {ours: row.get(theirs) for ours, theirs in columns.items()}
    name = number if given["id"] is None else given["id"]
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    task = given["task"]
    if task is not None and not isinstance(task, str):
        raise ValueError(f"{columns['task']} is {show(task)}: give a text")
    choices = given["choices"]
    if not isinstance(choices, list):
        raise ValueError(f"{columns['choices']} is {show(choices)}: give a list of texts")
    choices = tuple(_text(choice, f"one of {columns['choices']}") for choice in choices)
    if len(set(choices)) < 2:
        raise ValueError(f"{columns['choices']} {show(list(choices))} leave nothing to choose: give two or more")
    kept = columns["audio"] if isinstance(given["audio"], str) else None
    meta = {key: value for key, value in row.items() if key == kept or key not in columns.values()}
    start, end = meta.get("start"), meta.get("end")
    for value in (start, end):
        if value is not None and (type(value) not in (int, float) or not 0 <= value < math.inf):
            raise ValueError(f"start or end is {show(value)}: give seconds from the clip's start")
    if end is not None and end <= (start or 0):
        raise ValueError(f"end {show(end)} does not come after start {show(start or 0)}")
    return Question(
        id=_text(name, columns["id"]),
        audio=_audio(given["audio"], columns["audio"], root, check_audio),
        question=_text(given["question"], columns["question"]),
        choices=choices,
        answer=_answer(given["answer"], columns["answer"], choices, answers),
        task=task or "",
        meta=meta,
    )


def _text(value, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {show(value)}: give a text that is not empty")
    if len(value) > MAX_TEXT:
        raise ValueError(f"{name} has {len(value)} characters: give at most {MAX_TEXT}")
    if fault := UNPRINTABLE.search(value):
        raise ValueError(f"{name} holds the control character {fault.group()!r}: remove it")
    if fault := MARKUP.search(value):
        raise ValueError(f"{name} holds {fault.group()}, which is more than words: remove it")
    return value


def _answer(value, name: str, choices: tuple[str, ...], types: tuple[type, ...]) -> str:
    if value in (None, "") and str in types:
        return ""
    if type(value) not in types:  # not isinstance: True is no index
        kinds = {(int,): "the right choice's index", (str,): "the right choice's text"}
        raise ValueError(f"{name} is {show(value)}: give {kinds.get(types, 'a text or an index')}")
    if isinstance(value, int):
        if not 0 <= value < len(choices):
            raise ValueError(f"{name} {show(value)} is not an index into {len(choices)} choices")
        return choices[value]
    for choice in choices:
        if choice.strip() == value.strip():
            return choice
    raise ValueError(f"{name} {show(value)} is not among the choices {show(list(choices))}")


def _audio(value, name: str, root: str, check: bool) -> Path | bytes | None:
    if isinstance(value, dict):  # what datasets.Audio(decode=False) gives
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) or (value is None and not check):
        return value
    path = os.path.realpath(os.path.join(root, _text(value, name)))
    if not Path(path).is_relative_to(root):
        raise ValueError(f"{name} {show(value)} leads out of the audio folder {root}: see audio_root")
    if check and not os.path.isfile(path):
        raise ValueError(f"{name} {show(value)} is not a file in the audio folder {root}")
    return Path(path)

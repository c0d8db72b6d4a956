"""Read audio questions from files into one record, and split them without leaks.

Second step of the flow: `audio -> dataset -> prompt -> model -> ...`. `tables` reads the rows of a file, `forms` the
fields of a row; here they are checked. Nothing is decoded: a `Question` holds a path (or the file's bytes) for
`audio.load`. The paper's code trusts every row; here every row is checked before an hour of training is spent on it,
and all bad rows are told at once. Like the paper, `read_avqa` writes `audio` for `video`. Unlike the paper, which
ranked its checkpoints on the test set, `split` makes a held-out part to rank on.
"""

import hashlib
import logging
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .reading import benchmarks, forms, recordings, streams, tables
from .reading.tables import DataError
from .runtime.errors import AqaError
from .runtime.escape import UNPRINTABLE, show

AVQA = {"id": "id", "audio": "audio_path", "question": "question_text", "choices": "multi_choice"}
AVQA |= {"answer": "answer", "task": "task"}
GENERIC = {name: name for name in ("id", "audio", "question", "choices", "answer", "task")}
MMAU = GENERIC | {"audio": "audio_id"}
SHOWN = 20  # bad rows named in one message
ANY = (int, str)  # types of an answer where its form is not AVQA's (an index) or MMAU's (a text)
MAX_TEXT = 10_000  # characters in one field; the paper's whole prompt holds 512 tokens
# Read by the tokenizer or by the rewards as more than words, wherever it stands.
MARKUP = re.compile(r"<\|\w+\|>|</?(?:answer|think)>")
DRIVE = re.compile(r"[A-Za-z]:[\\/]")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """One multiple-choice question on one clip, or on several.

    `audio` is a resolved path, a sound file's bytes, or None; `more` are further clips, in the order in which they are
    heard, and `clips` are all of them. `answer` is the right choice's text, "" where
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
    more: tuple[Path | bytes, ...] = ()

    @property
    def clips(self) -> tuple[Path | bytes, ...]:
        """All clips, in the order in which they are heard."""
        return () if self.audio is None else (self.audio, *self.more)


def read_avqa(path, audio_root=None, on_error="raise", check_audio=True) -> list[Question]:
    """Read AVQA in R1-AQA's form: JSON lines of `question_text, multi_choice, answer` (index), `audio_path`.

    `video` becomes `audio` in the question, as in the paper. The task is the row's `task`, else its
    `question_type`. Audio paths are relative to `audio_root` (default: the file's folder) and may not
    lead out of it; `check_audio=False` accepts clips that are not there. Raises DataError with all bad
    rows, or, with `on_error="skip"`, warns of them and returns the others; a list as `on_error` takes the
    faults instead of a warning.
    """
    return _avqa(_questions(tables.rows(path), path, AVQA, (int,), audio_root, on_error, check_audio))


def _avqa(questions: list[Question]) -> list[Question]:
    for index, q in enumerate(questions):
        text, task = q.question.replace("video", "audio"), q.task or str(q.meta.get("question_type") or "").lower()
        if (text, task) != (q.question, q.task):
            questions[index] = replace(q, question=text, task=task)
    return questions


def read_mmau(path, audio_root=None, on_error="raise", check_audio=True) -> list[Question]:
    """Read MMAU's JSON: a list of `id, audio_id, question, choices, answer` (text), `task` and more.

    Equal choices are legal, as MMAU has them; no answer (the 9000-question test set) becomes "".
    `category` stays as given: a text, in 13 rows a list. The rest as in `read_avqa`.
    """
    return _questions(tables.rows(path), path, MMAU, (str,), audio_root, on_error, check_audio)


def read(path, audio_root=None, on_error="raise", check_audio=True, columns=None) -> list[Question]:
    """Read questions of any known form: AVQA's, MMAU's, or one row per question with named columns.

    path: JSON, JSON lines, CSV, TSV, parquet or Arrow, or `hub:NAME:SPLIT` for a data set of the Hugging Face hub.
    MMAR, MMSU, ADQA, AudioMCQ and MMAU-Pro are known by their columns (`reading.benchmarks`); open questions, which
    need a judge model, are left out and counted aloud. `columns` maps our names (id, audio, question, choices, answer,
    task) to the file's where they differ; "path.audio" is a field inside a column. Choices may also stand in columns of
    their own (choice_a, choice_b, ...) or as lettered lines at the question's end; the answer is a choice's text, its
    label, or its index, counted from 0. The rest as in `read_avqa`.
    """
    named = (columns or {}).get("audio", "audio").split(".")[0]
    rows = tables.rows(path, keep=(named, AVQA["audio"], MMAU["audio"]))
    names = {key: None for _, row in rows if isinstance(row, dict) for key in row}
    benchmark = benchmarks.detect(rows)
    rows, open_ones = benchmarks.closed(rows, benchmark)
    if open_ones:
        logger.warning("%s: %s; they are left out.", path, benchmarks.told(open_ones))
    if benchmark and columns is None:
        kinds = (str,) if benchmark.text_answers else ANY
        mapping = _mapping(benchmarks.columns(benchmark, names), rows, names, path, check_audio)
        return _marked(_questions(rows, path, mapping, kinds, audio_root, on_error, check_audio), benchmark)
    if columns is None and {"question_text", "multi_choice"} <= set(names):
        if check_audio and AVQA["audio"] not in names:
            raise DataError(f"{path} has no column 'audio_path', with each question's clip: add it to the file")
        as_text = any(isinstance(row, dict) and isinstance(row.get("multi_choice"), str) for _, row in rows)
        kinds = ANY if as_text else (int,)
        return _avqa(_questions(rows, path, AVQA, kinds, audio_root, on_error, check_audio))
    if columns is None and {"audio_id", "choices"} <= set(names):
        return _questions(rows, path, MMAU, (str,), audio_root, on_error, check_audio)
    columns = _mapping(columns, rows, names, path, check_audio)
    return _marked(_questions(rows, path, columns, ANY, audio_root, on_error, check_audio), benchmark)


def _marked(questions: list[Question], benchmark: benchmarks.Benchmark | None) -> list[Question]:
    """Note the published set that questions are from, by whose rule their answers are judged."""
    for question in questions if benchmark else ():
        question.meta[benchmarks.MARK] = benchmark.name
    return questions


def read_hub(name_or_dataset, split="train", columns=None, on_error="raise", audio_root=".") -> list[Question]:
    """Read a data set of the Hugging Face hub, by name or loaded, with `columns` mapped as in `read`.

    Clips stay encoded, as bytes in memory: take a slice, `split="train[:1000]"`, of what does not fit. Rows
    that name a file instead must name one inside `audio_root`. In a shell the name is `hub:NAME:SPLIT`.
    """
    data, source = name_or_dataset, "the data set"
    if isinstance(data, str):
        data, source = tables.load(data, split)
    rows = tables.from_datasets(data, source, keep=((columns or {}).get("audio", "audio").split(".")[0],))
    columns = _mapping(columns, rows, dict.fromkeys(data.column_names), source, check_audio=True)
    return _questions(rows, source, columns, ANY, audio_root, on_error, check_audio=True)


def split(questions: Sequence[Question], fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """Divide questions into (train, held out), with all questions about one recording on the same side.

    fraction: held-out part of the questions, 0 <= fraction < 1; recordings are added whole until it is reached. What
    is one recording: see `recordings`; a row's `source_recording` says so too. Who is held out depends on the seed and
    the questions' ids alone, not on their order or the folder they are in; both parts keep the given order. Raises
    ValueError where there is only one recording.
    """
    if not 0 <= fraction < 1:
        raise AqaError(f"the held-out fraction is {fraction}: give a number from 0 up to, not including, 1")
    numbers, members = recordings.groups(questions), defaultdict(list)
    for number, question in zip(numbers, questions, strict=True):
        members[number].append(question.id)
    if fraction and len(members) < 2:
        raise AqaError("all questions are about 1 clip or recording, which cannot be divided: give two or more")
    held, count, wanted = set(), 0, max(1, round(fraction * len(questions))) if fraction else 0
    for number in sorted(members, key=lambda number: (_digest(f"{seed} {min(members[number])}".encode()), number)):
        if count >= wanted or len(held) == len(members) - 1:
            break
        held.add(number)
        count += len(members[number])
    return (
        [question for number, question in zip(numbers, questions, strict=True) if number not in held],
        [question for number, question in zip(numbers, questions, strict=True) if number in held],
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


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _mapping(columns: dict | None, rows: tables.Rows, names: Iterable[str], source, check_audio: bool) -> dict:
    """Complete the user's column names, and check the needed ones once instead of in every row.

    Where no column has the choices, theirs is {label: column}, or None if the questions hold them.
    """
    unknown = set(columns or {}) - set(GENERIC)
    if unknown:
        raise DataError(f"columns names {min(unknown)!r}, which is none of {', '.join(GENERIC)}")
    needed = {"question"} | ({"audio"} if check_audio else set()) | set(columns or {})
    columns = GENERIC | (columns or {})
    if "choices" not in needed and "choices" not in names:
        columns["choices"] = forms.columns(names) or None
    readable = [row for _, row in rows if isinstance(row, dict)]
    if not readable:
        return columns  # each row, or their lack, is told
    missing = [columns[name] for name in sorted(needed) if columns[name].split(".")[0] not in names]
    if columns["choices"] is None and not any(forms.inside(forms.field(row, columns["question"])) for row in readable):
        missing.append("choices")
    if missing:
        has, lacks = ", ".join(sorted(names)[:SHOWN]), ", ".join(map(show, missing))
        raise DataError(f"{source} has no column {lacks}: map our names to its ({has}) by `columns`")
    return columns


@tables.uncollected()
def _questions(  # noqa: C901 (one row after the other, every fault told)
    rows, source, columns, answers, audio_root, on_error, check_audio
) -> list[Question]:
    """Turn (place, row) pairs into questions; `answers` are the types that an answer may have."""
    if on_error not in ("raise", "skip") and not isinstance(on_error, list):
        raise AqaError(f"on_error is {on_error!r}: choose 'raise' or 'skip'")
    root = os.path.realpath(tables.folder(source) if audio_root is None else audio_root)
    if check_audio and not os.path.isdir(root):
        raise DataError(f"the audio folder {root} does not exist: name the folder of the clips by audio_root")
    among = [_choices(row, columns, answers) for _, row in rows]
    given = zip(rows, among, strict=True)
    habit = forms.habits(
        [(forms.field(row, columns["answer"]), one) for (_, row), one in given if isinstance(one, forms.Choices)]
    )
    used, clips = {*_names(columns)}, _Clips(columns["audio"], root, check_audio)
    questions, faults, seen = [], [], {}
    for number, one in enumerate(among, 1):
        place, row = rows[number - 1]
        rows[number - 1] = among[number - 1] = None  # a million rows and questions do not fit side by side
        try:
            if isinstance(one, ValueError):
                raise one
            answer = forms.answer(forms.field(row, columns["answer"]), columns["answer"], one, answers, habit)
            question = _question(row, columns, used, one, answer, str(number), clips)
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


def _choices(row, columns, answers) -> forms.Choices | ValueError:
    """Read and check a row's choices; a fault is returned, not raised."""
    if isinstance(row, ValueError):
        return row
    if not isinstance(row, dict):
        return ValueError(f"is {show(row)}: give an object with {', '.join(_names(columns))}")
    theirs, name = columns["choices"], "choices"
    try:
        if isinstance(theirs, dict):
            found = forms.choices({label: row.get(column) for label, column in theirs.items()})
        elif theirs is None:
            inside = forms.inside(forms.field(row, columns["question"]))
            if inside is None:
                raise ValueError("has no choices, neither in a column nor as lettered lines at the question's end")
            found = inside[1]
        else:
            value, name = forms.field(row, theirs), theirs
            exact = isinstance(value, list) and answers != ANY  # AVQA's and MMAU's are taken as they stand
            found = forms.Choices(tuple(value)) if exact else forms.choices(value, name)
        for choice in found.texts:
            checked_text(choice, f"one of {name}")
        if len(set(found.texts)) < 2:
            raise ValueError(f"{name} {show(list(found.texts))} leave nothing to choose: give two or more")
    except ValueError as error:
        return error
    return found


def _names(columns) -> list[str]:
    """List the columns of the file that are read."""
    several = [value if isinstance(value, dict) else {"": value} for value in columns.values() if value]
    return [name for names in several for name in names.values()]


def _question(row, columns, used, among, answer, number, clips) -> Question:
    """Check the rest of a row; raises ValueError with the first fault."""
    given = {ours: forms.field(row, columns[ours]) for ours in ("id", "audio", "question", "task")}
    name = number if given["id"] is None else given["id"]
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    task = given["task"]
    if task is not None and not isinstance(task, str):
        raise ValueError(f"{columns['task']} is {show(task)}: give a text")
    text = given["question"]
    if columns["choices"] is None:
        text, _ = forms.inside(text)
    heard = [clips(clip) for clip in forms.clips(given["audio"], columns["audio"])]
    kept = columns["audio"] if isinstance(given["audio"], str) else None
    meta = {k: value for k, value in row.items() if (k == kept or k not in used) and not _holds_bytes(value)}
    _check_part(meta.get("start"), meta.get("end"), len(heard))
    return Question(
        id=checked_text(name, columns["id"]),
        audio=heard[0],
        more=tuple(heard[1:]),
        question=checked_text(forms.question(text), columns["question"]),
        choices=among.texts,
        answer=answer,
        task=task or "",
        meta=meta,
    )


def _check_part(start, end, clips: int) -> None:
    if clips > 1 and not (start is None and end is None):
        raise ValueError(f"start and end are a part of one clip, and there are {clips}: leave them out")
    for value in (start, end):
        if value is not None and (type(value) not in (int, float) or not 0 <= value < streams.LONGEST):
            raise ValueError(f"start or end is {show(value)}: give seconds from the clip's start")
    if end is not None and end <= (start or 0):
        raise ValueError(f"end {show(end)} does not come after start {show(start or 0)}")


def _holds_bytes(value) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and any(map(_holds_bytes, value.values())))


def checked_text(value, name: str) -> str:
    """Return a text that is fit for a prompt; raises ValueError for any other value."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {show(value)}: give a text that is not empty")
    if len(value) > MAX_TEXT:
        raise ValueError(f"{name} has {len(value)} characters: give at most {MAX_TEXT}")
    if not value.isprintable() and (fault := UNPRINTABLE.search(value)):
        raise ValueError(f"{name} holds the control character {fault.group()!r}: remove it")
    if "<" in value and (fault := MARKUP.search(value)):
        raise ValueError(f"{name} holds {fault.group()}, which is more than words: remove it")
    return value


class _Clips:
    """Check the clips of a file, one per question: `checked_audio`, but each clip and each folder is resolved once."""

    def __init__(self, name: str, root: str, check: bool):
        self.name, self.root, self.check = name, root, check
        self.known: dict[str, Path] = {}
        self.folders: dict[str, str | None] = {}

    def __call__(self, value) -> Path | bytes | None:
        if not isinstance(value, str):
            return checked_audio(value, self.name, self.root, self.check)
        if (path := self.known.get(value)) is None:
            path = self.known[value] = self.plain(value) or checked_audio(value, self.name, self.root, self.check)
        return path

    def plain(self, value: str) -> Path | None:
        """Return the path of a file that is neither a link nor written in an unusual way; None for all others."""
        folder, name = os.path.split(checked_text(value, self.name))
        if folder not in self.folders:
            resolved = os.path.realpath(os.path.join(self.root, folder)) if "\\" not in folder else None
            inside = resolved and Path(resolved).is_relative_to(self.root)
            self.folders[folder] = resolved if inside else None
        resolved = self.folders[folder]
        if resolved is None or "\\" in name or name in ("", ".", ".."):
            return None
        path = os.path.join(resolved, name)
        if os.path.islink(path) or (self.check and not os.path.isfile(path)):
            return None
        return Path(path)


def checked_audio(value, name: str, root: str, check: bool) -> Path | bytes | None:
    """Return a clip's path, or its bytes; raises ValueError for a path that is not inside the folder `root`."""
    if isinstance(value, bytes) or (value is None and not check):
        return value
    given = checked_text(value, name)
    if "\\" in given and os.sep == "/" and not os.path.exists(os.path.join(root, given)):
        if DRIVE.match(given):
            raise ValueError(f"{name} {show(value)} is on a drive of Windows: give a path inside the audio folder")
        given = given.replace("\\", "/")
    path = os.path.realpath(os.path.join(root, given))
    if not Path(path).is_relative_to(root):
        raise ValueError(f"{name} {show(value)} leads out of the audio folder {root}: see audio_root")
    if check and not os.path.isfile(path):
        raise ValueError(f"{name} {show(value)} is not a file in the audio folder {root}")
    return Path(path)

r"""Read a question's fields in the forms that people use: lettered choices, a letter as answer, a clip in a list.

`tables -> [forms] -> dataset`. A form is read where its meaning is beyond doubt; otherwise a ValueError says what is in
doubt. Labels ("A. a dog", "(B) a cat") are taken off the choices, so that prompts and answers hold the texts alone.
"""

import ast
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..runtime.escape import show

# "A. a dog", "B) a cat", "(c) a bell", "1: a car": the white space keeps "1.5 s" a number
LABELLED = re.compile(r"\s*(?:\(([A-Za-z]|\d{1,2})\)\s*|([A-Za-z]|\d{1,2})\s*[.):]\s+)(\S.*)", re.DOTALL)
LABEL = re.compile(r"\s*(?:\(([A-Za-z])\)|([A-Za-z])[.):]?)\s*")
COLUMN = re.compile(r"(choice|option|opt)s?[ _.-]?([a-z]|\d{1,2})", re.IGNORECASE)
TAGGED = re.compile(r"\s*<answer>([^<]*)</answer>\s*")
HEADING = re.compile(r"\n\s*(?:the )?(?:answer )?(?:choices|options)(?: are)?\s*:?\s*$", re.IGNORECASE)
CLIP_HERE = re.compile(r"\s*<audio>\s*\n\s*|\s*\n\s*<audio>\s*$")  # the prompt has a place for the clip of its own
NO_COMMAS = re.compile(r"""^\['[^']*'\s+'""")  # how numpy writes a list; Python would join its texts
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Choices:
    """A question's choices: their texts, and the labels that the data gave them, where it did."""

    texts: tuple
    labels: tuple[str, ...] | None = None

    def labelled(self, label: str) -> int | None:
        """Find the choice that a label names: one of the data's own, or else A for the first, B for the second."""
        labels = self.labels or [chr(65 + index) for index in range(min(26, len(self.texts)))]
        found = [index for index, name in enumerate(labels) if name.casefold() == label.strip().casefold()]
        return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Habits:
    """What all answers of a file together say of one.

    letters: every one is a letter alone. zero: one of them is the number 0, so they are numbers that count from 0.
    from_one: they are numbers, and seem to count from 1.
    """

    letters: bool = False
    zero: bool = False
    from_one: bool = False


def field(row: dict, name: str):
    """Look a column up; "path.audio" is the `audio` in `path` where no column has the whole name."""
    if name in row or "." not in name:
        return row.get(name)
    first, rest = name.split(".", 1)
    return field(row[first], rest) if isinstance(row.get(first), dict) else None


def question(text):
    """Take off a line that only says where the clip belongs, as conversations have it."""
    return CLIP_HERE.sub("", text) if isinstance(text, str) and "<audio>" in text else text


# -- choices -----------------------------------------------------------------------------------------------------------


def columns(names: Iterable[str]) -> dict[str, str]:
    """Find the columns that hold one choice each, as {label: column}; {} where there are none.

    >>> columns(["id", "choice_a", "choice_b", "answer_gt"]), columns(["A", "B", "C", "answer"])
    ({'A': 'choice_a', 'B': 'choice_b'}, {'A': 'A', 'B': 'B', 'C': 'C'})
    """
    families: dict[str, dict[str, str]] = {}
    for name in names:
        if found := COLUMN.fullmatch(name):
            families.setdefault(found[1].lower(), {})[found[2].upper()] = name
        elif len(name) == 1 and "A" <= name <= "Z":
            families.setdefault("", {})[name] = name
    for found in families.values():
        if _in_order(found) and len(found) > 1:
            return found
    return {}


def choices(value, name: str = "choices") -> Choices:
    """Read choices from a list, a text that writes one, a dictionary by label, or lines with labels.

    >>> choices(["A. a dog", "B. a cat", None]).texts, choices({"A": "a dog", "B": "a cat"}).labels
    (('a dog', 'a cat'), ('A', 'B'))
    """
    labels = None
    if isinstance(value, str):
        value = _written(value)
    if isinstance(value, dict) and set(value) == {"text", "label"} and all(isinstance(v, list) for v in value.values()):
        value = dict(zip(map(str, value["label"]), value["text"], strict=False))
    if isinstance(value, dict):
        labels, value = tuple(map(str, value)), list(value.values())
    if not isinstance(value, list):
        raise ValueError(f"{name} is {show(value)}: give a list of texts")
    while value and _nothing(value[-1]):  # a table's rows are as wide as its longest
        value = value[:-1]
    labels = labels and labels[: len(value)]
    return _stripped(value, labels)


def inside(text) -> tuple[str, Choices] | None:
    r"""Read choices that stand as lettered lines at a question's end; None if there are none.

    >>> inside("What is it?\nChoices:\nA. a dog\nB. a cat")
    ('What is it?', Choices(texts=('a dog', 'a cat'), labels=('A', 'B')))
    """
    if not isinstance(text, str):
        return None
    lines = [line for line in text.split("\n") if line.strip()]
    first = next((i for i, line in enumerate(lines) if (found := _label(line)) and found[0] in ("A", "a", "1")), None)
    if first is None or len(lines) - first < 2:
        return None
    found = _stripped(lines[first:], None)
    stem = HEADING.sub("", "\n".join(lines[:first])).rstrip()
    return (stem, found) if found.labels and stem else None


def _label(text) -> tuple[str, str] | None:
    found = LABELLED.fullmatch(text) if isinstance(text, str) else None
    return (found[1] or found[2], found[3].rstrip()) if found else None


def _in_order(labels: Iterable[str]) -> bool:
    """Whether labels are A, B, C ... or a, b, c ... or numbers from 1 or 0."""
    labels = list(labels)
    orders = [[chr(first + index) for index in range(len(labels))] for first in (65, 97)]
    orders += [[str(first + index) for index in range(len(labels))] for first in (0, 1)]
    return labels in orders


def _stripped(texts: list, labels: tuple[str, ...] | None) -> Choices:
    """Take labels off, where every choice has one and they are in order."""
    found = [_label(text) for text in (texts if texts and _label(texts[0]) else ())]
    if len(found) > 1 and all(found) and _in_order([pair[0] for pair in found if pair]):
        own = tuple(pair[0] for pair in found if pair)
        if labels is None or [label.casefold() for label in labels] == [label.casefold() for label in own]:
            return Choices(tuple(pair[1] for pair in found if pair), own)
    return Choices(tuple(texts), labels)


def _nothing(value) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _written(text: str):
    """Read a list or a dictionary that is written as text, in JSON or in Python's way, or lines with labels."""
    if text.lstrip()[:1] in ("[", "{"):
        for parse in (json.loads, ast.literal_eval):
            try:
                found = parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            return text if NO_COMMAS.search(text) else found
        return text
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and _stripped(lines, None).labels:
        return lines
    parts = re.split(r"\s*[;,]?\s*(?=\([A-Z]\)\s)", text.strip())
    parts = [part for part in parts if part]
    return parts if len(parts) > 1 and _stripped(parts, None).labels else text


# -- answers -----------------------------------------------------------------------------------------------------------


def habits(answers: Sequence[tuple[object, Choices]]) -> Habits:
    """Say what a file's answers have in common, each given with its choices."""
    pairs = [(_bare(value), among) for value, among in answers if not _nothing(value)]
    if not pairs:
        return Habits()
    if all(isinstance(value, str) and LABEL.fullmatch(value) for value, _ in pairs):
        return Habits(letters=True)
    numbers = [_number(value) for value, _ in pairs]
    if None in numbers or all(isinstance(value, str) and value in among.texts for value, among in pairs):
        return Habits()
    if 0 in numbers:
        return Habits(zero=True)
    counts = [len(among.texts) for _, among in pairs]
    return Habits(from_one=any(number == count for number, count in zip(numbers, counts, strict=True)))


def answer(value, name: str, among: Choices, types: tuple[type, ...], habit: Habits) -> str:
    """Return the right choice's text; "" where it is withheld.

    types: what the file's form allows, a text or an index (from 0). Raises ValueError for an answer that is no choice,
    and for one that could be two.
    """
    if types == (int, str):
        value = _bare(value)
    if _nothing(value) and str in types:
        return ""
    if type(value) not in types:  # not isinstance: True is no index
        kinds = {(int,): "the right choice's index", (str,): "the right choice's text"}
        several = " (several are right, and one is needed)" if isinstance(value, list) and len(value) > 1 else ""
        raise ValueError(f"{name} is {show(value)}{several}: give {kinds.get(types, 'a text or an index')}")
    if isinstance(value, int):
        return _indexed(value, name, among, types, habit)
    return among.texts[_found(value, name, among, str in types and int in types, habit)]


def _indexed(value: int, name: str, among: Choices, types: tuple[type, ...], habit: Habits) -> str:
    texts = among.texts
    if among.labels and among.labels[0].isdecimal():  # the data itself says how it counts
        index = among.labelled(str(value))
    else:
        index = value if 0 <= value < len(texts) else None
        if habit.from_one and str in types:  # AVQA's form counts from 0
            counts = f"{name} {show(value)} is not an index into {len(texts)} choices" if index is None else ""
            raise ValueError(
                f"{counts or f'{name} is {value}'}: the file's answers seem to count from 1 (none is 0, and one is the "
                "number of its choices); count from 0, or write the right choice's text"
            )
    if index is None:
        raise ValueError(f"{name} {show(value)} is not an index into {len(texts)} choices")
    named = [i for i, text in enumerate(texts) if text.strip() == str(value)]
    if str in types and named and texts[named[0]] != texts[index]:
        raise ValueError(
            f"{name} {value} is the text of one choice and the index of another, {show(texts[index])}: write the "
            "right choice's text, in quotes"
        )
    return texts[index]


def _found(value: str, name: str, among: Choices, coded: bool, habit: Habits) -> int:
    """Find the choice that an answer's text means. coded: the text may be a label or a number instead."""
    texts = [text.strip() for text in among.texts]
    wanted = value.strip()
    exact = texts.index(wanted) if wanted in texts else None
    code = _code(wanted, name, among, habit) if coded else None
    if exact is not None:
        numbers = habit.zero or habit.from_one
        if code is not None and texts[code] != wanted and (habit.letters or numbers):
            raise ValueError(
                f"{name} {show(value)} is the text of one choice and names another, {show(texts[code])}: write choices "
                "and answers so that no text is a label or a number"
            )
        return exact
    if code is not None:
        return code
    if coded and (pair := _label(wanted)):
        label, text = among.labelled(pair[0]), pair[1].strip()
        same = [i for i, choice in enumerate(texts) if _dotless(choice) == _dotless(text)]
        if same and label not in same:
            raise ValueError(f"{name} {show(value)} has the label of one choice and the text of another: correct it")
        if same:
            return label
    if len(same := [i for i, choice in enumerate(texts) if _dotless(choice) == _dotless(wanted)]) == 1:
        return same[0]
    near = any(choice.casefold() == wanted.casefold() for choice in texts)
    hint = ", but for upper and lower case: write it as it stands there" if near else ""
    raise ValueError(f"{name} {show(value)} is not among the choices {show(list(among.texts))}{hint}")


def _code(wanted: str, name: str, among: Choices, habit: Habits) -> int | None:
    """Read an answer as a label or, in a file of texts such as CSV, as a number."""
    if among.labels and (index := among.labelled(wanted)) is not None:
        return index
    if found := LABEL.fullmatch(wanted):
        return among.labelled(found[1] or found[2])
    if (number := _number(wanted)) is None:
        return None
    if wanted in [text.strip() for text in among.texts]:
        return number if number < len(among.texts) else None
    if habit.zero and number < len(among.texts):
        return number
    if habit.zero:
        raise ValueError(f"{name} {show(wanted)} is not an index into {len(among.texts)} choices")
    raise ValueError(f"{name} {show(wanted)} could count from 0 or from 1: write the right choice's text")


def _bare(value):
    """Take an answer out of a list of one, and out of the tags of a reply."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    found = TAGGED.fullmatch(value) if isinstance(value, str) else None
    return found[1].strip() if found else value


def _number(value) -> int | None:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal() and len(value) < 10:
        return int(value)
    return value if type(value) is int else None


def _dotless(text: str) -> str:
    return text[:-1].rstrip() if text.endswith(".") else text


# -- clips -------------------------------------------------------------------------------------------------------------


def clips(value, name: str) -> list:
    """Return the clips that a field names, in their order; one is the rule."""
    several = isinstance(value, list) and len(value) > 1 and all(isinstance(item, str | dict | bytes) for item in value)
    return [clip(item, name) for item in value] if several else [clip(value, name)]


def clip(value, name: str):
    """Return one clip: a path as it is written, a sound file's bytes, or None.

    A dictionary is what `datasets` makes of a clip: `bytes` or `path`, or decoded, an `array` with its
    `sampling_rate`, which becomes the bytes of a WAV.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        if value.get("array") is not None:
            return _as_wav(value["array"], value.get("sampling_rate"), name)
        if not {"bytes", "path"} & set(value):
            fields = ", ".join(map(show, value))
            raise ValueError(f"{name} has the fields {fields}: name the one with the clip, as in audio={name}.audio")
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and ADDRESS.match(value):
        raise ValueError(f"{name} {show(value)} is an address: give the path of a file in the audio folder")
    return value


def _as_wav(array, rate, name: str) -> bytes:
    import numpy as np
    import soundfile

    try:
        wave = np.asarray(array, np.float32)
        if wave.ndim != 1 or not 1_000 <= rate <= 768_000:
            raise ValueError
    except (ValueError, TypeError):
        raise ValueError(f"{name} holds an array that is no sound: give (S,) numbers and their sampling_rate") from None
    file = io.BytesIO()
    soundfile.write(file, wave, int(rate), format="WAV", subtype="FLOAT")
    return file.getvalue()

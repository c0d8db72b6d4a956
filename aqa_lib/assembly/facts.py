"""Read clips and what is known of them, and turn that into lessons: what is asked of a clip, and what to reply.

`dataset -> [facts] -> align`. A fact is a name and a value in words, `instrument: a piano`. A clip's caption is its
values, `a piano, going up, slow`: a model that can say them has learned to put into words what its encoder hears.
"""

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from .. import dataset, prompt
from ..dataset import Question, checked_audio, checked_text
from ..reading import forms, tables
from ..reading.tables import DataError
from ..runtime.escape import show

COLUMNS = ("id", "audio", "task", "split")  # what is known of a clip besides facts
TABLES = (".csv", ".tsv")  # where facts may be columns that nobody named
NAME = "Name what you hear."  # what is asked of a held-out clip
WORDINGS = (NAME, "What do you hear?", "Describe the audio.", "What is in this recording?")
TRAIN, HELD_OUT = ("align", "train"), ("held_out", "val", "validation")  # splits that `align` takes
ASKED, TEST = "questions", "test"  # of clips that the alignment leaves alone: to ask questions about, and to test on
ARTICLES = {"a", "an", "the"}


def read(path: str | Path, audio_root=None, columns: dict[str, str] | None = None) -> list[Question]:
    """Read clips with facts from whatever `tables` reads, one `Question` a clip.

    Each asks `NAME` and is answered by the caption; its `meta` holds `facts` and, where the file has it, `split`.
    columns: our names (id, audio, task, split, or a fact's) to the file's. Without a fact among them, facts are the
    row's object `facts`, else, in CSV and TSV, all other columns. An empty value is unknown. Audio paths are relative
    to `audio_root` (default: the file's folder). Raises DataError with all bad rows.
    """
    rows = _rows(path, columns or {})
    root = os.path.realpath(audio_root or tables.folder(path))
    clips, faults, seen = [], [], {}
    for number, (place, row) in enumerate(rows, 1):
        try:
            clip = _clip(row, columns or {}, str(number), root)
            if clip.id in seen:
                raise ValueError(f"id {clip.id!r} was already used by {seen[clip.id]}")
            seen[clip.id] = place
            clips.append(clip)
        except ValueError as error:
            faults.append(f"{place}: {error}")
    if faults or not clips:
        listing = "\n".join(faults[: dataset.SHOWN]) or f"{path} holds no clips"
        raise DataError(f"{len(faults)} of {len(rows)} clips cannot be used:\n{listing}")
    return clips


def _rows(path, columns: dict[str, str]) -> tables.Rows:
    """Read (place, row) pairs; a table's row gets its facts from the columns that are left."""
    keep = (columns.get("audio", "audio").split(".")[0],)
    if not str(path).startswith(tables.HUB):
        rows = tables.rows(path, keep)
    else:
        name, _, part = str(path).removeprefix(tables.HUB).partition(":")
        data, source = tables.load(name, part or "train")
        names = {key: feature.names for key, feature in data.features.items() if hasattr(feature, "int2str")}
        rows = [(place, _named(row, names)) for place, row in tables.from_datasets(data, source, keep)]
    if Path(path).suffix.lower() not in TABLES:
        return rows
    return [(place, _with_facts(row, columns) if isinstance(row, dict) else row) for place, row in rows]


def _named(row: dict, names: dict[str, list[str]]) -> dict:
    """Write the numbers of classes as their names."""
    return {key: names[key][value] if key in names and value is not None else value for key, value in row.items()}


def _with_facts(row: dict, columns: dict[str, str]) -> dict:
    """Take a row's other columns as its facts."""
    taken = {columns.get(name, name) for name in COLUMNS} | {"audio_path"}
    return {"facts": {key: value for key, value in row.items() if key not in taken}} | row


def _clip(row, columns: dict[str, str], number: str, root: str) -> Question:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"is {show(row)}: give an object with an audio file and facts")
    named = {fact: forms.field(row, theirs) for fact, theirs in columns.items() if fact not in COLUMNS}
    facts = named or row.get("facts")
    if not isinstance(facts, dict):
        raise ValueError("has no facts: give an object `facts`, or name columns as in --columns sound=category")
    facts = {checked_text(fact, "a fact's name"): checked_text(value, fact) for fact, value in facts.items() if value}
    if not facts:
        raise ValueError("has no fact with a value: give one, or leave the clip out")
    audio = columns.get("audio") or ("audio" if "audio" in row else "audio_path")
    kept = {name: row.get(columns.get(name, name)) or "" for name in ("id", "task", "split")}
    meta = {"facts": facts} | ({"split": str(kept["split"])} if kept["split"] else {})
    heard = checked_audio(forms.clip(forms.field(row, audio), audio), audio, root, True)
    return Question(str(kept["id"] or number), heard, NAME, (), caption(facts), str(kept["task"]), meta)


def caption(facts: dict[str, str]) -> str:
    """Say a clip's facts.

    >>> caption({"instrument": "a piano", "melody": "going up"})
    'a piano, going up'
    """
    return ", ".join(facts.values())


def parts(clips: Sequence[Question], fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    """Divide clips into those to learn from and those held out: by their split, where they have one, else by chance.

    Clips of any other split, such as "test", are in neither.
    """
    if not any("split" in clip.meta for clip in clips):
        return dataset.split(clips, fraction, seed)
    train, held_out = ([clip for clip in clips if clip.meta.get("split") in names] for names in (TRAIN, HELD_OUT))
    if not train:
        raise DataError(f"no clip's split is {' or '.join(TRAIN)}; name the clips to learn from so, or give no splits")
    if held_out:
        return train, held_out
    return dataset.split(train, fraction, seed)


def lessons(clips: Iterable[Question]) -> list[Question]:
    """Write what is asked of each clip, and the reply: its caption in each wording, and every fact by name.

    >>> clip = Question("1", None, NAME, (), "rain", "", {"facts": {"sound": "rain"}})
    >>> [(lesson.question, lesson.answer) for lesson in lessons([clip])][3:]
    [('What is in this recording?', 'rain'), ('What is the sound?', 'rain')]
    """
    found = []
    for clip in clips:
        pairs = [(wording, clip.answer) for wording in WORDINGS]
        pairs += [(f"What is the {fact}?", value) for fact, value in clip.meta["facts"].items()]
        found += [
            replace(clip, id=f"{clip.id}/{number}", question=asked, answer=reply)
            for number, (asked, reply) in enumerate(pairs)
        ]
    return found


def questions(clips: Iterable[Question], known: dict[str, list[str]], seed: int = 0, n: int = 4) -> list[Question]:
    """Ask of each clip one of its facts, with up to `n` of its values in `known` to choose from.

    Which fact, which other choices and in which order follows from the seed and the clip's id. A clip whose facts have
    one known value each is left out: there is nothing to choose.

    >>> clip = Question("1", None, NAME, (), "rain", "sound", {"facts": {"sound": "rain"}})
    >>> asked = questions([clip], {"sound": ["a dog", "rain"]})
    >>> asked[0].question, sorted(asked[0].choices), asked[0].answer
    ('Which sound do you hear?', ['a dog', 'rain'], 'rain')
    """
    found = []
    for clip in clips:
        rng = random.Random(f"{seed} {clip.id} questions")
        among = [(fact, value) for fact, value in sorted(clip.meta["facts"].items()) if len(known[fact]) > 1]
        if not among:
            continue
        fact, value = rng.choice(among)
        others = [other for other in known[fact] if other != value]
        choices = [value, *rng.sample(others, min(n - 1, len(others)))]
        rng.shuffle(choices)
        asked = {"id": f"{clip.id}/{fact}/{seed}", "question": f"Which {fact} do you hear?"}
        found.append(replace(clip, **asked, choices=tuple(choices), answer=value))
    return found


def values(clips: Iterable[Question]) -> dict[str, list[str]]:
    """List the values of each fact, sorted."""
    found: dict[str, set[str]] = {}
    for clip in clips:
        for fact, value in clip.meta["facts"].items():
            found.setdefault(fact, set()).add(value)
    return {fact: sorted(some) for fact, some in found.items()}


def says(reply: str, fact: str, value: str, known: dict[str, list[str]]) -> bool:
    """Tell whether a reply names a fact's value, and no other value that the fact can have.

    Case, punctuation and articles do not count; of values that stand in each other ("slow", "very slow") the longest
    that the reply holds is meant.

    >>> known = {"tempo": ["slow", "very slow", "fast"]}
    >>> says("A piano, very slow.", "tempo", "very slow", known), says("slow or fast", "tempo", "slow", known)
    (True, False)
    """
    words = _words(reply)
    named = [other for other in {*known.get(fact, ()), value} if _within(_words(other), words)]
    meant = [one for one in named if not any(one != other and _within(_words(one), _words(other)) for other in named)]
    return meant == [value]


def _words(text: str) -> list[str]:
    words = [word.strip(prompt.OUTER) for word in prompt.normalise(text).split()]
    return [word for word in words if word and word not in ARTICLES]


def _within(some: list[str], words: list[str]) -> bool:
    return any(words[start : start + len(some)] == some for start in range(len(words) - len(some) + 1))

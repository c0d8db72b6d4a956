"""Ask questions about a small synthetic world, and write them as AVQA's and MMAU's files.

Where the paper takes AVQA's clips from the web, the tiny scale makes its own: `sounds.clip` builds a clip and the facts
in it, `ask` turns one fact into a multiple-choice question, and `write` stores training and validation questions as
AVQA's JSON lines and a test set as MMAU's JSON list, so that the readers in `dataset.py` see the same formats as at
full scale. The same seed makes the same bytes, and no two splits share a seed.

As in the paper, training and test differ. AVQA's questions are about everyday sounds, and people wrote their answers
while they *watched* the video; MMAU asks about sounds, music and speech that can be heard. So the training clips here
are sounds alone, and `watch` labels them as somebody in front of the screen would: 66 % of the questions ask for what
can be heard (`question_relation` Sound), 12 % for what can only be seen (View), and 22 % are answered with the thing in
the picture (Both), which one time in four is not the thing that sounds. So 82.5 % of the labels can be heard. How many
of AVQA's can is not known; these shares make the accuracy reward of a trained model level off near the paper's 0.8.
"""

import errno
import hashlib
import json
import math
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from ..audio import SAMPLE_RATE
from ..dataset import Question
from ..runtime import files, locks
from . import sounds

SPLITS = ("train", "validation", "test", "pretraining")  # each draws from its own seeds
TASKS = ("sound", "music", "speech")
RELATIONS = {"Sound": 0.66, "View": 0.12, "Both": 0.22}  # what training questions are about, as AVQA names it
ON_SCREEN = 0.75  # how often the thing in the picture is the thing that sounds


@dataclass(frozen=True)
class Fact:
    """What can be asked about a clip: its answers, its difficulty (0, 1), its place in MMAU, its wordings."""

    task: str
    values: tuple[str, ...]
    level: int
    category: str
    sub_category: str
    wordings: tuple[str, ...]


FACTS = {
    "source": Fact(
        "sound", sounds.SOURCES, 0, "Reasoning", "Acoustic Source Inference",
        ("What is making the sound in the {it}?", "What do you hear in the {it}?",
         "Which source is heard in the {it}?", "What is the main sound of the {it}?"),
    ),
    "first": Fact(
        "sound", sounds.SOURCES, 1, "Reasoning", "Temporal Event Reasoning",
        ("Which sound comes first in the {it}?", "What is heard at the beginning of the {it}?",
         "What sounds first in the {it}?"),
    ),
    "last": Fact(
        "sound", sounds.SOURCES, 1, "Reasoning", "Temporal Event Reasoning",
        ("Which sound comes last in the {it}?", "What is heard at the end of the {it}?",
         "What sounds last in the {it}?"),
    ),
    "times": Fact(
        "sound", sounds.NUMBERS[:4], 1, "Information Extraction", "Sound-Based Event Recognition",
        ("How many times does it sound in the {it}?", "How often is the sound heard in the {it}?",
         "How many sounds are there in the {it}?"),
    ),
    "loudness": Fact(
        "sound", sounds.LOUDNESS, 1, "Reasoning", "Event-Based Sound Reasoning",
        ("How does the loudness change in the {it}?", "What happens to the volume in the {it}?",
         "How does the volume develop in the {it}?"),
    ),
    "instrument": Fact(
        "music", sounds.INSTRUMENTS, 0, "Information Extraction", "Instrumentation",
        ("Which instrument plays in the {it}?", "What instrument is heard in the {it}?",
         "What is being played in the {it}?", "Which instrument do you hear in the {it}?"),
    ),
    "melody": Fact(
        "music", sounds.CONTOURS, 1, "Information Extraction", "Melodic Structure Interpretation",
        ("How does the melody move in the {it}?", "In which direction does the melody go in the {it}?",
         "What is the shape of the melody in the {it}?"),
    ),
    "tempo": Fact(
        "music", ("slow", "fast"), 0, "Information Extraction", "Rhythm and Tempo Understanding",
        ("What is the tempo of the {it}?", "How fast is the music in the {it}?",
         "Is the music in the {it} slow or fast?"),
    ),
    "notes": Fact(
        "music", sounds.NUMBERS[1:], 1, "Reasoning", "Temporal Reasoning",
        ("How many notes are played in the {it}?", "How many notes do you hear in the {it}?",
         "How many notes are there in the {it}?"),
    ),
    "vowel": Fact(
        "speech", tuple(sounds.VOWELS), 0, "Information Extraction", "Phonological Sequence Decoding",
        ("Which vowel is spoken in the {it}?", "What vowel does the voice say in the {it}?",
         "Which vowel do you hear in the {it}?"),
    ),
    "voice": Fact(
        "speech", tuple(sounds.VOICES), 0, "Reasoning", "Multi Speaker Role Mapping",
        ("Who is speaking in the {it}?", "Whose voice is heard in the {it}?",
         "Who is talking in the {it}?", "Which speaker do you hear in the {it}?"),
    ),
    "syllables": Fact(
        "speech", sounds.NUMBERS[:5], 1, "Reasoning", "Counting",
        ("How many syllables are spoken in the {it}?", "How many syllables do you hear in the {it}?",
         "How many syllables are there in the {it}?"),
    ),
    "pitch": Fact(
        "speech", sounds.INTONATIONS, 1, "Reasoning", "Phonemic Stress Pattern Analysis",
        ("How does the pitch of the voice move in the {it}?",
         "What is the intonation of the voice in the {it}?", "How does the voice move in the {it}?"),
    ),
    "height": Fact(
        "speech", ("high", "low"), 0, "Information Extraction", "Phonemic Stress Pattern Analysis",
        ("Is the voice in the {it} high or low?", "What is the pitch of the voice in the {it}?"),
    ),
}  # fmt: skip
VIEWS = {  # what a watcher can see, and nobody can hear
    "colour": Fact(
        "sound", ("red", "blue", "green", "white"), 0, "", "",
        ("What colour is the object in the {it}?", "Which colour is seen in the {it}?"),
    ),
    "place": Fact(
        "sound", ("a street", "a garden", "a kitchen", "a beach"), 0, "", "",
        ("Where was the {it} taken?", "Which place is shown in the {it}?"),
    ),
    "people": Fact(
        "sound", sounds.NUMBERS[:4], 0, "", "",
        ("How many people are in the {it}?", "How many people are seen in the {it}?"),
    ),
}  # fmt: skip


def ask(
    facts: dict[str, str], rng: np.random.Generator, fact: str | None = None, it: str = "audio", **fields
) -> Question:
    """Ask for one fact of a clip (a random one if `fact` is None), with four choices, or two, in random order.

    it: what the wording calls the clip, "video" in AVQA. fields: `id` and `audio` of the question.
    """
    fact = fact or str(rng.choice([name for name in FACTS if name in facts]))
    about, answer = (FACTS | VIEWS)[fact], facts[fact]
    wrong = [value for value in about.values if value != answer]
    other = facts.get({"first": "last", "last": "first"}.get(fact))
    rng.shuffle(wrong)
    wrong.sort(key=lambda value: value != other)  # what is also heard must be among the choices
    choices = [answer, *wrong[: 1 if rng.random() < 0.08 else 3]]
    rng.shuffle(choices)
    level = about.level + (float(facts["noise"].split()[0]) < 12) + (other is not None)
    difficulty = ("easy", "medium", "hard")[min(level, 2)]
    meta = {
        "fact": fact,
        "difficulty": difficulty,
        "category": about.category,
        "sub-category": about.sub_category,
    }
    wording = str(rng.choice(about.wordings)).format(it=it)
    return Question(
        **{"id": "", "audio": None} | fields,
        question=wording,
        choices=tuple(choices),
        answer=answer,
        task=about.task,
        meta=meta,
    )


def scene(rng: np.random.Generator) -> dict[str, str]:
    """Draw what is seen while a clip plays; none of it can be heard."""
    return {name: str(rng.choice(about.values)) for name, about in VIEWS.items()}


def watch(facts: dict[str, str], rng: np.random.Generator, relation: str, **fields) -> Question:
    """Ask about a sound clip as somebody watching the video would, and label it with what they saw.

    relation: "Sound" (the label is right), "View" (it cannot be heard) or "Both" (the label is the thing in the
    picture, which sounds in `ON_SCREEN` of the cases). fields: see `ask`. The question's meta holds `relation`, and
    `heard`: the answer that the clip gives, None if it gives none.
    """
    if relation == "View":
        question = ask(facts | scene(rng), rng, str(rng.choice(list(VIEWS))), **fields)
        heard = None
    else:
        things = [name for name in ("source", "first", "last") if name in facts]
        question = ask(facts, rng, str(rng.choice(things)) if relation == "Both" else None, **fields)
        heard = question.answer
        if relation == "Both" and rng.random() >= ON_SCREEN:
            other = [choice for choice in question.choices if choice != heard]
            question = replace(question, answer=str(rng.choice(other)))
    return replace(question, meta=question.meta | {"relation": relation, "heard": heard})


def example(
    split: str, index: int, seed: int = 0, it: str = "audio", relations: Mapping[str, float] = RELATIONS
) -> tuple[np.ndarray, Question]:
    """Make clip number `index` of a split and its question. No two splits share a seed.

    Test clips are sound, music and speech in turn. Training and validation clips are sounds, and their questions are a
    watcher's: relations gives the share of each kind.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    name = str(uuid.uuid5(uuid.NAMESPACE_OID, f"aqa_lib {split} {seed} {index}"))
    if split in ("train", "validation"):
        wave, facts = sounds.clip("sound", rng)
        relation = str(rng.choice(list(relations), p=list(relations.values())))
        return wave, watch(facts, rng, relation, it=it, id=name)
    wave, facts = sounds.clip(TASKS[index % 3], rng)
    return wave, ask(facts, rng, it=it, id=name)


def write(
    folder: str | Path,
    train: int = 1500,
    validation: int = 150,
    test: int = 600,
    seed: int = 0,
    relations: Mapping[str, float] = RELATIONS,
) -> Path:
    """Write `train.jsonl`, `val.jsonl` (AVQA's lines, FLAC) and `test.json` (MMAU's list, WAV), and the clips.

    relations: shares of Sound, View and Both among training and validation questions; `{"Sound": 1.0}` makes every
    label right. Each line also says in `heard` what the clip answers, null if it answers nothing. Does nothing if the
    folder already holds the same data, made with the same arguments by the same code. Builds a temporary folder and
    renames it at the end, so that no half-written set is ever read. Raises FileExistsError rather than replacing files
    it did not write. Returns the folder. The default takes about 15 s and 110 MB.
    """
    folder = Path(folder)
    sources = Path(__file__).read_bytes() + Path(sounds.__file__).read_bytes()
    code = hashlib.sha256(sources).hexdigest()[:16]
    sizes = {"train": train, "validation": validation, "test": test}
    fingerprint = sizes | {"seed": seed, "relations": dict(relations), "code": code}
    mark = folder / "fingerprint.json"
    if mark.is_file() and json.loads(mark.read_text()) == fingerprint:
        return folder
    if folder.exists() and any(folder.iterdir()) and not mark.is_file():
        raise FileExistsError(f"{folder} holds files that synth.write did not make; choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locks.hold(locks.beside(folder), str(folder), wait=math.inf):
        if mark.is_file() and json.loads(mark.read_text()) == fingerprint:  # another process made it meanwhile
            return folder
        draft = folder.with_name(f".{folder.name}.part")
        for old in folder.parent.glob(f".{folder.name}.*"):  # what a kill left
            shutil.rmtree(old, ignore_errors=True)
        try:
            _write(draft, train, validation, test, seed, relations)
            (draft / "fingerprint.json").write_text(json.dumps(fingerprint))
            shutil.rmtree(folder, ignore_errors=True)
            draft.replace(folder)
        except (OSError, soundfile.SoundFileError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or shutil.disk_usage(folder.parent).free < 2**20
            reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error).rstrip(".")
            raise files.FileError(
                f"{folder}: the tiny world's clips cannot be written ({reason}); they take 110 MB: make room, or set "
                "AQA_ARTIFACTS to a folder elsewhere."
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _write(draft: Path, train: int, validation: int, test: int, seed: int, relations: Mapping[str, float]) -> None:
    """Write all clips and questions into a new folder."""
    for name in ("audio", "test-mini-audios"):
        (draft / name).mkdir(parents=True)
    for split, count, file in (("train", train, "train.jsonl"), ("validation", validation, "val.jsonl")):
        rows = (_avqa_row(draft, split, index, seed, relations) for index in range(count))
        (draft / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [_mmau_row(draft, index, seed) for index in range(test)]
    (draft / "test.json").write_text(json.dumps(rows, indent=1))


def _avqa_row(folder: Path, split: str, index: int, seed: int, relations: Mapping[str, float]) -> dict:
    wave, question = example(split, index, seed, "video", relations)
    name = f"{split}_{seed}_{index:06d}"
    soundfile.write(files.c_name(folder / "audio" / f"{name}.flac"), wave, SAMPLE_RATE, subtype="PCM_16")
    return {
        "id": index, "video_name": name, "video_id": index, "question_text": question.question,
        "multi_choice": list(question.choices), "answer": question.choices.index(question.answer),
        "question_relation": question.meta["relation"], "question_type": question.meta["fact"],
        "dataset_name": "aqa_lib.tiny.synth", "audio_path": f"audio/{name}.flac", "task": question.task,
        "heard": question.meta["heard"],
    }  # fmt: skip


def _mmau_row(folder: Path, index: int, seed: int) -> dict:
    wave, question = example("test", index, seed)
    path = f"./test-mini-audios/{question.id}.wav"
    soundfile.write(files.c_name(folder / path), wave, SAMPLE_RATE, subtype="PCM_16")
    return {
        "id": question.id, "audio_id": path, "question": question.question, "choices": list(question.choices),
        "answer": question.answer, "dataset": "aqa_lib.tiny.synth", "task": question.task, "split": "test-mini",
        "category": question.meta["category"], "sub-category": question.meta["sub-category"],
        "difficulty": question.meta["difficulty"],
    }  # fmt: skip

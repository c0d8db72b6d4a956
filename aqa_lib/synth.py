"""Synthesise a small world of sounds, music and voices, and ask questions about it.

Where the report takes AVQA's clips from the web, the tiny scale makes its own: `clip` builds a sound of 2.0 to 2.5 s
together with the facts it was built from, `ask` turns one fact into a multiple-choice question, and `write` stores
training and validation questions as AVQA's JSON lines and a test set as MMAU's JSON list, so that the readers of
`dataset.py` see the same forms as at full scale. Everything is drawn from a seed with numpy alone, so the same call
makes the same bytes; every clip has its own source parameters, loudness, noise, echo and start, so there is nothing
to memorise. The voices are vowels with formants, not words: nobody is recorded, and nobody understands them.
"""

import hashlib
import json
import os
import shutil
import uuid
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from .audio import SAMPLE_RATE
from .dataset import Question

SPLITS = ("train", "validation", "test", "pretraining")  # each draws from seeds of its own
TASKS = ("sound", "music", "speech")
F32 = np.float32

# What can be heard. Each fact's values are also the choices of its questions.
SOURCES = ("a siren", "rain", "a clock", "an engine", "a bird", "a dog", "an alarm", "wind", "footsteps", "a bell", "a cat")
INSTRUMENTS = ("piano", "guitar", "violin", "flute", "trumpet", "clarinet", "organ", "xylophone")
VOWELS = {"ah": (730, 1090, 2440), "ee": (270, 2290, 3010), "oo": (310, 870, 2240), "eh": (530, 1840, 2480), "aw": (570, 840, 2410)}
VOICES = {"a man": (90, 130), "a woman": (180, 235), "a child": (290, 370), "a robot": (120, 170)}
NUMBERS = ("one", "two", "three", "four", "five", "six")
LOUDNESS = ("getting louder", "getting quieter", "staying the same", "rising then falling")
CONTOURS = ("going up", "going down", "up then down", "down then up", "staying the same")
COUNTABLE = ("a bird", "a dog", "an alarm", "a bell", "a cat")

# fact -> (task, wordings, choices, MMAU category, MMAU sub-category, difficulty 0 to 2 before noise is counted)
ASKED = {
    "source": ("sound", ("What is making the sound in the {it}?", "What do you hear in the {it}?", "Which source is heard in the {it}?", "What is the main sound of the {it}?"), SOURCES, "Reasoning", "Acoustic Source Inference", 0),
    "first": ("sound", ("Which sound comes first in the {it}?", "What is heard at the beginning of the {it}?", "What sounds first in the {it}?"), SOURCES, "Reasoning", "Temporal Event Reasoning", 1),
    "last": ("sound", ("Which sound comes last in the {it}?", "What is heard at the end of the {it}?", "What sounds last in the {it}?"), SOURCES, "Reasoning", "Temporal Event Reasoning", 1),
    "times": ("sound", ("How many times does it sound in the {it}?", "How often is the sound heard in the {it}?", "How many sounds are there in the {it}?"), NUMBERS[:4], "Information Extraction", "Sound-Based Event Recognition", 1),
    "loudness": ("sound", ("How does the loudness change in the {it}?", "What happens to the volume in the {it}?", "How does the volume develop in the {it}?"), LOUDNESS, "Reasoning", "Event-Based Sound Reasoning", 1),
    "instrument": ("music", ("Which instrument plays in the {it}?", "What instrument is heard in the {it}?", "What is being played in the {it}?", "Which instrument do you hear in the {it}?"), INSTRUMENTS, "Information Extraction", "Instrumentation", 0),
    "melody": ("music", ("How does the melody move in the {it}?", "In which direction does the melody go in the {it}?", "What is the shape of the melody in the {it}?"), CONTOURS, "Information Extraction", "Melodic Structure Interpretation", 1),
    "tempo": ("music", ("What is the tempo of the {it}?", "How fast is the music in the {it}?", "Is the music in the {it} slow or fast?"), ("slow", "fast"), "Information Extraction", "Rhythm and Tempo Understanding", 0),
    "notes": ("music", ("How many notes are played in the {it}?", "How many notes do you hear in the {it}?", "How many notes are there in the {it}?"), NUMBERS[1:], "Reasoning", "Temporal Reasoning", 1),
    "vowel": ("speech", ("Which vowel is spoken in the {it}?", "What vowel does the voice say in the {it}?", "Which vowel do you hear in the {it}?"), tuple(VOWELS), "Information Extraction", "Phonological Sequence Decoding", 0),
    "voice": ("speech", ("Who is speaking in the {it}?", "Whose voice is heard in the {it}?", "Who is talking in the {it}?", "Which speaker do you hear in the {it}?"), tuple(VOICES), "Reasoning", "Multi Speaker Role Mapping", 0),
    "syllables": ("speech", ("How many syllables are spoken in the {it}?", "How many syllables do you hear in the {it}?", "How many syllables are there in the {it}?"), NUMBERS[:5], "Reasoning", "Counting", 1),
    "pitch": ("speech", ("How does the pitch of the voice move in the {it}?", "What is the intonation of the voice in the {it}?", "How does the voice move in the {it}?"), CONTOURS[:3] + CONTOURS[4:], "Reasoning", "Phonemic Stress Pattern Analysis", 1),
    "height": ("speech", ("Is the voice in the {it} high or low?", "What is the pitch of the voice in the {it}?"), ("high", "low"), "Information Extraction", "Phonemic Stress Pattern Analysis", 0),
}  # fmt: skip


def clip(task: str, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, str]]:
    """Draw one clip of a task, (S,) float32 of 2.0 to 2.5 s at 16 kHz, and the facts that can be heard in it.

    facts: values of `ASKED`, and "noise", the signal-to-noise ratio in dB. Takes 1 to 3 ms.
    """
    S = int(rng.uniform(2.0, 2.5) * SAMPLE_RATE)
    wave, facts = {"sound": _sound, "music": _music, "speech": _speech}[task](rng, S)
    if rng.random() < 0.3:  # one echo, as of a wall
        delay = rng.integers(400, 2400)
        wave[delay:] += F32(rng.uniform(0.1, 0.35)) * wave[:-delay]
    snr = rng.uniform(3, 30)
    hiss = _noise(rng, S, rng.choice([0.0, 0.5, 1.0]))
    wave = wave / _rms(wave) + hiss * F32(10 ** (-snr / 20) / _rms(hiss))
    wave *= F32(10 ** (rng.uniform(-24, -1) / 20) / np.abs(wave).max())
    return wave, facts | {"noise": f"{snr:.0f} dB"}


def ask(facts: dict[str, str], rng: np.random.Generator, fact: str | None = None, it: str = "audio", **fields) -> Question:
    """Ask for one fact of a clip (by chance where `fact` is None), with four choices in random order, or two.

    it: what the wording calls the clip, "video" in AVQA. fields: `id` and `audio` of the question.
    """
    fact = fact or str(rng.choice([name for name in ASKED if name in facts]))
    task, wordings, values, category, sub_category, level = ASKED[fact]
    answer = facts[fact]
    wrong = [value for value in values if value != answer]
    other = facts.get({"first": "last", "last": "first"}.get(fact))
    rng.shuffle(wrong)
    wrong.sort(key=lambda value: value != other)  # what is also heard must be among the choices
    choices = [answer, *wrong[: 1 if rng.random() < 0.08 else 3]]
    rng.shuffle(choices)
    level += (float(facts["noise"].split()[0]) < 12) + (other is not None)
    difficulty = ("easy", "medium", "hard")[min(level, 2)]
    meta = {"difficulty": difficulty, "category": category, "sub-category": sub_category, "fact": fact}
    wording = str(rng.choice(wordings)).format(it=it)
    return Question(**{"id": "", "audio": None} | fields, question=wording, choices=tuple(choices), answer=answer, task=task, meta=meta)


def example(split: str, index: int, seed: int = 0, it: str = "audio") -> tuple[np.ndarray, Question]:
    """Make clip number `index` of a split and its question; tasks take turns. No two splits share a seed."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    wave, facts = clip(TASKS[index % 3], rng)
    return wave, ask(facts, rng, it=it, id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"aqa_lib {split} {seed} {index}")))


def write(folder: str | Path, train: int = 1500, validation: int = 150, test: int = 300, seed: int = 0) -> Path:
    """Write clips and questions: `train.jsonl`, `val.jsonl` (AVQA's lines, FLAC) and `test.json` (MMAU's list, WAV).

    Does nothing where the folder holds the same data already, made with the same arguments by the same code. Builds
    beside the folder and renames at the end, so that no half-written set is ever read. Refuses to replace a folder
    that it did not write. Returns the folder. 2,000 clips take about 10 s and 110 MB.
    """
    folder = Path(folder)
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    fingerprint = {"train": train, "validation": validation, "test": test, "seed": seed, "code": code}
    mark = folder / "fingerprint.json"
    if mark.is_file() and json.loads(mark.read_text()) == fingerprint:
        return folder
    if folder.exists() and any(folder.iterdir()) and not mark.is_file():
        raise FileExistsError(f"{folder} holds files that synth.write did not make; choose another folder.")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    for name in ("audio", "test-mini-audios"):
        (draft / name).mkdir(parents=True)
    for split, count, file in (("train", train, "train.jsonl"), ("validation", validation, "val.jsonl")):
        rows = (_avqa_row(draft, split, index, seed) for index in range(count))
        (draft / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [_mmau_row(draft, index, seed) for index in range(test)]
    (draft / "test.json").write_text(json.dumps(rows, indent=1))
    (draft / "fingerprint.json").write_text(json.dumps(fingerprint))
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)
    return folder


def _avqa_row(folder: Path, split: str, index: int, seed: int) -> dict:
    wave, question = example(split, index, seed, it="video")
    name = f"{split}_{seed}_{index:06d}"
    soundfile.write(folder / "audio" / f"{name}.flac", wave, SAMPLE_RATE, subtype="PCM_16")
    return {
        "id": index, "video_name": name, "video_id": index, "question_text": question.question,
        "multi_choice": list(question.choices), "answer": question.choices.index(question.answer),
        "question_relation": "Sound", "question_type": question.meta["fact"], "dataset_name": "aqa_lib.synth",
        "audio_path": f"audio/{name}.flac", "task": question.task,
    }  # fmt: skip


def _mmau_row(folder: Path, index: int, seed: int) -> dict:
    wave, question = example("test", index, seed)
    path = f"./test-mini-audios/{question.id}.wav"
    soundfile.write(folder / path, wave, SAMPLE_RATE, subtype="PCM_16")
    return {
        "id": question.id, "audio_id": path, "question": question.question, "choices": list(question.choices),
        "answer": question.answer, "dataset": "aqa_lib.synth", "task": question.task, "split": "test-mini",
        "category": question.meta["category"], "sub-category": question.meta["sub-category"],
        "difficulty": question.meta["difficulty"],
    }  # fmt: skip


# ---- sounds ----------------------------------------------------------------------------------------------------


def _sound(rng, S: int) -> tuple[np.ndarray, dict[str, str]]:
    """One source with a loudness of its own, two sources in turn, or one heard one to four times."""
    layout = rng.choice(["one", "turn", "times"], p=[0.5, 0.25, 0.25])
    if layout == "turn":
        first, last = (str(name) for name in rng.choice(SOURCES, 2, replace=False))
        at = int(S * rng.uniform(0.42, 0.58))
        wave = np.zeros(S, F32)
        for name, start, stop in ((first, 0, at), (last, at, S)):
            part = _source(rng, name, stop - start)
            wave[start:stop] = part / _rms(part) * F32(rng.uniform(0.7, 1.3)) * _fade(stop - start, 800)
        return wave, {"first": first, "last": last}
    if layout == "times":
        name, count = str(rng.choice(COUNTABLE)), int(rng.integers(1, 5))
        wave = np.zeros(S, F32)
        slot = S // 4 if count == 4 else int(S * rng.uniform(0.24, min(0.5, 0.95 / count)))
        start = int(rng.uniform(0, S - slot * count + 1))
        call = _call(rng, name, int(slot * rng.uniform(0.5, 0.75)))
        for i in range(count):
            wave[start + i * slot : start + i * slot + len(call)] = call * F32(rng.uniform(0.7, 1.0))
        return wave, {"source": name, "times": NUMBERS[count - 1]}
    name, change = str(rng.choice(SOURCES)), str(rng.choice(LOUDNESS))
    wave = _source(rng, name, S)
    ramp = np.linspace(0, 1, S, dtype=F32)
    shape = {"getting louder": ramp, "getting quieter": 1 - ramp, "staying the same": np.ones(S, F32)}
    shape["rising then falling"] = 1 - np.abs(2 * ramp - 1)
    wave *= F32(10) ** (F32(rng.uniform(1.0, 1.6)) * (shape[change] - 1))
    return wave, {"source": name, "loudness": change}


def _source(rng, name: str, S: int) -> np.ndarray:
    """Fill S samples with one source."""
    t = np.arange(S, dtype=F32) / SAMPLE_RATE
    if name == "rain":
        drops = np.where(rng.random(S, F32) < rng.uniform(0.005, 0.03), 6, 1).astype(F32)
        return _noise(rng, S, rng.uniform(-0.4, 0.0)) * drops
    if name == "wind":
        gusts = 1 + 0.8 * np.sin(2 * np.pi * rng.uniform(0.4, 1.0) * t + rng.uniform(0, 6.3))
        return _noise(rng, S, 1.0, rng.uniform(120, 250), rng.uniform(500, 900)) * gusts.astype(F32)
    if name == "a siren":
        sweep = np.sin(2 * np.pi * rng.uniform(0.6, 2.2) * t + rng.uniform(0, 6.3))
        return _tone(rng.uniform(700, 1000) * (1 + rng.uniform(0.25, 0.45) * sweep), (1, 0.4, 0.25))
    if name == "an engine":
        f = rng.uniform(35, 80) * (1 + 0.06 * np.sin(2 * np.pi * rng.uniform(0.3, 1) * t + rng.uniform(0, 6.3)))
        return _tone(f, 1 / np.arange(1, 25) ** 0.6) + F32(0.4) * _noise(rng, S, 1.0, 50, 1500)
    # all others repeat one call at their own rate
    every = {"a clock": (0.22, 0.5), "footsteps": (0.35, 0.6), "a bird": (0.2, 0.4), "a dog": (0.35, 0.6), "an alarm": (0.2, 0.45), "a bell": (0.6, 1.0), "a cat": (0.7, 1.0)}[name]  # fmt: skip
    period = int(rng.uniform(*every) * SAMPLE_RATE)
    wave, start = np.zeros(S + period, F32), int(rng.uniform(0, 0.3) * period)
    while start < S:
        call = _call(rng, name, min(int(period * rng.uniform(0.7, 0.9)), S + period - start))
        wave[start : start + len(call)] += call * F32(rng.uniform(0.8, 1))
        start += int(period * rng.uniform(0.95, 1.05))
    return wave[:S]


def _call(rng, name: str, S: int) -> np.ndarray:
    """Make one tick, step, chirp, bark, beep, stroke or meow of at most S samples."""
    x = np.linspace(0, 1, S, dtype=F32)
    t = np.arange(S, dtype=F32) / SAMPLE_RATE
    if name == "a clock":
        return _tone(np.full(S, rng.uniform(1800, 3200)), (1, 0, 0.5)) * np.exp(-t * 250) + F32(0.3) * _noise(rng, S, -0.3) * np.exp(-t * 500)
    if name == "footsteps":
        return _noise(rng, S, 0.8, 60, 500) * np.exp(-t * 35) + F32(0.4) * _noise(rng, S, 0.0, 800, 3000) * np.exp(-t * 60)
    if name == "a bird":
        trill = 1 + rng.uniform(0.05, 0.2) * np.sin(2 * np.pi * rng.uniform(15, 35) * t)
        return _tone(rng.uniform(2800, 4500) * (1 + rng.uniform(-0.3, 0.3) * x) * trill, (1, 0.15)) * _fade(S, S // 4)
    if name == "a dog":
        f = rng.uniform(280, 600) * (1 + 0.5 * np.sin(np.pi * np.minimum(1, x * 1.6))) * (1 - 0.3 * x)
        bark = _tone(f, 1 / np.arange(1, 9) ** 0.7) + F32(0.6) * _noise(rng, S, 0.5, 400, 2500)
        return bark * np.exp(-x * 4) * _fade(S, 300)
    if name == "an alarm":
        return _tone(np.full(S, rng.uniform(1500, 2800)), (1, 0, 0.33)) * _fade(S, 100)
    if name == "a bell":
        f = rng.uniform(500, 1100)
        parts = sum(_tone(np.full(S, f * ratio), (1,)) * np.exp(-t * d) for ratio, d in ((1, 3), (2.0, 4), (2.76, 5), (5.4, 9)))
        return parts.astype(F32) * _fade(S, 60)
    f = rng.uniform(450, 700) * (0.8 + 0.5 * np.sin(np.pi * x**0.7))  # a cat
    return _formants(_tone(f, 1 / np.arange(1, 11) ** 0.5), ((900, 300), (1900, 400))) * _fade(S, S // 5)


# ---- music and voices ------------------------------------------------------------------------------------------


def _music(rng, S: int) -> tuple[np.ndarray, dict[str, str]]:
    """Two to six notes of one instrument, along a contour, slow or fast."""
    instrument, tempo = str(rng.choice(INSTRUMENTS)), str(rng.choice(["slow", "fast"]))
    count = int(rng.integers(2, 6) if tempo == "slow" else rng.integers(3, 7))
    gap = (rng.uniform(0.36, 0.5) if tempo == "slow" else rng.uniform(0.17, 0.23)) * SAMPLE_RATE
    gap = int(min(gap, 0.96 * S / count))
    melody = str(rng.choice(CONTOURS if count > 2 else ("going up", "going down", "staying the same")))
    starts = int(rng.uniform(0, S - gap * count)) + gap * np.arange(count)
    pitches = rng.uniform(200, 480) * 2 ** (_contour(rng, melody, count) / 12)
    owner = np.clip(np.searchsorted(starts, np.arange(S), side="right") - 1, 0, None)  # the note of each sample
    since = (np.arange(S) - starts[owner]).astype(F32) / SAMPLE_RATE  # seconds
    length, own = gap / SAMPLE_RATE, starts[0] / SAMPLE_RATE
    h = np.arange(1, 13)
    bright = 10 ** rng.uniform(-0.15, 0.15)
    amplitudes, attack, decay = {
        "piano": (0.6**h + 0.1 / h, 0.004, 5), "guitar": (np.abs(np.sin(h * 0.9)) / h**0.6, 0.003, 8),
        "violin": (1 / h**0.8, 0.06, 0), "flute": (np.where(h < 4, 0.25 ** (h - 1.0), 0), 0.05, 0),
        "trumpet": (np.exp(-(((h - 4) / 3) ** 2)), 0.025, 0.5), "clarinet": (np.where(h % 2, 1 / h**0.7, 0.02), 0.03, 0),
        "organ": (np.isin(h, (1, 2, 4, 8)) * 0.8 ** np.log2(h), 0.008, 0),
        "xylophone": (np.isin(h, (1, 4, 10)) / h**0.5, 0.001, 22),
    }[instrument]  # fmt: skip
    frequency = pitches[owner]
    if instrument == "violin":
        frequency = frequency * (1 + 0.015 * np.sin(2 * np.pi * rng.uniform(5, 7) * np.arange(S) / SAMPLE_RATE))
    wave = _tone(frequency, amplitudes * bright**h)
    if instrument == "flute":
        wave += F32(0.25) * _noise(rng, S, 0.2, 1500, 6000)
    envelope = np.minimum(1, since / attack) * np.exp(-decay * since) * np.clip((length - since) / 0.02, 0, 1)
    envelope[: int(own * SAMPLE_RATE)] = 0
    accents = rng.uniform(0.7, 1, count)[owner]
    facts = {"instrument": instrument, "melody": melody, "tempo": tempo, "notes": NUMBERS[count - 1]}
    return (wave * envelope * accents).astype(F32), facts


def _speech(rng, S: int) -> tuple[np.ndarray, dict[str, str]]:
    """One to five syllables of one vowel by one voice, its pitch along a contour."""
    voice, vowel, count = str(rng.choice(list(VOICES))), str(rng.choice(list(VOWELS))), int(rng.integers(1, 6))
    facts = {"voice": voice, "vowel": vowel, "syllables": NUMBERS[count - 1]}
    gap = int(min(rng.uniform(0.3, 0.5) * SAMPLE_RATE, 0.95 * S / count))
    start, stop = (first := int(rng.uniform(0, S - gap * count))), first + gap * count
    x = np.clip((np.arange(S, dtype=F32) - start) / (stop - start), 0, 1)
    f = np.full(S, rng.uniform(*VOICES[voice]), F32)
    if voice != "a robot":
        facts["pitch"] = str(rng.choice(ASKED["pitch"][2]))
        bend = {"going up": x - 0.5, "going down": 0.5 - x, "up then down": 0.5 - np.abs(2 * x - 1), "staying the same": 0 * x}
        f *= 2 ** (F32(rng.uniform(0.6, 1.0)) * bend[facts["pitch"]])
    if voice in ("a man", "a child"):
        facts["height"] = "low" if voice == "a man" else "high"
    wave = _tone(f, 1 / np.arange(1, 31) ** (0.3 if voice == "a robot" else 0.8))
    if voice == "a robot":
        wave *= 1 + F32(0.8) * np.sin(2 * np.pi * F32(rng.uniform(45, 70)) * np.arange(S, dtype=F32) / SAMPLE_RATE)
    size = {"a man": 1.0, "a woman": 1.14, "a child": 1.3, "a robot": 1.0}[voice] * rng.uniform(0.95, 1.05)
    wave = _formants(wave + F32(0.03) * _noise(rng, S, 0.0), [(f * size, 60 + 0.05 * f) for f in VOWELS[vowel]])
    envelope, hush = np.zeros(S, F32), int(gap * rng.uniform(0.2, 0.35))
    for i in range(count):
        a, b = start + i * gap + hush, start + (i + 1) * gap
        envelope[a:b] = F32(rng.uniform(0.7, 1)) * _fade(b - a, (b - a) // 5)
    wave = wave / _rms(wave) * envelope
    if rng.random() < 0.5:  # a consonant before each syllable
        burst = _noise(rng, hush, -0.3, rng.uniform(2500, 4500), 8000) * _fade(hush, hush // 3)
        burst *= F32(rng.uniform(0.1, 0.3)) / _rms(burst)
        for i in range(count):
            wave[start + i * gap : start + i * gap + hush] += burst
    return wave, facts


def _contour(rng, name: str, count: int) -> np.ndarray:
    """Give the semitones of each note along a contour."""
    steps = rng.integers(2, 5, count - 1)
    turn = (count - 1 + rng.integers(0, 2) * ((count - 1) % 2)) // 2
    signs = np.where(np.arange(count - 1) < max(turn, 1), 1, -1)
    sign = {"going up": 1, "going down": -1, "staying the same": 0, "up then down": signs, "down then up": -signs}[name]
    line = np.concatenate([[0], np.cumsum(sign * steps)])
    return line - line.mean()


# ---- signals ---------------------------------------------------------------------------------------------------


def _tone(frequency: np.ndarray, amplitudes) -> np.ndarray:
    """Sum harmonics of a moving frequency (S,) in Hz, read from a table of one period; harmonics over 7.5 kHz are left out."""
    amplitudes = np.asarray(amplitudes, float)
    top = int(7500 / max(float(np.max(frequency)), 1))
    h = np.arange(1, min(len(amplitudes), max(top, 1)) + 1)
    period = np.sin(2 * np.pi * np.outer(np.arange(2048) / 2048, h) + h**2) @ amplitudes[: len(h)]
    phase = np.cumsum(frequency, dtype=np.float64) * (2048 / SAMPLE_RATE)
    return period.astype(F32)[phase.astype(np.int64) & 2047]


def _noise(rng, S: int, slope: float = 0.0, low: float = 0.0, high: float = 8000.0) -> np.ndarray:
    """Draw noise of unit loudness whose spectrum falls as 1 / f^slope between two frequencies in Hz."""
    N = _length(S)
    shape = np.maximum(_bins(N), 30) ** F32(-slope)
    if low:
        shape /= 1 + (F32(low) / np.maximum(_bins(N), 1)) ** 4
    if high < 8000:
        shape /= 1 + (_bins(N) / F32(high)) ** 6
    spectrum = rng.standard_normal(2 * len(shape), F32).view(np.complex64) * shape
    wave = np.fft.irfft(spectrum, N)[:S]
    return wave / _rms(wave)


def _formants(wave: np.ndarray, peaks) -> np.ndarray:
    """Filter a wave through resonances, given as (frequency, width) in Hz."""
    S, N = len(wave), _length(len(wave))
    f = _bins(N)
    gain = sum(F32(0.7**i) / (1 + ((f - F32(p)) / F32(w)) ** 2) for i, (p, w) in enumerate(peaks)) + F32(0.005)
    return np.fft.irfft(np.fft.rfft(wave.astype(F32), N) * gain, N)[:S]


def _length(S: int) -> int:
    """Round up to a length that the Fourier transform is fast at."""
    step = 1 << max(S.bit_length() - 5, 1)
    return -(-S // step) * step


@lru_cache
def _bins(N: int) -> np.ndarray:
    return np.linspace(0, SAMPLE_RATE / 2, N // 2 + 1, dtype=F32)


def _fade(S: int, samples: int) -> np.ndarray:
    """Rise from 0 to 1 and back within a number of samples at either end."""
    ramp = np.minimum(np.arange(S), np.arange(S)[::-1]).astype(F32)
    return np.minimum(1, ramp / max(samples, 1))


def _rms(wave: np.ndarray) -> F32:
    return np.sqrt(np.mean(np.square(wave), dtype=np.float64)).astype(F32)

"""Inputs that nobody meant: a clear error or a correct reading, never a crash, a hang, or silence heard as sound."""

import io
import json
import os
import resource
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aqa_lib import audio, evaluation, predictions, prompt, reward
from aqa_lib.audio import AudioError, load
from aqa_lib.dataset import DataError, Question, read
from aqa_lib.results import mmau, scoring, thoughts
from aqa_lib.runtime import files

RATE = audio.SAMPLE_RATE
CASES = 240  # damaged files of each form: 9 forms make 2,160
FORMS = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "float wav": {"format": "WAV", "subtype": "FLOAT"},
    "24 bit wav": {"format": "WAVEX", "subtype": "PCM_24"},
    "adpcm wav": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
    "aiff": {"format": "AIFF", "subtype": "PCM_16"},
}


def tone(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    wave = np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate) / 2
    return np.repeat(wave[:, None], channels, 1).astype(np.float32)


def encoded(wave, rate=RATE, **form) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, **form)
    return file.getvalue()


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut, flip, fill, repeat, insert or remove something, more often in the header than elsewhere."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(0, min(64, len(data)) if rng.random() < 0.5 else len(data)))
        length = int(rng.choice([1, 2, 4, 8, 200]))
        match rng.integers(0, 6):
            case 0:
                del data[place + 1 :]
            case 1:
                data[place] ^= 1 << int(rng.integers(0, 8))
            case 2:
                data[place : place + length] = bytes([int(rng.choice([0, 127, 128, 255]))]) * length
            case 3:
                data[place:place] = data[place : place + length]
            case 4:
                data[place:place] = rng.bytes(length)
            case 5:
                del data[place : place + length]
        data = data or bytearray(b"\0")
    return bytes(data)


def heard(source) -> audio.Clip | None:
    """Load a clip and check what `load` promises; None where it is refused in one sentence."""
    try:
        clip = load(source, name="the clip")
    except AudioError as error:
        assert str(error).startswith("the clip: ") and "\n" not in str(error), error
        return None
    assert clip.wave.dtype == np.float32 and clip.wave.ndim == 1
    assert audio.MIN_SAMPLES <= len(clip.wave) <= 30 * RATE
    assert np.isfinite(clip.wave).all() and audio.SILENCE <= np.abs(clip.wave).max() <= audio.LOUDEST
    return clip


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_are_refused_or_heard(form):
    rng = np.random.default_rng(sorted(FORMS).index(form))
    whole = encoded(tone(0.3), **FORMS[form])
    clips = [heard(damaged(whole, rng)) for _ in range(CASES)]
    refused = sum(clip is None for clip in clips)
    assert 0 < refused < CASES  # the damage is neither harmless nor always deadly
    for clip in clips[:: CASES // 8]:
        if clip:
            assert audio.log_mel(clip.wave).isfinite().all()


@pytest.mark.parametrize("form", ["wav", "float wav", "flac", "aiff"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_a_file_that_was_cut_is_refused_or_is_the_start_of_the_whole(form, kept):
    whole = encoded(tone(1.0), **FORMS[form])
    clip, reference = heard(whole[: int(kept * len(whole))]), load(whole).wave
    if clip:
        assert kept - 0.3 < len(clip.wave) / RATE <= kept
        assert np.abs(clip.wave - reference[: len(clip.wave)]).max() < 1e-3
    else:
        assert kept < 0.9 or form == "flac"


@settings(max_examples=150, deadline=None)
@given(
    samples=st.integers(0, 3000),
    rate=st.sampled_from([1, 999, 1_000, 8_000, 44_100, 192_000, 768_000, 2_000_000]),
    channels=st.integers(1, 8),
    peak=st.sampled_from([0.0, 1e-7, 1e-3, 1.0, 3.0, 1e5, 3e38, float("nan"), float("inf")]),
)
def test_awkward_sounds(samples, rate, channels, peak):
    wave = tone(0.1875, channels=channels)[:samples]
    if samples:
        wave[samples // 2 :] = peak
    data = encoded(wave, rate, format="WAV", subtype="FLOAT") if samples else encoded(wave, rate, format="WAV")
    clip = heard(data)
    if clip:
        assert 1_000 <= rate <= 768_000 and abs(len(clip.wave) - samples * RATE / rate) <= 1
    if not np.isfinite(peak) and samples:
        assert clip is None
    if rate == RATE and samples >= audio.MIN_SAMPLES and np.isfinite(peak) and peak <= 3:
        assert clip is not None


@pytest.mark.parametrize("text", [b"", b"\0", b"RIFF", b"hello, this is a text file" * 99, b"\xff\xfb" * 500, b"ID3"])
def test_what_is_no_sound(tmp_path, text):
    (tmp_path / "a.wav").write_bytes(text)
    assert heard(tmp_path / "a.wav") is None and heard(text) is None


def test_a_fifo_or_a_folder_or_a_device_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "folder.wav").mkdir()
    for path in (tmp_path / "fifo.wav", tmp_path / "folder.wav", "/dev/zero"):
        with pytest.raises(AudioError, match="no such file"):
            load(path)
        assert evaluation.seconds(Question("1", path, "?", ("a", "b"), "a")) == 0
    row = {"id": 1, "audio": "fifo.wav", "question": "?", "choices": ["a", "b"], "answer": "a"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match="is not a file in the audio folder"):
        read(tmp_path / "q.jsonl")


def test_no_path_leads_out_of_the_audio_folder(tmp_path):
    inside, outside = tmp_path / "audio", tmp_path / "outside.wav"
    inside.mkdir()
    outside.write_bytes(encoded(tone(0.2), format="WAV"))
    (inside / "link.wav").symlink_to(outside)
    (inside / "folder").symlink_to(tmp_path)
    (tmp_path / "audio-2").mkdir()
    (tmp_path / "audio-2" / "a.wav").write_bytes(b"")
    ways = ["link.wav", "folder/outside.wav", "../outside.wav", str(outside), "../audio-2/a.wav", "a/../../outside.wav"]
    for way in ways:
        row = {"id": 1, "audio": way, "question": "?", "choices": ["a", "b"], "answer": "a"}
        (inside / "q.jsonl").write_text(json.dumps(row))
        with pytest.raises(DataError, match="leads out of the audio folder"):
            read(inside / "q.jsonl")


def test_an_hour_costs_no_more_memory_than_its_first_half_minute(tmp_path):
    """A sparse file: an hour of 48 kHz stereo, 691 MB, that is sound at its start and at its middle."""
    head = bytearray(encoded(tone(1.0, 48_000, 2), 48_000, format="WAV", subtype="PCM_16"))
    frames = 3_600 * 48_000
    head[4:8], head[40:44] = (36 + 4 * frames).to_bytes(4, "little"), (4 * frames).to_bytes(4, "little")
    with open(tmp_path / "hour.wav", "wb") as file:
        file.write(head)
        file.seek(44 + 4 * 1_800 * 48_000)
        file.write(head[44:])
        file.truncate(44 + 4 * frames)
    load((tone(1.0, 48_000, 2), 48_000))  # what is imported at the first resampling takes memory too
    tracemalloc.start()
    clips = [load(tmp_path / "hour.wav"), load(tmp_path / "hour.wav", start=1799, end=1805)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [len(clip.wave) for clip in clips] == [480_000, 96_000]
    assert peak < 60e6  # bytes; the first 30 s are 11.5 MB as floats


# -- questions ------------------------------------------------------------------------------------------------------

ROWS = [
    {"id": 7, "question_text": "What sounds in the video?", "multi_choice": ["dog", "cat"], "answer": 1},
    {"id": "8", "audio_id": "a.wav", "question": "\u201cWho\u201d?", "choices": ["Man", "Woman"], "answer": "Man"},
    {"audio": "a.wav", "question": "?\U0001f415", "choices": ["a", "b", "a"], "answer": "b", "start": 0.5, "end": 2},
]  # fmt: skip
ROWS[0]["audio_path"] = "a.wav"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.sampled_from(ROWS),
    as_list=st.booleans(),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=3)), max_size=4),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
    end=st.sampled_from([b"\n", b"\r\n", b""]),
)
def test_damaged_questions_are_read_or_told_by_file_and_line(tmp_path, row, as_list, edits, mark, end):
    rows = [row | {"id": number} for number in range(3)]
    data = json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows))
    data = mark + data.encode().replace(b"\n", end or b"\n") + end
    for place, removed, inserted in edits:
        data = data[:place] + inserted + data[place + removed :]
    path = tmp_path / "q.json"
    path.write_bytes(data)
    try:
        questions = read(path, check_audio=False)
    except DataError as error:
        head, *faults = str(error).split("\n")
        assert str(path) in (faults[0] if faults else head)
        assert all(str(path) in fault and (" line " in fault or " row " in fault) for fault in faults)
        return
    for question in questions:
        assert question.question.strip() and len(set(question.choices)) > 1
        assert question.answer in ("", *question.choices)
        row = predictions.question_row(0, question) | evaluation.read_reply("a", question)
        assert json.loads(files.as_line(row)) == json.loads(json.dumps(row))  # can be written


def test_a_thousand_choices_and_a_megabyte(tmp_path):
    row = {"id": 1, "audio": "a.wav", "question": "?", "choices": [f"choice {n}" for n in range(1000)], "answer": 999}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    assert read(tmp_path / "q.jsonl", check_audio=False)[0].answer == "choice 999"
    for change in ({"question": "x" * 1_000_000}, {"choices": []}, {"id": "\x07"}, {"answer": "none of them"}):
        (tmp_path / "q.jsonl").write_text(json.dumps(row | change))
        with pytest.raises(DataError, match="line 1: ") as error:
            read(tmp_path / "q.jsonl", check_audio=False)
        assert len(str(error.value)) < 2_000


# -- replies --------------------------------------------------------------------------------------------------------

TAGS = ["<answer>", "</answer>", "<think>", "</think>", "dog", "a dog", "cat", " ", "\n", "\u2028", "\u0130", "\ud800"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(TAGS) | st.text(max_size=6), max_size=8).map("".join))
def test_any_reply_is_read_and_scored(reply):
    question = Question("1", None, "?", ("dog", "cat"), "dog")
    row = predictions.question_row(0, question) | evaluation.read_reply(reply, question)
    assert isinstance(row["prediction"], str) and isinstance(row["correct"], bool)
    batch = {"prompts": None, "completions": [reply], "answer": ["dog"], "choices": [["dog", "cat"]]}
    assert all(f(**batch)[0] in (0.0, 1.0) for f in reward.REWARDS)
    assert row["correct"] == (reward.accuracy(**batch) == [1.0])
    assert thoughts.relation(reply, question.choices) in ("alone", "among", "others", "none", None)
    assert not (mmau.official(row["prediction"], "dog", ["dog", "cat"]) and not row["prediction"])
    assert json.loads(files.as_line(row)) == row


def test_a_file_of_hostile_replies_is_scored(tmp_path):
    replies = ["\ud800", "<answer>" * 10_000, "\0", "\x1b[2J", "</script><script>alert(1)</script>", "|" * 50, ""]
    rows = [
        {"id": n, "task": "sound", "question": "?", "choices": ["dog", "cat"], "answer": "dog", "model_output": reply}
        for n, reply in enumerate(replies)
    ]
    (tmp_path / "p.jsonl").write_text("".join(map(files.as_line, rows)), encoding="utf-8")
    report = scoring.score(predictions.read(tmp_path / "p.jsonl"))
    assert report.official.percent == 0 and report.official.n == len(replies)


def test_the_answer_tag_a_megabyte_long():
    reply = "<answer>" * 125_000
    used = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    question = Question("1", None, "?", ("dog", "cat"), "dog")
    assert evaluation.read_reply(reply, question)["correct"] is False
    assert prompt.extract_answer(reply) is None and not mmau.official(reply, "dog", ["dog", "cat"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - used < 1  # a quadratic way takes minutes

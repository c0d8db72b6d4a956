"""Readers against broken and real files: every bad row is told, none gets through; splits do not leak."""

import collections
import gc
import json
import os
import random
import tracemalloc
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aqa_lib import dataset
from aqa_lib.dataset import DataError, Question, read, read_avqa, read_hub, read_mmau, relabel, split
from aqa_lib.reading import recordings

SHARED = Path(__file__).resolve().parents[3] / "shared"  # beside the repository
AVQA_ROW = {
    "id": 7,
    "video_name": "v",
    "video_id": 3,
    "question_text": "What sounds in the video? Two videos, a Video.",
    "multi_choice": ["dog", "cat", "rain", "cat"],
    "answer": 2,
    "question_relation": "Sound",
    "question_type": "Come From",
    "dataset_name": "AVQA",
    "audio_path": "clips/a.wav",
}
MMAU_ROW = {
    "id": "3fe64f3d",
    "audio_id": "./clips/a.wav",
    "question": "Who speaks in the video?",
    "choices": ["Man", "Woman "],
    "answer": "Woman",
    "dataset": "AudioSet",
    "task": "sound",
    "split": "test-mini",
    "category": ["Reasoning"],
    "sub-category": "Source",
    "difficulty": "easy",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("a.wav", "b.wav"):
        (tmp_path / "clips" / name).write_bytes(b"sound")
    return tmp_path


def lines(folder, *rows, end="\n", name="avqa.jsonl"):
    path = folder / name
    path.write_bytes(end.join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode())
    return path


def mmau(folder, *rows):
    path = folder / "mmau.json"
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return path


def avqa(folder, **changes):
    """Read one row with some fields changed, or left out where the change is `...`."""
    row = {key: value for key, value in (AVQA_ROW | changes).items() if value is not ...}
    return read_avqa(lines(folder, row))[0]


def test_avqa_row(folder):
    extra = {"category": "c", "sub-category": "s", "difficulty": "easy", "start": 1, "end": 2.5}
    question = avqa(folder, **extra)
    assert question.id == "7"
    assert question.audio == (folder / "clips" / "a.wav").resolve()
    assert question.question == "What sounds in the audio? Two audios, a Video."  # plain replacement, as the paper
    assert (question.choices, question.answer) == (("dog", "cat", "rain", "cat"), "rain")
    assert question.task == "come from"
    assert extra.items() <= question.meta.items()
    assert question.meta["audio_path"] == "clips/a.wav" and "answer" not in question.meta
    assert avqa(folder, task="music").task == "music"
    assert avqa(folder, question_type=...).task == ""
    assert len({question, avqa(folder, **extra)}) == 1  # hashable, though meta is a dict


def test_mmau_row(folder):
    (question,) = read_mmau(mmau(folder, MMAU_ROW))
    assert question.audio == (folder / "clips" / "a.wav").resolve()
    assert question.question == "Who speaks in the video?"  # only AVQA's questions are reworded
    assert (question.choices, question.answer, question.task) == (("Man", "Woman "), "Woman ", "sound")
    kept = ("audio_id", "dataset", "split", "category", "sub-category", "difficulty")
    assert question.meta == {key: MMAU_ROW[key] for key in kept}
    for withheld in ({"answer": ""}, {"answer": None}):
        assert read_mmau(mmau(folder, MMAU_ROW | withheld))[0].answer == ""


def test_read_picks_the_form(folder):
    assert read(lines(folder, AVQA_ROW))[0].answer == "rain"
    assert read(mmau(folder, MMAU_ROW))[0].task == "sound"
    assert read(lines(folder, MMAU_ROW))[0].task == "sound"  # MMAU's rows as lines
    plain = {
        "audio": "clips/b.wav",
        "question": "What?",
        "choices": ["a", "b"],
        "answer": "b",
        "modality": "mix",
    }
    (question,) = read(lines(folder, plain))
    assert (question.id, question.audio.name, question.answer) == ("1", "b.wav", "b")
    assert question.meta == {"audio": "clips/b.wav", "modality": "mix"}
    mmar = {
        "audio_path": "clips/b.wav",
        "question": "What?",
        "choices": ["a", "b"],
        "answer": 1,
        "modality": "mix",
    }
    (question,) = read(mmau(folder, mmar), columns={"audio": "audio_path", "task": "modality"})
    assert (question.answer, question.task) == ("b", "mix")
    with pytest.raises(DataError, match="no column 'sound': map our names to its .*audio_path, choices"):
        read(mmau(folder, mmar), columns={"audio": "sound"})
    with pytest.raises(DataError, match="columns names 'audoi', which is none of id, audio"):
        read(mmau(folder, mmar), columns={"audoi": "audio_path"})


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\n\n", "\n \t\n"])
@pytest.mark.parametrize("last", ["", "\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks(folder, end, last, mark):
    rows = [AVQA_ROW | {"id": n, "question_text": "caf\u00e9 \u2028 \U0001f415?"} for n in range(3)]
    path = lines(folder, *[json.dumps(row, ensure_ascii=False) for row in rows], end=end)
    path.write_bytes(mark + path.read_bytes() + last.encode())
    questions = read_avqa(path)
    assert [q.id for q in questions] == ["0", "1", "2"]
    assert {q.question for q in questions} == {"caf\u00e9 \u2028 \U0001f415?"}
    path.write_bytes(mark + json.dumps([MMAU_ROW]).encode() + last.encode())
    assert len(read(path)) == 1


BAD_AVQA = [
    ({"answer": 4}, "answer 4 is not an index into 4 choices"),
    ({"answer": -1}, "answer -1 is not an index into 4 choices"),
    ({"answer": True}, "answer is True: give the right choice's index"),
    ({"answer": 1.0}, "answer is 1.0: give"),
    ({"answer": "cat"}, "answer is 'cat': give"),
    ({"answer": None}, "answer is None: give"),
    ({"answer": ...}, "answer is None: give"),
    ({"multi_choice": ["dog"]}, "leave nothing to choose: give two or more"),
    ({"multi_choice": []}, "leave nothing to choose: give two or more"),
    ({"multi_choice": ["dog", "dog"]}, "leave nothing to choose: give two or more"),
    ({"multi_choice": "dog, cat"}, "multi_choice is 'dog, cat': give a list of texts"),
    ({"multi_choice": {"a": "dog"}}, "leave nothing to choose: give two or more"),
    ({"multi_choice": 3}, "multi_choice is 3: give a list of texts"),
    ({"multi_choice": ["dog", 3]}, "one of multi_choice is 3: give a text"),
    ({"multi_choice": ["dog", " "]}, "one of multi_choice is ' ': give a text that is not empty"),
    ({"multi_choice": ["dog", "</answer>"]}, "holds </answer>, which is more than words"),
    ({"question_text": ""}, "question_text is '': give a text that is not empty"),
    ({"question_text": " \n"}, "question_text is ' \\n': give a text that is not empty"),
    ({"question_text": ...}, "question_text is None: give a text"),
    ({"question_text": ["What?"]}, "question_text is ['What?']: give a text"),
    ({"question_text": "What\x00?"}, "holds the control character '\\x00'"),
    ({"question_text": "\x1b[31mWhat?"}, "holds the control character '\\x1b'"),
    ({"question_text": "\ud800?"}, "holds the control character '\\ud800'"),
    ({"question_text": "<|AUDIO|> What?"}, "holds <|AUDIO|>, which is more than words"),
    ({"question_text": "?" * 1_000_000}, "question_text has 1000000 characters: give at most 10000"),
    ({"id": True}, "id is True: give a text"),
    ({"id": [1]}, "id is [1]: give a text"),
    ({"task": 3}, "task is 3: give a text"),
    ({"start": "1"}, "start or end is '1': give seconds"),
    ({"start": -1}, "start or end is -1: give seconds"),
    ({"end": True}, "start or end is True: give seconds"),
    ({"end": float("nan")}, "start or end is nan: give seconds"),
    ({"start": 10**400}, "start or end is 1000000000"),
    ({"end": float("inf")}, "start or end is inf: give seconds"),
    ({"start": 2, "end": 2}, "end 2 does not come after start 2"),
    ({"end": 0}, "end 0 does not come after start 0"),
    ({"audio_path": ...}, "audio_path is None: give a text"),
    ({"audio_path": 3}, "audio_path is 3: give a text"),
    ({"audio_path": "clips/none.wav"}, "audio_path 'clips/none.wav' is not a file in the audio folder"),
    ({"audio_path": "clips"}, "audio_path 'clips' is not a file in the audio folder"),
    ({"audio_path": "clips/a.wav/x"}, "is not a file in the audio folder"),
    ({"audio_path": "a" * 5000}, "is not a file in the audio folder"),
    ({"audio_path": "clips/a\x00.wav"}, "holds the control character '\\x00'"),
    ({"audio_path": "../x.wav"}, "audio_path '../x.wav' leads out of the audio folder"),
    ({"audio_path": "clips/../../x.wav"}, "leads out of the audio folder"),
    ({"audio_path": "/etc/hostname"}, "leads out of the audio folder"),
    ({"audio_path": "clips/link.wav"}, "leads out of the audio folder"),
    ({"audio_path": "clips/loop.wav"}, "is not a file in the audio folder"),
    ({"audio_path": "clips/pipe.wav"}, "is not a file in the audio folder"),
]


@pytest.mark.parametrize(("changes", "fault"), BAD_AVQA)
def test_bad_avqa_rows(folder, changes, fault):
    outside = folder.parent / f"{folder.name}.wav"
    outside.write_bytes(b"sound")
    (folder / "clips" / "link.wav").symlink_to(outside)
    (folder / "clips" / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(folder / "clips" / "pipe.wav")
    with pytest.raises(DataError) as raised:
        avqa(folder, **changes)
    message = str(raised.value)
    assert "avqa.jsonl line 1: " in message and fault in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"answer": "Child"}, "answer 'Child' is not among the choices ['Man', 'Woman ']"),
        ({"answer": "woman"}, "answer 'woman' is not among the choices"),
        ({"answer": 1}, "answer is 1: give the right choice's text"),
        ({"answer": "x" * 1_000_000}, "is not among the choices"),
        ({"choices": ["Man", "x" * 1_000_000]}, "one of choices has 1000000 characters"),
    ],
)
def test_bad_mmau_rows(folder, changes, fault):
    with pytest.raises(DataError) as raised:
        read_mmau(mmau(folder, MMAU_ROW, MMAU_ROW | {"id": "2"} | changes))
    assert "mmau.json row 2: " in str(raised.value) and fault in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_paths_that_stay_inside_are_found(folder):
    (folder / "clips" / "inside.wav").symlink_to(folder / "clips" / "b.wav")
    wanted = (folder / "clips" / "b.wav").resolve()
    for path in ("clips/../clips/b.wav", "./clips/b.wav", str(wanted), "clips/inside.wav"):
        assert avqa(folder, audio_path=path).audio == wanted
    path = lines(folder, AVQA_ROW | {"audio_path": "b.wav"})
    assert read_avqa(path, audio_root=folder / "clips")[0].audio == wanted
    with pytest.raises(DataError, match="audio folder .*nowhere does not exist"):
        read_avqa(path, audio_root=folder / "nowhere")


def test_clips_need_not_be_there_where_nobody_listens(folder):
    path = lines(folder, AVQA_ROW | {"audio_path": "none.wav"}, AVQA_ROW | {"id": 8, "audio_path": None})
    questions = read_avqa(path, audio_root=folder / "nowhere", check_audio=False)
    assert [q.audio for q in questions] == [folder.resolve() / "nowhere" / "none.wav", None]
    with pytest.raises(DataError, match="leads out"):
        read_avqa(lines(folder, AVQA_ROW | {"audio_path": "../x.wav"}), check_audio=False)


def bad_file(folder):
    good = [AVQA_ROW | {"id": number} for number in range(3)]
    return lines(
        folder,
        good[0],
        AVQA_ROW | {"id": 5, "answer": 9},
        "{not json",
        "",
        good[0],
        "[1, 2]",
        "3",
        good[1],
        good[2],
    )


def test_all_bad_rows_are_told_at_once(folder):
    path = bad_file(folder)
    with pytest.raises(DataError) as raised:
        read_avqa(path)
    fields = "give an object with id, audio_path, question_text, multi_choice, answer, task"
    head, *faults = str(raised.value).split("\n")
    assert head == "5 of 8 questions cannot be used:"
    assert faults == [
        f"{path} line 2: answer 9 is not an index into 4 choices",
        f"{path} line 3: is not JSON (Expecting property name enclosed in double quotes at column 2)",
        f"{path} line 5: id '0' was already used by {path} line 1",
        f"{path} line 6: is [1, 2]: {fields}",
        f"{path} line 7: is 3: {fields}",
    ]


def test_bad_rows_can_be_skipped_but_not_silently(folder, caplog):
    questions = read_avqa(bad_file(folder), on_error="skip")
    assert [q.id for q in questions] == ["0", "1", "2"]
    assert "skipped 5 of 8 questions" in caplog.text and "line 2: answer 9" in caplog.text
    with pytest.raises(DataError, match="1 of 1 questions cannot be used"):
        read_avqa(lines(folder, "{}"), on_error="skip")  # nothing is left
    with pytest.raises(ValueError, match="on_error is 'ignore': choose 'raise' or 'skip'"):
        read_avqa(lines(folder, AVQA_ROW), on_error="ignore")


def test_many_bad_rows_are_counted(folder):
    with pytest.raises(DataError) as raised:
        read_avqa(lines(folder, *[AVQA_ROW | {"id": n, "answer": 9} for n in range(1000)]))
    message = str(raised.value).split("\n")
    assert message[0] == "1000 of 1000 questions cannot be used:"
    assert len(message) == 22 and message[-1] == "... and 980 more"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "holds no questions"),
        (b"\n \n", "holds no questions"),
        (b"[]", "holds no questions"),
        (b'[\n{"a": 1},\n{]', "line 3: is not JSON"),
        (b"[" * 100_000, "line 1: is not JSON that can be read"),
        (b'{"id": ' + b"9" * 5000 + b"}", "line 1: is not JSON that can be read"),
        (b'{"id": 1}\xff', "line 1: is not UTF-8 text"),
        (b'[{"id": 1}\xff]', "line 1: is not UTF-8 text"),
        (b"\xff\xfe{", "line 1: is not UTF-8 text"),
        (b"root:x:0:0:root\n", "line 1: is not JSON; questions come as JSON, JSON lines, CSV"),
        (b"\x89PNG\xff", "line 1: is not UTF-8 text"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_broken_files(folder, content, fault):
    path = folder / "broken.json"
    path.write_bytes(content)
    for reader in (read_avqa, read_mmau):
        with pytest.raises(DataError) as raised:
            reader(path)
        assert f"{path} " in str(raised.value) and fault in str(raised.value)


def test_files_that_are_not_there(folder):
    for path in (folder / "none.jsonl", folder):
        with pytest.raises(DataError, match=f"{path} cannot be read: (No such file|Is a directory)"):
            read(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(sorted(AVQA_ROW)), JSON, st.booleans())
def test_any_value_is_read_or_told(folder, key, value, as_mmau):
    row, reader = (MMAU_ROW, read_mmau) if as_mmau else (AVQA_ROW, read_avqa)
    try:
        (question,) = reader(lines(folder, row | {key: value}))
    except DataError as error:
        assert "line 1: " in str(error) and len(str(error)) < 2000
    else:
        assert question.answer in ("", *question.choices) and question.audio.is_file()


def hub(audio, **columns):
    columns = {"question": ["What?"] * 2, "choices": [["a", "b"]] * 2, "answer": ["a", "b"]} | columns
    data = datasets.Dataset.from_dict({"audio": audio} | columns)
    return data.cast_column("audio", datasets.Audio())


def test_hub_with_bytes(folder):
    clips = [{"bytes": b"one", "path": "one.wav"}, {"bytes": b"two", "path": None}]
    data = hub(clips, task=["sound", "music"], level=[1, 2], other=clips)
    data.cast_column("other", datasets.Audio()).to_parquet(folder / "hub.parquet")
    stored = datasets.Dataset.from_parquet(str(folder / "hub.parquet"), cache_dir=str(folder / "cache"))
    questions = read_hub(stored)
    assert [q.audio for q in questions] == [b"one", b"two"]
    assert [(q.id, q.answer, q.task) for q in questions] == [("1", "a", "sound"), ("2", "b", "music")]
    assert [q.meta for q in questions] == [{"level": 1}, {"level": 2}]


def test_hub_with_columns_and_files(folder):
    data = hub([str(folder / "clips" / "a.wav"), "/etc/hostname"], answer=[1, 0])
    data = data.rename_columns({"audio": "clip", "question": "q", "choices": "options"})
    columns = {"audio": "clip", "question": "q", "choices": "options"}
    with pytest.raises(DataError, match="row 2: clip '/etc/hostname' leads out of the audio folder"):
        read_hub(data, columns=columns, audio_root=folder)
    (question,) = read_hub(data, columns=columns, audio_root=folder, on_error="skip")
    assert (question.audio, question.answer) == ((folder / "clips" / "a.wav").resolve(), "b")
    with pytest.raises(DataError, match="no column 'audio', 'question', 'choices': map .*clip, options, q"):
        read_hub(data)
    with pytest.raises(DataError, match="is a DatasetDict: give one split"):
        read_hub(datasets.DatasetDict(train=data))


def test_hub_loads_a_split_by_name(folder, monkeypatch):
    data = hub([{"bytes": b"one", "path": None}, {"bytes": None, "path": None}])
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or data)
    with pytest.raises(DataError, match=r"some/set \(test\) row 2: audio is None"):
        read_hub("some/set", split="test")
    assert asked == [("some/set", "test")]


def questions_on(clips):
    """Make one question for each clip named."""
    return [Question(str(n), Path(f"/clips/{clip}"), "?", ("a", "b"), "a") for n, clip in enumerate(clips)]


@given(st.lists(st.integers(0, 12), min_size=2, max_size=40), st.floats(0.01, 0.9), st.integers(), st.randoms())
def test_split_never_divides_a_clip(clips, fraction, seed, shuffler):
    questions = questions_on(clips)
    if len(set(clips)) < 2:
        with pytest.raises(ValueError, match="1 clip or recording, which cannot be divided"):
            split(questions, fraction, seed)
        return
    train, held = split(questions, fraction, seed)
    assert train and held and sorted(train + held, key=questions.index) == questions
    assert {q.audio for q in train}.isdisjoint(q.audio for q in held)
    assert sorted(train, key=questions.index) == train and sorted(held, key=questions.index) == held
    largest = max(collections.Counter(clips).values())
    assert len(held) < fraction * len(questions) + 1 + largest
    shuffled = shuffler.sample(questions, len(questions))
    assert set(split(shuffled, fraction, seed)[1]) == set(held)


def test_split_is_the_same_everywhere_and_sized_right():
    questions = questions_on(range(100))
    train, held = split(questions, 0.07, seed=1)
    assert (len(train), len(held)) == (93, 7)
    moved = [Question(q.id, Path("/elsewhere") / q.audio.name, "?", q.choices, "a") for q in questions]
    assert [q.id for q in split(moved, 0.07, seed=1)[1]] == [q.id for q in held]
    assert [q.id for q in split(questions, 0.07, seed=2)[1]] != [q.id for q in held]
    assert split(questions, 0, seed=1) == (questions, [])
    for fraction in (-0.1, 1, float("nan")):
        with pytest.raises(ValueError, match="held-out fraction is"):
            split(questions, fraction, seed=1)


def test_split_keeps_a_recording_on_one_side_whatever_its_files_are_called(tmp_path):
    for name, content in {"a.wav": b"one" * 9_000, "b.wav": b"one" * 9_000, "c.wav": b"one" * 8_999 + b"two"}.items():
        (tmp_path / name).write_bytes(content)
    clips = [tmp_path / "a.wav", tmp_path / "b.wav", (tmp_path / "a.wav").read_bytes()]  # copies
    clips += [Path(f"/clips/-HG3Omg_89c_0000{second}.flac") for second in (10, 20)]  # parts of one video
    clips += [Path("/clips/1.wav"), Path("/clips/2.wav"), tmp_path / "c.wav"]
    metas = [{}] * 5 + [{"source_recording": "tape"}] * 2 + [{}]
    clips += [Path(f"/clips/recording_a_{n:06}.wav") for n in range(20)]  # no YouTube id, though as long
    metas = [meta | {"video_name": "the same everywhere"} for meta in metas + [{}] * 20]
    some = [Question(str(n), c, "?", ("a", "b"), "a", "", m) for n, (c, m) in enumerate(zip(clips, metas, strict=True))]
    numbers = recordings.groups(some)
    assert numbers[:8] == [0, 0, 0, 3, 3, 5, 5, 7] and len(set(numbers[8:])) == 20
    for seed in range(20):
        train, held = split(some, 0.3, seed)
        assert not {number for number, q in zip(numbers, some, strict=True) if q in train} & {
            number for number, q in zip(numbers, some, strict=True) if q in held
        }
        assert recordings.shared(train, held) == 0
    assert recordings.shared(some[:1], some[1:]) == 2


def test_split_knows_a_clip_by_its_content_or_resolved_path(folder):
    (folder / "clips" / "same.wav").symlink_to("a.wav")
    clips = [
        folder / "clips" / "a.wav",
        folder / "clips" / "same.wav",
        folder / "x" / ".." / "clips" / "a.wav",
    ]
    clips += [bytes([1, 2]), bytes([1, 2]), None, None]
    questions = [Question(str(n), clip, "?", ("a", "b"), "a") for n, clip in enumerate(clips)]
    for seed in range(20):
        held = {q.id for q in split(questions, 0.4, seed)[1]}
        assert held.isdisjoint("012") or held >= set("012")
        assert held.isdisjoint("34") or held >= set("34")
    assert any(len({"5", "6"} & {q.id for q in split(questions, 0.4, seed)[1]}) == 1 for seed in range(20))


@pytest.mark.skipif(not (SHARED / "mmau").is_dir(), reason="no MMAU question files beside the repository")
@pytest.mark.parametrize(
    ("name", "repeated", "numbers"),
    [("2025-03-25", 20, {2: 10, 4: 990}), ("v05.15.25", 27, {2: 27, 4: 948, 5: 24, 8: 1})],
)
def test_real_mmau_is_read_whole(name, repeated, numbers):
    path = SHARED / "mmau" / f"mmau-test-mini-{name}.json"
    questions = read(path, check_audio=False)
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert len(questions) == 1000
    assert collections.Counter(q.task for q in questions) == {"sound": 333, "music": 334, "speech": 333}
    assert sum(q.meta["category"] == ["Reasoning"] for q in questions) == 13
    assert sum(len(set(q.choices)) < len(q.choices) for q in questions) == repeated
    assert collections.Counter(len(q.choices) for q in questions) == numbers
    for question, row in zip(questions, rows, strict=True):
        assert (question.id, question.question, question.answer) == (
            row["id"],
            row["question"],
            row["answer"],
        )
        assert list(question.choices) == row["choices"]
        assert question.audio == (path.parent / row["audio_id"]).resolve()
    with pytest.raises(DataError, match="1000 of 1000 questions cannot be used"):
        read(path)  # its clips are not there


@pytest.mark.skipif(not (SHARED / "real_audio").is_dir(), reason="no real recordings beside the repository")
def test_real_avqa_lines_are_read_whole():
    train, held = read(SHARED / "real_audio" / "train.jsonl"), read(SHARED / "real_audio" / "val.jsonl")
    assert (len(train), len(held)) == (500, 160)
    assert not any("video" in q.question for q in train + held)
    assert all(q.audio.is_file() and q.answer in q.choices for q in train + held)
    assert {q.audio for q in train}.isdisjoint(q.audio for q in held)
    kept, out = split(random.Random(0).sample(train, 500), 0.1, seed=0)
    assert len(kept) + len(out) == 500 and {q.audio for q in kept}.isdisjoint(q.audio for q in out)


@pytest.mark.parametrize(("share", "wrong"), [(0, 0), (0.1, 4), (0.3, 12), (0.5, 20), (1, 40)])
def test_exactly_a_share_of_labels_becomes_wrong_and_remembers_the_right_one(share, wrong):
    asked = [Question(f"q{i}", None, "What?", ("dog", "cat", "rain"), ("dog", "cat")[i % 2]) for i in range(40)]
    made = relabel(asked, share)
    assert [q.id for q in made] == [q.id for q in asked] and relabel(asked, share) == made
    changed = [(old, new) for old, new in zip(asked, made, strict=True) if new != old]
    assert len(changed) == wrong
    for old, new in changed:
        assert new.answer != old.answer and new.answer in old.choices and new.meta["right"] == old.answer
    if 0 < share < 1:
        assert relabel(asked, share, seed=1) != made


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="give a number from 0 to 1"):
        relabel([], share)


def test_many_rows_take_little_memory_and_each_folder_is_resolved_once(tmp_path, monkeypatch):
    """A third of what it was: 2.7 KB and 56 us a row. Texts that come again are one, and rows go as questions come."""
    row = {"question_text": "What is the source of the sound in the video?", "multi_choice": ["a dog", "a cat", "rain"]}
    row |= {"question_type": "Come From", "question_relation": "Both"}
    (tmp_path / "audio").mkdir()
    lines = [row | {"id": i, "audio_path": f"audio/{i % 50}.wav", "answer": i % 3} for i in range(3_000)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    resolved, real = [], os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **options: resolved.append(path) or real(path, **options))
    tracemalloc.start()
    questions = read(tmp_path / "q.jsonl", check_audio=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(resolved) < 10 and len({id(q.audio) for q in questions}) == 50
    assert peak / len(questions) < 1_300, "bytes"
    assert gc.isenabled()


def test_a_clip_is_the_one_that_resolving_its_whole_path_finds(tmp_path):
    root, outside = tmp_path / "audio", tmp_path / "outside"
    for folder in (root / "a" / "b", outside):
        folder.mkdir(parents=True)
        (folder / "clip.wav").write_bytes(b"")
    (root / "a" / "link.wav").symlink_to(root / "a" / "b" / "clip.wav")
    (root / "a" / "out.wav").symlink_to(outside / "clip.wav")
    (root / "in").symlink_to(root / "a")
    (root / "out").symlink_to(outside)
    ways = ["a/b/clip.wav", "./a//b/clip.wav", "a/../a/b/clip.wav", "in/b/clip.wav", "a/link.wav", "in/link.wav"]
    ways += ["a/out.wav", "out/clip.wav", "in/../../outside/clip.wav", "../outside/clip.wav", str(outside / "clip.wav")]
    ways += [
        "a/b/",
        "a/b/.",
        "a/b/..",
        "",
        " ",
        "a/b",
        "a\\b\\clip.wav",
        "no/clip.wav",
        "a/b/no.wav",
        str(root / "a/b/clip.wav"),
    ]
    ways += ["a/b/clip.wav/x", "\0", "a\0/b", "C:\\a.wav", "a/b/clip.wav", None, 3, b"RIFF"]

    def found(check, way):
        try:
            return check(way)
        except ValueError as error:
            return str(error)

    for must in (True, False):
        clips = dataset._Clips("audio", str(root), must)
        for way in ways:
            whole = found(lambda way, must=must: dataset.checked_audio(way, "audio", str(root), must), way)
            assert found(clips, way) == whole == found(clips, way), way

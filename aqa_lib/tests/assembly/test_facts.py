import json

import datasets
import pytest

from aqa_lib.assembly import facts
from aqa_lib.dataset import DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.wav", "b.wav", "c.wav"):
        (tmp_path / name).write_bytes(name.encode())  # a sound of its own each
    return tmp_path


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_json_lines(folder):
    rows = [
        {"id": 7, "audio_path": "a.wav", "task": "music", "split": "align"}
        | {"facts": {"instrument": "a piano", "tempo": "slow"}},
        {"audio": "b.wav", "facts": {"sound": "rain", "place": ""}},
    ]
    first, second = facts.read(lines(folder / "facts.jsonl", rows))
    assert (first.id, first.audio, first.task) == ("7", (folder / "a.wav").resolve(), "music")
    assert (first.question, first.answer, first.choices) == (facts.NAME, "a piano, slow", ())
    assert first.meta == {"facts": {"instrument": "a piano", "tempo": "slow"}, "split": "align"}
    assert (second.id, second.meta) == ("2", {"facts": {"sound": "rain"}})


def test_csv_takes_the_columns_that_are_left_or_those_named(folder):
    (folder / "all.csv").write_text("audio,sound,tempo\na.wav,rain,\nb.wav,wind,slow\n")
    assert [clip.meta["facts"] for clip in facts.read(folder / "all.csv")] == [
        {"sound": "rain"},
        {"sound": "wind", "tempo": "slow"},
    ]
    (folder / "esc.csv").write_text("filename,fold,target,category\na.wav,1,0,dog\n")
    (clip,) = facts.read(folder / "esc.csv", columns={"audio": "filename", "sound": "category"})
    assert clip.meta["facts"] == {"sound": "dog"}


def test_hub_keeps_clips_encoded_and_reads_class_labels(monkeypatch):
    data = datasets.Dataset.from_dict({"audio": [{"bytes": b"one", "path": None}], "label": [1]})
    data = data.cast_column("audio", datasets.Audio()).cast_column("label", datasets.ClassLabel(names=["dog", "rain"]))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or data)
    (clip,) = facts.read("hub:some/sounds:test", columns={"sound": "label"})
    assert asked == [("some/sounds", "test")]
    assert (clip.audio, clip.meta["facts"]) == (b"one", {"sound": "rain"})


def test_every_bad_row_is_named(folder):
    rows = [
        {"audio": "a.wav", "facts": {"sound": "rain"}},
        {"audio": "nowhere.wav", "facts": {"sound": "rain"}},
        {"audio": "../a.wav", "facts": {"sound": "rain"}},
        {"audio": "b.wav"},
        {"audio": "b.wav", "facts": {"sound": ""}},
        {"audio": "b.wav", "facts": {"sound": "<answer>rain"}},
        {"id": "1", "audio": "c.wav", "facts": {"sound": "rain"}},
        ["no object"],
    ]
    with pytest.raises(DataError) as told:
        facts.read(lines(folder / "facts.jsonl", rows))
    faults = str(told.value).splitlines()
    assert faults[0] == "7 of 8 clips cannot be used:"
    expected = ["not a file", "leads out", "no facts", "no fact with a value", "more than words", "already used"]
    for line, words in zip(faults[1:], [*expected, "give an object"], strict=True):
        assert words in line
    with pytest.raises(DataError, match="nowhere.csv cannot be read"):
        facts.read(folder / "nowhere.csv")
    with pytest.raises(DataError, match="holds no clips"):
        facts.read(lines(folder / "empty.jsonl", []))


def clips(folder, splits):
    rows = [{"audio": f"{name}.wav", "facts": {"sound": "rain"}} for name in "abc"]
    rows = [row | ({"split": split} if split else {}) for row, split in zip(rows, splits, strict=True)]
    return facts.read(lines(folder / "facts.jsonl", rows))


def test_splits_are_kept_and_a_test_split_is_not_learned_from(folder):
    train, held_out = facts.parts(clips(folder, ["align", "held_out", "test"]), 0.5, 0)
    assert ([c.id for c in train], [c.id for c in held_out]) == (["1"], ["2"])
    train, held_out = facts.parts(clips(folder, ["train", "train", "test"]), 0.5, 0)
    assert len(train) == len(held_out) == 1 and "3" not in (train[0].id, held_out[0].id)
    train, held_out = facts.parts(clips(folder, ["", "", ""]), 0.3, 0)
    assert (len(train), len(held_out)) == (2, 1)
    with pytest.raises(DataError, match="no clip's split is align or train"):
        facts.parts(clips(folder, ["test", "test", "test"]), 0.5, 0)


def test_lessons_ask_for_everything_in_several_wordings(folder):
    (clip,) = facts.read(
        lines(folder / "f.jsonl", [{"audio": "a.wav", "facts": {"instrument": "a harp", "tempo": "slow"}}])
    )
    asked = [(lesson.question, lesson.answer) for lesson in facts.lessons([clip])]
    assert asked[: len(facts.WORDINGS)] == [(wording, "a harp, slow") for wording in facts.WORDINGS]
    assert asked[len(facts.WORDINGS) :] == [("What is the instrument?", "a harp"), ("What is the tempo?", "slow")]
    assert len({lesson.id for lesson in facts.lessons([clip])}) == len(asked)


KNOWN = {"sound": ["a dog", "a hot dog", "rain"]}


@pytest.mark.parametrize(
    ("reply", "value", "right"),
    [
        ("A dog.", "a dog", True),
        ("It is the dog, barking", "a dog", True),
        ("dogs", "a dog", False),
        ("a dog or rain", "a dog", False),  # hedging
        ("a hot dog", "a dog", False),
        ("a hot dog", "a hot dog", True),
        ("", "rain", False),
        ("Snow", "snow", True),  # a value that only the held-out clips have
    ],
)
def test_what_a_reply_says(reply, value, right):
    assert facts.says(reply, "sound", value, KNOWN) == right

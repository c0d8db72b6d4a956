"""The forms in which people keep questions: each is read as it is meant, or refused with the cause in one sentence."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from aqa_lib import audio
from aqa_lib.dataset import DataError, read
from aqa_lib.prepare import prepare
from aqa_lib.reading import forms, tables

SHARED = Path(__file__).resolve().parents[4] / "shared" / "inputs" / "forms"  # beside the repository
ROW = {"audio": "c0.wav", "question": "Which sound?", "choices": ["a dog", "a cat", "a bell"], "answer": "a cat"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    wave = np.sin(np.arange(8_000) / 9)
    for name in ("c0.wav", "c1.wav", "sub/x.wav"):
        soundfile.write(tmp_path / name, wave, 16_000)
    return tmp_path


def lines(folder, *rows, name="q.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


MEANS_A_CAT = {  # one row each, whose answer is the second choice, a cat
    "letters on choices": {"choices": ["A. a dog", "B. a cat", "C. a bell"], "answer": "B"},
    "letters in parentheses": {"choices": ["(A) a dog", "(B) a cat"], "answer": "(B)"},
    "small letters": {"choices": ["a) a dog", "b) a cat"], "answer": "b"},
    "numbers on choices": {"choices": ["1. a dog", "2. a cat"], "answer": 2},
    "numbers on choices, as text": {"choices": ["1. a dog", "2. a cat"], "answer": "2"},
    "a letter alone": {"answer": "B"},
    "a letter with a stop": {"answer": "B."},
    "a letter and its text": {"answer": "B. a cat"},
    "the whole choice": {"choices": ["A. a dog", "B. a cat"], "answer": "B. a cat"},
    "the text without its letter": {"choices": ["A. a dog", "B. a cat"], "answer": "a cat"},
    "an answer in tags": {"answer": "<answer>B</answer>"},
    "a list of one answer": {"answer": ["a cat"]},
    "an index": {"answer": 1},
    "a dictionary": {"choices": {"A": "a dog", "B": "a cat"}, "answer": "B"},
    "a dictionary and a text": {"choices": {"A": "a dog", "B": "a cat"}, "answer": "a cat"},
    "a dictionary from 0": {"choices": {"0": "a dog", "1": "a cat"}, "answer": 1},
    "a dictionary from 1": {"choices": {"1": "a dog", "2": "a cat"}, "answer": 2},
    "a dictionary with holes at its end": {"choices": {"A": "a dog", "B": "a cat", "C": None}, "answer": "B"},
    "texts and labels": {"choices": {"text": ["a dog", "a cat"], "label": ["A", "B"]}, "answer": "B"},
    "a list as Python writes it": {"choices": "['a dog', 'a cat']"},
    "a list as JSON writes it": {"choices": '["a dog", "a cat"]'},
    "lines with letters": {"choices": "A. a dog\nB. a cat", "answer": "B"},
    "letters in one line": {"choices": "(A) a dog (B) a cat", "answer": "B"},
    "padded with null": {"choices": ["a dog", "a cat", None, None]},
    "padded with nothing": {"choices": ["a dog", "a cat", "", float("nan")]},
    "columns": {"choices": ..., "choice_a": "a dog", "choice_b": "a cat", "choice_c": None},
    "numbered columns": {"choices": ..., "option1": "a dog", "option2": "a cat", "answer": 2},
    "letters as columns": {"choices": ..., "A": "a dog", "B": "a cat", "answer": "B"},
    "inside the question": {"choices": ..., "question": "Which sound?\nChoices:\nA. a dog\nB. a cat", "answer": "B"},
    "inside, without a heading": {"choices": ..., "question": "Which sound?\n(A) a dog\n(B) a cat", "answer": "(B)"},
    "one full stop more": {"answer": "a cat."},
    "one full stop less": {"choices": ["a dog.", "a cat."]},
    "a list of one clip": {"audio": ["c0.wav"]},
    "what datasets makes of a path": {"audio": {"path": "c0.wav", "bytes": None}},
    "a place for the clip": {"question": "<audio>\nWhich sound?"},
}


@pytest.mark.parametrize("form", MEANS_A_CAT)
def test_forms_that_are_beyond_doubt_are_read(folder, form):
    row = {key: value for key, value in (ROW | MEANS_A_CAT[form]).items() if value is not ...}
    (question,) = read(lines(folder, row))
    assert question.answer.rstrip(".") == "a cat" and question.choices.index(question.answer) == 1
    assert question.choices[0].rstrip(".") == "a dog" and None not in question.choices
    assert question.question == "Which sound?" and question.audio == folder / "c0.wav"


IN_DOUBT = {  # rows of one file, and what is said of one of them
    "a number that is also a text": (
        [{"choices": ["1", "2", "3"], "answer": 2}],
        "answer 2 is the text of one choice and the index of another, '3'",
    ),
    "a letter that is also a text": ([{"choices": ["B", "A"], "answer": "B"}], "is the text of one choice and names"),
    "a label that is also a text": ([{"choices": {"A": "B", "B": "A"}, "answer": "A"}], "of one choice and names"),
    "counted from one": ([{"answer": 3}, {"answer": 1}], "answer is 1: the file's answers seem to count from 1"),
    "a number as text": ([{"answer": "1"}], "answer '1' could count from 0 or from 1: write the right choice's text"),
    "a letter too far": ([{"answer": "D"}], "answer 'D' is not among the choices"),
    "one's letter, another's text": ([{"answer": "A. a cat"}], "has the label of one choice and the text of another"),
    "another case": ([{"answer": "A Cat"}], "but for upper and lower case: write it as it stands there"),
    "two right answers": ([{"answer": ["a cat", "a dog"]}], "several are right, and one is needed"),
    "a list without commas": ([{"choices": "['a dog' 'a cat']"}], "give a list of texts"),
    "a text without letters": ([{"choices": "a dog, a cat"}], "choices is 'a dog, a cat': give a list of texts"),
    "no choices": ([{"choices": None}], "choices is None: give a list of texts"),
    "a hole": ([{"choices": ["a dog", None, "a cat"]}], "one of choices is None"),
    "a part of two clips": ([{"audio": ["c0.wav", "c1.wav"], "end": 1.0}], "start and end are a part of one clip"),
    "two clips, one of them gone": ([{"audio": ["c0.wav", "gone.wav"]}], "audio 'gone.wav' is not a file"),
    "clips by kind": ([{"audio": {"image": "i", "sound": "c0.wav"}}], "has the fields 'image', 'sound'"),
    "a drive": ([{"audio": "C:\\data\\sub\\x.wav"}], "is on a drive of Windows"),
    "an address": ([{"audio": "https://x.org/c0.wav"}], "is an address: give the path"),
    "an array of nothing": ([{"audio": {"array": ["x"], "sampling_rate": 16_000}}], "holds an array that is no sound"),
}


@pytest.mark.parametrize("form", IN_DOUBT)
def test_forms_in_doubt_are_refused_with_the_cause(folder, form):
    changes, fault = IN_DOUBT[form]
    with pytest.raises(DataError) as raised:
        read(lines(folder, *[ROW | change for change in changes]))
    assert fault in str(raised.value) and f"line {len(changes)}: " in str(raised.value)


def test_what_a_file_does_elsewhere_decides_how_a_row_is_read(folder):
    notes = ROW | {"choices": ["B", "A"], "answer": "B"}
    assert read(lines(folder, notes, ROW))[0].answer == "B"  # the other answer is a text, so this one is
    numbers = [ROW | {"answer": "0"}, ROW | {"answer": "1"}]
    assert [q.answer for q in read(lines(folder, *numbers))] == ["a dog", "a cat"]  # one is 0, so they count from 0
    counted = [ROW | {"choices": ["3", "0", "1"], "answer": text} for text in ("0", "1", "3")]
    assert [q.answer for q in read(lines(folder, *counted))] == ["0", "1", "3"]  # each is a text of its choices


def test_labels_are_taken_off_only_in_order_and_from_all(folder):
    for texts in (["A. Vivaldi", "J. Bach"], ["1.5 s", "2.5 s"], ["B. a", "C. b"], ["A. a dog", "a cat"]):
        assert forms.choices(texts).texts == tuple(texts)


def test_windows_separators(folder):
    rows = [ROW | {"audio": path} for path in ("sub\\x.wav", ".\\sub\\x.wav", "sub/x.wav")]
    assert {q.audio for q in read(lines(folder, *rows))} == {folder / "sub" / "x.wav"}
    (folder / "sub\\x.wav").write_bytes(b"a name that Linux allows")
    assert read(lines(folder, rows[0]))[0].audio == folder / "sub\\x.wav"
    with pytest.raises(DataError, match="leads out of the audio folder"):
        read(lines(folder, ROW | {"audio": "..\\..\\etc\\hostname"}))


TABLES = {
    "list.csv": "id,audio,question,choices,answer\nq0,c0.wav,Which sound?,\"['a dog', 'a cat']\",a cat\n",
    "columns.csv": 'audio,question,choice_a,choice_b,choice_c,answer\nc0.wav,"Which sound?",a dog,a cat,,B\n',
    "excel.csv": "\ufeffaudio;question;A;B;answer\r\nc0.wav;Which sound?;a dog;a cat;B\r\n\r\n",
    "letters.tsv": "audio\tquestion\tA\tB\tanswer\nc0.wav\tWhich sound?\ta dog\ta cat\tB\n",
    "lines.csv": 'audio,question,answer\nc0.wav,"Which sound?\nA. a dog\nB. a cat",B\n',
    "part.csv": "audio,question,A,B,answer,start,end\nc0.wav,Which sound?,a dog,a cat,B,0.1,0.4\n",
    "avqa.csv": "audio_path,question_text,multi_choice,answer\nc0.wav,Which sound?,\"['a dog', 'a cat']\",a cat\n",
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables_of_text(folder, name, encoding):
    text = TABLES[name].removeprefix("\ufeff") if encoding == "utf-16" else TABLES[name]
    (folder / name).write_bytes(text.encode(encoding))
    (question,) = read(folder / name)
    assert (question.choices, question.answer) == (("a dog", "a cat"), "a cat")
    assert (question.question, question.audio) == ("Which sound?", folder / "c0.wav")
    if name == "part.csv":
        assert (question.meta["start"], question.meta["end"]) == (0.1, 0.4)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a,b\n1,2\n", "q.csv has no column 'audio', 'question', 'choices': map our names to its (a, b)"),
        ("", "q.csv holds no questions"),
        ("audio,question,A,B,answer\n", "q.csv holds no questions"),
        ("audio,question,A,B,answer\nc0.wav,Which, really?,x,y,A\n", "line 2: has 6 cells, and the first line names 5"),
        ('audio,question,A,B,answer\n"c0.wav,W,x,y,A\n', "line 2: is not a table that can be read (unexpected end"),
        ("audio,question,A,B,answer\nc0.wav,W\xff?,x,y,A\n", "line 2: is not UTF-8 text"),
        ("audio,question,A,B,answer,start\nc0.wav,W,x,y,A,soon\n", "start or end is 'soon': give seconds"),
    ],
)
def test_tables_that_cannot_be_read(folder, text, fault):
    (folder / "q.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as raised:
        read(folder / "q.csv")
    assert fault in str(raised.value) and "Traceback" not in str(raised.value)


@pytest.mark.parametrize("shape", ["spread", "under a key", "by name", "one object"])
def test_json_that_is_laid_out_otherwise(folder, shape):
    rows = [ROW | {"id": "a"}, ROW | {"id": "b"}]
    text = {
        "spread": "\n".join(json.dumps(row, indent=2) for row in rows),
        "under a key": json.dumps({"version": 1, "data": rows}, indent=1),
        "by name": json.dumps({"x": rows[0], "y": rows[1]}, indent=1),
        "one object": json.dumps(rows[0], indent=1),
    }[shape]
    (folder / "q.json").write_text(text)
    assert [q.id for q in read(folder / "q.json")] == ["a", "b"][: 1 if shape == "one object" else 2]


def encoded(seconds=0.5, level=0.5):
    file = io.BytesIO()
    soundfile.write(file, level * np.sin(np.arange(int(16_000 * seconds)) / 9), 16_000, format="WAV")
    return file.getvalue()


@pytest.fixture
def stored(folder):
    """A data set as `datasets` makes it: clips inside, a picture that nobody needs, null-padded choices."""
    clips = [{"bytes": encoded(), "path": "a.wav"}, {"bytes": encoded(level=0.2), "path": "b.wav"}]
    columns = {name: [ROW[name]] * 2 for name in ("question", "choices", "answer")}
    data = datasets.Dataset.from_dict(columns | {"audio": clips, "picture": [b"png"] * 2, "level": [1, 2]})
    return data.cast_column("audio", datasets.Audio())


def test_what_datasets_writes_is_read_as_it_was_written(folder, stored, monkeypatch):
    monkeypatch.setattr(datasets.Audio, "decode_example", None)  # nobody may decode
    stored.to_parquet(folder / "q.parquet")
    stored.save_to_disk(folder / "saved")
    (folder / "shards").mkdir()
    for shard in range(2):
        stored.shard(2, shard).to_parquet(folder / "shards" / f"train-{shard}.parquet")
    saved_file = next((folder / "saved").glob("*.arrow"))
    wanted = [row["bytes"] for row in stored.cast_column("audio", datasets.Audio(decode=False))["audio"]]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    sources = ("q.parquet", "saved", "shards")
    for source in (*(folder / name for name in sources), saved_file, f"hub:{folder / 'shards'}:train[:2]"):
        questions = read(source)
        assert [q.audio for q in questions] == wanted
        assert [(q.choices, q.answer) for q in questions] == [(tuple(ROW["choices"]), "a cat")] * 2
        assert [q.meta for q in questions] == [{"level": 1}, {"level": 2}]
    assert read(f"hub:{folder / 'shards'}:train[1:]")[0].audio == wanted[1]


def test_a_table_may_hold_paths_arrays_or_bare_bytes(folder):
    wave = np.sin(np.arange(4_000) / 9).astype(np.float32)
    for clip in ("c0.wav", {"array": wave.tolist(), "sampling_rate": 8_000, "path": None}, encoded()):
        table = pyarrow.Table.from_pylist([ROW | {"audio": clip, "answer": 1}])
        pyarrow.parquet.write_table(table, folder / "q.parquet")
        with pyarrow.ipc.new_file(folder / "q.arrow", table.schema) as writer:
            writer.write_table(table)
        for name in ("q.parquet", "q.arrow"):
            (question,) = read(folder / name)
            assert question.answer == "a cat" and audio.load(question.audio).seconds == pytest.approx(0.5, abs=1e-3)
            if isinstance(clip, dict):
                heard, rate = soundfile.read(io.BytesIO(question.audio), dtype="float32")
                assert rate == 8_000 and np.array_equal(heard, wave)  # to the bit


def test_tables_of_columns_that_cannot_be_read(folder):
    for name, kind in (("q.parquet", "a parquet"), ("q.arrow", "an Arrow")):
        for content in (b"", b"PAR1 or so", encoded()):
            (folder / name).write_bytes(content)
            with pytest.raises(DataError, match=f"{name} is not {kind} file that can be read"):
                read(folder / name)
    with pytest.raises(DataError, match="nobody/nothing .train. cannot be loaded: "):
        read("hub:./nobody/nothing")
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"a": [1]})).save_to_disk(folder / "dict")
    with pytest.raises(DataError, match="dict holds several splits: give the folder of one"):
        read(folder / "dict")


def test_a_table_with_its_clips_inside_is_prepared_into_files(folder, stored):
    stored.to_parquet(folder / "q.parquet")
    with pytest.raises(DataError, match="q.parquet holds the clips themselves: give --flac"):
        prepare(folder / "q.parquet", folder / "clean.jsonl", progress=False)
    report = prepare(folder / "q.parquet", folder / "clean.jsonl", flac=True, progress=False)
    assert (report.kept, report.clips) == (2, 2)
    inside, written = read(folder / "q.parquet"), read(folder / "clean.jsonl")
    for theirs, ours in zip(inside, written, strict=True):
        difference = audio.load(theirs.audio).wave - audio.load(ours.audio).wave
        assert abs(difference).max() <= 2**-16
        assert (theirs.question, theirs.choices, theirs.answer) == (ours.question, ours.choices, ours.answer)


def test_a_field_inside_a_column_is_named_with_a_dot(folder):
    row = {"problem": "Which sound?", "options": ["A. a dog", "B. a cat"], "solution": "<answer>B</answer>"}
    row |= {"path": {"image": "i.jpg", "audio": "c0.wav"}}
    columns = {"audio": "path.audio", "question": "problem", "choices": "options", "answer": "solution"}
    (question,) = read(lines(folder, row), columns=columns)
    assert (question.answer, question.audio) == ("a cat", folder / "c0.wav")


@pytest.mark.skipif(not SHARED.is_dir(), reason="no inputs of this kind beside the repository")
def test_every_input_of_this_kind_is_read_or_refused_in_a_sentence():
    told = {}
    for path in sorted(path for path in SHARED.iterdir() if path.suffix in (".json", ".jsonl", ".csv", ".tsv")):
        try:
            assert all(q.audio.is_file() and q.answer in ("", *q.choices) for q in read(path, on_error="skip"))
        except DataError as error:
            told[path.name] = str(error)
    whole = {"letters.jsonl", "dict.jsonl", "nullpad.jsonl", "avqa_processed.jsonl", "q.csv", "q.tsv", "utf16.jsonl"}
    whole |= {"pretty.jsonl", "wrapped.json", "dict_of_rows.json", "dot.jsonl", "string_choices.jsonl"}
    assert not whole & set(told)
    assert "is the text of one choice and the index of another" in told["numbers2.jsonl"]
    assert all(len(text) < 3_000 and path in text for path, text in told.items())


def test_one_question_with_objects_for_choices_is_a_row_not_a_file_of_rows(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question_text": "?", "multi_choice": [{}], "answer": 0}')
    ((place, row),) = tables.rows(tmp_path / "q.jsonl")
    assert place.endswith("line 1") and row["multi_choice"] == [{}]


def test_a_name_that_no_file_may_have_is_told():
    with pytest.raises(DataError, match="cannot be read: embedded null"):
        tables.rows("a\0b.jsonl")

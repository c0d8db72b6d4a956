"""Reading finished predictions of any origin, and writing the official form."""

import json

import pytest

from aqa_lib import predictions

OFFICIAL = {"id": "a", "question": "What?", "choices": ["dog", "cat"], "answer": "dog", "task": "sound"}


def write(path, rows, form="lines"):
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("[" + ",\n".join(texts) + "]" if form == "list" else "\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["list", "lines"])
@pytest.mark.parametrize("key", ["model_output", "model_prediction"])
def test_the_official_form_is_read_from_a_list_and_from_lines(tmp_path, form, key):
    rows = [OFFICIAL | {key: "A dog."}, OFFICIAL | {"id": 7, key: "<answer>cat</answer>"}]
    run = predictions.read(write(tmp_path / "p.json", rows, form))
    assert [row["id"] for row in run.rows] == ["a", "7"] and run.meta == {}
    assert [row["model_output"] for row in run.rows] == ["A dog.", "<answer>cat</answer>"]
    assert [row["prediction"] for row in run.rows] == ["A dog.", "cat"]
    assert [row["official"] for row in run.rows] == ["A dog.", "<answer>cat</answer>"]  # as it stands


def test_the_official_key_wins_and_missing_ones_stay_missing(tmp_path):
    rows = [
        OFFICIAL | {"model_output": "dog", "model_prediction": "cat"},
        OFFICIAL,
        OFFICIAL | {"model_output": None},
        {"choices": ["dog", "cat"], "model_output": ""},
    ]
    run = predictions.read(write(tmp_path / "p.json", rows))
    assert [row["model_output"] for row in run.rows] == ["dog", None, None, ""]
    assert run.rows[3]["id"] == "3" and run.rows[3]["answer"] == "" and run.rows[3]["task"] == ""


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    text = json.dumps(OFFICIAL | {"model_output": "café\u2028dog"}, ensure_ascii=False)
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + (text + "\r\n\r\n" + text + "\r\n").encode())
    assert [row["model_output"] for row in predictions.read(tmp_path / "p.jsonl").rows] == ["café\u2028dog"] * 2


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("{", r"line 2: is not JSON \(.*killed, run it again to repair"),
        ("3", "line 2: not a JSON object"),
        ({"model_output": "dog"}, "line 2: `choices` must be a list of strings"),
        (OFFICIAL | {"choices": []}, "line 2: `choices` must be a list of strings"),
        (OFFICIAL | {"choices": [1, 2]}, "line 2: `choices` must be a list of strings"),
        (OFFICIAL | {"answer": 1}, "line 2: `answer` is 1; it must be the text of a choice"),
        (OFFICIAL | {"model_output": ["dog"]}, "line 2: the model's output is list, not text"),
    ],
)
def test_a_bad_row_is_named_in_one_sentence(tmp_path, row, fault):
    path = write(tmp_path / "p.jsonl", [OFFICIAL, row])
    with pytest.raises(predictions.PredictionsError, match=rf"p.jsonl {fault}"):
        predictions.read(path)
    path = write(tmp_path / "p.jsonl", [OFFICIAL, row, row, row])
    with pytest.raises(predictions.PredictionsError, match=r"\(2 more rows are bad\)$"):
        predictions.read(path)


def test_files_that_are_none(tmp_path):
    for name, content, fault in [
        ("none", None, "cannot be read"),
        ("empty", b"", "contains no predictions"),
        ("list", b"[]", "contains no predictions"),
        ("torn", b'[{"id": 1},', "line 1: is not JSON"),
        ("binary", b"\xff\xfe\x00", "not UTF-8 text"),
        ("deep", b"[" * 100_000, "line 1: is not JSON that can be read"),
        ("deep.jsonl", b'{"a":' * 100_000, "line 1: is not JSON that can be read"),
        ("huge.jsonl", b'{"a":' + b"9" * 5_000 + b"}", "line 1: is not JSON that can be read"),
        ("some.csv", b"id,choices\n1,x\n", "line 2: `choices` must be a list"),
        ("passwd", b"root:x:0:0:root", "line 1: is not JSON; predictions come as JSON, JSON lines"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(predictions.PredictionsError, match=f"{name}.*{fault}"):
            predictions.read(tmp_path / name)
    write(tmp_path / "p.jsonl", [OFFICIAL])
    for content in ("[]", "[" * 100_000, "{", '{"settings": [], "labels": 3}'):
        (tmp_path / "p.jsonl.meta.json").write_text(content)
        with pytest.raises(predictions.PredictionsError, match=r"p.jsonl.meta.json: not a record written by aqa_lib"):
            predictions.read(tmp_path / "p.jsonl")


def test_the_official_form_is_written_for_the_leaderboard(tmp_path):
    ours = OFFICIAL | {
        "index": 0, "category": ["Reasoning"], "sub-category": "x", "correct": True, "tokens": 9,
        "prediction": "dog", "model_output": "<think>not the cat</think><answer>dog</answer>",
    }  # fmt: skip
    withheld = ours | {"id": "b", "answer": "", "prediction": ""}
    predictions.write_official([ours, withheld], tmp_path / "official.json")
    written = json.loads((tmp_path / "official.json").read_text())
    kept = {"category": ["Reasoning"], "sub-category": "x"}
    assert written[0] == OFFICIAL | kept | {"model_output": "dog"}
    assert "answer" not in written[1] and written[1]["model_output"] == ""
    assert [row["official"] for row in predictions.read(tmp_path / "official.json").rows] == ["dog", ""]


def test_the_official_form_keeps_the_question_file_whole(tmp_path):
    source = [OFFICIAL | {"id": "b", "audio_id": "./b.wav", "more": 1}, OFFICIAL | {"audio_id": "./a.wav"}]
    write(tmp_path / "questions.json", source, "list")
    ours = OFFICIAL | {"model_output": "<answer>dog</answer>", "prediction": "dog"}
    predictions.write_official([ours], tmp_path / "official.json", tmp_path / "questions.json")
    written = json.loads((tmp_path / "official.json").read_text())
    assert written == [source[0] | {"model_output": ""}, source[1] | {"model_output": "dog"}]
    with pytest.raises(predictions.PredictionsError, match="predicts 'z', which is not in"):
        predictions.write_official([ours | {"id": "z"}], tmp_path / "o.json", tmp_path / "questions.json")


def test_replies_under_another_key_are_no_wrong_answers(tmp_path):
    """All rows without a reply would score 0.0 %; one row without one is a missing prediction."""
    row = {"id": "0", "question": "Which?", "choices": ["a", "b"], "answer": "a", "reply_text": "a"}
    (tmp_path / "p.json").write_text(json.dumps([row, row | {"id": "1"}]))
    with pytest.raises(predictions.PredictionsError, match="no row has model_output.*'reply_text'.*rename"):
        predictions.read(tmp_path / "p.json")
    (tmp_path / "p.json").write_text(json.dumps([row, row | {"id": "1", "model_output": "a"}]))
    assert [found["model_output"] for found in predictions.read(tmp_path / "p.json").rows] == [None, "a"]

"""Published sets, in small rows of our own: read without --columns, scored by their own rule, written back for them."""

import csv
import json
import logging

import numpy as np
import pytest
import soundfile

from aqa_lib import predictions
from aqa_lib.__main__ import main
from aqa_lib.dataset import DataError, read
from aqa_lib.predictions import PredictionsError
from aqa_lib.reading import benchmarks
from aqa_lib.results.scoring import judge, score

MMAR = {
    "id": "m1", "audio_path": "./audio/c.wav", "question": "What is heard?", "choices": ["A dog", "A cat"],
    "answer": "A cat", "modality": "mix-sound-speech", "category": "Signal Layer", "sub-category": "Counting",
    "language": "en", "source": "video", "url": "https://video.example/1", "timestamp": "00:02,00:12",
}  # fmt: skip
MMSU = {
    "id": "s1", "category": "Perception", "sub-category": "Phonology", "task_name": "stress",
    "audio_path": "audio/c.wav", "question": "Which word is stressed?", "choice_a": "A dog", "choice_b": "A cat",
    "choice_c": "A bell", "choice_d": "A car", "answer_gt": "A cat",
}  # fmt: skip
ADQA = {
    "id": "q1", "audio_path": "audio/c.wav", "question_text": "What is heard in the video?",
    "multi_choice": ["A dog", "A cat"], "answer": "A cat", "question_type": "sound",
}  # fmt: skip
AUDIO_MCQ = {
    "id": 12, "source_dataset": "AudioCaps", "question_type": "sound", "audio_path": "audio/c.wav",
    "question": "What is heard?", "choices": ["A dog", "A cat"], "answer": "A cat", "audio-contribution": "strong",
}  # fmt: skip
MMAU_PRO = {
    "id": "p1", "audio_path": ["audio/c.wav"], "question": "What is heard?", "choices": ["A dog", "A cat"],
    "answer": "A cat", "category": "sound", "task_identifier": None, "length_type": "short",
}  # fmt: skip
SETS = {"MMAR": MMAR, "MMSU": MMSU, "ADQA": ADQA, "AudioMCQ": AUDIO_MCQ, "MMAU-Pro": MMAU_PRO}
OPEN = MMAU_PRO | {
    "id": "p2",
    "category": "open",
    "choices": None,
    "answer": "A dog barks twice, then a door falls shut.",
}
FOLLOWS = MMAU_PRO | {"id": "p3", "category": "instruction following", "choices": [], "answer": "-"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "c.wav", np.sin(np.arange(8_000) / 9), 16_000)
    return tmp_path


def lines(folder, *rows, name="q.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_read_as_it_is_published(folder, name):
    (question,) = read(lines(folder, SETS[name]))
    assert (question.choices[:2], question.answer, question.audio.name) == (("A dog", "A cat"), "A cat", "c.wav")
    assert question.meta["benchmark"] == name and question.question.startswith("Wh")
    assert predictions.question_row(0, question)["benchmark"] == name
    assert question.task == ("mix-sound-speech" if name == "MMAR" else "")


def test_the_paper_s_word_for_video_is_kept_where_the_set_is_not_the_paper_s(folder):
    (question,) = read(lines(folder, ADQA))
    assert question.question == "What is heard in the video?"
    (withheld,) = read(lines(folder, {k: v for k, v in ADQA.items() if k != "answer"}))
    assert withheld.answer == "" and withheld.meta["benchmark"] == "ADQA"
    (ours,) = read(lines(folder, ADQA | {"answer": 1}))  # AVQA's form counts from 0
    assert ours.question == "What is heard in the audio?" and "benchmark" not in ours.meta


def test_a_clip_may_be_in_a_column_of_the_hub_s(folder):
    row = {k: v for k, v in MMAR.items() if k != "audio_path"} | {"audio": {"path": "audio/c.wav", "bytes": None}}
    (question,) = read(lines(folder, row))
    assert question.audio.name == "c.wav" and question.meta["benchmark"] == "MMAR"


def test_open_questions_are_named_counted_and_left_out(folder, caplog):
    path = lines(folder, MMAU_PRO, OPEN, FOLLOWS, OPEN | {"id": "p4"})
    with caplog.at_level(logging.WARNING):
        assert [question.id for question in read(path)] == ["p1"]
    assert "3 open questions (2 open, 1 instruction following) need a judge model; they are left out" in caplog.text
    with pytest.raises(DataError, match="holds no questions"):
        read(lines(folder, OPEN))


def finished(folder, *rows, name="out.jsonl"):
    return score(predictions.read(lines(folder, *rows, name=name)))


def test_open_answers_are_counted_and_not_scored(folder):
    replies = {"model_output": "A cat"}
    report = finished(folder, *(row | replies for row in (MMAU_PRO, OPEN, FOLLOWS)))
    assert (report.n, report.official.right, report.official.n) == (1, 1, 1)
    assert "2 open questions (1 open, 1 instruction following) need a judge model; they are not scored." in report.notes
    assert "the official rule is MMAU-Pro's: the choice that a reply names by text or letter." in report.notes


FINISHED = {  # what each set's scorer reads, and what its rule says
    "MMAR": ("answer_prediction", {"It is a cat.": True, "A dog": False, "a cat or a dog": False, "": False}),
    "MMSU": (
        "response",
        {"B": True, "B. A cat": True, "The answer is B.": True, "A cat": True, "A": False, "?": False},
    ),
    "ADQA": ("model_output", {"A cat": True, "a cat": False, "B": False}),
    "AudioMCQ": ("model_output", {"a cat.": True, "(B)": True, "B. A dog": False, "cat": False}),
    "MMAU-Pro": ("model_output", {"A cat": True, "B": True, "<answer>A cat</answer>": True, "no idea": False}),
}


@pytest.mark.parametrize("name", SETS)
def test_a_finished_file_is_judged_by_its_set_s_rule(folder, name):
    key, replies = FINISHED[name]
    rows = [SETS[name] | {"id": str(number), key: reply} for number, reply in enumerate(replies)]
    run = predictions.read(lines(folder, *rows, name="out.jsonl"))
    assert {row["model_output"]: judge(row, "official") for row in run.rows} == replies
    assert {row["benchmark"] for row in run.rows} == {name} and run.rows[0]["choices"][:2] == ["A dog", "A cat"]


def test_our_own_predictions_are_judged_by_the_set_s_rule_too(folder):
    (question,) = read(lines(folder, MMSU))
    row = predictions.question_row(0, question) | {"model_output": "B", "prediction": "B"}
    assert judge(row, "official") and not judge(row, "strict")


def test_an_adqa_submission_is_scored_and_written(folder, capsys):
    asked = lines(folder, ADQA, ADQA | {"id": "q2", "answer": "A dog"}, name="dev.jsonl")
    (folder / "sub.csv").write_text("question,answer\nq1,A cat\nq2,A cat\n")
    with pytest.raises(PredictionsError, match="ids and answers alone; give the questions"):
        predictions.read(folder / "sub.csv")
    assert main(["score", f"{folder}/sub.csv", "--questions", str(asked), "--official", f"{folder}/again.csv"]) == 0
    assert "| **all** | 2 | **50.0" in capsys.readouterr().out
    assert list(csv.reader(open(folder / "again.csv"))) == [["question", "answer"], ["q1", "A cat"], ["q2", "A cat"]]
    (folder / "sub.csv").write_text("question,answer\nq9,A cat\n")
    assert main(["score", f"{folder}/sub.csv", "--questions", str(asked)]) == 2


def test_each_scorer_gets_its_own_key(folder):
    for name, key, said in (("MMAR", "answer_prediction", "a cat"), ("MMSU", "response", "B")):
        (question,) = read(path := lines(folder, SETS[name], name=f"{name}.jsonl"))
        row = predictions.question_row(0, question) | {"model_output": "a cat", "prediction": "a cat"}
        for asked in (None, path):
            predictions.write_official([row], folder / "official", asked)
            (entry,) = [entry for _, entry in predictions._entries(folder / "official")]
            assert entry[key] == said and entry["question"] == question.question


def test_a_file_of_no_known_set_stays_what_it_was(folder):
    (question,) = read(
        lines(folder, {k: v for k, v in AUDIO_MCQ.items() if k != "source_dataset"}), columns={"audio": "audio_path"}
    )
    assert "benchmark" not in question.meta
    assert benchmarks.detect([("row 1", ValueError("broken")), ("row 2", 3)]) is None

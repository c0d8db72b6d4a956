"""Scores by every rule, what counts as wrong, and both Test-minis through the whole way."""

import json
import math
from pathlib import Path

import pytest

from aqa_lib import dataset, evaluation, predictions
from aqa_lib.predictions import Predictions, PredictionsError, read, write_official
from aqa_lib.results import mmau, scoring
from aqa_lib.runtime import files

SHARED = Path(__file__).resolve().parents[4] / "shared" / "mmau"
needs_files = pytest.mark.skipif(not SHARED.is_dir(), reason="the two Test-mini files are not beside the repository")


def row(index, output, answer="dog", task="sound", **more):
    reply = {"model_output": output, "prediction": scoring.prompt.extract_answer(output or "") or ""}
    question = {
        "index": index,
        "id": str(index),
        "task": task,
        "question": "What?",
        "choices": ["dog", "cat"],
    }
    return question | {"answer": answer} | reply | more


ROWS = [
    row(0, "<answer>Dog.</answer>", difficulty="easy", category="Reasoning"),
    row(1, "It is a dog, surely", difficulty="hard", category=["Reasoning"]),  # official, not strict
    row(2, "<answer>dog</answer><answer>dog</answer>", category="Other"),  # unreadable
    row(3, "<answer>cat</answer>", task="music"),
    row(4, "<answer>horse</answer>", task="music"),  # none of the choices
    row(5, "", task="music"),  # empty
    row(6, None, task="music"),  # missing
]


def test_every_rule_by_hand():
    report = scoring.score(ROWS)
    assert (report.official.right, report.official.n) == (2, 7)
    assert (report.strict.right, report.strict.n) == (1, 7)
    assert (report.unreadable.right, report.unreadable.n) == (2, 6)
    assert (report.outside.right, report.outside.n) == (2, 6)  # the sentence and the horse
    assert (report.tagged.right, report.tagged.n) == (3, 6)
    assert report.uniform == 50 and report.first_choice == 100
    assert {k: (v["official"].right, v["official"].n) for k, v in report.by["task"].items()} == {
        "sound": (2, 3), "music": (0, 4),
    }  # fmt: skip
    assert report.by["category"]["Reasoning"]["strict"].n == 2  # the list and the text are one category
    assert "sub-category" not in report.by
    assert report.notes == (
        "1 of 7 questions have no prediction; they count as wrong.",
        "2 predictions contain no words; they count as wrong.",
    )
    assert report.data.startswith("unknown data (")
    assert scoring.score(ROWS[:2]).notes == ()
    told = scoring.score([row(0, "<answer>dog</answer>", official="<answer>dog</answer>")]).notes
    assert told == ("the official rule reads 1 outputs with their <answer> tags as they stand.",)


def test_a_run_that_was_killed_counts_what_it_did_not_reach_as_wrong():
    meta = {"settings": {}, "labels": {}, "counts": {"task": {"sound": 5, "music": 10, "speech": 3}}}
    report = scoring.score(Predictions("p.jsonl", ROWS, meta))
    assert report.n == 18 and report.official.n == 18
    assert {k: v["strict"].n for k, v in report.by["task"].items()} == {"music": 10, "sound": 5, "speech": 3}
    assert report.notes[0] == "11 of 18 questions were not reached: the run is not finished; run it again."
    assert report.notes[1] == "12 of 18 questions have no prediction; they count as wrong."


def test_withheld_answers_give_no_score_and_no_crash():
    report = scoring.score([row(0, "dog", answer=""), row(1, None, answer="")])
    assert report.official is report.strict is report.uniform is report.first_choice is None and report.by == {}
    assert "2 of 2 answers are withheld; they are not scored." in report.notes
    assert "withheld" in report.markdown() and json.dumps(report.to_dict(), allow_nan=False)
    some = scoring.score([*ROWS, row(9, "dog", answer="")])
    assert some.official.n == 7 and some.n == 8
    counted = {"settings": {}, "labels": {}, "counts": {"task": {"sound": 4, "music": 4}}}
    assert scoring.score(Predictions("p", [*ROWS, row(9, "dog", answer="")], counted)).official.n == 7


def test_the_prompt_decides_which_form_was_asked_for():
    rows = [row(0, "<think>hm</think><answer>dog</answer>")]
    thinking = Predictions("p", rows, {"settings": {"style": 3}, "labels": {}})
    assert scoring.score(thinking).tagged.right == 1 and scoring.score(rows).tagged.right == 0


def test_what_is_printed_and_what_is_json():
    report = scoring.score(ROWS)
    text = report.markdown()
    assert "\n\n| | n | official rule | strict |\n|---|---|---|---|\n| task: " in text
    assert "| task: music | 4 | 0.0 [0.0, 49.0] | 0.0 [0.0, 49.0] |" in text
    assert "| **all** | 7 | **28.6 [8.2, 64.1]** | **14.3 [2.6, 51.3]** |" in text
    assert "| first choice always | | 100.0 | |" in text and "| uniform guess | | 50.0 | |" in text
    assert "Note: 1 of 7 questions have no prediction" in text
    assert "Replies: 33.3 [9.7, 70.0] unreadable, 33.3 [9.7, 70.0] read but none of the choices, 50.0 [" in text
    made = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert made["official"]["percent"] == pytest.approx(200 / 7)
    assert made["official"]["right"] == 2 and made["by"]["task"]["sound"]["strict"]["n"] == 3
    assert math.isnan(scoring.Rate(0, 0).percent) and scoring.Rate(0, 0).to_dict() == {"right": 0, "n": 0}


def test_unknown_rule():
    with pytest.raises(ValueError, match="rule 'kind' is unknown; choose official or strict"):
        scoring.judge(ROWS[0], "kind")


@needs_files
@pytest.mark.parametrize("version", [mmau.OLD, mmau.NEW])
def test_both_test_minis_go_the_whole_way(tmp_path, version):
    """Read the file, answer with the first choice in tags, write the official form, score both: the known line."""
    name = {mmau.OLD: "mmau-test-mini-2025-03-25.json", mmau.NEW: "mmau-test-mini-v05.15.25.json"}[version]
    questions = dataset.read_mmau(SHARED / name, check_audio=False)
    rows = [
        predictions.question_row(i, q) | evaluation.read_reply(f"<answer>{q.choices[0]}</answer>", q)
        for i, q in enumerate(questions)
    ]
    report = scoring.score(rows)
    assert report.data == version
    assert report.official.percent == report.first_choice == {mmau.OLD: 37.8, mmau.NEW: 39.8}[version]
    assert {task: rates["official"].n for task, rates in report.by["task"].items()} == {
        "music": 334, "sound": 333, "speech": 333,
    }  # fmt: skip
    assert set(report.by["category"]) == {"Information Extraction", "Reasoning"}  # the list is folded in
    assert (report.unreadable.right, report.outside.right, report.tagged.right) == (0, 0, 1000)
    write_official(rows, tmp_path / "official.json", SHARED / name)
    official = scoring.score(read(tmp_path / "official.json"))
    assert official.data == version and official.official == report.official and official.strict == report.strict
    golden = [r | {"prediction": r["answer"], "model_output": r["answer"]} for r in rows]
    assert scoring.score(golden).official.right == scoring.score(golden).strict.right == 1000
    part = Predictions("p", rows[:10], {"settings": {"data_sha256": files.sha256(SHARED / name)}, "labels": {}})
    assert scoring.score(part).data == f"{version}, 10 of its questions"


def asked(n=4):
    return [
        {key: value for key, value in row(i, None).items() if key not in ("model_output", "prediction")}
        for i in range(n)
    ]


def test_the_questions_given_decide_what_is_right():
    """A file that calls each of its own answers right is not scored by itself."""
    flattering = Predictions("p", [row(i, "cat", answer="cat") for i in range(4)])
    assert scoring.score(flattering).strict.percent == 100
    with pytest.raises(
        PredictionsError, match="^p: 4 of 4 rows do not match the questions given; .0. has a different answer: score"
    ):
        scoring.complete(flattering, asked())
    silent = Predictions("p", [row(i, "cat", answer="") for i in range(3)])
    found = scoring.score(scoring.complete(silent, asked()))
    assert (found.strict.right, found.strict.n) == (0, 4)
    tasks = scoring.complete(Predictions("p", [row(0, "dog", task="mine")]), asked())
    assert {r["task"] for r in tasks.rows} == {"sound"}


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"question": "Who?"}, "question"),
        ({"choices": ["dog", "fox"]}, "list of choices"),
        ({"answer": "cat"}, "answer"),
    ],
)
def test_a_row_that_disagrees_with_its_question_is_refused(other, what):
    rows = [row(0, "dog"), row(1, "dog") | other]
    with pytest.raises(PredictionsError, match=f"1 of 2 rows do not match .* .1. has a different {what}"):
        scoring.complete(Predictions("p", rows), asked())
    shuffled = [row(0, "dog") | {"choices": ["cat", "dog"], "question": " What? "}]
    assert scoring.complete(Predictions("p", shuffled), asked()).rows[0]["choices"] == ["dog", "cat"]


def test_a_row_that_stands_twice_does_not_count_twice():
    twice = Predictions("p", [row(0, "dog"), row(1, "cat"), row(0, "dog")])
    for refused in (lambda: scoring.score(twice), lambda: scoring.complete(twice, asked())):
        with pytest.raises(PredictionsError, match="p: 1 ids occur more than once, '0' among them; keep one row"):
            refused()

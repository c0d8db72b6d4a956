"""Every exercise takes the right answer, and says of typical wrong ones where they err."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aqa_lib.audio import Clip
from aqa_lib.course import exercises, inspection
from aqa_lib.course.judges_later import EXERCISES
from aqa_lib.dataset import Question
from aqa_lib.predictions import Predictions
from aqa_lib.results.causes import count
from aqa_lib.results.report import Table
from aqa_lib.runtime.errors import AqaError

ASKED = Question("1", b"clip", "What barks?", ("a dog", "a cat"), "a dog")
MINE = replace(ASKED, question="Is it an animal?", choices=("yes", "no"), answer="yes")
VERSIONS = {"as it is": 0, "at 4 kHz": 1}
COLUMNS = {"question": "prompt", "audio": "sound", "choices": "options", "answer": "key"}
TRAIN = [
    replace(ASKED, meta={"heard": heard, "question_relation": relation})
    for heard, relation in [("a dog", "Sound")] * 2 + [("a dog", "Both")] * 3 + [("a cat", "View")]
]


def row(name, said, level="easy", task="sound"):
    row = {"id": name, "question": "?", "choices": ["a dog", "a cat"], "answer": "a dog", "task": task}
    return row | {"difficulty": level, "prediction": said, "model_output": said}


HEARD = [row("1", "a dog"), row("2", "a dog", "hard"), row("3", "a cat", "hard", "music"), row("4", "a cat")]
SILENT = [row("1", "a dog"), row("2", "a cat"), row("3", "a dog"), row("4", "a cat")]
RUN, SILENCE = Predictions("run", HEARD), Predictions("silence", SILENT)
SURE = {name: {"a dog": share, "a cat": 1 - share} for name, share in zip("1234", (0.9, 0.8, 0.1, 0.3), strict=True)}
WRONG, RIGHT = HEARD[2:], HEARD[:2]

STATES, WORDS = torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
HEARS = {"facts": {"sound": {"n": 30, "heard": 28, "after": 18}}}
COUNT = {"right": 1, "n": 2}
TRIALS = [
    {"method": method, "wrong": 0.0, "rate": 1e-5, "seed": 0, "held_out": COUNT, "asked": ["sound"] * 4 + ["music"]}
    | {"last": last}
    for method, last in [("base", "10000"), ("grpo", "11100"), ("sft", "11111")]
]


def brief(prompts, completions, completion_ids, **columns):
    return [min(1.0, max(0.0, (12 - len(ids)) / 6)) for ids in completion_ids]


def endless(prompts, completions, completion_ids, **columns):
    return [(12 - len(ids)) / 6 for ids in completion_ids]


def one_number(prompts, completions, completion_ids, **columns):
    return 1.0


def of_no_trainer(completions):
    return [1.0] * len(completions)


def agrees(prompts, completions, choices, **columns):
    return [
        float(exercise_relation(reply, among) == "alone") for reply, among in zip(completions, choices, strict=True)
    ]


def exercise_relation(reply, among):
    thought = reply.partition("</think>")[0]
    named = [choice for choice in among if choice.lower() in thought.lower()]
    return "alone" if named == ["a dog"] else "other"


def mentions(prompts, completions, choices, **columns):
    return [float("dog" in reply.partition("</think>")[0].lower()) for reply in completions]


RIGHT_ANSWERS = [
    ("00", 1, (MINE, ASKED)),
    ("00", 2, (Clip(np.ones(1600, np.float32)),)),
    ("00", 3, ([0.8, 0.55],)),
    ("01", 1, (307,)),
    ("01", 2, (COLUMNS,)),
    ("01", 3, ([["a dog"], ["a cat"]], VERSIONS)),
    ("02", 1, (brief,)),
    ("02", 2, ((1, 0.5),)),
    ("02", 3, ("Well, that might be a dog, I suppose.",)),
    ("03", 1, (torch.tensor([[0.7071, -0.7071], [0.0, -0.0]]),)),
    ("03", 2, ([2, 0, 0, 0],)),
    ("03", 3, (np.float64(2e-9),)),
    ("04", 1, (0.5,)),
    ("04", 2, (torch.tensor([0.00756, 0.1364]),)),
    ("04", 3, (5, TRAIN)),
    ("05", 1, ("falling, then rising",)),
    ("05", 2, (1531,)),
    ("05", 3, (Table("", "strict", (), ()),)),
    ("06", 1, (agrees,)),
    ("06", 2, ((36, 281),)),
    ("06", 3, ([90.0] * 10, [80.0] * 10)),
    ("07", 1, (WRONG, SURE)),
    ("07", 2, (RIGHT[:1], RUN, SILENCE)),
    ("07", 3, (count(RUN, {}, by="difficulty"), RUN)),
    ("08", 1, ([[-1.0, 2.0], [2.0, -1.0]], STATES, WORDS)),
    ("08", 2, (10, HEARS)),
    ("08", 3, (np.float64(50), TRIALS)),
]
WRONG_ANSWERS = [
    ("00", 1, (replace(MINE, question=ASKED.question), ASKED), "already"),
    ("00", 1, (replace(MINE, audio=b"other"), ASKED), "Keep the clip"),
    ("00", 1, (replace(MINE, answer="maybe"), ASKED), "not one of your choices"),
    ("00", 1, (replace(MINE, choices=("yes",)), ASKED), "two different"),
    ("00", 1, ("Is it an animal?", ASKED), "Expected: check(1, mine, question)"),
    ("00", 2, ("my.mp3",), "audio.load"),
    ("00", 3, ([16, 11],), "between 0 and 1"),
    ("00", 3, ([0.5, 0.8],), "other way round"),
    ("00", 3, (0.8,), "Expected"),
    ("01", 1, (1230,), "columns of the picture"),
    ("01", 1, (615,), "halves once more"),
    ("01", 1, (848,), "resampled"),
    ("01", 1, (3,), "Start from the seconds"),
    ("01", 2, ({"prompt": "question", "sound": "audio", "options": "choices", "key": "answer"},), "other way round"),
    ("01", 2, ({"question": "prompt"},), "'audio'"),
    ("01", 2, (COLUMNS | {"answer": "options"},), "not the column that holds 'answer'"),
    ("01", 3, (["a dog"], VERSIONS), "ask about each"),
    ("01", 3, ([3, 4], VERSIONS), "rollout.decode"),
    ("02", 1, (endless,), "4 tokens should earn 1, and earns 1.33333"),
    ("02", 1, (one_number,), "returns a list"),
    ("02", 1, (of_no_trainer,), "TypeError"),
    ("02", 1, (1.0,), "TypeError"),
    ("02", 2, ((1, 1),), "still paid the same"),
    ("02", 2, ((1, 0),), "earn a right answer nothing"),
    ("02", 2, ((1, 2),), "more than a right one"),
    ("02", 3, ("It barks.",), "wrong too"),
    ("02", 3, ("A dog or a cat.",), "wrong too"),
    ("02", 3, ("<answer>Dog.</answer>",), "pays it"),
    ("03", 1, ([1, -1, 0],), "unbiased"),
    ("03", 1, ([0.5, -0.5],), "deviation"),
    ("03", 1, ([0.71, -0.71],), "earn the same"),
    ("03", 1, ([0.71, 0],), "what about the other"),
    ("03", 1, ([3.0],), "group_advantages"),
    ("03", 2, ([2, 1, 1, 1],), "0.75"),
    ("03", 2, ([1],), "one of the two"),
    ("03", 3, (0.04,), "β"),
    ("03", 3, (0.3,), "first step"),
    ("04", 1, (1.0,), "second solution"),
    ("04", 1, (0.25,), "At 0.25 SFT pulls with 0.75, GRPO with 0.43"),
    ("04", 2, ((0.992, 0.163),), "multiplies it"),
    ("04", 2, ((0.136, 0.0076),), "other way round"),
    ("04", 2, ((0.5, 0.136),), "cat"),
    ("04", 2, ((0.0076, 0.837),), "dog"),
    ("04", 3, (5 / 6, TRAIN), "share"),
    ("04", 3, (1, TRAIN), "cannot be heard"),
    ("04", 3, (2, TRAIN), "marked Sound"),
    ("04", 3, (4, TRAIN), "Count"),
    ("05", 1, ("not rising then falling",), "negation"),
    ("05", 1, ("staying the same",), "official rule calls it wrong"),
    ("05", 1, ("Rising then falling.",), "as well"),
    ("05", 2, (766,), "one run"),
    ("05", 2, (400,), "1.96"),
    ("05", 2, (50,), "between"),
    ("05", 3, ([],), "take the last"),
    ("05", 3, (Table("", "official", (), ()),), "official rule"),
    ("06", 1, (mentions,), "'A dog, not a cat.'"),
    ("06", 2, ((35, 280),), "equal"),
    ("06", 2, ((281, 36),), "other way round"),
    ("06", 2, ((9, 50),), "Compare"),
    ("06", 3, ([90.0], [80.0] * 10), "Give 10"),
    ("06", 3, ([-1.0] * 10, [80.0] * 10), "no probabilities"),
    ("06", 3, ([0.9] * 10, [80.0] * 10), "In percent"),
    ("07", 1, (HEARD, SURE), "right answers"),
    ("07", 1, (WRONG[::-1], SURE), "other way round"),
    ("07", 1, ([WRONG[0], row("9", "a cat")], SURE), "probabilities are known"),
    ("07", 1, ([], SURE), "No row"),
    ("07", 2, (RIGHT[1:], RUN, SILENCE), "need ears"),
    ("07", 2, ([HEARD[0], HEARD[2]], RUN, SILENCE), "silence alone"),
    ("07", 2, ([], RUN, SILENCE), "1 missing"),
    ("07", 3, (count(RUN, {}), RUN), "by task"),
    ("07", 3, ({"all": {}}, RUN), "easy, hard"),
    ("08", 1, ([[1, -2], [-2, 1]], STATES, WORDS), "other's word"),
    ("08", 1, ([[1, 1], [2, 2]], STATES, WORDS), "names the first sound"),
    ("08", 1, ([1.0], STATES, WORDS), "four numbers"),
    ("08", 2, (12, HEARS), "all that the model does not name"),
    ("08", 2, (1 / 3, HEARS), "share"),
    ("08", 2, (-10, HEARS), "Subtract"),
    ("08", 3, (0.5, TRIALS), "points"),
    ("08", 3, (40, TRIALS), "all test questions"),
    ("08", 3, (75, TRIALS), "SFT's gain"),
    ("08", 3, (-50, TRIALS), "Subtract"),
]


@pytest.mark.parametrize(("notebook", "n", "answer"), RIGHT_ANSWERS)
def test_a_right_answer_is_right(notebook, n, answer):
    assert exercises.verdict(notebook, n, *answer).startswith(f"Exercise {n}: right. ")


@pytest.mark.parametrize(("notebook", "n", "answer", "says"), WRONG_ANSWERS)
def test_a_wrong_answer_is_told_where_it_errs(notebook, n, answer, says):
    said = exercises.verdict(notebook, n, *answer)
    assert said.startswith(f"Exercise {n}: not yet. ") and says in said, said


def test_every_exercise_has_a_right_and_a_wrong_answer_here():
    every = {(notebook, n) for notebook, theirs in EXERCISES.items() for n in theirs}
    assert every == {(notebook, n) for notebook, n, _ in RIGHT_ANSWERS} == {case[:2] for case in WRONG_ANSWERS}


@pytest.mark.parametrize(
    "empty", [..., [...], (..., ...), lambda *given, **columns: None, lambda *given, **columns: ...]
)
def test_what_the_notebook_came_with_is_not_tried_yet(capsys, empty):
    check, hint = exercises.of("02")
    check(1, empty)
    assert capsys.readouterr().out.startswith("Exercise 1: not tried yet. Put your answer in place of the dots")
    hint(1)
    assert capsys.readouterr().out.startswith("Exercise 1, a hint: ")


def test_an_unknown_exercise_or_notebook_lists_the_known_ones():
    check, hint = exercises.of("03")
    for use in (check, hint):
        with pytest.raises(AqaError, match="notebook 03 has no exercise 4; it has 1, 2, 3"):
            use(4)
    with pytest.raises(AqaError, match="choose from 00, 01"):
        exercises.of("09")


def test_the_rows_of_this_test_differ_as_they_should():
    assert [*inspection.pairs(RUN, SILENCE).values()] == ["both right", "only A", "only B", "neither"]

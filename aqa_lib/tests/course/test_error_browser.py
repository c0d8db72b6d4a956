"""The error browser, by its controls' values: it filters, steps, computes, and notes causes for the right question."""

import json

import pytest

from aqa_lib.course import browser
from aqa_lib.course.inspection import ORDERS
from aqa_lib.dataset import Question
from aqa_lib.predictions import PredictionsError
from aqa_lib.results import causes
from aqa_lib.tests.helpers import asked

A = [asked("0", "rain"), asked("1", "a dog"), asked("2", "<answer>", task="music"), asked("3", "It is wind.")]
A += [asked("4", None)]
B = [asked("0", "rain"), asked("1", "wind"), asked("2", "a dog", task="music"), asked("3", "a dog")]
B += [asked("4", "a dog")]
LEAST_SURE = ORDERS[-1]


@pytest.fixture
def runs(tmp_path):
    paths = {"base": tmp_path / "base.jsonl", "GRPO": tmp_path / "grpo.jsonl"}
    for path, rows in zip(paths.values(), (A, B), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def ids(rows):
    return "".join(row["id"] for row in rows)


def test_browsing(runs, model, processor, questions):
    clips = [Question(str(i), questions[0].audio, "What barks?", tuple(A[0]["choices"]), "a dog") for i in range(5)]
    shown = browser.browse(runs, clips, {"base": (model, processor), "GRPO": (model, processor)})
    assert shown.place.value == "1 of 2" and "Question" in shown.page.value and "<audio" in shown.page.value
    shown.next.click()
    assert shown.place.value == "2 of 2" and shown.next.disabled and not shown.previous.disabled
    assert "It is wind." in shown.page.value and "%" in shown.page.value
    shown.tags.cause.value, shown.tags.note.value = "misheard", "wind or a dog?"
    assert causes.read_tags(runs["base"]) == {"3": {"cause": "misheard", "note": "wind or a dog?"}}
    assert shown.saved.value == "Saved."
    shown.previous.click()
    assert (shown.tags.cause.value, shown.tags.note.value, shown.saved.value) == ("", "", "")
    shown.kind.value = "all"
    shown.other.value, shown.pair.value = "GRPO", "only B"
    assert ids(shown.rows) == "234" and "GRPO" in shown.page.value
    shown.order.value = LEAST_SURE
    assert {*ids(shown.rows)} == {*"234"} and len(shown.known["base"]) >= 3
    shown.task.value = "music"
    assert ids(shown.rows) == "2"
    shown.kind.value = "wrong"
    assert shown.place.value == "0 of 0" and "No question is left" in shown.page.value and shown.tags.cause.disabled
    again = browser.browse(runs)  # another session: the tag is there
    again.next.click()
    assert (again.tags.cause.value, again.tags.note.value) == ("misheard", "wind or a dog?")
    assert causes.read_tags(runs["base"]).keys() == {"3"}  # looking changes nothing


def test_a_tag_reaches_the_question_on_the_card_it_was_chosen_on(runs, monkeypatch):
    """Messages wait while probabilities are computed: what was chosen on the old card is handled after the new one."""
    right = {"0": 0.9, "3": 0.1}
    shown = browser.browse(runs, models={"base": (), "GRPO": ()})
    seen = []

    def compute(name, row):
        seen.append((shown.place.value, [control.disabled for control in (*shown.filters[3:], shown.next)]))
        assert shown.tags.cause.disabled and shown.tags.note.disabled
        return shown.known[name].setdefault(row["id"], {"a dog": right[row["id"]]})

    old = shown.tags
    assert old.name == "0"
    with monkeypatch.context() as patched:
        patched.setattr(shown, "probabilities", compute)
        patched.setattr(shown, "draw", lambda row: f"card of {row['id']}")
        shown.order.value = LEAST_SURE
    assert seen[0] == ("asking the model: 0 of 2", [True] * 4)  # progress is shown, and nothing can be chosen
    assert shown.place.value == "1 of 2" and not shown.order.disabled and not shown.tags.cause.disabled
    assert shown.tags.name == "3" and shown.page.value == "card of 3"
    old.cause.value = "misheard"  # had been on its way
    assert causes.read_tags(runs["base"]) == {"0": {"cause": "misheard", "note": ""}}
    assert shown.saved.value == "Saved for the previous card." and shown.tags.cause.value == ""
    shown.tags.note.value = "barks"
    assert causes.noted(runs["base"]) == {"0": "misheard"}
    assert causes.read_tags(runs["base"])["3"]["note"] == "barks"


def test_controls_of_cards_long_gone_are_closed(runs):
    shown = browser.browse(runs)
    first = shown.tags
    for _ in range(browser.KEPT):
        shown.next.click(), shown.previous.click()
    assert first.cause.comm is None and shown.tags.cause.comm is not None
    assert len(shown.earlier) == browser.KEPT


def test_a_box_says_which_kinds_of_reply_there_can_be(runs):
    """The kind is "wrong" at first, and only A right leaves no wrong reply of A's: the kind follows."""
    shown = browser.browse(runs)
    assert (shown.kind.value, shown.pair.disabled) == ("wrong", True)
    shown.other.value, shown.pair.value = "GRPO", "only A"
    assert (ids(shown.rows), shown.kind.value, shown.kind.options) == ("1", "right", ("right",))
    shown.pair.value = "only B"
    assert (ids(shown.rows), shown.kind.value) == ("3", "wrong")
    shown.kind.value = "unreadable"
    assert ids(shown.rows) == "24"
    shown.pair.value = "both right"
    assert (ids(shown.rows), shown.kind.value) == ("", "right")
    shown.other.value = ""
    assert (ids(shown.rows), shown.kind.value) == ("1", "right") and "wrong" in shown.kind.options


def test_a_broken_file_of_tags_is_told_in_the_browser(runs):
    causes.tags_path(runs["base"]).write_text("{")
    shown = browser.browse(runs)
    assert "tags.json: cannot be read" in shown.page.value and "What barks?" in shown.page.value
    shown.tags.cause.value = "misheard"
    assert shown.saved.value == "" and shown.page.value.count('role="alert"') == 2  # and the missing clip
    assert causes.tags_path(runs["base"]).read_text() == "{"


def test_what_fails_behind_a_control_is_told_above_the_card(runs, monkeypatch):
    shown = browser.browse(runs)
    monkeypatch.setattr(browser, "tag", lambda *_: open("/no/such/<tags>", "w"))
    shown.tags.note.value = "noted"
    assert "No such file" in shown.page.value and "&lt;tags&gt;" in shown.page.value and "<article" in shown.page.value


def test_runs_that_cannot_be_browsed_are_refused_in_a_sentence(runs, tmp_path):
    with pytest.raises(ValueError, match="no run to browse"):
        browser.browse({})
    with pytest.raises(ValueError, match="'sft', which is not one of the runs base, GRPO"):
        browser.browse(runs, models={"sft": (None, None)})
    with pytest.raises(PredictionsError, match="gone.jsonl cannot be read"):
        browser.browse({"gone": tmp_path / "gone.jsonl"})
    runs["GRPO"].write_text(json.dumps(B[0]) + "\n")
    shown = browser.browse(runs)
    shown.other.value, shown.pair.value = "GRPO", "only A"
    assert "different questions never share a table" in shown.page.value
    shown.tags.cause.value = "misheard"
    assert not causes.tags_path(runs["base"]).exists(), "no question is on the card"

"""You against the model: rounds, tally and buttons, without a browser."""

import pytest

from aqa_lib.course import play
from aqa_lib.dataset import Question
from aqa_lib.runtime.errors import AqaError
from aqa_lib.tests.helpers import asked

CHOICES = ("a dog", "rain", "wind")
BASE = [asked(str(n), "It barks." if n % 2 else "a dog") for n in range(6)]
GRPO = [asked(str(n), "<answer>a dog</answer>") for n in range(6)]


@pytest.fixture
def asked_questions(questions):
    return [Question(str(n), questions[0].audio, f"What is it, <b>{n}</b>?", CHOICES, "a dog") for n in range(6)]


def press(game, words):
    (button,) = [button for button in game.buttons if button.description == words]
    button.click()


def test_three_rounds(asked_questions):
    game = play.Game(asked_questions, {"base": BASE, "grpo": GRPO}, rounds=3)
    assert [button.description for button in game.buttons] == [*CHOICES] and "<audio" in game.page.value
    for given in ("a dog", "rain", "a dog"):
        assert "right so far" not in game.page.value and "The answer is <strong>" not in game.page.value
        press(game, given)
        assert "The answer is <strong>a dog</strong>" in game.page.value and "&lt;answer&gt;a dog" in game.page.value
        if not game.match.over:
            press(game, "Next clip")
    drawn = [question.id for question in game.match.questions]
    assert game.match.rights() == {
        "you": [True, False, True],
        "base": [int(name) % 2 == 0 for name in drawn],
        "grpo": [True] * 3,
    }
    assert "2 of 3: 67 % [21, 94]" in game.page.value and "3 of 3: 100 % [44, 100]" in game.page.value
    assert "Between you and grpo 3 clips cannot decide" in game.page.value
    press(game, "Play another 3")
    assert game.match.given == [] and [question.id for question in game.match.questions] != drawn


def test_a_late_click_answers_no_other_clip(asked_questions):
    game = play.Game(asked_questions, {"base": BASE}, rounds=2)
    late = game.buttons[1]
    press(game, "a dog")
    late.click()
    game.match.answer("rain")  # only the first counts
    assert game.match.given == ["a dog"]
    press(game, "Next clip")
    late.click()
    assert game.match.given == ["a dog"] and not game.match.answered


def test_a_page_shows_texts_as_texts(asked_questions):
    game = play.Game(asked_questions, {"<b>base": [row | {"model_output": "<script>x"} for row in BASE]}, rounds=1)
    press(game, "a dog")
    assert "<b>" not in game.page.value and "<script>" not in game.page.value and "&lt;script&gt;" in game.page.value


def test_what_fails_behind_a_button_is_told_on_the_page(asked_questions, monkeypatch):
    game = play.Game(asked_questions, {"base": BASE}, rounds=2)
    monkeypatch.setattr(play, "page", lambda match: open("/no/such/<clip>"))
    press(game, "a dog")
    assert "No such file" in game.page.value and "&lt;clip&gt;" in game.page.value and "clip 1 of 2" in game.page.value


def test_games_that_cannot_be_played_are_refused_in_a_sentence(asked_questions):
    for runs, rounds, said in (
        ({"you": BASE}, 2, 'no model can be named "you"'),
        ({"base": BASE}, 7, "must be between 1 and the 6 questions that there are, got 7"),
        ({"base": BASE}, 0, "got 0"),
        ({"base": BASE[:1]}, 6, "base has no prediction for question"),
    ):
        with pytest.raises(AqaError, match=said):
            play.Match(asked_questions, runs, rounds)
    with pytest.raises(AqaError, match="not one of the choices"):
        play.Match(asked_questions, {}, 1).answer("a cat")

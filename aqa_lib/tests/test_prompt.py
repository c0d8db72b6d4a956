"""The paper's wording, character for character, and the reading of replies."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqa_lib.dataset import Question
from aqa_lib.prompt import CLOSE, OPEN, extract_answer, matches, messages, normalise, target, text

DOG = Question("1", None, "What {barks}?", ("a dog", "it's a cat"), "a dog")
STEM = """What {barks}? Please choose the answer from the following options: ['a dog', "it's a cat"]."""
TAG_FREE = st.text().filter(lambda s: s.strip() and OPEN not in s and CLOSE not in s)


@pytest.mark.parametrize(
    ("style", "suffix"),
    [
        (1, ""),
        (2, " Output the final answer in <answer> </answer>."),
        (3, " Output the thinking process in <think> </think> and final answer in <answer> </answer>."),
    ],
)
def test_wording(style, suffix):
    assert text(DOG, style) == STEM + suffix
    content = [{"type": "audio", "audio_url": ""}, {"type": "text", "text": STEM + suffix}]
    assert messages(DOG, style) == [{"role": "user", "content": content}]


def test_unknown_style_is_named():
    with pytest.raises(ValueError, match="prompt style 4 is unknown: choose 1"):
        text(DOG, 4)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("<answer>dog</answer>", "dog"),
        ("<think>so</think>\n<answer>\n dog \n</answer> done", "dog"),
        (" dog\n", "dog"),
        ("<Answer>dog</Answer>", "<Answer>dog</Answer>"),  # no tag of ours: the whole text
        ("<answer>a < b</answer>", "a < b"),
        ("<answer><answer</answer>", "<answer"),
        ("<answer>dog</answer><answer>cat</answer>", None),
        ("<answer>dog</answer><answer>dog</answer>", None),
        ("<answer><answer>dog</answer></answer>", None),
        ("<answer>dog</answer></answer>", None),
        ("<answer><answer>dog</answer>", None),
        ("<answer>dog", None),
        ("dog</answer>", None),
        ("</answer>dog<answer>", None),
        ("<answer> \n</answer>", None),
        ("", None),
        (" \n", None),
    ],
)
def test_extraction(reply, answer):
    assert extract_answer(reply) == answer


@given(st.text())
def test_extraction_reads_any_text(reply):
    answer = extract_answer(reply)
    assert answer is None or (answer and answer == answer.strip() and answer in reply)


@given(st.lists(st.sampled_from([OPEN, CLOSE, "<think>", "</think>", "dog", " ", "\n", "<", "/"]), max_size=8))
def test_extraction_reads_one_answer_or_none(parts):
    reply = "".join(parts)
    answer = extract_answer(reply)
    assert answer is None or (OPEN not in answer and CLOSE not in answer)
    if reply.count(OPEN) > 1 or reply.count(CLOSE) > 1:
        assert answer is None


@given(TAG_FREE, st.text().filter(lambda s: OPEN not in s and CLOSE not in s))
def test_the_target_is_read_back(choice, before):
    reply = target(Question("1", None, "?", (choice, "x"), choice))
    assert extract_answer(reply) == choice.strip()
    assert extract_answer(f"{before} {reply}") == choice.strip()
    assert matches(extract_answer(reply), choice, (choice, "x"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Dog", "dog", True),
        ("dog.", "dog", True),
        ("'A  dog\n barking!'", "a dog barking", True),
        ("**dog**", "dog", True),
        ("cafe\u0301", "caf\u00e9", True),  # the tokenizer composes accents, a data set need not
        ("don\u2019t", "don't", True),
        ("rock \u2018n\u2019 roll", "rock 'n' roll", True),
        ("STRASSE", "straße", True),
        ("C#", "C", False),
        ("-5", "5", False),
        ("50%", "50", False),
        ("1.5", "15", False),
        ("hot dog", "dog", False),
    ],
)
def test_what_normalising_forgives(one, other, same):
    assert (normalise(one) == normalise(other)) is same
    assert matches(one, other, ()) is same


@pytest.mark.parametrize(
    ("reply", "answer", "choices", "right"),
    [
        ("dog", "dog", ("dog", "dog", "cat"), True),  # MMAU has equal choices
        ("Dog", "dog", ("dog", "cat"), True),
        ("Dog", "dog", ("dog", "Dog"), False),  # only exact where folding would confuse two choices
        ("dog ", "dog", ("dog", "Dog"), True),
        ("dog", " dog", (" dog", "Dog"), True),
        ("CAT", "cat", ("dog", "Dog", "cat"), True),
        ("?", "!", ("?", "!"), False),  # nothing is left of either
        ("!", "!", ("?", "!"), True),
        ("?", "!", ("!", "cat"), False),
        ("Dog", "dog", ("dog", "dog ", "cat"), True),
        ("dog, cat", "dog", ("dog", "cat"), False),
        (None, "dog", ("dog", "cat"), False),
        ("", "", ("dog", "cat"), False),
        ("dog", "", ("dog", "cat"), False),  # a withheld answer is never right
        (" ", "", ("dog", "cat"), False),
    ],
)
def test_matching_among_choices(reply, answer, choices, right):
    assert matches(reply, answer, choices) is right


@pytest.mark.parametrize("reply", [OPEN, CLOSE, "<", "<answer", "\u0301\u0316", '"', " "])
def test_long_replies_are_read_in_linear_time(reply):
    reply = reply * (1_000_000 // len(reply))
    start = time.process_time()
    assert not matches(extract_answer(reply), "dog", ("dog", "cat"))
    assert time.process_time() - start < 0.1  # a quadratic way takes minutes

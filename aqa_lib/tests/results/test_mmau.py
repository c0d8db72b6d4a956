"""The official rule on awkward replies, with verdicts derived by hand, and on every choice of both Test-minis."""

import json
from pathlib import Path

import pytest

from aqa_lib.results import mmau
from aqa_lib.runtime import files

SHARED = Path(__file__).resolve().parents[4] / "shared" / "mmau"  # questions only, beside the repository
FILES = {
    mmau.OLD: SHARED / "mmau-test-mini-2025-03-25.json",
    mmau.NEW: SHARED / "mmau-test-mini-v05.15.25.json",
}
needs_files = pytest.mark.skipif(not SHARED.is_dir(), reason="the two Test-mini files are not beside the repository")
FOUR = ["Man", "Woman", "Child", "Robot"]

REPLIES = [
    # reply, answer, choices, right: why
    ("Man", "Man", FOUR, True),
    ("MAN", "Man", FOUR, True),  # case
    ("man.", "Man", FOUR, True),  # punctuation
    ("  'Man'  ", "Man", FOUR, True),  # quotes
    ('"Man"', "Man", FOUR, True),
    ("<answer>Man</answer>", "Man", FOUR, True),  # "answer" is no word of a choice
    ("The speaker is a man, I think", "Man", FOUR, True),  # further words are free
    ("It is not a man", "Man", FOUR, True),  # even this: the rule knows no negation
    ("Woman", "Man", FOUR, False),  # a substring is not a word
    ("Mankind", "Man", FOUR, False),
    ("Man", "Woman", FOUR, False),
    ("Man or Woman", "Man", FOUR, False),  # several answers
    ("Man, Woman, Child, Robot", "Man", FOUR, False),
    ("['Man']", "Man", FOUR, True),  # a list of one
    ("['Man', 'Robot']", "Man", FOUR, False),  # a list of several
    ("", "Man", FOUR, False),  # empty
    ("   ", "Man", FOUR, False),
    ("...!?", "Man", FOUR, False),
    ("(B)", "(B) Woman", ["(A) Man", "(B) Woman"], False),  # the letter alone lacks "woman"
    ("(B) Woman", "(B) Woman", ["(A) Man", "(B) Woman"], True),
    ("Woman", "(B) Woman", ["(A) Man", "(B) Woman"], False),  # lacks "b"
    ("b woman", "(B) Woman", ["(A) Man", "(B) Woman"], True),
    (
        "A woman: (B)",
        "(B) Woman",
        ["(A) Man", "(B) Woman"],
        False,
    ),  # the article is the other choice's letter
    ("(A)", "(A)", ["(A)", "(B)"], True),
    ("(A) or (B)", "(A)", ["(A)", "(B)"], False),
    ("B", "(A)", ["(A)", "(B)"], False),
    ("A dog barks", "a dog", ["a dog", "a cat"], True),
    ("dog", "a dog", ["a dog", "a cat"], False),  # every word of the answer, also "a"
    ("dog a", "a dog", ["a dog", "a cat"], True),  # in any order
    ("a dog and a cat", "a dog", ["a dog", "a cat"], False),
    ("café", "Café", ["Café", "Bar"], True),  # accents are letters
    ("CAFÉ", "Café", ["Café", "Bar"], True),
    ("cafe", "Café", ["Café", "Bar"], False),  # and not folded
    ("don't", "Don't know", ["Don't know", "Know"], False),
    ("don't know", "Don't know", ["Don't know", "Know"], True),
    ("dont know", "Don't know", ["Don't know", "Know"], False),  # {don, t} against {dont}
    ("3", "3", ["3", "30", "13"], True),  # numbers
    ("30", "3", ["3", "30", "13"], False),
    ("three", "3", ["3", "30", "13"], False),
    ("3.5", "3", ["3", "5"], False),  # words 3 and 5
    ("1:2", "2:1", ["1:2", "2:1", "3:1"], True),  # equal word sets cannot be told apart
    ("3:1", "2:1", ["1:2", "2:1", "3:1"], False),
    ("-5", "5", ["5", "-5"], True),
    (
        "light_switch, boiling_water",
        "boiling_water, light_switch",
        ["boiling_water, light_switch", "bell"],
        True,
    ),
    ("light switch", "light_switch", ["light_switch", "bell"], False),  # an underscore is a letter
    ("nineteen", "nineteen", ["nineteen", "nineteen", "ten"], True),  # duplicates
    ("ten", "ten", ["nineteen", "nineteen", "ten"], True),
    ("nineteen", "ten", ["nineteen", "nineteen", "ten"], False),
    (
        "one and ninety-one",
        "one and ninety",
        ["one and ninety", "one and ninety-one"],
        True,
    ),  # only wrong word: none
    ("one and ninety", "one and ninety-one", ["one and ninety", "one and ninety-one"], True),  # same words
    ("happy", "happy", ["happy", "very happy"], True),
    ("very happy", "happy", ["happy", "very happy"], False),  # "very" is the wrong choice's alone
    ("happy", "very happy", ["happy", "very happy"], False),
    ("yes", "yes", ["yes"], True),
    ("dog\ncat", "dog", ["dog", "cat"], False),  # line breaks part words
    ("hot\tdog", "dog", ["dog", "cat"], True),
    ("犬", "犬", ["犬", "猫"], True),
]


@pytest.mark.parametrize(("reply", "answer", "choices", "right"), REPLIES)
def test_awkward_replies(reply, answer, choices, right):
    assert mmau.official(reply, answer, choices) is right


def test_an_answer_without_words_is_right_only_beside_harmless_words():
    assert mmau.official("?", "?", ["?", "!"]) is False  # an empty prediction is wrong, whatever the answer
    assert mmau.official("well", "?", ["?", "dog"]) is True


def load(version):
    return json.loads(FILES[version].read_text(encoding="utf-8"))


@needs_files
@pytest.mark.parametrize("version", FILES)
def test_both_versions_are_known_by_file_and_by_content(version):
    rows = load(version)
    assert version in ("MMAU Test-mini 2025-03-25", "MMAU Test-mini v05.15.25")  # written in result files
    assert mmau.version(files.sha256(FILES[version])) == version == mmau.version(files.fingerprint(rows))
    assert mmau.version(files.fingerprint(rows[:-1])).startswith("unknown data (")
    changed = [rows[0] | {"answer": rows[0]["choices"][-1]}, *rows[1:]]
    assert mmau.version(files.fingerprint(changed)).startswith("unknown data (")


@needs_files
@pytest.mark.parametrize(
    ("version", "first", "uniform", "by_rule"), [(mmau.OLD, 37.8, 25.25, 25.425), (mmau.NEW, 39.8, 25.54, 26.15)]
)
def test_reference_lines(version, first, uniform, by_rule):
    rows = load(version)
    assert mmau.first_choice(rows) == pytest.approx(first)
    assert mmau.uniform_guess(rows) == pytest.approx(uniform, abs=0.005)
    kind = [sum(mmau.official(c, r["answer"], r["choices"]) for c in r["choices"]) / len(r["choices"]) for r in rows]
    assert 100 * sum(kind) / len(kind) == pytest.approx(by_rule, abs=0.005)


@needs_files
@pytest.mark.parametrize(("version", "equal_sets", "twice", "taken"), [(mmau.OLD, 29, 20, 6), (mmau.NEW, 41, 27, 12)])
def test_every_choice_of_every_question(version, equal_sets, twice, taken):
    """The answer is always right, and so are a few wrong choices.

    The rule takes one for right if its words are the answer's, or if it holds the answer's and no others that
    are not elsewhere: by hand, 6 pairs of the old version, 12 of the new.
    """
    rows, taken_wrongly = load(version), []
    assert len(rows) == 1000
    assert sum(len({mmau.words(c) for c in row["choices"]}) < len(row["choices"]) for row in rows) == equal_sets
    assert sum(len(set(row["choices"])) < len(row["choices"]) for row in rows) == twice
    for row in rows:
        right = mmau.words(row["answer"])
        assert mmau.official(row["answer"], row["answer"], row["choices"])
        assert mmau.official(f"({row['answer'].upper()})!", row["answer"], row["choices"])
        for choice in row["choices"]:
            if choice != row["answer"] and mmau.official(choice, row["answer"], row["choices"]):
                taken_wrongly.append((row["answer"], choice))
                assert mmau.words(choice) == right  # no wrong choice gets through with a word of its own
    assert len(taken_wrongly) == taken
    assert ("first: neutral, second: frustration", "first: frustration, second: neutral") in taken_wrongly

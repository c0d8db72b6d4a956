import pytest

from aqa_lib.results.thoughts import Agreement, agreement, named, relation, thought


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<think> It barks. </think>\n<answer>a dog</answer>", "It barks."),
        ("<answer>a dog</answer>", ""),
        ("<think></think><answer>a dog</answer>", ""),
        ("<think>It barks, and then", "It barks, and then"),  # cut at the longest length
        ("<think>It barks. <answer>a dog</answer>", "It barks."),
        ("Well. <think>It\nbarks.</think>", "It\nbarks."),
        ("<think>One.</think><think>Two.</think>", "One."),
        ("It barks.</think>", ""),
        (None, ""),
    ],
)
def test_the_thought_is_what_stands_in_the_tags(reply, expected):
    assert thought(reply) == expected


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("It is a Dog.", ["a dog", "a cat"], ["a dog"]),
        ("A woman sings.", ["Man", "Woman"], ["Woman"]),  # not "man", which stands inside
        ("hot dogs", ["dog", "hot dog"], []),
        ("staying the same, then rising", ["rising", "staying the same", "same"], ["rising", "staying the same"]),
        ("a cat or a dog", ["a dog", "a cat"], ["a dog", "a cat"]),
        ("two, no: three", ["one", "two", "three", "four"], ["two", "three"]),
        ("It’s “C#”.", ["C", "C#"], ["C#"]),
        ("", ["a"], []),
        ("a dog", ["a dog", "a dog"], ["a dog", "a dog"]),  # MMAU has equal choices
    ],
)
def test_choices_are_named_as_whole_words(text, choices, expected):
    assert named(text, choices) == expected


def test_thought_and_answer_are_related():
    choices = ["a dog", "a cat", "a bell"]
    replies = {
        "alone": "<think>It sounds like a dog.</think><answer>A dog</answer>",
        "among": "<think>A dog or a cat, I say dog.</think><answer>a dog</answer>",
        "others": "<think>It is a cat.</think><answer>a dog</answer>",
        "none": "<think>It barks.</think><answer>a dog</answer>",
    }
    for kind, reply in replies.items():
        assert relation(reply, choices) == kind
    without = ["<answer>a dog</answer>", "<think>It is a dog", "<think>A cow.</think><answer>a cow</answer>", None, ""]
    assert [relation(reply, choices) for reply in without] == [None] * 5
    found = agreement((reply, choices) for reply in [*replies.values(), *without, replies["alone"]])
    assert found == Agreement(alone=2, among=1, others=1, none=1) and found.n == 5


def test_long_replies_take_linear_time():
    for piece in ("<think>", "</think><answer>", "-", "a dog "):
        relation("<think>" + piece * 100_000 + "</think><answer>a dog</answer>", ["a dog", "a cat"])

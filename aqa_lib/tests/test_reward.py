"""Rewards as a table of replies: the paper's rules, faults and all, beside the strict ones."""

import re
import sys
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqa_lib import reward

# reply, then (accuracy, format) by the paper's rules and by the strict ones; "dog" is right.
TABLE = [
    ("<answer>dog</answer>", (1, 1), (1, 1)),
    ("<answer> dog </answer>", (1, 1), (1, 1)),
    ("<answer>cat</answer>", (0, 1), (0, 1)),
    ("dog", (1, 0), (1, 0)),
    ("It is <answer>dog</answer>", (1, 0), (1, 0)),
    ("<answer>dog</answer> it is", (1, 0), (1, 0)),
    ("<think>woof</think><answer>dog</answer>", (1, 0), (1, 0)),
    ("<answer>Dog</answer>", (0, 1), (1, 1)),  # fault: case
    ("<answer>dog.</answer>", (0, 1), (1, 1)),  # fault: punctuation
    ("Dog.", (0, 0), (1, 0)),
    ("<answer>\ndog\n</answer>", (0, 1), (1, 1)),  # fault: the two rules disagree about line breaks
    ("<answer>dog</answer><answer>cat</answer>", (1, 1), (0, 0)),  # fault: hedging earns everything
    ("<answer>dog</answer> or <answer>cat</answer>", (1, 1), (0, 0)),
    ("<answer>cat</answer><answer>dog</answer>", (0, 1), (0, 0)),
    ("<answer>dog</answer><answer>dog</answer>", (1, 1), (0, 0)),
    ("<answer>dog, cat</answer>", (0, 1), (0, 1)),
    ("<answer>dog</answer>\n", (1, 0), (1, 1)),  # fault: a last line end breaks the format
    (" <answer>dog</answer>", (1, 0), (1, 1)),
    ("<answer></answer>", (0, 1), (0, 0)),  # fault: an empty answer is well-formed
    ("<answer> </answer>", (0, 1), (0, 0)),
    ("<answer>dog", (0, 0), (0, 0)),
    ("dog</answer>", (0, 0), (0, 0)),
    ("</answer>dog<answer>", (0, 0), (0, 0)),
    ("<answer><answer>dog</answer></answer>", (0, 1), (0, 0)),
    ("<answer>dog</answer></answer>", (1, 1), (0, 0)),
    ("<Answer>dog</Answer>", (0, 0), (0, 0)),
    ("", (0, 0), (0, 0)),
]
# reply, then think_format by the paper's rule and by the strict one.
THINKING = [
    ("<think>woof</think><answer>dog</answer>", 1, 1),
    ("<think>a\nb</think>\n\n<answer>dog</answer>", 1, 1),
    (" <think>woof</think> <answer>dog</answer>\n", 0, 1),
    ("<think></think><answer>dog</answer>", 1, 0),
    ("<think> </think><answer>dog</answer>", 1, 0),
    ("<think>woof</think><answer></answer>", 1, 0),
    ("<think>woof</think><answer>dog</answer><answer>cat</answer>", 1, 0),
    ("<think>a</think><think>b</think><answer>dog</answer>", 1, 0),
    ("<think><answer>cat</answer></think><answer>dog</answer>", 1, 0),
    ("<think>woof</think><answer><think>dog</answer>", 1, 0),
    ("<think>woof</think>so<answer>dog</answer>", 0, 0),
    ("so <think>woof</think><answer>dog</answer>", 0, 0),
    ("<think>woof</think><answer>dog</answer> so", 0, 0),
    ("<answer>dog</answer><think>woof</think>", 0, 0),
    ("<answer>dog</answer>", 0, 0),
    ("<think>woof<answer>dog</answer></think>", 0, 0),
    ("<think>woof</think>", 0, 0),
    ("", 0, 0),
]
TAGS = ["<answer>", "</answer>", "<think>", "</think>", "dog", "cat", " ", "\n", "\r", "\u2028", "<", ">"]
REPLIES = st.one_of(st.text(), st.lists(st.sampled_from(TAGS), max_size=10).map("".join))
THINK_TAGS = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize(("reply", "faithful", "strict"), TABLE)
def test_accuracy_and_format(reply, faithful, strict, conversational):
    batch = {"prompts": ["?"], "completions": [reply], "answer": ["dog"], "choices": [["dog", "cat"]]}
    if conversational:
        batch["completions"] = [[{"role": "assistant", "content": reply}]]
    assert (reward.faithful_accuracy(**batch), reward.faithful_format(**batch)) == (
        [faithful[0]],
        [faithful[1]],
    )
    assert (reward.accuracy(**batch), reward.format(**batch)) == ([strict[0]], [strict[1]])
    assert {type(score) for function in reward.REWARDS for score in function(**batch)} == {float}


@pytest.mark.parametrize(("reply", "faithful", "strict"), THINKING)
def test_think_format(reply, faithful, strict):
    assert reward.faithful_think_format(None, [reply]) == [faithful]
    assert reward.think_format(None, [reply]) == [strict]


def test_a_batch_keeps_its_order_and_its_lengths():
    replies, answers = ["dog", "dog", "cat"], ["dog", "cat", "cat"]
    for accuracy in (reward.accuracy, reward.faithful_accuracy):
        assert accuracy(None, replies, answer=answers, task=["sound"] * 3) == [1.0, 0.0, 1.0]
        with pytest.raises(ValueError):
            accuracy(None, replies, answer=answers[:2])


def test_choices_decide_how_exactly_to_compare():
    same = {"prompts": None, "completions": ["Dog"], "answer": ["dog"]}
    assert reward.accuracy(**same) == reward.accuracy(**same, choices=[["dog", "cat"]]) == [1.0]
    assert reward.accuracy(**same, choices=[["dog", "Dog"]]) == [0.0]


def _report_accuracy(reply: str, answer: str) -> float:
    """The paper's two searches as they stand: the reference for the linear one."""

    def found(text):
        match = re.search(r"<answer>(.*?)</answer>", text)
        return match.group(1).strip() if match else text.strip()

    return float(found(reply) == found(f"<answer>{answer}</answer>"))


@given(REPLIES, REPLIES)
def test_faithful_rewards_are_the_reports(reply, answer):
    assert reward.faithful_accuracy(None, [reply], [answer]) == [_report_accuracy(reply, answer)]
    report = re.fullmatch(r"<answer>.*?</answer>", reply, re.DOTALL)
    assert reward.faithful_format(None, [reply]) == [float(bool(report))]
    assert reward.faithful_think_format(None, [reply]) == [float(bool(THINK_TAGS.fullmatch(reply)))]


@given(st.lists(st.sampled_from(TAGS), max_size=6).map("".join))
def test_faithful_think_format_is_the_reports_near_a_match(middle):
    reply = f"<think>{middle}</answer>"
    assert reward.faithful_think_format(None, [reply]) == [float(bool(THINK_TAGS.fullmatch(reply)))]


@given(REPLIES)
def test_strict_formats_ask_for_one_answer(reply):
    batch = {"prompts": None, "completions": [reply], "answer": ["dog"]}
    assert reward.accuracy(**batch)[0] in (0.0, 1.0)
    if reward.format(**batch) == [1.0] or reward.think_format(**batch) == [1.0]:
        assert reply.count("<answer>") == reply.count("</answer>") == 1


WORST = ["<answer>", "</answer>", "<think>", "</think><answer>", "</think> ", "</think>" + " " * 500, "\n"]


@pytest.mark.parametrize("unit", WORST)
@pytest.mark.parametrize("function", reward.REWARDS)
def test_a_megabyte_takes_a_moment(function, unit):
    filler = unit * (1_000_000 // len(unit))
    for reply in (filler, f"<answer>{filler}", f"<think>{filler}</answer>"):
        start = time.process_time()
        function(None, [reply], answer=["dog"])
        assert time.process_time() - start < 0.1  # a quadratic way takes minutes


def test_get_finds_our_rewards_and_anybodys():
    for function in reward.REWARDS:
        assert reward.get(function.__name__) is function
    think_format = reward.get("trl.rewards:think_format_reward")
    replies = ["<think>woof</think>dog", "dog"]
    completions = [[{"role": "assistant", "content": reply}] for reply in replies]
    assert think_format(prompts=["?", "?"], completions=completions, answer=["dog", "dog"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acuracy", "'acuracy' is unknown: choose accuracy, format"),
        ("trl.rewards:", "is unknown"),
        (":think_format_reward", "is unknown"),
        ("no_such_module:f", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("aqa_lib.reward:none", "cannot be loaded: .* has no attribute 'none'"),
        ("aqa_lib.reward:THINK", "is a str: name a function"),
    ],
)
def test_get_names_what_it_cannot_find(name, message):
    with pytest.raises(ValueError, match=message):
        reward.get(name)


def test_math_verify_only_where_asked_for(monkeypatch):
    def verify(gold, answer):
        if "crash" in gold:
            raise TypeError("cannot be parsed")
        return "1:3" in gold and "1:1" in answer  # the fault that the paper's data met

    batch = {
        "prompts": None,
        "completions": ["1:3", "crash", "1:1", "2", "crash"],
        "answer": ["1:1", "crash", "1:1", "3", "cow"],
    }
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as if not installed
    assert reward.faithful_accuracy(**batch) == [0, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="pip install math-verify"):
        reward.paper_accuracy(**batch)
    monkeypatch.setitem(sys.modules, "math_verify", SimpleNamespace(parse=str, verify=verify))
    assert reward.faithful_accuracy(**batch) == [0, 1, 1, 0, 0]
    assert reward.paper_accuracy(**batch) == [1, 1, 1, 0, 0]


async def later(completions, **columns):
    return [1.0] * len(completions)


def broken(completions, **columns):
    return [float(text) for text in completions]


def leaves(completions, **columns):
    sys.exit(3)


def without_columns(completions):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (broken, "could not convert string to float: 'aw'"),
        (later, "asynchronous"),
        (without_columns, "unexpected keyword argument"),
        (lambda completions, **columns: 1.0, "it returned a float: return a list of 2 numbers"),
        (lambda completions, **columns: [1.0], "it returned 1 values for 2 answers"),
        (lambda completions, **columns: [1.0, float("nan")], "it returned nan: return finite numbers"),
        (lambda completions, **columns: [1.0, 1e39], "it returned 1e+39: return finite numbers"),
        (leaves, "SystemExit: 3"),
        (lambda completions, **columns: ["one", 2.0], "could not convert string to float: 'one'"),
    ],
)
def test_a_users_reward_that_fails_is_named_with_its_file_and_line(function, cause):
    name = getattr(function, "__name__", "it")
    with pytest.raises(reward.RewardError, match=rf"^reward {name} \(.*test_reward\.py:\d+\): .*{re.escape(cause)}"):
        reward.call(function, name, {"completions": ["aw", "wa"], "answer": ["aw", "aw"]})


def test_a_reward_may_leave_an_answer_out():
    found = reward.call(lambda completions, **columns: [None, 0.5], "half", {"completions": ["a", "b"]})
    assert found[1] == 0.5 and found[0] != found[0]


def test_a_majority_votes_among_the_choices_question_by_question():
    replies = ["<answer>cat</answer>", "dog", "<answer>Dog.</answer>", "a horse", "a horse", "a horse"]
    choices = [("dog", "cat")] * 6
    assert reward.majority(None, replies, ["q"] * 6, choices) == [0, 1, 1, 0, 0, 0]  # a horse is no choice
    assert reward.majority(None, replies, ["q"] * 3 + ["r"] * 3, choices) == [0, 1, 1, 0, 0, 0]  # r: no votes
    assert reward.majority(None, replies[:2], ["q"] * 2, choices[:2]) == [1, 0]  # the first of equals
    assert reward.majority(None, replies[:2], ["q", "r"], choices[:2]) == [1, 1]
    assert reward.get("majority") is reward.majority


@pytest.mark.parametrize("source", ["1 / 0", "def reward(:", "raise KeyError", "raise SystemExit('Error')"])
def test_a_module_that_raises_when_it_is_imported_is_refused_in_a_sentence(tmp_path, monkeypatch, source):
    (tmp_path / "broken_rewards.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"reward 'broken_rewards:reward' cannot be loaded: \w+(Error|Exit)"):
        reward.get("broken_rewards:reward")

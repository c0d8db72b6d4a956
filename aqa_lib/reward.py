"""Score completions: is the answer right, and does it come in the form that was asked for.

Follows the rollout in the flow: `... -> rollout -> reward -> loss -> ...`. Every reward has TRL's signature,
`f(prompts, completions, **columns) -> list[float]`, so `trl.rewards` and any function of the user's plug
in through `get`. A completion is a text, or TRL's conversational `[{"role": ..., "content": text}]`.

The plain names are strict, and differ from the report's: case, outer punctuation and white space are
forgiven, and more than one answer is no answer. The `faithful_` names score as the report's code does,
faults and all: `Dog` is not `dog`, a line break inside the tag passes the format and fails the answer,
and `<answer>dog</answer><answer>cat</answer>` earns both rewards when `dog` is right.
"""

import importlib
import re
from collections.abc import Callable

from aqa_lib.prompt import CLOSE, OPEN, extract_answer, matches

from .runtime.errors import AqaError

THINK, THOUGHT = "<think>", "</think>"


def accuracy(prompts, completions, answer, choices=None, **columns) -> list[float]:
    """Give 1 for the right answer, in its only tag or as the whole completion, else 0.

    answer: the right choice's text, one per completion; choices: its question's choices, which decide
    how exactly to compare (`prompt.matches`).

    >>> accuracy(None, ["<answer>Dog.</answer>", "dog", "<answer>dog or cat</answer>"], ["dog"] * 3)
    [1.0, 1.0, 0.0]
    """
    choices = choices or [()] * len(answer)
    rows = zip(completions, answer, choices, strict=True)
    return [float(matches(extract_answer(_text(c)), right, among)) for c, right, among in rows]


def format(prompts, completions, **columns) -> list[float]:
    """Give 1 for one answer in tags with nothing but white space around it, else 0.

    >>> format(None, ["<answer>dog</answer>", "It is <answer>dog</answer>", "<answer></answer>"])
    [1.0, 0.0, 0.0]
    """
    return [float(_is_answer(_text(completion))) for completion in completions]


def tagged_accuracy(prompts, completions, answer, choices=None, **columns) -> list[float]:
    """Give 1 for the right answer in the form that was asked for, else 0: `accuracy` times `format`.

    Not in the report. Beside `accuracy` in place of `format`, it pays for the form of right answers alone. Where a
    whole group is wrong, `format` reinforces the wrong answer that is well formed; this leaves it alone.

    >>> tagged_accuracy(None, ["<answer>dog</answer>", "dog", "<answer>cat</answer>"], ["dog"] * 3)
    [1.0, 0.0, 0.0]
    """
    right = accuracy(prompts, completions, answer, choices)
    return [a * f for a, f in zip(right, format(prompts, completions), strict=True)]


def think_format(prompts, completions, **columns) -> list[float]:
    """Give 1 for one thought and then one answer, neither empty and nothing around their tags, else 0.

    >>> think_format(None, ["<think>It barks.</think> <answer>dog</answer>", "<answer>dog</answer>"])
    [1.0, 0.0]
    """
    scores = []
    for completion in completions:
        text = _text(completion).strip()
        once = all(text.count(tag) == 1 for tag in (THINK, THOUGHT, OPEN, CLOSE))
        thought, _, rest = text.partition(THOUGHT)
        thinks = thought.startswith(THINK) and bool(thought[len(THINK) :].strip())
        scores.append(float(once and thinks and _is_answer(rest)))
    return scores


def form_of(style: int | None) -> Callable[..., list[float]]:
    """Return the format reward of a prompt: `think_format` for prompt 3, `format` for the others and where unknown.

    >>> form_of(3).__name__, form_of(None).__name__
    ('think_format', 'format')
    """
    return think_format if style == 3 else format


def faithful_accuracy(prompts, completions, answer, math_verify=False, **columns) -> list[float]:
    """Give 1 where the first tag on a line, or else the whole completion, equals the answer letter by letter.

    `math_verify=True` first asks the library of that name, as the report does; it takes some wrong
    options for right ("Ratio is 1:3" for "1:1"), works in the main thread only, and must be installed.
    Source: r1-aqa's `accuracy_reward`, whose `re.search(r"<answer>(.*?)</answer>", text)` is done here
    in linear time.

    >>> replies = ["<answer>Dog</answer>", "<answer>dog</answer><answer>cat</answer>"]
    >>> faithful_accuracy(None, replies, ["dog", "dog"])
    [0.0, 1.0]
    """
    equal = _math_verify() if math_verify else lambda text, solution: False
    scores = []
    for completion, right in zip(completions, answer, strict=True):
        text, solution = _text(completion), f"{OPEN}{right}{CLOSE}"
        scores.append(float(equal(text, solution) or _first_answer(text) == _first_answer(solution)))
    return scores


def faithful_format(prompts, completions, **columns) -> list[float]:
    """Give 1 where the completion starts and ends with answer tags, whatever stands between them.

    Source: r1-aqa's `format_reward`, `re.fullmatch(r"<answer>.*?</answer>", text, re.DOTALL)`.
    """
    return [float(bool(re.fullmatch(r"<answer>.*?</answer>", _text(c), re.DOTALL))) for c in completions]


def faithful_think_format(prompts, completions, **columns) -> list[float]:
    """Give 1 where a completion starts with <think>, ends with </answer>, and turns from one to the other.

    Source: `re.fullmatch(r"<think>.*?</think>\\s*<answer>.*?</answer>", text, re.DOTALL)`, which takes
    quadratic time on `</think><answer>` repeated; looking at the ends and for the turn is the same, and
    linear.
    """
    scores = []
    for text in map(_text, completions):
        ends = text.startswith(THINK) and text.endswith(CLOSE)
        scores.append(float(ends and bool(re.search(r"</think>\s*<answer>", text))))
    return scores


REWARDS = (accuracy, format, tagged_accuracy, think_format, faithful_accuracy, faithful_format, faithful_think_format)


def get(name: str) -> Callable[..., list[float]]:
    """Find a reward by name: one of this module's, or any "package.module:function".

    Those of `trl.rewards` read conversational completions only. Raises ValueError for a name not found.

    >>> get("accuracy") is accuracy
    True
    """
    known = {reward.__name__: reward for reward in REWARDS}
    if name in known:
        return known[name]
    module, _, function = name.partition(":")
    if not module or not function:
        raise AqaError(f"reward {name!r} is unknown: choose {', '.join(known)} or 'package.module:function'")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise AqaError(f"reward {name!r} cannot be loaded: {error}") from error
    if not callable(found):
        raise AqaError(f"reward {name!r} is a {type(found).__name__}: name a function")
    return found


def _text(completion) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def _is_answer(text: str) -> bool:
    text = text.strip()
    return text.startswith(OPEN) and text.endswith(CLOSE) and extract_answer(text) is not None


def _first_answer(text: str) -> str:
    """Give what re.search(r"<answer>(.*?)</answer>", text) finds, in linear time, else the text; stripped."""
    for match in re.finditer(r"<answer>(.*)", text):  # one match a line: `.` is no line end
        inside, closed, _ = match[1].partition(CLOSE)
        if closed:
            return inside.strip()
    return text.strip()


def _math_verify() -> Callable[[str, str], bool]:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ImportError("math_verify=True needs the package: pip install math-verify") from error

    def equal(text: str, solution: str) -> bool:
        try:
            return float(verify(parse(text), parse(solution))) > 0
        except Exception:  # as the report does: what cannot be parsed is compared as text
            return False

    return equal

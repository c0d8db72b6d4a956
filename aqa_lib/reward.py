"""Score completions: is the answer right, and does it come in the form asked for?

Follows the rollout in the flow: `... -> rollout -> reward -> loss -> ...`. Every reward has TRL's signature,
`f(prompts, completions, **columns) -> list[float]`, so `trl.rewards` and any function of your own plug in
through `get`. A completion is a string, or TRL's conversational `[{"role": ..., "content": text}]`.

The plain names are strict, and differ from the paper's: case, outer punctuation and white space are
forgiven, and more than one answer is no answer. The `faithful_` names score as the paper's code does,
faults and all: `Dog` is not `dog`, a line break inside the tag passes the format and fails the answer,
and `<answer>dog</answer><answer>cat</answer>` earns both rewards when `dog` is right.
"""

import importlib
import inspect
import math
import re
import traceback
from collections import Counter
from collections.abc import Callable
from itertools import groupby

from .prompt import CLOSE, OPEN, extract_answer, matches
from .runtime.errors import AqaError

LARGEST = 3.4e38  # that float32 holds
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
    """Give 1 for the right answer in the form asked for, else 0: `accuracy` times `format`.

    Not in the paper. Next to `accuracy` and in place of `format`, it pays for form only in right answers. If a whole
    group is wrong, `format` reinforces a wrong answer that is well formed; this leaves it alone.

    >>> tagged_accuracy(None, ["<answer>dog</answer>", "dog", "<answer>cat</answer>"], ["dog"] * 3)
    [1.0, 0.0, 0.0]
    """
    right = accuracy(prompts, completions, answer, choices)
    return [a * f for a, f in zip(right, format(prompts, completions), strict=True)]


def majority(prompts, completions, id, choices, **columns) -> list[float]:
    """Give 1 to answers that most of their group gives, else 0: a reward that needs no label.

    id: the question's, one per completion, groups one after the other. A reply that names none of the choices has no
    vote; of equally many votes the choice that came first wins. A group that is sure of a wrong answer is taught it.
    Source: test-time reinforcement learning (TTRL, arXiv 2504.16084).

    >>> majority(None, ["dog", "cat", "Dog.", "who knows"], ["q1"] * 4, [("dog", "cat")] * 4)
    [1.0, 0.0, 1.0, 0.0]
    """
    said = [
        next((choice for choice in among if matches(extract_answer(_text(c)), choice, among)), None)
        for c, among in zip(completions, choices, strict=True)
    ]
    scores = []
    for _, group in groupby(zip(id, said, strict=True), key=lambda pair: pair[0]):
        votes = [choice for _, choice in group]
        ((most, _),) = Counter(choice for choice in votes if choice is not None).most_common(1) or [(None, 0)]
        scores += [float(choice is not None and choice == most) for choice in votes]
    return scores


def think_format(prompts, completions, **columns) -> list[float]:
    """Give 1 for one thought and then one answer, neither of them empty, with nothing around their tags, else 0.

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
    """Return the format reward of a prompt: `think_format` for prompt 3, `format` for the others or if unknown.

    >>> form_of(3).__name__, form_of(None).__name__
    ('think_format', 'format')
    """
    return think_format if style == 3 else format


def faithful_accuracy(prompts, completions, answer, **columns) -> list[float]:
    """Give 1 if the first tag on a line, or else the whole completion, equals the answer letter by letter.

    This is the paper's reward without its call to math_verify, which `paper_accuracy` makes. Source: r1-aqa's
    `accuracy_reward`, whose `re.search(r"<answer>(.*?)</answer>", text)` is done here in linear time.

    >>> replies = ["<answer>Dog</answer>", "<answer>dog</answer><answer>cat</answer>"]
    >>> faithful_accuracy(None, replies, ["dog", "dog"])
    [0.0, 1.0]
    """
    pairs = zip(map(_text, completions), answer, strict=True)
    return [float(_first_answer(text) == _first_answer(f"{OPEN}{right}{CLOSE}")) for text, right in pairs]


def paper_accuracy(prompts, completions, answer, **columns) -> list[float]:
    """Give 1 as the paper's code does: if math_verify says equal, or else as `faithful_accuracy` does.

    math_verify accepts some wrong options ("Ratio is 1:3" for "1:1"), works only in the main thread, and must be
    installed. Source: r1-aqa's `accuracy_reward`.
    """
    equal = _math_verify()
    found = faithful_accuracy(prompts, completions, answer)
    pairs = zip(map(_text, completions), answer, found, strict=True)
    return [float(same or equal(text, f"{OPEN}{right}{CLOSE}")) for text, right, same in pairs]


def faithful_format(prompts, completions, **columns) -> list[float]:
    """Give 1 if the completion starts and ends with answer tags, whatever is between them.

    Source: r1-aqa's `format_reward`, `re.fullmatch(r"<answer>.*?</answer>", text, re.DOTALL)`.
    """
    return [float(bool(re.fullmatch(r"<answer>.*?</answer>", _text(c), re.DOTALL))) for c in completions]


def faithful_think_format(prompts, completions, **columns) -> list[float]:
    """Give 1 if a completion starts with <think>, ends with </answer>, and turns from one to the other.

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


def needs_answer(function: Callable) -> bool:
    """Return whether a reward reads the right answer, so that questions without one cannot be used.

    Those of this module say so by their arguments. A reward of your own is taken to need it unless the function has
    the attribute `needs_answer = False`.

    >>> needs_answer(accuracy), needs_answer(majority), needs_answer(len)
    (True, False, True)
    """
    if getattr(function, "__module__", None) == __name__:
        return "answer" in inspect.signature(function).parameters
    return bool(getattr(function, "needs_answer", True))


class RewardError(AqaError):
    """A reward that cannot be used; its sentence names the reward, the function's file and line, and the cause."""


def call(function: Callable, name: str, columns: dict) -> list[float]:
    """Call a reward; return one finite number per answer, NaN where it returned None: "does not apply".

    columns: what TRL passes to a reward, as keywords; one value per answer. Raises RewardError if the reward raises,
    or returns anything but one number or None per answer.
    """
    n = len(columns["completions"])
    try:
        values = function(**columns)
        if inspect.isawaitable(values):
            getattr(values, "close", lambda: None)()
            raise TypeError("it is asynchronous, which is not supported: make it a plain function")
        values = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(values, list | tuple):
            raise TypeError(f"it returned a {type(values).__name__}: return a list of {n} numbers, one per answer")
        if len(values) != n:
            raise ValueError(f"it returned {len(values)} values for {n} answers: return one each")
        scores = [math.nan if value is None else float(value) for value in values]
        for value, score in zip(values, scores, strict=True):
            if value is not None and not abs(score) <= LARGEST:
                raise ValueError(f"it returned {score}: return finite numbers, or None where the reward does not apply")
    except (Exception, SystemExit) as error:  # whatever a user's function does, the message says where
        raise RewardError(f"reward {name} ({_where(function, error)}): {type(error).__name__}: {error}") from error
    return scores


def _where(function: Callable, error: BaseException) -> str:
    """Name the file and line at fault: where the function raised, or else where it begins."""
    try:
        file, line = inspect.getsourcefile(function), inspect.getsourcelines(function)[1]
    except (TypeError, OSError):
        return "a function without source"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{file}:{lines[-1] if lines and file != __file__ else line}"


def get(name: str) -> Callable[..., list[float]]:
    """Find a reward by name: one of this module's, or any "package.module:function".

    Those of `trl.rewards` read only conversational completions. Raises AqaError for a name that is not found.

    >>> get("accuracy") is accuracy
    True
    """
    known = {reward.__name__: reward for reward in (*REWARDS, majority, paper_accuracy)}
    if name in known:
        return known[name]
    module, _, function = name.partition(":")
    if not module or not function:
        raise AqaError(f"reward {name!r} is unknown: choose {', '.join(known)} or 'package.module:function'")
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever the user's module raises as it is imported
        raise AqaError(f"reward {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise AqaError(f"reward {name!r} is a {type(found).__name__}: name a function")
    return found


def _text(completion) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def _is_answer(text: str) -> bool:
    text = text.strip()
    return text.startswith(OPEN) and text.endswith(CLOSE) and extract_answer(text) is not None


def _first_answer(text: str) -> str:
    """Return what re.search(r"<answer>(.*?)</answer>", text) finds, in linear time, else the text; stripped."""
    for match in re.finditer(r"<answer>(.*)", text):  # one match per line: `.` does not match a line end
        inside, closed, _ = match[1].partition(CLOSE)
        if closed:
            return inside.strip()
    return text.strip()


def _math_verify() -> Callable[[str, str], bool]:
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise AqaError("paper_accuracy needs math_verify: pip install math-verify, or use faithful_accuracy") from error

    def equal(text: str, solution: str) -> bool:
        try:
            return float(verify(parse(text), parse(solution))) > 0
        except Exception:  # as the paper does: what cannot be parsed is compared as text
            return False

    return equal

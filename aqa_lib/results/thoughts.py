"""Read the thought in a reply, and ask whether it leads to the answer given.

`prompt -> [thoughts] -> ablation`. A thought names a choice that appears in it word for word: crude, but the same for
every model, and free. The paper never asks; it compares only final answers.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .. import prompt
from ..reward import THINK, THOUGHT


@dataclass(frozen=True)
class Agreement:
    """How thoughts and answers agree, as counts of the replies that have both.

    alone: the thought names the answer given, and no other choice. among: it names the answer and others. others: it
    names only others. none: it names no choice at all.
    """

    alone: int = 0
    among: int = 0
    others: int = 0
    none: int = 0

    @property
    def n(self) -> int:
        return self.alone + self.among + self.others + self.none


def thought(reply: str | None) -> str:
    """Return what is inside a reply's think tags, "" if nothing is; up to the end if the tag is not closed.

    >>> thought("<think>It barks.</think> <answer>a dog</answer>"), thought("<answer>a dog</answer>")
    ('It barks.', '')
    """
    return (reply or "").partition(THINK)[2].partition(THOUGHT)[0].partition(prompt.OPEN)[0].strip()


def named(text: str, choices: Sequence[str]) -> list[str]:
    """List the choices that a text names, as whole words; of two that overlap, the longer one.

    >>> named("It is staying the same.", ["same", "staying the same", "rising"])
    ['staying the same']
    """
    rest, found = f" {_words(text)} ", []
    for choice in sorted(dict.fromkeys(choices), key=len, reverse=True):
        if (words := f" {_words(choice)} ") in rest:
            found.append(choice)
            rest = rest.replace(words, " | ")
    return [choice for choice in choices if choice in found]


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+|[#%+-]", prompt.normalise(text)))


def relation(reply: str | None, choices: Sequence[str]) -> str | None:
    """Say how a reply's thought and answer agree, in `Agreement`'s words; None if either is missing.

    >>> relation("<think>A dog, not a cat.</think><answer>a dog</answer>", ["a dog", "a cat"])
    'among'
    """
    said, answer = thought(reply), prompt.extract_answer(reply or "")
    place = prompt.choice_of(answer, choices)
    if not said or place is None:
        return None
    given = choices[place]
    inside = named(said, choices)
    if given in inside:
        return "alone" if len(inside) == 1 else "among"
    return "others" if inside else "none"


def agreement(replies: Iterable[tuple[str | None, Sequence[str]]]) -> Agreement:
    """Count how thoughts and answers agree, over pairs of (reply, choices)."""
    kinds = (relation(reply, choices) for reply, choices in replies)
    return Agreement(**Counter(kind for kind in kinds if kind))

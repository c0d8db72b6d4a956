"""The rules by which published sets judge a reply; each with its source, and what is done differently here.

`predictions -> [rules] -> scoring`. Under every rule a missing prediction is wrong, where some of their scorers skip
it. `judge` picks the rule of the set that a row is from; a row of no known set is judged by MMAU's.
"""

from collections.abc import Callable, Mapping, Sequence

from .. import prompt
from ..reading import forms
from ..reading.benchmarks import BENCHMARKS, MARK
from . import mmau

LETTERS = "ABCD"


def choice(prediction: str, answer: str, choices: Sequence[str]) -> bool:
    """Judge by the choice that a prediction names, by its text, its letter or both.

    For sets that have no scorer which runs without a model. MMAU-Pro takes the choice that NV-Embed-v2 finds nearest
    (`evaluate_mmau_pro_comprehensive.py` of `sonalkum/MMAUPro`), so that a reply that names none may still be right
    there; here it is wrong. AudioMCQ (arXiv 2509.21060) is training data and has no scorer of its own.

    >>> [choice(said, "a cat", ["a dog", "a cat"]) for said in ("A cat.", "B", "(b) a cat", "B. a dog", "cat")]
    [True, True, True, False, False]
    """
    found = named(prediction, choices)
    return found is not None and bool(answer) and choices[found].strip() == answer.strip()


def named(prediction: str, choices: Sequence[str]) -> int | None:
    """Find the choice that a prediction names; None where it names none, or one by letter and another by text."""
    by_text = prompt.choice_of(prediction, choices)
    if by_text is not None:
        return by_text
    among = forms.Choices(tuple(choices))
    if found := forms.LABEL.fullmatch(prediction):
        return among.labelled(found[1] or found[2])
    if found := forms.LABELLED.fullmatch(prediction):
        label = among.labelled(found[1] or found[2])
        same = label is not None and prompt.matches(found[3], choices[label], tuple(choices))
        return label if same else None
    return None


def letter(prediction: str, answer: str, choices: Sequence[str]) -> bool:
    """Judge by MMSU's rule: the first character of the reply is the choice's letter, or else the last but one is.

    A reply that is a choice's text is taken as that choice first: the rule is for letters, and would read "Dog" as D.
    Source: MMSU's evaluation script (`ddwang2000/MMSU`), which leaves out replies that it cannot read.

    >>> said = ["B", "B. a cat", "The answer is B.", "A cat", "A: a dog", "who knows"]
    >>> [letter(one, "a cat", ["a dog", "a cat"]) for one in said]
    [True, True, True, True, False, False]
    """
    by_text = prompt.choice_of(prediction, choices)
    text = prediction.strip().replace("\n", "")
    marks = [text[:1], text[-2:-1]]
    index = next((LETTERS.index(mark) for mark in marks if mark and mark in LETTERS), None)
    index = index if by_text is None else by_text
    return index is not None and index < len(choices) and bool(answer) and choices[index].strip() == answer.strip()


def exact(prediction: str, answer: str, choices: Sequence[str]) -> bool:
    """Judge by ADQA's rule: the prediction is the right choice's text, letter by letter; outer white space is forgiven.

    Source: DCASE 2026 task 5, whose submissions hold the chosen option's text (top-1 accuracy).

    >>> exact("a cat ", "a cat", ["a dog", "a cat"]), exact("A cat", "a cat", ["a dog", "a cat"])
    (True, False)
    """
    return bool(answer) and prediction.strip() == answer.strip()


RULES: dict[str, Callable[[str, str, Sequence[str]], bool]] = {
    "words": mmau.official,
    "choice": choice,
    "letter": letter,
    "exact": exact,
}
SAID = {  # for a note under the scores
    "words": "MMAU's word sets",
    "choice": "the choice that a reply names by text or letter",
    "letter": "the letter that a reply begins with, or its text",
    "exact": "the right choice's text, letter by letter",
}


def of(row: Mapping) -> str:
    """Name the rule by which a row's set judges."""
    benchmark = BENCHMARKS.get(str(row.get(MARK)))
    return benchmark.rule if benchmark else "words"


def judge(row: Mapping, as_it_stands: str) -> bool:
    """Judge a row by the rule of its set. as_it_stands: what a scorer of the set reads; the others read the answer."""
    rule = of(row)
    said = as_it_stands if rule in ("words", "letter") else row["prediction"]
    return RULES[rule](said, row["answer"], row["choices"])

"""MMAU's official rule, its two published versions, and the baselines that need no model.

`predict -> [mmau] -> score`. Pure functions on text; nothing here knows the model. The rule is our own code,
and does exactly what `evaluation.py` of `Sakshi113/MMAU` does, with one difference in the counting: a
question without a prediction is wrong here and skipped there.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

OLD = "MMAU Test-mini 2025-03-25"  # the paper's
NEW = "MMAU Test-mini v05.15.25"  # today's; shares 894 ids with the old one, of which 258 changed
UNKNOWN = "unknown data"
FILES = {  # sha256 of the published question files
    "e8cc09223b497191781756212cb616315690aaa6ea7ac359db1b65d97d1e2433": OLD,
    "9f18fda99f8dbc2bc5ecd6323fb5063309f54969810b5c6f1caeb3b8d904cf1c": NEW,
}
CONTENTS = {  # files.fingerprint() of their questions, which survives in a file of predictions
    "2cc48da55b7aa6b9680f7b8ac3210c0931c7e803f459c623aa5a2c36a4c94d98": OLD,
    "ce582a7fb50c9556414643611bc7489d55e8924db5b1f63034e378d6dc34a026": NEW,
}


def words(text: str) -> frozenset[str]:
    r"""Split text into the rule's set of words: every `\b\w+\b` of the lower-cased text.

    >>> sorted(words("(B) A dog's bark, a DOG"))
    ['a', 'b', 'bark', 'dog', 's']
    """
    return frozenset(re.findall(r"\b\w+\b", text.lower()))


def official(prediction: str, answer: str, choices: Sequence[str]) -> bool:
    """Judge a prediction by MMAU's official rule.

    It is right if and only if it contains every word of the answer and no word that only wrong choices have. A
    choice with exactly the answer's words does not count as wrong. An empty prediction is wrong. Source:
    `evaluation.py`, `Sakshi113/MMAU`.

    >>> official("It is the Man.", "Man", ["Man", "Woman"]), official("man or woman", "Man", ["Man", "Woman"])
    (True, False)
    """
    said, right = words(prediction), words(answer)
    wrong = frozenset().union(*map(words, choices)) - right
    return bool(said) and right <= said and not said & wrong


def version(digest: str) -> str:
    """Name the version behind a file's sha256 or a fingerprint; unpublished data is named as such.

    >>> version("9f18fda99f8dbc2bc5ecd6323fb5063309f54969810b5c6f1caeb3b8d904cf1c")
    'MMAU Test-mini v05.15.25'
    >>> version("0123456789abcdef")
    'unknown data (0123456789ab)'
    """
    return FILES.get(digest) or CONTENTS.get(digest) or f"{UNKNOWN} ({digest[:12]})"


def first_choice(rows: Iterable[Mapping]) -> float:
    """Score, in percent, a model that always names the first choice: 37.8 on the old version, 39.8 on the new.

    >>> first_choice([{"choices": ["a", "b"], "answer": "a"}, {"choices": ["a", "b"], "answer": "b"}])
    50.0
    """
    right = [official(row["choices"][0], row["answer"], row["choices"]) for row in rows]
    return 100 * sum(right) / len(right)


def uniform_guess(rows: Iterable[Mapping]) -> float:
    """Score, in percent, a model that guesses: the mean of one over the number of choices, 25.5 on the new version.

    Choices that occur twice, or differ only in word order, make the rule kinder than that by up to 0.7 points.

    >>> uniform_guess([{"choices": ["a", "b"]}, {"choices": ["a", "b", "c", "d"]}])
    37.5
    """
    shares = [1 / len(row["choices"]) for row in rows]
    return 100 * sum(shares) / len(shares)

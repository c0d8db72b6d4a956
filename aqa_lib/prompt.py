"""Word the question for the model, and read the answer from its reply.

Third step of the flow: `audio -> dataset -> prompt -> model -> ... -> reward -> ... -> evaluation`:
rewards and scores read replies through this one module. The wording is the paper's (arXiv 2503.11197),
character for character, except for prompt 1, whose exact words were never published. The reading is not the
paper's, which takes the first tag it finds and compares letter by letter, so that a reply may hedge and
`Dog` is not `dog`. Here more than one answer is no answer, and case and outer punctuation are forgiven;
`reward.faithful_accuracy` reads as the paper does.
"""

import unicodedata
from collections.abc import Sequence

from .dataset import Question
from .runtime.errors import AqaError

STEM = "{question} Please choose the answer from the following options: {choices}."
REWORDED = (  # the stem in other words, to see how far a score hangs on them
    STEM,
    "{question} Which of these options is right? {choices}.",
    "{question} Select one of the following: {choices}.",
    "{question} Only one of these choices is correct: {choices}. Say which.",
)
SUFFIXES = {
    1: "",
    2: " Output the final answer in <answer> </answer>.",
    3: " Output the thinking process in <think> </think> and final answer in <answer> </answer>.",
}
FREE = 0  # the style of what is asked without choices, in the question's own words
OPEN, CLOSE = "<answer>", "</answer>"
OUTER = " .,;:!?¡¿。、'\"“”„«»‹›`*_()[]{}"  # not #, %, + or -: "C#" is not "C", "-5" is not "5"


def text(question: Question, style: int, wording: int = 0) -> str:
    """Word a question as the paper's prompt 1 (plain, for SFT), 2 (answer tags) or 3 (think first).

    The choices appear as the Python repr of their list, as in the paper's code. Prompt 1's exact words
    were never published: the stem alone is the likely form. Style `FREE` is the question alone, for alignment. wording:
    which of `REWORDED` asks for a choice; 0 is the paper's. Raises AqaError for an unknown style or wording.

    >>> text(Question("1", None, "What barks?", ("a dog", "a cat"), "a dog"), style=1)
    "What barks? Please choose the answer from the following options: ['a dog', 'a cat']."
    """
    if style == FREE:
        return question.question
    if style not in SUFFIXES:
        raise AqaError(f"prompt style {style!r} is unknown: choose 1 (plain), 2 (answer) or 3 (think)")
    if not 0 <= wording < len(REWORDED):
        raise AqaError(f"wording {wording!r} is unknown: choose from 0, the paper's, to {len(REWORDED) - 1}")
    return REWORDED[wording].format(question=question.question, choices=list(question.choices)) + SUFFIXES[style]


def messages(question: Question, style: int, wording: int = 0) -> list[dict]:
    """Return a question's single user turn, its clips and then the text, for `processor.apply_chat_template`.

    A question without a clip has the place for one. The empty `audio_url` is for the templates of older transformers,
    which look for that key instead of the type.
    """
    clips = [{"type": "audio", "audio_url": ""} for _ in range(1 + len(question.more))]
    return [{"role": "user", "content": [*clips, {"type": "text", "text": text(question, style, wording)}]}]


def target(question: Question) -> str:
    """Return the reply that earns every reward of prompt 2, which is also what SFT trains on.

    >>> target(Question("1", None, "What barks?", ("a dog", "a cat"), "a dog"))
    '<answer>a dog</answer>'
    """
    return f"{OPEN}{question.answer}{CLOSE}"


def extract_answer(reply: str) -> str | None:
    """Read the answer from a reply: the content of its only answer tag, or all of it if there is no tag.

    Stripped of outer white space. None if nothing, or more than one thing, is answered: an empty
    reply or tag, an unclosed tag, two tags. Linear in the reply's length.

    >>> extract_answer("I think <answer> a dog </answer>"), extract_answer(" a dog ")
    ('a dog', 'a dog')
    >>> print(extract_answer("<answer>a dog</answer><answer>a cat</answer>"))
    None
    """
    opened, closed = reply.count(OPEN), reply.count(CLOSE)
    if opened == closed == 0:
        return reply.strip() or None
    if opened != 1 or closed != 1:
        return None
    return reply[reply.find(OPEN) + len(OPEN) : reply.find(CLOSE)].strip() or None


def normalise(answer: str) -> str:
    """Fold what does not change an answer: case, white space, outer punctuation, quotes, composed accents.

    >>> normalise("  “A  Dog.” "), normalise("C#"), normalise("don’t")
    ('a dog', 'c#', "don't")
    """
    if len(answer) <= 1000:  # NFC sorts runs of accents in quadratic time: minutes for a crafted megabyte
        answer = unicodedata.normalize("NFC", answer)
    folded = answer.casefold().replace("’", "'").replace("‘", "'")
    return " ".join(folded.split()).strip(OUTER)


def matches(reply_answer: str | None, answer: str, choices: tuple[str, ...] | list[str] = ()) -> bool:
    """Return whether an extracted answer is the right choice: equal once both are normalised.

    If normalising would make the answer and another choice the same, or leave nothing of it, the
    comparison is exact. An answer that could not be read (None) or is withheld ("") never matches.

    >>> matches("Dog.", "dog"), matches("Dog", "dog", ["dog", "Dog"]), matches("hot dog", "dog")
    (True, False, False)
    """
    if not reply_answer or not answer:
        return False
    wanted = normalise(answer)
    if not wanted or len({c.strip() for c in choices if normalise(c) == wanted}) > 1:
        return reply_answer.strip() == answer.strip()
    return normalise(reply_answer) == wanted


def choice_of(reply_answer: str | None, choices: Sequence[str]) -> int | None:
    """Find the choice that an extracted answer names by its text, as an index; the first of several, None for none.

    >>> choice_of("A cat.", ["a dog", "a cat"]), choice_of("a bird", ["a dog", "a cat"])
    (1, None)
    """
    among = tuple(choices)
    return next((i for i, choice in enumerate(among) if matches(reply_answer, choice, among)), None)

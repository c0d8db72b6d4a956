"""Tell a user's mistake from a bug: the base class of every error whose one sentence is meant for the user.

`python -m aqa_lib` prints the sentence and exits with status 2. Any other exception is a bug and shows its traceback.
"""


class AqaError(ValueError):
    """A mistake that one sentence explains: which file or option, what is wrong, what to do."""


def reason(error: BaseException, longest: int = 200) -> str:
    """Say in part of a sentence what a library raised, whose message may be a page long, or empty.

    >>> reason(KeyError()), reason(ValueError("no such field.\\n  It was: x.\\n\\nFor details, see the manual."))
    ('KeyError', 'no such field. It was: x')
    """
    told = str(error).strip().split("\n\n")[0]
    text = " ".join(told.split()).rstrip(". ") or type(error).__name__
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."

"""Tell a user's mistake from a bug: the base class of every error whose one sentence is meant for the user.

`python -m aqa_lib` prints the sentence and exits with status 2. Any other exception is a bug and shows its traceback.
"""


class AqaError(ValueError):
    """A mistake that one sentence explains: which file or option, what is wrong, what to do."""

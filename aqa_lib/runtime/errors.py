"""Tell a user's mistake from a fault of ours: the base of every error whose one sentence is meant for the user.

`python -m aqa_lib` prints the sentence and exits with 2. Any other exception is a bug, and shows its traceback.
"""


class AqaError(ValueError):
    """A mistake that one sentence explains: which file or option, what is wrong, what to do."""

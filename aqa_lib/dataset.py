"""Read audio questions from files into one record, and split them without leaks.

Second step of the flow: `audio -> dataset -> prompt -> model -> ...`.
"""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Question:
    """One multiple-choice question on one clip; `answer` is the choice's text, "" where it is withheld."""

    id: str
    audio: Path | bytes | None
    question: str
    choices: tuple[str, ...]
    answer: str
    task: str = ""
    meta: dict = field(default_factory=dict, hash=False)

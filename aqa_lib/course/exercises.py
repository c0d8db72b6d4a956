"""Give the notebooks' exercises a place to work: `check` judges an answer, `hint` helps.

`judges -> [exercises] -> notebooks`. What each exercise asks for stands in `judges` and `judges_later`. A cell that
nobody has worked in yet, `check(1, ...)`, says so and fails nothing, so that a notebook runs from top to bottom.
"""

from collections.abc import Callable

from ..runtime.errors import AqaError
from . import judges_later
from .judges import Untried


def of(notebook: str) -> tuple[Callable, Callable]:
    """Return a notebook's `check` and `hint`. notebook: its number, as "03".

    `check(n, answer, *about)` prints whether an answer to exercise n is right, and if not, where it errs; about: what
    of the notebook the check has to know. `hint(n)` prints a hint.
    """
    exercises = judges_later.EXERCISES.get(notebook)
    if not exercises:
        known = ", ".join(sorted(judges_later.EXERCISES))
        raise AqaError(f"no exercises are known for notebook {notebook!r}; choose from {known}.")

    def check(n: int, answer: object = ..., *about) -> None:
        print(verdict(notebook, n, answer, *about))

    def hint(n: int) -> None:
        print(f"Exercise {n}, a hint: {_exercise(notebook, n).hint}")

    return check, hint


def verdict(notebook: str, n: int, answer: object, *about) -> str:
    """Judge an answer in one line: "right", "not yet" and where it errs, or "not tried yet"."""
    exercise = _exercise(notebook, n)
    try:
        if answer is ... or (isinstance(answer, list | tuple) and any(part is ... for part in answer)):
            raise Untried
        wrong = exercise.judge(answer, *about)
    except Untried:
        return f"Exercise {n}: not tried yet. Put your answer in place of the dots; hint({n}) helps."
    except Exception as error:  # whatever a reader may hand in
        return f"Exercise {n}: not yet. This gave {type(error).__name__}: {error}. Expected: {exercise.wanted}."
    return f"Exercise {n}: not yet. {wrong}" if wrong else f"Exercise {n}: right. {exercise.right}"


def _exercise(notebook: str, n: int):
    exercises = judges_later.EXERCISES[notebook]
    if n not in exercises:
        raise AqaError(f"notebook {notebook} has no exercise {n!r}; it has {', '.join(map(str, sorted(exercises)))}.")
    return exercises[n]

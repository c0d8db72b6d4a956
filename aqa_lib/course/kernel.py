"""Behave in a notebook's kernel: tell it from a terminal, and end a cell that was interrupted in one line.

`[kernel] -> artifacts, live`. IPython is there wherever a kernel is, and may be missing elsewhere.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def here() -> bool:
    """Whether this runs in a notebook's kernel, which can show pictures, and not in a terminal or a script."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class Stopped(KeyboardInterrupt):
    """An interrupt that a kernel shows as its sentence, without the traceback of whatever was at work."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [str(self)]


@contextmanager
def one_line_when_interrupted(name: str) -> Iterator[None]:
    """In a kernel, turn an interrupt (Ctrl-C, the stop button) into one sentence: what is kept, and how to resume.

    name: of what was being made; it must resume when it is called again.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if not here():
            raise
        said, _, _ = str(error).partition("; ")
        kept = said or "stopped; what it had made is kept"
        raise Stopped(f"{name}: {kept}. Run this cell again to resume.") from None

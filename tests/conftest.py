"""Run a notebook for a test."""

import re

import nbformat
import pytest

from aqa_lib import notebook


def allowed(cell) -> int:
    """Return the seconds that a cell may take: trainings 240, all else 90."""
    return 240 if re.search(r"recipes\.|train\(", cell.source) else 90


@pytest.fixture(scope="session")
def run():
    """Run a notebook with artifacts in a folder, every training cut to `steps`."""

    def run(name, folder, steps, with_solutions=False):
        book = notebook.read(name)
        if with_solutions:
            book.cells += [nbformat.v4.new_code_cell(code) for code in notebook.solutions(book)]
        environment = {"AQA_SCALE": "tiny", "AQA_ARTIFACTS": str(folder), "AQA_MAX_STEPS": str(steps)}
        return notebook.run(book, environment, allowed)

    return run

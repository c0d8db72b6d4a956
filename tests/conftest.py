"""Run a notebook, or make a small world, for a test."""

import nbformat
import pytest

from aqa_lib import scale
from aqa_lib.course import render
from aqa_lib.tiny import pretrain, synth

# The end of a notebook's set-up: a quarter of the test questions, 50 of each task. It leaves no name behind that a
# notebook might forget to import.
FEWER = """
import aqa_lib.course.recipes as _recipes

_recipes.questions = lambda seed=0, _whole=_recipes.questions: (
    lambda asked: _recipes.Questions(asked.train, asked.held_out, asked.test[:150])
)(_whole(seed))
"""


@pytest.fixture(scope="session")
def fewer():
    return FEWER


@pytest.fixture(scope="session")
def run():
    """Run a notebook with artifacts in a folder, every training cut to `steps`, and asking fewer test questions."""

    synth.write(scale.TINY)  # once, and not among each test's own artifacts

    def run(name, folder, steps, with_solutions=False):
        book = render.read(name)
        setup = next(cell for cell in book.cells if cell.id == "setup")
        setup.source += FEWER
        if with_solutions:
            book.cells += [nbformat.v4.new_code_cell(code) for code in render.solutions(book)]
        environment = {"AQA_SCALE": "tiny", "AQA_ARTIFACTS": str(folder), "AQA_MAX_STEPS": str(steps)}
        book = render.run(book, environment)
        setup.source = render.setup()
        return book

    return run


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with an untrained model and a few questions in each form: three steps an epoch."""
    folder = tmp_path_factory.mktemp("world")
    synth.write(folder / "data", train=12, validation=4, test=12)
    processor = pretrain.build_processor()
    pretrain.build_model(processor).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder

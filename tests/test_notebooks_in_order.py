"""Run the notebooks one after the other, each with what its predecessors left, and their exercises' solutions."""

import pytest

from aqa_lib.course import render

ALONE = 4  # the first notebooks find nothing of use in their predecessors' artifacts; so they start in an empty folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@pytest.mark.parametrize("name", [chapter.name for chapter in render.COURSE])
def test_runs_after_its_predecessors_with_its_solutions(name, shared, run, tmp_path):
    alone = int(name[:2]) < ALONE
    book = run(name, tmp_path if alone else shared, 12, with_solutions=True)
    solved = len(render.solutions(book))
    for n, cell in enumerate(book.cells[-solved:], 1):
        said = "".join(output.get("text", "") for output in cell.outputs)
        if "check(" in cell.source:
            assert f"Exercise {n}: right." in said, said
    if alone:
        for made in tmp_path.iterdir():
            assert not (shared / made.name).exists(), "two notebooks make a folder of the same name"
            made.rename(shared / made.name)

"""Run notebooks alone in an empty folder of artifacts, and one of them also by other tools, to the same bytes.

The first ones start in an empty folder in `test_notebooks_in_order.py`, too, and are left to it.
"""

import os
import subprocess
import sys

import nbformat
import pytest

from aqa_lib.course import render

LATER = [chapter.name for chapter in render.COURSE[4:]]  # what predecessors leave would be of use to these
CHEAP = "02_reward_design"
COMMAND = [sys.executable, "-m", "jupyter"]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", LATER)
def test_runs_alone_in_an_empty_folder(name, tmp_path, run):
    run(name, tmp_path, 3)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory, run):
    return nbformat.writes(render.static(run(CHEAP, tmp_path_factory.mktemp("first"), 3)))


@pytest.mark.parametrize("tool", [["execute"], ["nbconvert", "--to", "notebook", "--execute", "--inplace"]])
def test_other_tools_run_it_too_and_a_second_run_gives_the_same_bytes(tool, tmp_path, rendered):
    copy = tmp_path / f"{CHEAP}.ipynb"
    copy.write_bytes((render.FOLDER / copy.name).read_bytes())
    environment = os.environ | {"AQA_SCALE": "tiny", "AQA_ARTIFACTS": str(tmp_path), "AQA_MAX_STEPS": "3"}
    option = ["--inplace"] if tool == ["execute"] else []
    made = subprocess.run(
        [*COMMAND, *tool, *option, str(copy)], env=environment, capture_output=True, text=True, timeout=1800
    )
    assert made.returncode == 0, made.stderr[-2000:]
    book = nbformat.read(copy, 4)
    assert any(cell.outputs for cell in book.cells if cell.cell_type == "code")
    assert nbformat.writes(render.static(book)) == rendered

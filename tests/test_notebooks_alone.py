"""Run each notebook alone in an empty folder of artifacts, and one of them twice and by other tools."""

import os
import subprocess
import sys

import nbformat
import pytest

from aqa_lib.course import render

NAMES = [chapter.name for chapter in render.COURSE]
CHEAP = "02_reward_design"
COMMAND = [sys.executable, "-m", "jupyter"]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", NAMES)
def test_runs_alone_in_an_empty_folder(name, tmp_path, run):
    run(name, tmp_path, 3)


def test_two_runs_give_the_same_bytes(tmp_path, run):
    first, second = (nbformat.writes(render.static(run(CHEAP, tmp_path / str(i), 3))) for i in range(2))
    assert first == second


@pytest.mark.parametrize("tool", [["execute"], ["nbconvert", "--to", "notebook", "--execute", "--inplace"]])
def test_other_tools_run_it_too(tool, tmp_path):
    copy = tmp_path / f"{CHEAP}.ipynb"
    copy.write_bytes((render.FOLDER / copy.name).read_bytes())
    environment = os.environ | {"AQA_ARTIFACTS": str(tmp_path), "AQA_MAX_STEPS": "3"}
    option = ["--inplace"] if tool == ["execute"] else []
    made = subprocess.run(
        [*COMMAND, *tool, *option, str(copy)], env=environment, capture_output=True, text=True, timeout=1800
    )
    assert made.returncode == 0, made.stderr[-2000:]
    assert any(cell.outputs for cell in nbformat.read(copy, 4).cells if cell.cell_type == "code")

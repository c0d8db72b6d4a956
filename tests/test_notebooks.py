"""Check the notebooks as they lie in the repository, in seconds."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from aqa_lib.course import render
from aqa_lib.course.judges_later import EXERCISES

NOTHING_TO_PREDICT = ("Check yourself", "The paper and ours", "Summary", "Exercises", "Further reading")
NOTHING_TO_PREDICT += ("Words of this course",)
ROOT = Path(__file__).resolve().parents[1]
NAMES = [chapter.name for chapter in render.COURSE]


def committed(name: str):
    return nbformat.read(render.FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(name: str) -> list:
    return [cell for cell in committed(name).cells if cell.cell_type == "code"]


def outputs(name: str) -> list:
    return [output for cell in code_cells(name) for output in cell.outputs]


def texts(output) -> str:
    """Return all that an output says, pictures aside."""
    said = {kind: data for kind, data in output.get("data", {}).items() if not kind.startswith("image/")}
    return json.dumps([said, output.get("text", "")])


def test_the_folder_holds_the_course_and_nothing_else():
    assert sorted(path.name for path in render.FOLDER.glob("*.ipynb")) == [f"{name}.ipynb" for name in NAMES]


def test_the_readme_holds_the_table_of_the_notebooks():
    assert render.table() in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
class TestAsCommitted:
    def test_is_valid_small_and_ends_as_generated(self, name):
        book = committed(name)
        nbformat.validate(book)
        assert book == render.read(name), "run `make notebooks`: header, set-up or footer is out of date"
        ids = [cell.id for cell in book.cells]
        assert len(set(ids)) == len(ids)
        assert book.metadata == render.METADATA
        assert {cell.id for cell in book.cells if cell.metadata == render.FOLDED} == {"setup"}
        assert 25 <= len(book.cells) <= 52  # a cell to work in for each exercise, too
        assert render.Notebook.path.fget(next(c for c in render.COURSE if c.name == name)).stat().st_size <= 300 * 1024

    def test_was_run_once_from_top_to_bottom(self, name):
        cells = code_cells(name)
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))

    def test_outputs_are_static_and_speak_of_no_machine(self, name):
        for output in outputs(name):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            assert render.WIDGET not in output.get("data", {})
            said = texts(output)
            assert "<audio" not in said and "<script" not in said
            assert not re.search(r"(?<![\w.])/(home|root|tmp|work|mnt|Users|content)/", said), said[:300]
            assert " at 0x" not in said and "s/it" not in said, said[:300]

    def test_code_is_short_and_calls_the_library(self, name):
        for cell in code_cells(name):
            lines = cell.source.splitlines()
            assert len(lines) <= 20 and max(map(len, lines)) <= 110, cell.source
            if cell.id == "setup":
                continue
            for node in ast.walk(ast.parse(cell.source)):
                assert not isinstance(node, ast.ClassDef), cell.source
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < 6, f"{node.name} is longer than six lines"
            assert not re.search(r"\b(interact|interactive|Output)\(", cell.source)
            assert not re.search(r"if .*(scale|AQA_SCALE)", cell.source), "a notebook branches on the scale"

    def test_links_lead_somewhere(self, name):
        for cell in committed(name).cells:
            if cell.cell_type != "markdown":
                continue
            for target in re.findall(r"\]\(([^)\s]+)\)", cell.source):
                if target.startswith("#"):
                    continue
                if target.startswith("http"):
                    assert re.fullmatch(r"https://[\w.-]+/\S*", target), target
                else:
                    path, _, anchor = target.partition("#")
                    assert (render.FOLDER / path).exists(), target
                    if anchor:
                        headings = re.findall(r"^#+ (.*)$", (render.FOLDER / path).read_text("utf-8"), re.MULTILINE)
                        assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}

    def test_has_three_exercises_with_solutions(self, name):
        assert len(render.solutions(committed(name))) >= 3

    def test_each_exercise_has_a_cell_to_work_in_and_a_solution_that_checks_itself(self, name):
        cells = {cell.id: cell for cell in code_cells(name)}
        assert f'exercises.of("{name[:2]}")' in cells["imports"].source
        solved = render.solutions(committed(name))
        for n in EXERCISES[name[:2]]:
            cell = cells[f"exercise-{n}"]
            assert f"check({n}, " in cell.source and "..." in cell.source
            assert "".join(output.text for output in cell.outputs).startswith(f"Exercise {n}: not tried yet")
            assert f"check({n}, " in solved[n - 1]

    def test_each_section_asks_to_predict_first(self, name):
        book = committed(name)
        text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
        for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
            title = section.partition("\n")[0]
            if title not in NOTHING_TO_PREDICT:
                assert "**Predict first" in " ".join(section.split()), title


def test_a_badge_names_the_repository_of_pyproject():
    assert render.repository().startswith("https://github.com/")
    owner = render.repository().removeprefix("https://github.com/")
    assert f"colab.research.google.com/github/{owner}/blob/main/notebooks/{NAMES[0]}.ipynb" in render.badge(NAMES[0])


def test_the_setup_cell_does_nothing_outside_of_colab(tmp_path):
    before = set(tmp_path.iterdir())
    subprocess.run([sys.executable, "-c", render.setup()], cwd=tmp_path, check=True, timeout=60)
    assert set(tmp_path.iterdir()) == before

"""Hold what the notebooks share: their order, the cells at both ends, and how they are run and rendered.

`notebooks -> [render]`. `python -m aqa_lib.course.render` (that is `make notebooks`) runs all of them in order at the
tiny scale, in an empty folder of artifacts, and writes their outputs into them: without time stamps, widgets and
sounds, so that the same code gives the same bytes. A notebook is a reader's to run; what is committed is for reading.
"""

import argparse
import os
import re
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from .. import scale

FOLDER = scale.ROOT / "notebooks"
TIMEOUT = 3600  # seconds a cell
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}  # in Colab and in JupyterLab
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
UNHEARD = "<em>(run this cell to listen)</em>"


@dataclass(frozen=True)
class Notebook:
    """A chapter: its file's name, its title, the question that it answers, and its minutes at the tiny scale."""

    name: str
    title: str
    question: str
    minutes: float

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.ipynb"


# minutes: about, alone in an empty folder of artifacts, with one thread on a server CPU
COURSE = (
    Notebook("00_tour", "A tour", "What happens between a sound and an answer?", 0.5),
    Notebook("01_data_preparation", "Data preparation", "What does the model get from a clip and a question?", 0.5),
    Notebook("02_reward_design", "Reward design", "How do we tell a good answer from one that only looks good?", 0.5),
    Notebook("03_grpo_training", "GRPO training", "How does a model learn from rewards alone?", 2.5),
    Notebook("04_sft_baseline", "Rewards or answers", "When do rewards beat answers?", 3),
    Notebook("05_mmau_evaluation", "MMAU evaluation", "Which of our numbers can be believed?", 3),
    Notebook("06_reasoning_ablation", "The reasoning ablation", "Does it help to think aloud?", 4),
    Notebook("07_error_inspection", "Error inspection", "What do the remaining errors sound like?", 3),
    Notebook("08_real_sound", "Real sound", "How do two parts that never met become a model that hears?", 2),
)


def repository() -> str:
    """Return the repository's address, as pyproject.toml gives it."""
    project = tomllib.loads((scale.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].rstrip("/")


def badge(name: str) -> str:
    """Return the badge that opens a notebook in Colab, as Markdown."""
    owner = repository().removeprefix("https://github.com/")
    url = f"https://colab.research.google.com/github/{owner}/blob/main/notebooks/{name}.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({url})"


def _links(name: str) -> str:
    """Return links to the notebooks before and after one."""
    place = [chapter.name for chapter in COURSE].index(name)
    before, after = COURSE[place - 1 : place] if place else (), COURSE[place + 1 : place + 2]
    links = [f"← [{chapter.title}]({chapter.name}.ipynb)" for chapter in before]
    links += [f"[{chapter.title}]({chapter.name}.ipynb) →" for chapter in after]
    return " · ".join([*links[:1], "[all](../README.md#the-notebooks)", *links[1:]])


def header(name: str) -> str:
    """Return a notebook's first cell, Markdown."""
    chapter = next(chapter for chapter in COURSE if chapter.name == name)
    return f"# {name[:2]} · {chapter.title}\n\n{badge(name)}\n\n{_links(name)}\n\n**{chapter.question}**"


def setup() -> str:
    """Return the cell that readies Colab and does nothing elsewhere; it leaves numpy and torch as they are."""
    name = repository().rpartition("/")[2]
    return f"""\
# On Colab: fetch the repository and what is missing. Anywhere else this cell does nothing.
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

repository, here = "{repository()}", Path("/content/{name}")
if "google.colab" in sys.modules and not here.exists():
    subprocess.run(["git", "clone", "-q", "--depth", "1", repository, str(here)], check=True)
    keep = here.with_name("keep.txt")
    keep.write_text("".join(f"{{package}}=={{version(package)}}\\n" for package in ("numpy", "torch")))
    install = ["pip", "install", "-q", "-c", str(keep), "-e", str(here)]
    subprocess.run([sys.executable, "-m", *install], check=True)
    sys.path.insert(0, str(here))"""


def footer(name: str) -> str:
    """Return a notebook's last cell, Markdown."""
    return f"---\n\n{_links(name)}"


def table() -> str:
    """Return the README's table of the notebooks, Markdown."""
    lines = ["| notebook | the question it answers | minutes at `tiny` | |", "|---|---|---|---|"]
    lines += [
        f"| [{chapter.name}](notebooks/{chapter.name}.ipynb) | {chapter.question} | {chapter.minutes:g} "
        f"| {badge(chapter.name)} |"
        for chapter in COURSE
    ]
    return "\n".join(lines)


def read(name: str) -> NotebookNode:
    """Read a notebook, with the cells at both ends regenerated."""
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    by_id = {cell.id: cell for cell in book.cells}
    by_id["header"].source, by_id["setup"].source, by_id["footer"].source = header(name), setup(), footer(name)
    return book


def solutions(book: NotebookNode) -> list[str]:
    """List the code in a notebook's folded solutions, in order."""
    folded = [
        part
        for cell in book.cells
        if cell.cell_type == "markdown"
        for part in re.findall(r"<details>.*?</details>", cell.source, re.DOTALL)
    ]
    return [code for part in folded for code in re.findall(r"```python\n(.*?)```", part, re.DOTALL)]


def run(book: NotebookNode, environment: Mapping[str, str] | None = None) -> NotebookNode:
    """Run a notebook in a kernel of its own, in the notebooks' folder; raises nbclient's error of the cell that fails.

    environment: variables for the kernel besides those of this process. A cell may take `TIMEOUT` seconds: that guards
    against hangs, not against slowness.
    """
    paths = filter(None, [str(scale.ROOT), os.environ.get("PYTHONPATH")])
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # the kernel has its own
    client = NotebookClient(
        book,
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute(env=inherited | {"PYTHONPATH": os.pathsep.join(paths)} | dict(environment or {}))
    return book


def static(book: NotebookNode) -> NotebookNode:
    """Keep of an executed notebook what can be read: no progress bars, captions in place of players.

    A widget leaves only the HTML that it brings for a page without a kernel, if it brings any.
    """
    book.metadata = nbformat.from_dict(METADATA)
    for cell in book.cells:
        cell.metadata = nbformat.from_dict(FOLDED if cell.id == "setup" else {})
        if cell.cell_type != "code":
            continue
        kept, stream = [], None
        for output in cell.outputs:
            output.pop("transient", None)
            if output.get("data", {}).pop(WIDGET, None) and "text/html" not in output.data:
                continue
            if output.output_type == "stream":  # joined: how a kernel cuts them is chance
                if stream is not None and stream.name == output.name:
                    stream.text += output.text
                    continue
                stream = output
            for kind, data in output.get("data", {}).items():
                if kind == "text/html":
                    output.data[kind] = re.sub(r"<audio\b[^>]*>(</audio>)?", UNHEARD, data)
            kept.append(output)
        cell.outputs = kept
    return book


def render(names: Sequence[str]) -> None:
    """Run notebooks in order in an empty folder of artifacts, and write their outputs into them."""
    with tempfile.TemporaryDirectory() as empty:
        for name in names:
            start = time.monotonic()
            book = static(run(read(name), {"AQA_SCALE": "tiny", "AQA_ARTIFACTS": empty, "AQA_MAX_STEPS": ""}))
            nbformat.validate(book)
            (FOLDER / f"{name}.ipynb").write_text(nbformat.writes(book) + "\n", encoding="utf-8")
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m aqa_lib.course.render", description="Run the notebooks and keep what they give."
    )
    every = [chapter.name for chapter in COURSE]
    parser.add_argument("names", nargs="*", choices=[*every, []], help="only these; all if not given")
    render(parser.parse_args().names or every)

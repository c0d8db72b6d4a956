"""Build the course as a site of static pages, with sound and with the error browser, for any static host.

`notebooks, artifacts -> [site] -> site/`. `make site` reads the committed notebooks and trains nothing. nbconvert,
which JupyterLab brings along, makes the pages; formulas become MathML here, so that no page has to load MathJax.
Where a notebook plays a sound, the cells that make it are run again, unless they train, and what they show is put into
the page with its sound. The error browser shows the rows of the results table that `artifacts/` holds, or else the
base, asked on the spot. A page loads from its own host alone and runs no script but the site's files (its
Content-Security-Policy).
"""

import argparse
import ast
import base64
import hashlib
import html
import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

import nbformat
import soundfile
from latex2mathml.converter import convert
from nbconvert.exporters.html import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from .. import audio, evaluation, predictions, prompt, scale
from ..dataset import Question
from ..predictions import Predictions
from ..results import causes, paper
from . import artifacts, recipes, render

PAGES = Path(__file__).with_name("pages")  # the templates
LIMIT = 200  # questions in the error browser: their clips are most of the site's bytes
PLAYER = re.compile(r'<audio\b[^>]*src="data:audio/mpeg;base64,([^"]+)"[^>]*>(?:</audio>)?')
TRAINS = re.compile(r"recipes\.row\(|\.train\(|load_or_build\(")


class Math(IPythonRenderer):
    """nbconvert's Markdown, with formulas as MathML."""

    def inline_math(self, body: str) -> str:
        return convert(body)

    def block_math(self, body: str) -> str:
        return convert(body, display="block")


class Exporter(HTMLExporter):
    """nbconvert's cells without its page."""

    def markdown2html(self, context, source):
        return MarkdownWithMath(renderer=Math(escape=False)).render(source)

    markdown2html.jinja_pass_arg = HTMLExporter.markdown2html.jinja_pass_arg


def build(folder: str | Path = scale.ROOT / "site", limit: int = LIMIT, names: Sequence[str] = ()) -> Path:
    """Write the site into a folder, over an earlier one; `names`: only these notebooks. Returns the folder."""
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "search.json").is_file():
        raise FileExistsError(f"{folder} holds files that this command did not write; choose another folder.")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "sounds").mkdir(parents=True)
    chapters = [chapter for chapter in render.COURSE if not names or chapter.name in names]
    books = {chapter.name: render.read(chapter.name) for chapter in chapters}
    heard = listen(books)
    for name, book in books.items():
        write(folder, f"{name}.html", book.cells[0].source.partition("\n")[0].strip("# "), page(book, heard, folder))
    write(folder, "index.html", "Audio question answering by reinforcement learning", front())
    shutil.copytree(render.FOLDER / "figures", folder / "figures")
    data = browser(folder, limit)
    (folder / "errors.json").write_text(json.dumps(data), encoding="utf-8")
    write(folder, "errors.html", "The error browser", (PAGES / "errors.html").read_text("utf-8"), "errors.js")
    (folder / "search.json").write_text(json.dumps(sections(books)), encoding="utf-8")
    for name in ("site.css", "site.js", "errors.js"):
        shutil.copy(PAGES / name, folder)
    print(f"error browser: {data['made']}")
    return folder


def write(folder: Path, name: str, title: str, body: str, *scripts: str) -> None:
    """Write a page around its body."""
    links = {"index.html": "Course"} | {f"{c.name}.html": c.name[:2] for c in render.COURSE} | {"errors.html": "Errors"}
    titles = {f"{c.name}.html": c.title for c in render.COURSE}
    marks = {page: ' aria-current="page"' if page == name else "" for page in links}
    navigation = "".join(
        f'<a href="{page}" title="{titles.get(page, text)}"{marks[page]}>{text}</a>' for page, text in links.items()
    )
    tags = "".join(f'<script src="{script}" defer></script>\n' for script in scripts)
    given = {"title": html.escape(title), "navigation": navigation, "body": body, "scripts": tags}
    (folder / name).write_text(Template((PAGES / "page.html").read_text("utf-8")).substitute(given), encoding="utf-8")


def front() -> str:
    """Write the first page's body."""
    lines = [
        f'<li><a href="{c.name}.html">{c.name[:2]} {html.escape(c.title)}</a><br>{html.escape(c.question)}</li>'
        for c in render.COURSE
    ]
    lines.append('<li><a href="errors.html">The error browser</a><br>Hear and read what a model got wrong.</li>')
    told = "Nine notebooks, from a sound to a trained model and its errors. The pages are for reading and listening; to"
    figure = '<img src="figures/course.svg" alt="A map of the course: the list below, in six stages">'
    return (
        f"<h1>Audio question answering by reinforcement learning</h1>\n<p>{told} run them, take the "
        f'<a href="{render.repository()}">repository</a>.</p>\n<p>{figure}</p>\n<ul>{"".join(lines)}</ul>'
    )


def page(book: NotebookNode, heard: Mapping[str, list[NotebookNode]], folder: Path) -> str:
    """Convert a notebook to a page's body; the sounds that its cells play are written into `folder`."""
    book = nbformat.from_dict({**book, "cells": [cell for cell in book.cells if cell.id != "setup"]})
    silent = '<a href="errors.html">(hear it in the error browser)</a>'
    for cell in book.cells:
        cell.source = re.sub(
            r"\[!\[Open in Colab\]\([^)]*\)\]", "[Open in Colab]", cell.source
        )  # its picture is theirs
        if cell.cell_type == "code":
            cell.outputs = heard.get(cell.id, cell.outputs)
            for output in cell.outputs:
                if shown := output.get("data", {}).get("text/html"):
                    shown = PLAYER.sub(lambda found: _player(base64.b64decode(found[1]), folder), shown)
                    output.data["text/html"] = shown.replace(render.UNHEARD, silent)
    exporter = Exporter(template_name="lab", template_file="base.html.j2", anchor_link_text="#")
    body, _ = exporter.from_notebook_node(book)
    return re.sub(r'href="([^"#:]+)(#[^"]*)?"', _link, body)


def _player(clip: bytes, folder: Path) -> str:
    name = f"sounds/{hashlib.sha256(clip).hexdigest()[:16]}.mp3"
    (folder / name).write_bytes(clip)
    return f'<audio controls preload="metadata" src="{name}"></audio>'


def _link(found: re.Match) -> str:
    """Point a notebook's relative link to a page of the site, or to the repository."""
    path, anchor = found[1], found[2] or ""
    if path.endswith(".ipynb") and "/" not in path:
        return f'href="{path.removesuffix(".ipynb")}.html{anchor}"'
    if path == "../README.md" and anchor == "#the-notebooks":
        return 'href="index.html"'
    inside = path.removeprefix("../") if path.startswith("../") else f"notebooks/{path}"
    return f'href="{render.repository()}/blob/main/{inside}{anchor}"'


def listen(books: Mapping[str, NotebookNode]) -> dict[str, list[NotebookNode]]:
    """Run the cells that play sounds, and those that they need, in one kernel; return their outputs by the cell's id.

    Cells that need a training are left out.
    """
    wanted, cells = [], []
    for book in books.values():
        code = [cell for cell in book.cells if cell.cell_type == "code" and cell.id != "setup"]
        for place, cell in enumerate(code):
            played = any(render.UNHEARD in output.get("data", {}).get("text/html", "") for output in cell.outputs)
            needed = slice_of(code, place) if played else []
            if needed and not any(TRAINS.search(other.source) for other in needed):
                cells += [nbformat.v4.new_code_cell(other.source) for other in needed]
                wanted.append((cell.id, len(cells) - 1))
    if not wanted:
        return {}
    book = render.run(nbformat.v4.new_notebook(cells=cells, metadata=render.METADATA), {"AQA_SCALE": "tiny"})
    shown = {name: book.cells[place].outputs for name, place in wanted}
    return {name: [o for o in outputs if _readable(o)] for name, outputs in shown.items()}


def _readable(output: NotebookNode) -> bool:
    """Take the controls off an output; tell whether anything is left to be read."""
    return not output.get("data", {}).pop(render.WIDGET, None) or "text/html" in output.data


def slice_of(code: Sequence[NotebookNode], place: int) -> list[NotebookNode]:
    """List a cell and those before it that define a name it needs, directly or through others."""
    kept, names = [], set()
    for cell in reversed(code[: place + 1]):
        nodes = list(ast.walk(ast.parse(cell.source)))
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        stored |= {n.name for n in nodes if isinstance(n, ast.FunctionDef)}
        stored |= {
            (a.asname or a.name).split(".")[0]
            for n in nodes
            if isinstance(n, ast.Import | ast.ImportFrom)
            for a in n.names
        }
        if not kept or stored & names:
            names |= {n.id for n in nodes if isinstance(n, ast.Name)}
            kept.insert(0, cell)
    return kept


def sections(books: Mapping[str, NotebookNode]) -> list[dict[str, str]]:
    """List the notebooks' sections for the search: page, title, heading, anchor and text."""
    found = []
    for name, book in books.items():
        title = heading = book.cells[0].source.partition("\n")[0].strip("# ")
        texts: dict[str, list[str]] = {heading: []}
        for cell in (cell for cell in book.cells if cell.id not in ("setup", "header", "footer")):
            if cell.cell_type == "code":
                texts[heading].append(cell.source)
                continue
            for line in cell.source.splitlines():
                if made := re.fullmatch(r"##+ (.*)", line):
                    heading = made[1]
                    texts.setdefault(heading, [])
                else:
                    texts[heading].append(line)
        for head, lines in texts.items():
            text = re.sub(r"<[^>]*>|[`*]|\]\([^)]*\)|!?\[", "", " ".join(lines))
            anchor = "" if head == title else re.sub(r"[`*$]", "", head).replace(" ", "-")
            about = {"page": f"{name}.html", "title": title, "heading": re.sub(r"[`*]", "", head), "anchor": anchor}
            found.append(about | {"text": " ".join(text.split())})
    return found


def runs(questions: Sequence[Question]) -> tuple[dict[str, Predictions], str]:
    """Gather the rows of the results table that were made before, or ask the base; say which."""
    found = {}
    for name in paper.OURS:
        files = [*artifacts.folder().glob(f"{name}-seed0-answers-*/predictions.jsonl")]
        for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
            run = predictions.read(file)
            if {question.id for question in questions} <= {row["id"] for row in run.rows}:
                found[name] = run
                break
    if found:
        commits = {(run.meta.get("environment") or {}).get("commit") or "unknown" for run in found.values()}
        return found, f"{', '.join(found)} from artifacts, commit {', '.join(sorted(commit[:7] for commit in commits))}"
    base, processor = recipes.policy()
    options = {"batch_size": 50, "max_completion_length": scale.get().max_completion_length}
    rows = evaluation.predict(base, processor, list(questions), **options)
    return {
        "base-2": Predictions("base-2", rows)
    }, "base-2, asked while the site was built (no trained run in artifacts)"


def browser(folder: Path, limit: int) -> dict:
    """Collect what the error browser shows, and write its clips into the folder."""
    questions = recipes.questions().test[:limit]
    found, told = runs(questions)
    asked = [
        {"id": q.id, "task": q.task or "", "question": q.question, "choices": list(dict.fromkeys(q.choices)),
         "answer": q.answer, "sound": _clip(q, folder, number)}
        for number, q in enumerate(questions)
    ]  # fmt: skip
    replies = {name: _replies(run, questions) for name, run in found.items()}
    return {"made": f"{len(questions)} questions; {told}.", "questions": asked, "runs": replies}


def _replies(run: Predictions, questions: Sequence[Question]) -> list[dict]:
    by_id, guesses = {row["id"]: row for row in run.rows}, causes.suggest(run)
    replies = []
    for question in questions:
        row = by_id[question.id]
        said = prompt.choice_of(row["prediction"], row["choices"])
        cause = guesses.get(question.id, "")
        replies.append(
            {
                "reply": row["model_output"] or "",
                "kind": causes.kind(row),
                "choice": "" if said is None else row["choices"][said],
                "cause": cause if cause in ("unreadable form", "outside the choices") else "",
            }
        )
    return replies


def _clip(question: Question, folder: Path, number: int) -> str:
    """Write a question's clip as MP3; return its address, "" where there is none."""
    try:
        clip = audio.load(question.audio, question.meta.get("start"), question.meta.get("end"))
    except (audio.AudioError, TypeError):
        return ""
    file = io.BytesIO()
    soundfile.write(file, clip.wave / max(1.0, float(abs(clip.wave).max())), audio.SAMPLE_RATE, format="MP3")
    (folder / f"sounds/question-{number}.mp3").write_bytes(file.getvalue())
    return f"sounds/question-{number}.mp3"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m aqa_lib.course.site", description="Build the course's static pages."
    )
    parser.add_argument("--output_dir", default=scale.ROOT / "site", help="folder to write; site/ if not given")
    parser.add_argument("--questions", type=int, default=LIMIT, help=f"in the error browser; {LIMIT} if not given")
    options = parser.parse_args()
    print(f"written: {build(options.output_dir, options.questions)}")

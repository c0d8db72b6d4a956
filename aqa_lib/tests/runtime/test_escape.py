"""What others wrote is shown and never obeyed: in Markdown, a terminal and a figure (in a browser: test_browser)."""

import json
import re

import pytest

from aqa_lib import evaluation, predictions
from aqa_lib.__main__ import main
from aqa_lib.course import demo, show
from aqa_lib.dataset import read
from aqa_lib.results import ablation, causes, comparison, plotting, report, scoring
from aqa_lib.runtime import escape

mistune = pytest.importorskip("mistune", reason="mistune, which comes with nbconvert, is absent")
HOSTILE = (
    "<img src=x onerror=alert(1)> | forged | 100.0 |\n| forged | `a` **b** [c](javascript:alert(1)) ![d](http://e/f) "
    "~~g~~ &lt;i&gt; \\(y\\) $z$ \x1b[2J\r\u202e_h_ \\"
)
FIELDS = ("task", "category", "sub-category", "difficulty")


@pytest.fixture
def runs(tmp_path):
    """Two runs whose every foreign word is hostile: question file, labels and file names."""
    asked = {"audio_id": "a.wav", "question": "What?", "choices": ["dog", "rain"], "answer": "dog"}
    (tmp_path / "asked.json").write_text(
        json.dumps([{"id": i} | asked | dict.fromkeys(FIELDS, HOSTILE) for i in range(2)])
    )
    questions = enumerate(read(tmp_path / "asked.json", check_audio=False))
    rows = [predictions.question_row(i, q) | evaluation.read_reply("<answer>dog</answer>", q) for i, q in questions]
    files = []
    for seed in range(2):
        file = tmp_path / f"{seed}{HOSTILE.replace('/', '')[:150]}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        labels = {"method": HOSTILE, "train_seed": seed, "model": HOSTILE, "scale": HOSTILE, "data": HOSTILE}
        settings = {"style": 2, "audio": "heard", "shuffle_choices": None}
        meta = {"settings": settings, "labels": labels, "finished": HOSTILE, "environment": {"commit": HOSTILE}}
        predictions.meta_path(file).write_text(json.dumps(meta))
        files.append(file)
    return files


def written(runs) -> dict[str, str]:
    made = [predictions.read(file) for file in runs]
    tables = report.build(made)
    return {
        "score": scoring.score(made[0]).markdown(),
        "compare": comparison.compare(runs).markdown(),
        "report": report.markdown(tables),
        "title": "\n\n".join(map(report.title, tables)),
        "ablation": ablation.markdown(ablation.gather(runs)),
        "demo": demo.table({HOSTILE: scoring.score(made[0])}),
        "show": show.table([{HOSTILE: HOSTILE}]).data,
    }


@pytest.mark.parametrize("place", ["score", "compare", "report", "title", "ablation", "demo", "show"])
def test_markdown_shows_it_and_forges_nothing(runs, place):
    text = written(runs)[place]
    page = mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "url"])(text)
    assert set(re.findall(r"<(\w+)", page)) <= {*"p h1 h2 h3 table thead tbody tr th td strong span code".split()}
    assert not re.search(r"<code>a</code>|<strong>b</strong>|<del>", page) and "&lt;img src=x onerror" in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", text)
    assert not re.search(r"\$|\\\(", re.sub(r"<span>.</span>", "", page)), "no pair that MathJax would typeset"
    for table in re.findall(r"<table>.*?</table>", page, re.S):
        widths = {len(re.findall("<t[hd]", line)) for line in re.findall(r"<tr>.*?</tr>", table, re.S)}
        assert len(widths) == 1, "a forged cell or row"
    assert "forged</td>" not in page.replace(" ", "")


def test_a_control_is_read_as_markup():
    """The page above would show it: the same words unescaped are an image and a forged row."""
    page = mistune.create_markdown(escape=False, plugins=["table"])(f"| a | b | c |\n|---|---|---|\n| {HOSTILE} |")
    assert "<img src=x" in page and "forged</td>" in page.replace(" ", "")


def test_a_terminal_gets_no_command(runs, capsys):
    assert main(["score", str(runs[0])]) == 0
    assert main(["compare", *map(str, runs)]) == 0
    assert main(["score", f"{runs[0]}\x1b[2J\r.jsonl"]) == 2
    assert main(["train", "--model", "x\x1b[2J", "--train", "\x1b]0;title\x07.jsonl"]) == 2
    out, err = capsys.readouterr()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out + err)
    assert out.count("forged") and err.count("error:") == 2


def test_figures_draw_labels_as_they_stand(runs, tmp_path):
    """An unclosed formula stops matplotlib; a name that begins with `_` would not be in the legend."""
    odd = {"$\\frac{$ cost": [0.1, 0.2], "_base": [0.3, 0.4]}
    figures = [
        report.plot(report.build([predictions.read(file) for file in runs])),
        ablation.plot(ablation.gather(runs)),
        plotting.lines([0, 1], {"$\\frac{$": odd}, "x", "y"),
        plotting.strips(odd, "x"),
        plotting.grids({"$\\frac{$ a $": [[0.0, 1.0]]}, "x", "y", "z"),
        plotting.bars(dict.fromkeys(odd, 0.5), "x"),
        plotting.intervals({name: dict.fromkeys(odd, (1, 0, 2)) for name in odd}, "x", {"$\\frac{$": 1.0}),
        causes.plot({name: {"misheard": scoring.Rate(1, 2)} for name in odd}),
    ]
    for number, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{number}.png")
    legend = [text.get_text() for text in figures[2].axes[0].get_legend().get_texts()]
    assert legend == [" $\\frac{$ cost".strip(), " _base"] or len(legend) == 2
    assert max(len(escape.figure(name)) for name in ("x" * 10_000,)) <= escape.LABEL

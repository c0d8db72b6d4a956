"""Use notebook 07 in JupyterLab and a real browser as a reader would, and try to break its page with hostile texts.

Debian's Chromium, driven by Playwright; `.ci/run` installs it. Skipped, with the reason, where either is absent.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from aqa_lib.course import render

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "07_error_inspection.ipynb"
SCREENSHOT = ROOT / "artifacts" / "error_browser.png"  # kept, to be looked at; git ignores the folder
SECONDS = 1500  # for all cells of a notebook: against hangs, not against slowness
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
FLAGS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a microphone that beeps

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is absent: pip install -e .[test]")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2 * SECONDS),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is absent: on Debian and Ubuntu, apt install chromium"),
]

# What a person does by Run > Run All Cells. The page's "idle" is not waited for: it shows before the cells begin.
RUN_ALL = """async (name) => {
    const app = window.jupyterapp;
    await app.restored;
    await app.commands.execute('docmanager:open', {path: name});
    const panel = app.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    await app.commands.execute('notebook:clear-all-cell-outputs');  // those of an earlier visit
    app.commands.execute('notebook:run-all-cells');
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def lab(folder):
    """JupyterLab: its pages and its kernels. Settings, artifacts and notebooks are in a folder of their own."""
    for name in ("config", "data", "runtime", "notebooks"):
        (folder / name).mkdir()
    settings = {
        "notebook-extension/tracker": '{"windowingMode": "none"}',  # else cells out of sight are not on the page
        "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',  # nor asked about
    }
    for name, setting in settings.items():
        file = folder / f"config/lab/user-settings/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(setting)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    options = {"ServerApp.port": port, "IdentityProvider.token": token, "ServerApp.root_dir": folder / "notebooks"}
    options |= {"ServerApp.open_browser": False, "ServerApp.allow_root": True, "LabApp.expose_app_in_browser": True}
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment |= {f"JUPYTER_{name.upper()}_DIR": str(folder / name) for name in ("config", "data", "runtime")}
    environment |= {"AQA_SCALE": "tiny", "AQA_ARTIFACTS": str(folder / "artifacts"), "AQA_MAX_STEPS": "3"}
    environment |= {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"

    def request(path, method="GET"):
        asked = urllib.request.Request(f"{address}/{path}", headers={"Authorization": f"token {token}"}, method=method)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.read()

    def stop_kernels():
        for kernel in json.loads(request("api/kernels")):
            request(f"api/kernels/{kernel['id']}", "DELETE")

    try:
        for _ in range(240):
            try:
                request("api")
                break
            except OSError:
                assert server.poll() is None, (folder / "lab.log").read_text()
                time.sleep(0.5)
        yield SimpleNamespace(page=f"{address}/lab/tree/{{}}?reset&token={token}", stop_kernels=stop_kernels)
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def browser(folder):
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            folder / "profile",
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            viewport={"width": 1200, "height": 1250},
        )
        yield context
        context.close()


@pytest.fixture
def page(browser):
    """An empty page that notes every request which leaves this machine."""
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.left = []

    def note(request):
        if not request.url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:", "about:")):
            page.left.append(request.url)

    page.on("request", note)
    yield page
    page.close()


def run_all(lab, page, name, until):
    """Open a notebook alone and run its cells until a condition on the page holds; a cell's error ends it too."""
    page.goto(lab.page.format(name))
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.context")
    page.evaluate(RUN_ALL, name)
    error = "[data-mime-type='application/vnd.jupyter.error']"
    poll(page, f'() => {until} || document.querySelector("{error}")', seconds=SECONDS)
    assert page.locator(error).count() == 0, page.locator(error).first.inner_text()


def poll(page, condition, argument=None, seconds=60):
    """Wait until a condition on the page is true."""
    page.wait_for_function(condition, arg=argument, timeout=1000 * seconds, polling=200)


def bend(page):
    """Turn up the noise by the keyboard, and record: the probabilities move, and the page says what it cannot know."""
    lab = page.locator(".aqa-laboratory")
    cells = "[...document.querySelectorAll('.aqa-laboratory td')].map(td => td.innerHTML)"  # a bar's width moves first
    before = page.evaluate(cells)
    assert before
    lab.locator("[role=slider]").first.focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    poll(page, f"before => {cells}.some((cell, i) => cell !== before[i])", before)
    lab.get_by_role("button", name="Record").click()
    lab.get_by_text("Outside its world").wait_for()
    assert "your recording" in lab.locator("figcaption").inner_text()


def play_three(page):
    """Play three rounds against both models."""
    game = page.locator(".aqa-game")
    for played in (1, 2, 3):
        game.get_by_role("button").first.click()
        game.get_by_text(f" of {played}: ").first.wait_for()
        assert game.locator("tbody tr").count() == 3, "you, base and grpo"
        game.get_by_role("button", name="Next clip").click()
        game.get_by_text(f"clip {played + 1} of 10").wait_for()


def test_a_reader_plays_bends_browses_and_tags_and_the_tag_outlives_a_reload(lab, folder, page, fewer):
    book = nbformat.read(NOTEBOOK, 4)
    next(cell for cell in book.cells if cell.id == "setup").source += fewer
    nbformat.write(book, folder / "notebooks" / NOTEBOOK.name)

    def open_and_choose():
        run_all(lab, page, NOTEBOOK.name, "document.querySelector('.aqa-browser article')")
        before = place.inner_text()
        page.get_by_label("kind", exact=True).select_option("wrong")
        page.get_by_label("task", exact=True).select_option("music")
        page.get_by_label("run B", exact=True).select_option("grpo")
        poll(page, "before => !document.body.innerText.includes(before)", before)
        page.locator(".aqa-browser").get_by_role("button", name="Next").click()
        page.locator(".aqa-browser").get_by_text("2 of ").wait_for()

    card = page.locator(".aqa-browser article")
    place = page.locator(".aqa-browser .widget-label:not(label)", has_text=" of ")
    open_and_choose()
    bend(page)
    play_three(page)
    question = card.inner_text()
    assert all(part in question for part in ("music", "base: wrong", "grpo: ", "right answer", " %"))

    player = page.locator(".aqa-browser audio")
    player.focus()
    page.keyboard.press("Space")  # no mouse is needed
    poll(page, "() => document.querySelector('.aqa-browser audio').currentTime > 0.3")

    page.get_by_label("cause", exact=True).select_option("ambiguous question")
    page.get_by_label("note", exact=True).fill("two <b>voices</b>?")
    page.get_by_label("note", exact=True).press("Enter")
    page.get_by_text("Saved.").wait_for()
    SCREENSHOT.parent.mkdir(exist_ok=True)
    page.locator(".aqa-browser").screenshot(path=SCREENSHOT)
    controls = page.locator(".aqa-browser").get_by_role("button", name="Next"), page.get_by_label("cause", exact=True)
    places = [control.bounding_box()["y"] for control in (*controls, player)]
    assert max(places) - min(places) < 300, "Next, cause and player stand on one screen, however narrow the page"

    page.goto("about:blank")
    lab.stop_kernels()  # another day: nothing is left but files
    open_and_choose()
    poll(page, "() => document.querySelector('.aqa-browser .widget-text input').value === 'two <b>voices</b>?'")
    chosen = page.get_by_label("cause", exact=True).evaluate("select => select.selectedOptions[0].text")
    assert chosen.replace("\xa0", " ") == "ambiguous question"
    assert card.inner_text() == question
    (tags,) = (folder / "artifacts").rglob("*.tags.json")
    assert [tag["note"] for tag in json.loads(tags.read_text()).values()] == ["two <b>voices</b>?"]
    assert all(url.endswith("/assets/colab-badge.svg") for url in page.left)  # our own, in the notebook's head


HOSTILE = (
    "<img src=x onerror='window.ran=1'><script>window.ran=1</script><svg onload='window.ran=1'></svg>"
    "\"><iframe src=\"http://hostile.invalid/a\"></iframe>' onfocus='window.ran=1' autofocus x='"
    "</pre></td></table><style>@import 'http://hostile.invalid/b';</style><base href='http://hostile.invalid/'>"
    "![](http://hostile.invalid/c.png) [x](javascript:window.ran=1) `|` $\\href{javascript:window.ran=1}{x}$ \\(y^2\\)"
)
RENDERERS = """
import json
from pathlib import Path
from IPython.display import HTML, Markdown, display
from aqa_lib import audio, dataset, evaluation, predictions
from aqa_lib.course import browser, inspection, play, show
from aqa_lib.results import causes, comparison, report
from aqa_lib.results.scoring import score

hostile = Path("hostile.txt").read_text()
clip = Path(hostile.replace("/", "_")[:120] + ".wav")
clip.write_bytes(Path("clip.wav").read_bytes())
given = {"id": hostile, "task": hostile, "question": hostile, "choices": [hostile, "rain", hostile[1:]]}
given |= {"answer": "rain", "model_output": hostile, "category": [hostile], "difficulty": hostile, "error": hostile}
run = Path(hostile.replace("/", "_")[-60:] + ".jsonl")
run.write_text(json.dumps(given) + "\\n")
row = predictions.read(run).rows[0]
for sound in (clip, Path(hostile.replace("/", "_")[:90])):
    question = dataset.Question(hostile, sound, hostile, tuple(given["choices"]), "rain")
    display(HTML(inspection.card(question, {hostile: row}, {hostile: {hostile: 0.5}})))
display(HTML(inspection.table([row], causes={hostile: hostile})), HTML(inspection.alert(hostile)))

# What evaluate makes of a question file in MMAU's form, shown by notebook 05's own cells.
asked = {"audio_id": "clip.wav", "question": "What?", "choices": ["dog", "rain"], "answer": "dog"}
asked |= {"task": hostile, "category": hostile, "sub-category": hostile, "difficulty": hostile}
Path("asked.json").write_text(json.dumps([{"id": str(number)} | asked for number in range(2)]))
both = enumerate(dataset.read("asked.json"))
rows = [predictions.question_row(i, asked) | evaluation.read_reply("dog", asked) for i, asked in both]
files = [Path(hostile.replace("/", "_")[start:][:100] + f"{start}.jsonl") for start in (0, 150)]
for seed, file in enumerate(files):
    file.write_text("".join(json.dumps(row) + "\\n" for row in rows))
    labels = {"method": hostile, "train_seed": seed, "model": hostile, "scale": hostile, "data": hostile}
    record = {"settings": {"style": 2, "audio": "heard", "shuffle_choices": None}, "labels": labels}
    record["environment"] = {"commit": hostile}
    predictions.meta_path(file).write_text(json.dumps(record | {"finished": hostile}))
mine = predictions.read(files[0])
display(Markdown(score(mine).markdown()))
display(Markdown(comparison.compare(files).markdown()))
tables = report.build([predictions.read(file) for file in files])
display(Markdown(report.markdown(tables)), report.plot(tables))
texts = [f"{report.title(made)}\\n\\n" + "\\n".join(report.scores(made)) for made in tables]
display(Markdown("\\n\\n".join(texts)))
display(show.table([{hostile: hostile}]), show.listen({hostile: audio.load(clip)}))
display(browser.browse({hostile: run}, [question]))
broken = browser.browse({hostile: run}, [question])
causes.tags_path(run).write_text("{")
broken.act(broken.show, 0)
display(broken)
games = [play.Game([question], {hostile: [row]}, rounds=1) for _ in range(2)]
games[1].answer(hostile)
display(*games)
# unescaped: shows that the page would run it
display(Markdown('| a |\\n|---|\\n| Reasoning <img src="x" onerror="window.control=1"> $z^9$ |'))
"""


def test_hostile_replies_questions_and_names_run_nothing_and_reach_nothing(lab, folder, page):
    import numpy as np
    import soundfile

    soundfile.write(folder / "notebooks/clip.wav", np.sin(np.arange(16_000) / 9), 16_000)
    (folder / "notebooks/hostile.txt").write_text(HOSTILE)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(RENDERERS)], metadata=render.METADATA)
    nbformat.write(book, folder / "notebooks/hostile.ipynb")
    run_all(lab, page, "hostile.ipynb", "window.control === 1")
    poll(page, "() => document.querySelectorAll('.widget-html article').length === 4")
    page.wait_for_timeout(3_000)  # for whatever would come later, MathJax among it
    shown = page.locator(".jp-OutputArea").inner_text()
    assert shown.count("<script>window.ran=1</script>") > 20
    assert page.evaluate("window.ran") is None
    assert page.locator("article mjx-container, article iframe, article svg, article a, article style").count() == 0
    maths = page.locator("mjx-container")
    assert maths.count() == 1, "only the control's formula is typeset"
    assert not page.left

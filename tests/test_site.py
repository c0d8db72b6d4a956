"""Build the site from two notebooks and open it in a browser without a kernel: sound, search, themes, hostile text.

Skipped, with the reason, where Playwright or Chromium is absent.
"""

import functools
import http.server
import json
import re
import shutil
import threading

import pytest

from aqa_lib.course import render, site

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--autoplay-policy=no-user-gesture-required",
]
NAMES = ("00_tour", "04_sft_baseline")  # one that plays a sound, one with many formulas
HOSTILE = "<img src=x onerror='window.ran=1'><script>window.ran=1</script> <a href='http://hostile.invalid/'>"

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is absent: pip install -e .[test]")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is absent: on Debian and Ubuntu, apt install chromium"
)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AQA_SCALE", "tiny")
        patch.setenv("AQA_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        return site.build(tmp_path_factory.mktemp("built") / "site", limit=12, names=NAMES)


@pytest.fixture(scope="module")
def served(built):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(built)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, served):
    """A page of a light system; every request must stay at home, and no script may fail."""
    page = browser.new_page(color_scheme="light")
    left, failed = [], []
    page.on("request", lambda request: request.url.startswith((served, "data:")) or left.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    yield page
    page.close()
    assert not left and not failed


HEARD = """async (player) => {
    await player.play();
    for (let wait = 0; wait < 200 && player.currentTime < 0.2; wait++) await new Promise((go) => setTimeout(go, 50));
    return player.currentTime;
}"""


def play(page):
    """Start the page's first player, and wait until its time runs."""
    assert page.locator("audio").first.evaluate(HEARD) >= 0.2


def test_a_notebook_page_plays_its_sound_and_sets_its_formulas(page, served):
    page.goto(f"{served}/00_tour.html")
    play(page)
    assert page.locator(".jp-RenderedImage img").first.evaluate("image => image.naturalWidth") > 100
    page.goto(f"{served}/04_sft_baseline.html")
    assert page.locator("math").count() >= 10
    assert page.locator("math mfrac").first.evaluate("m => m.getBoundingClientRect().height") > 15
    assert "$" not in page.locator(".jp-RenderedMarkdown").all_inner_texts()[1]


def test_the_error_browser_filters_and_plays_without_a_kernel(page, served, built):
    data = json.loads((built / "errors.json").read_text())
    ((name, replies),) = data["runs"].items()
    assert name == "base-2" and "asked while the site was built" in data["made"]
    page.goto(f"{served}/errors.html")
    page.get_by_text("1 of 12").wait_for()
    play(page)
    for kind in ("wrong", "right", "unreadable"):
        page.get_by_label("kind of A").select_option(kind)
        count = sum(reply["kind"] == kind for reply in replies)
        assert page.locator("#place").inner_text() == (f"1 of {count}" if count else "0 of 0")
        if count:
            assert page.locator("#card").inner_text().count(f"base-2: {kind}") == 1
    page.get_by_label("kind of A").select_option("all")
    page.get_by_label("words").fill(data["questions"][3]["question"])
    alike = sum(q["question"] == data["questions"][3]["question"] for q in data["questions"])
    assert page.locator("#place").inner_text() == f"1 of {alike}"
    page.get_by_label("words").fill("")
    page.get_by_role("button", name="Next").click()
    assert page.locator("#place").inner_text() == "2 of 12"


def test_two_runs_are_compared(page, served, built):
    data = json.loads((built / "errors.json").read_text())
    first = data["runs"]["base-2"]
    data["runs"]["other"] = [reply | {"kind": "wrong" if reply["kind"] == "right" else "right"} for reply in first]
    page.route("**/errors.json", lambda route: route.fulfill(json=data))
    page.goto(f"{served}/errors.html")
    page.get_by_label("run B").select_option("other")
    right = sum(reply["kind"] == "right" for reply in first)
    for pair, count in {"only A": right, "only B": len(first) - right, "both right": 0, "neither": 0}.items():
        page.locator("#pair").select_option(pair)
        assert page.locator("#place").inner_text() == (f"1 of {count}" if count else "0 of 0"), pair


def test_hostile_text_is_shown_and_not_run(page, served, built):
    data = json.loads((built / "errors.json").read_text())
    data["questions"][0] |= {"question": HOSTILE, "choices": [HOSTILE, "rain"], "answer": HOSTILE, "id": HOSTILE}
    data["runs"]["base-2"][0]["reply"] = HOSTILE
    data["made"] = HOSTILE
    found = [{"page": "index.html", "title": HOSTILE, "heading": HOSTILE, "anchor": "", "text": HOSTILE}]
    page.route("**/errors.json", lambda route: route.fulfill(json=data))
    page.route("**/search.json", lambda route: route.fulfill(json=found))
    page.goto(f"{served}/errors.html")
    page.locator("#search").fill("onerror")
    page.locator("#found a").wait_for()
    assert page.locator("#card").inner_text().count("<script>window.ran=1</script>") >= 4
    assert page.locator("#card img, #card script, #card a, #found img, #made *").count() == 0
    assert page.evaluate("window.ran") is None


def test_a_script_in_a_page_itself_is_refused(page, served, built):
    text = (built / "index.html").read_text()
    (built / "broken.html").write_text(text.replace("</main>", "<script>window.ran=1</script><p id=end></p></main>"))
    page.goto(f"{served}/broken.html")
    page.locator("#end").wait_for(state="attached")
    assert page.evaluate("window.ran") is None


def test_search_finds_a_section_and_leads_to_it(page, served, built):
    page.goto(f"{served}/index.html")
    page.locator("#search").fill("greedy decoding")
    page.locator("#found a").first.click()
    page.wait_for_url("**/00_tour.html#*")
    for section in json.loads((built / "search.json").read_text()):
        if section["anchor"]:
            assert f'id="{section["anchor"]}"' in (built / section["page"]).read_text(), section["heading"]


def test_the_dark_theme_is_kept_and_reaches_the_figures(page, served):
    page.goto(f"{served}/index.html")
    colour = "() => getComputedStyle(document.body).backgroundColor"
    picture = page.locator("img[src='figures/course.svg']")
    light, drawn = page.evaluate(colour), picture.screenshot()
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate(colour) != light and picture.screenshot() != drawn
    page.goto(f"{served}/errors.html")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_every_link_and_picture_of_the_site_exists(built):
    pages = {path.name: path.read_text() for path in built.glob("*.html") if path.name != "broken.html"}
    unbuilt = {f"{chapter.name}.html" for chapter in render.COURSE} - set(pages)
    for name, text in pages.items():
        for target in re.findall(r'(?:href|src)="([^"]*)"', text):
            path = target.partition("#")[0]
            if not path or path.startswith(("https://", "data:")) or path in unbuilt:
                continue
            assert (built / path).is_file(), f"{name} leads to {target}"


def test_a_folder_that_the_site_did_not_write_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="did not write"):
        site.build(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"

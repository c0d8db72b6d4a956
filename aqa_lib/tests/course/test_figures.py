"""Check the drawn figures: committed bytes, what a reader without sight is told, that text stays in its place."""

import re
from xml.etree import ElementTree

import pytest

from aqa_lib.course import drawing, figures

NAMESPACE = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn():
    return {name: make().svg() for name, make in figures.FIGURES.items()}


def test_the_committed_figures_are_what_the_code_draws_and_nothing_else(drawn):
    committed = {path.stem: path.read_text(encoding="utf-8") for path in figures.FOLDER.iterdir()}
    stale = [name for name in drawn if committed.get(name) != drawn[name]]
    assert not stale, f"{stale}: run python -m aqa_lib.course.figures, look at them, and commit them"
    assert sorted(committed) == sorted(drawn)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_says_what_it_shows_and_brings_both_themes(name, drawn):
    root = ElementTree.fromstring(drawn[name])
    title, description = root.find(f"{NAMESPACE}title"), root.find(f"{NAMESPACE}desc")
    assert len(title.text) > 10 and len(description.text) > 60
    assert root.get("aria-labelledby").split() == [title.get("id"), description.get("id")]
    sheet = root.find(f"{NAMESPACE}style").text
    assert "prefers-color-scheme:dark" in sheet and sheet.count(".card{") == 2
    used = {part for element in root.iter() for part in element.get("class", "").split()}
    known = set(re.findall(r"\.([a-z-]+)(?=[{,])", sheet))
    assert used <= known, f"no colour is known for {used - known}"
    assert not re.search(r"href|<image|<script|url\(|@import", drawn[name]), "a figure fetches nothing"


@pytest.mark.parametrize("name", figures.FIGURES)
def test_text_is_legible_where_a_page_gives_560_pixels(name, drawn):
    sizes = [int(size) for size in re.findall(r"font-size:(\d+)px", drawn[name])]
    assert min([*sizes, drawing.SIZE]) * 560 / drawing.WIDTH >= 11


@pytest.mark.parametrize("name", figures.FIGURES)
def test_the_markdown_of_a_figure_is_one_line_with_its_description(name):
    line = figures.markdown(name)
    found = re.fullmatch(r"!\[([^\[\]\n]{60,})\]\((figures/\w+\.svg)\)", line)
    assert found and (figures.FOLDER.parent / found[2]).is_file()


def test_text_that_leaves_its_box_or_the_card_is_refused():
    picture = drawing.Drawing("A test", "", 100)
    picture.box(10, 10, 100, 30, "fits")
    with pytest.raises(ValueError, match="does not fit"):
        picture.box(10, 10, 100, 30, "does not fit at all")
    with pytest.raises(ValueError, match="does not fit"):
        picture.text(10, 99, "too low")


@pytest.mark.parametrize(("place", "dark"), [(0, False), (3, True)])
def test_texts_stand_out_from_every_surface(place, dark):
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((light(one), light(other)))
        return (high + 0.05) / (low + 0.05)

    card = drawing.CARD[dark]
    for line, tint, text in (hue[place : place + 3] for hue in drawing.HUES.values()):
        assert contrast(text, card) >= 4.5 and contrast(text, tint) >= 4.5
        assert contrast(drawing.INK[dark], tint) >= 4.5 and contrast(line, card) >= 2.2

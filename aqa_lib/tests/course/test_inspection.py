"""Cards and lists of errors: what is selected, and that every text is shown as text."""

from html.parser import HTMLParser

import pytest

from aqa_lib.course import inspection
from aqa_lib.dataset import Question
from aqa_lib.predictions import Predictions, PredictionsError
from aqa_lib.tests.helpers import asked

HOSTILE = "\"'><img src=x onerror=alert(1)><script>alert(2)</script></pre></article>&lt;b&gt; \x00\ud800 $\\sqrt{2}$"
ALLOWED = {"article", "p", "small", "bdi", "br", "strong", "em", "figure", "figcaption", "audio", "img", "meter", "div"}
ALLOWED |= {"span", "table", "thead", "tbody", "tr", "th", "td", "pre"}


class Page(HTMLParser):
    """What a browser would make of some HTML: tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def check(self):
        for tag, attributes in self.tags:
            assert tag in ALLOWED, f"<{tag}> got in"
            assert not [name for name in attributes if name.startswith("on") or name == "href"], attributes
            assert attributes.get("src", "data:").startswith("data:"), attributes
        return self


A = [asked("0", "rain"), asked("1", "a dog"), asked("2", "<answer>", task="music"), asked("3", "It is wind.")]
A += [asked("4", None)]
B = [asked("0", "rain"), asked("1", "wind"), asked("2", "a dog", task="music"), asked("3", "a dog")]
B += [asked("4", "a dog")]


def ids(rows):
    return "".join(row["id"] for row in rows)


def test_rows_are_selected_by_task_and_kind_and_put_in_order():
    assert ids(inspection.select(A, wanted="wrong")) == "03"
    assert ids(inspection.select(A, wanted="unreadable")) == "24"
    assert ids(inspection.select(A, wanted="right")) == "1"
    assert ids(inspection.select(A, "music")) == "2"
    assert ids(inspection.select(A, order="longest reply first")) == "32104"
    sure = {str(i): {"a dog": p} for i, p in enumerate([0.5, 0.9, 0.1, 0.2])}
    by_probability = "least sure of the right choice first"
    assert ids(inspection.select(A, order=by_probability, probabilities=sure)) == "23014"  # unknown ones last
    for bad in ({"wanted": "odd"}, {"order": "random"}):
        with pytest.raises(ValueError, match="is unknown; choose"):
            inspection.select(A, **bad)


def test_who_fixed_what():
    found = inspection.pairs(Predictions("a", A), Predictions("b", B))
    assert found == {"0": "neither", "1": "only A", "2": "only B", "3": "only B", "4": "only B"}
    with pytest.raises(PredictionsError, match="different questions"):
        inspection.pairs(Predictions("a", A), Predictions("b", B[1:]))


def test_a_card_marks_right_and_given_answers_in_words(questions):
    question = questions[1]  # of ("rain", "a dog", "a siren"), "a dog" is right
    given = {"id": question.id, "task": "sound", "question": question.question, "choices": list(question.choices)}
    rows = {
        name: given | {"answer": question.answer, "model_output": reply, "prediction": reply}
        for name, reply in {"base": "a siren", "GRPO": "A dog."}.items()
    }
    probabilities = {"base": {"rain": 0.2, "a dog": 0.1, "a siren": 0.7}}
    page = Page(inspection.card(question, rows, probabilities)).check()
    assert "rain 20 %a dog ✔ right answer 10 %● answered a siren● answered  70 %" in page.text
    assert "base: wrong" in page.text and "GRPO: right" in page.text
    players = [attributes for tag, attributes in page.tags if tag == "audio"]
    assert len(players) == 1 and players[0]["src"].startswith("data:audio/mpeg;base64,") and players[0]["aria-label"]
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")


def test_hostile_texts_are_shown_as_text(tmp_path, clips):
    import soundfile

    clip = tmp_path / "x onerror=alert(1) '\"><script>alert(3)<"
    soundfile.write(clip, clips[0].wave, 16_000, format="WAV")
    choices = [HOSTILE, "rain", HOSTILE.upper()]
    bad = {"id": HOSTILE, "task": HOSTILE, "question": HOSTILE, "choices": choices, "answer": "rain"}
    bad |= {"model_output": HOSTILE, "prediction": HOSTILE, "category": [HOSTILE], "error": HOSTILE, "tokens": HOSTILE}
    for audio in (clip, tmp_path / HOSTILE[:20], None):
        question = Question(HOSTILE, audio, HOSTILE, tuple(choices), "rain")
        made = inspection.card(question, {HOSTILE: bad, "other": bad}, {HOSTILE: {HOSTILE: 0.5}})
        assert Page(made).check().text.count("<script>alert(2)</script>") >= 10  # nothing was dropped either
        made.encode()  # no lone surrogate is left
    page = Page(inspection.table([bad], causes={HOSTILE: HOSTILE})).check()
    assert page.text.count("<img src=x onerror=alert(1)>") == 4
    assert "<b>" not in page.text and "&lt;b&gt;" in page.text  # escaped once, not twice
    Page(inspection.alert(HOSTILE)).check()


def test_mathjax_is_kept_off():
    for made in (inspection.card(None, {"run": A[0]}), inspection.table(A), inspection.alert("$x$")):
        assert "mathjax_ignore" in Page(made).tags[0][1]["class"]


def test_a_megabyte_is_cut():
    made = inspection.card(None, {"run": asked("0", "<" * 1_000_000)})
    assert len(made) < 50_000 and "995000 more characters" in made


def test_a_clip_that_is_gone_is_told_on_the_card(tmp_path):
    question = Question("q", tmp_path / "gone.wav", "What?", ("a", "b"), "a")
    text = Page(inspection.card(question, {"run": A[0]})).text
    assert "gone.wav: no such file" in text and str(tmp_path) not in text and "What barks?" in text
    assert "no clip is known" in inspection.card(None, {"run": A[0]})

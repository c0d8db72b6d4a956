"""Causes: a file of notes that survives, guesses by rule, counts with intervals."""

import json

import pytest

from aqa_lib.predictions import Predictions, PredictionsError, read
from aqa_lib.results import causes


def row(name, reply, task="sound", prediction=None):
    prediction = reply if prediction is None else prediction
    return {
        "id": name, "task": task, "question": "What barks?", "choices": ["a dog", "rain", "wind"], "answer": "a dog",
        "model_output": reply, "prediction": prediction,
    }  # fmt: skip


ROWS = [
    row("right", "A dog."),
    row("misheard", "rain"),
    row("deaf", "wind", "music"),
    row("elsewhere", "barking", "music"),
    row("hedged", "<answer>a dog</answer><answer>rain</answer>", "music", prediction=""),
]
SILENT = [row("misheard", "wind"), row("deaf", "Wind."), row("elsewhere", "barking")]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_kinds():
    assert [causes.kind(row) for row in ROWS] == ["right", "wrong", "wrong", "wrong", "unreadable"]
    assert causes.kind(ROWS[0] | {"answer": ""}) == "withheld"
    wordy = row("wordy", "It is a dog, I think.")
    assert causes.kind(wordy, "official") == "right" and causes.kind(wordy, "strict") == "wrong"


def test_tags_survive_and_are_taken_back(path):
    assert causes.read_tags(path) == {} == causes.noted(path)
    causes.tag(path, "deaf", "misheard", "a «note», \ud83d\ude00")
    causes.tag(path, "hedged", note="only a note")
    causes.tag(path, "deaf", "ignored the audio", "again")
    assert causes.read_tags(path)["deaf"] == {"cause": "ignored the audio", "note": "again"}
    assert causes.noted(path) == {"deaf": "ignored the audio"}
    causes.tag(path, "hedged")
    assert list(causes.read_tags(path)) == ["deaf"]
    assert [file.name for file in path.parent.iterdir() if file.suffix == ".part"] == []
    assert len(read(path).rows) == len(ROWS)  # the predictions were not touched


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"a": {"cause": "mis', "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"a": {"cause": "misheard"}}', "'a' has no note"),
        ('{"a": {"cause": "bad luck", "note": ""}}', "its cause is none of misheard"),
        ('{"a": {"cause": ["misheard"], "note": ""}}', "its cause is none of misheard"),
    ],
)
def test_a_broken_file_of_tags_is_named_and_kept(path, content, told):
    causes.tags_path(path).write_text(content)
    for use in (causes.read_tags, lambda path: causes.tag(path, "deaf", "misheard")):
        with pytest.raises(PredictionsError, match=told) as refused:
            use(path)
        assert "run.jsonl.tags.json" in str(refused.value)
    assert causes.tags_path(path).read_text() == content


def test_what_cannot_be_noted_is_refused(path, tmp_path):
    with pytest.raises(ValueError, match="'bad luck' is unknown; choose misheard"):
        causes.tag(path, "deaf", "bad luck")
    with pytest.raises(PredictionsError, match="gone.jsonl.tags.json: cannot be written .No such file"):
        causes.tag(tmp_path / "nowhere" / "gone.jsonl", "deaf", "misheard")


def test_causes_are_guessed_by_rule():
    guesses = causes.suggest(Predictions("run", ROWS), Predictions("silent", SILENT))
    assert guesses == {
        "misheard": "misheard",
        "deaf": "ignored the audio",
        "elsewhere": "outside the choices",
        "hedged": "unreadable form",
    }
    assert causes.suggest(Predictions("run", ROWS))["deaf"] == "misheard"


def test_counts_are_shares_of_all_questions():
    counted = causes.count(Predictions("run", ROWS), {"deaf": "misheard", "hedged": "unreadable form"})
    assert list(counted) == ["all", "sound", "music"]
    assert {name: (rate.right, rate.n) for name, rate in counted["all"].items()} == {
        "misheard": (1, 5), "unreadable form": (1, 5), causes.UNTAGGED: (2, 5),
    }  # fmt: skip
    assert counted["sound"]["misheard"].right == 0 and counted["sound"][causes.UNTAGGED].right == 1


def test_the_plot_shows_shares_with_intervals(tmp_path):
    counted = causes.count(Predictions("run", ROWS), causes.suggest(Predictions("run", ROWS)))
    figure = causes.plot(counted, tmp_path / "causes.png")
    (axis,) = figure.axes
    assert "percent" in axis.get_xlabel()
    assert [label.get_text() for label in axis.get_yticklabels()] == list(counted["all"])
    low, high = axis.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert low == pytest.approx(11.8, abs=0.1) and high == pytest.approx(76.9, abs=0.1)  # Wilson, 2 of 5
    assert (tmp_path / "causes.png").stat().st_size > 5_000
    assert causes.plot({"all": {}}).axes  # a run without errors

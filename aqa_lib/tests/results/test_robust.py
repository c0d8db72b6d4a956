"""Correctness and consistency rates: against the formulas, from files, and in one command on the tiny model."""

import json
from itertools import combinations

import numpy as np
import pytest

from aqa_lib import prompt, scale
from aqa_lib.__main__ import main
from aqa_lib.dataset import Question
from aqa_lib.predictions import Predictions, PredictionsError, control_path
from aqa_lib.results import robust
from aqa_lib.runtime.errors import AqaError
from aqa_lib.tiny import synth

CHOICES = ["dog", "cat", "rain"]
SAID = np.array(
    [["dog", "dog", "Dog."], ["dog", "cat", "rain"], ["cat", "cat", "dog"], ["", "", "dog"]]
)  # (n, variants)


def runs():
    made = []
    for variant in range(SAID.shape[1]):
        rows = [
            {"id": str(i), "question": "?", "choices": CHOICES, "answer": "dog", "task": "", "prediction": said,
             "model_output": said, "index": i} for i, said in enumerate(SAID[:, variant])
        ]  # fmt: skip
        made.append(Predictions(f"v{variant}", rows, {"settings": {"weights": "w", "style": 2}, "labels": {}}))
    return made


def test_the_rates_are_the_paper_s(monkeypatch):
    some = robust.measure("order", runs())
    answers = np.vectorize(prompt.normalise)(SAID)
    right = answers == "dog"
    pairs = list(combinations(range(3), 2))
    consistency = np.mean([[answers[i, a] == answers[i, b] for a, b in pairs] for i in range(4)])
    assert some.correct[0] == pytest.approx(100 * right.mean()) and some.n == 4 and some.variants == 3
    assert some.consistent[0] == pytest.approx(100 * consistency)
    assert some.scores == pytest.approx(tuple(100 * right.mean(0))) and some.moves == pytest.approx(50.0)
    assert json.dumps(some.to_dict(), allow_nan=False)


def test_every_wording_asks_the_same_question():
    question = Question("1", None, "What barks?", ("a dog", "a cat"), "a dog")
    said = [prompt.text(question, 2, wording) for wording in range(len(prompt.REWORDED))]
    assert said[0] == prompt.text(question, 2) and len(set(said)) == 4
    assert all("What barks?" in text and "['a dog', 'a cat']" in text for text in said)
    assert all(text.endswith(prompt.SUFFIXES[2]) for text in said)
    with pytest.raises(AqaError, match="wording 4 is unknown"):
        prompt.text(question, 2, 4)


def test_one_command_asks_in_other_words_and_orders(tmp_path, capsys):
    synth.write(tmp_path, train=2, validation=2, test=9)
    command = ["evaluate", "--model", str(scale.get("tiny").model), "--questions", f"{tmp_path}/test.json"]
    command += ["--output", f"{tmp_path}/p.jsonl", "--robust", "1"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "| order of the choices | 2 times |" in said and "| words of the instruction | 2 times |" in said
    assert "| both | 3 times |" in said
    meta = json.loads((tmp_path / "p.wording-1.jsonl.meta.json").read_text())
    assert meta["settings"]["wording"] == 1
    assert "wording" not in json.loads((tmp_path / "p.jsonl.meta.json").read_text())["settings"]
    assert main(["score", f"{tmp_path}/p.jsonl", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["robust"]
    assert set(found) == {"order of the choices", "words of the instruction", "both"} and found["both"]["n"] == 9
    other = control_path(tmp_path / "p.jsonl", "wording-1")
    beside = other.with_name(other.name + ".meta.json")
    beside.write_text(json.dumps(meta | {"settings": meta["settings"] | {"weights": "others"}}))
    with pytest.raises(PredictionsError, match=r"is not a control of .*\(weights differ\)"):
        robust.beside(tmp_path / "p.jsonl")

"""Questions that a model answers without their sound: found, counted, left out, and asked only once."""

import json
from collections import Counter

import pytest

from aqa_lib import evaluation, predictions, scale
from aqa_lib.__main__ import main
from aqa_lib.dataset import read
from aqa_lib.runtime.errors import AqaError
from aqa_lib.tiny import synth
from aqa_lib.training import dependence

TINY = scale.get("tiny").model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dependence")
    synth.write(path, train=24, validation=2, test=2)
    return path


def test_what_the_tiny_model_answers_in_silence_is_left_out(folder, capsys, monkeypatch):
    command = ["prepare", f"{folder}/train.jsonl", f"{folder}/strong.jsonl", "--audio-dependent", str(TINY)]
    assert main([*command, "--wrong", "3"]) == 0
    said = capsys.readouterr().out
    asked, kept = read(folder / "train.jsonl"), {q.id for q in read(folder / "strong.jsonl", folder)}
    files = sorted(folder.glob("strong.jsonl.silent-1-?.jsonl"))
    assert len(files) == 3 and all(predictions.read_meta(file)["settings"]["audio"] == "silent" for file in files)
    right = Counter()
    for file in files:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert {row["id"] for row in rows} == {q.id for q in asked}
        right.update(row["id"] for row in rows if row["correct"])
    assert kept == {q.id for q in asked if not right[q.id]} and 0 < len(kept) < len(asked)
    assert f"{len(kept)} of 24 questions kept" in said
    assert f"dropped, answered without the sound: {24 - len(kept)}" in said
    assert "right in 1 of 3 tries on silence, and wanted wrong in 3" in said

    asked_again = []
    monkeypatch.setattr(evaluation, "_reply", lambda *args: asked_again.append(1))
    assert main(command) == 0 and not asked_again  # the tries are there already
    assert {q.id for q in read(folder / "strong.jsonl", folder)} == {q.id for q in asked if right[q.id] <= 1}


def test_several_models_are_asked_once_each_greedily(model, processor, questions, tmp_path):
    loads = [lambda: (model, processor)] * 2
    found = dependence.answered_unheard(
        loads, questions, tmp_path / "q", tries=1, without="text-only", max_completion_length=3, progress=False
    )
    assert found == {}  # an untrained model is never right
    for number in (1, 2):
        settings = predictions.read_meta(tmp_path / f"q.text-only-{number}-1.jsonl")["settings"]
        assert settings["audio"] == "none" and settings["decoding"] == "greedy"


@pytest.mark.parametrize(("tries", "wrong"), [(0, None), (3, 0), (3, 4)])
def test_numbers_that_mean_nothing_are_refused(tries, wrong):
    with pytest.raises(AqaError, match="give at least 1 try"):
        dependence.check(1, tries, wrong, "silent")


def test_options_of_tries_need_a_model(folder, capsys):
    assert main(["prepare", f"{folder}/train.jsonl", f"{folder}/out.jsonl", "--tries", "2"]) == 2
    assert "--tries goes with --audio-dependent MODEL" in capsys.readouterr().err

import importlib.util
import json
import os

import pytest

from aqa_lib import loss, scale
from aqa_lib.course import artifacts


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv(artifacts.VARIABLE, str(tmp_path))


def build(folder, size=1):
    (folder / "made").write_text("x" * size)


def test_builds_once_and_says_so_when_it_finds_it(capsys):
    first = artifacts.load_or_build("thing", build, size=2)
    assert (first / "made").read_text() == "xx" and "making it" in capsys.readouterr().out
    (first / "made").write_text("kept")
    assert artifacts.load_or_build("thing", build, size=2) == first
    assert (first / "made").read_text() == "kept" and "found" in capsys.readouterr().out


def test_other_settings_another_scale_and_fewer_steps_are_other_artifacts(monkeypatch):
    made = {artifacts.load_or_build("thing", build, size=size) for size in (1, 2)}
    monkeypatch.setenv(scale.SHORTER, "3")
    made.add(artifacts.load_or_build("thing", build, size=1))
    monkeypatch.setenv(scale.VARIABLE, "full")
    made.add(artifacts.load_or_build("thing", build, size=1))
    assert len(made) == 4


@pytest.mark.parametrize("which", ["train.jsonl", "test.json", "model/model.safetensors", "trained/model.safetensors"])
def test_a_replaced_question_file_or_model_makes_it_stale(tmp_path, monkeypatch, which):
    """Under the same name, of the same size."""
    for name in ("train.jsonl", "test.json", "model/model.safetensors", "trained/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one")
    made = scale.Scale("own", "here", str(tmp_path / "model"), tmp_path / "train.jsonl", tmp_path / "test.json")
    monkeypatch.setattr(scale, "get", lambda: made)

    def build(folder, path):
        (folder / "made").write_text((tmp_path / which).read_text())

    first = artifacts.load_or_build("thing", build, path=str(tmp_path / "trained"))
    assert artifacts.load_or_build("thing", build, path=str(tmp_path / "trained")) == first
    (tmp_path / which).write_text("two")
    os.utime(tmp_path / which, ns=(10**18, 10**18))
    assert (artifacts.load_or_build("thing", build, path=str(tmp_path / "trained")) / "made").read_text() == "two"


def test_resumes_what_was_interrupted(capsys):
    def half(folder):
        if not (folder / "first").exists():
            (folder / "first").write_text("done")
            raise KeyboardInterrupt
        (folder / "second").write_text("done")

    with pytest.raises(KeyboardInterrupt):
        artifacts.load_or_build("long", half)
    made = artifacts.load_or_build("long", half)
    assert {path.name for path in made.iterdir()} == {"first", "second", artifacts.RECORD}
    assert "resuming what was interrupted" in capsys.readouterr().out
    assert json.loads((made / artifacts.RECORD).read_text())["name"] == "long"


def test_the_code_is_a_module_and_what_it_imports():
    names = {path.stem for path in artifacts.imports(artifacts.PACKAGE / "logps.py")}
    assert {"logps", "model", "audio", "inputs"} <= names
    assert not {"plotting", "grpo", "show"} & names
    assert artifacts.code_version(loss.grpo_loss) != artifacts.code_version(scale.get)


def test_a_change_of_what_an_imported_module_does_makes_it_stale_and_a_comment_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "PACKAGE", tmp_path)
    (tmp_path / "b.py").write_text("VALUE = 1\n")
    (tmp_path / "a.py").write_text("from aqa_lib.b import VALUE\n\n\ndef make(folder):\n    return 0\n")
    spec = importlib.util.spec_from_file_location("a", tmp_path / "a.py")
    versions = []
    monkeypatch.setattr(importlib.import_module("inspect"), "getmodule", lambda function: function)
    for text in ("VALUE = 1\n", '"""Say why."""\n\nVALUE = 1  # one\n', "VALUE = 2\n"):
        (tmp_path / "b.py").write_text(text)
        artifacts.imports.cache_clear()
        versions.append(artifacts.code_version(type("Module", (), {"__file__": spec.origin})()))
    assert versions[0] == versions[1] != versions[2]

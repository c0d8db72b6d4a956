"""Where things are written: never among installed packages, not on a disk that is read only, and never half."""

import errno
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aqa_lib import evaluation, scale
from aqa_lib.__main__ import main
from aqa_lib.architectures import foreign
from aqa_lib.course import browser
from aqa_lib.runtime import files
from aqa_lib.runtime.errors import AqaError
from aqa_lib.runtime.files import FileError
from aqa_lib.tiny import synth

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(tmp_path):
    """Run a command of the package as a wheel installs it: no checkout around it, and a home of its own."""
    site, home = tmp_path / "site-packages", tmp_path / "home"
    shutil.copytree(ROOT / "aqa_lib", site / "aqa_lib", ignore=shutil.ignore_patterns("tests", "__pycache__"))
    home.mkdir()

    def run(*words, **environment):
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("AQA_", "XDG_"))}
        keep |= {"PYTHONPATH": str(site), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"} | environment
        made = subprocess.run([sys.executable, *words], cwd=home, env=keep, capture_output=True, text=True, timeout=120)
        return made.returncode, made.stdout + made.stderr

    return run


@pytest.mark.parametrize("command", [("demo",), ("train",), ("study",)])
def test_an_installed_package_says_what_is_missing_and_writes_nothing_beside_itself(installed, tmp_path, command):
    before = {path for path in (tmp_path / "site-packages").rglob("*")}
    code, said = installed("-m", "aqa_lib", *command)
    assert code == 2, said
    assert "the tiny model is part of the repository and not of the installed package; clone the repository" in said
    assert "Traceback" not in said and {path for path in (tmp_path / "site-packages").rglob("*")} == before


def test_an_installed_package_keeps_its_artifacts_in_the_users_cache(installed, tmp_path):
    places = "from aqa_lib import scale; print(scale.artifacts(), scale.TINY, scale.get('full').train)"
    cache = tmp_path / "home" / ".cache" / "aqa_lib"
    assert installed("-c", places) == (0, f"{cache} {cache}/tiny data/avqa/train.jsonl\n")
    assert installed("-c", places, AQA_ARTIFACTS="/mine")[1].startswith("/mine /mine/tiny ")


def test_a_checkout_that_is_read_only_honours_the_variable(tmp_path, monkeypatch):
    (tmp_path / "artifacts" / "tiny").mkdir(parents=True)
    (tmp_path / "artifacts" / "tiny" / "fingerprint.json").write_text("{}")
    monkeypatch.setattr(scale, "ROOT", tmp_path)
    monkeypatch.setattr(scale, "CHECKOUT", True)
    monkeypatch.delenv(scale.ARTIFACTS, raising=False)
    assert scale.tiny() == tmp_path / "artifacts" / "tiny"
    monkeypatch.setenv(scale.ARTIFACTS, "/mine")
    assert (scale.artifacts(), scale.tiny()) == (Path("/mine"), tmp_path / "artifacts" / "tiny")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert (scale.artifacts(), scale.tiny()) == (Path("/mine"), Path("/mine/tiny"))
    monkeypatch.delenv(scale.ARTIFACTS)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert (scale.artifacts(), scale.tiny()) == (Path("/cache/aqa_lib"), Path("/cache/aqa_lib/tiny"))


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), soundfile.LibsndfileError(0, "Error : flush failed. ")],
)
def test_a_full_disk_in_the_middle_of_the_tiny_world_leaves_no_parts(tmp_path, monkeypatch, error):
    synth.write(tmp_path / "tiny", train=3, validation=3, test=3)
    before = {path: path.read_bytes() for path in (tmp_path / "tiny").rglob("*") if path.is_file()}
    calls, real = [], soundfile.write

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) > 4:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(soundfile, "write", full)
    with pytest.raises(FileError, match=r"tiny: the tiny world's clips cannot be written \(.*make room, or set"):
        synth.write(tmp_path / "tiny", train=6, validation=3, test=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tiny.lock", "tiny"]
    assert {path: path.read_bytes() for path in before} == before  # what was there is kept
    assert not re.search("\n", str(error).strip())


def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs takes Linux and its superuser")
    try:
        with pytest.raises(FileError, match="cannot be written .the disk is full"):
            synth.write(disk / "tiny", train=60, validation=3, test=3)
        assert [path.name for path in disk.iterdir()] == [".tiny.lock"]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


UMLAUTS = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # nothing but ASCII


def test_an_ascii_locale_reads_and_writes_paths_of_umlauts(tmp_path):
    code = """
import sys
from pathlib import Path
from aqa_lib import audio, dataset, prepare
from aqa_lib.__main__ import main
from aqa_lib.tiny import synth
folder = Path(sys.argv[1])
synth.write(folder, train=2, validation=1, test=1)
report = prepare.prepare(folder / "train.jsonl", folder / sys.argv[2], flac=True, progress=False)
clip = dataset.read(folder / sys.argv[2])[0].audio
print(audio.load(clip).seconds > 0, audio.length(clip) > 0)
print(main(["score", str(folder / "nothing")]))
"""
    words = [sys.executable, "-c", code, str(tmp_path / "Ger\xe4usche"), "clean.jsonl"]
    environment = os.environ | UMLAUTS | {"PYTHONPATH": str(ROOT)}
    made = subprocess.run(words, env=environment, capture_output=True, timeout=120)
    assert made.stdout.split() == [b"True", b"True", b"2"], made.stderr
    assert b"Traceback" not in made.stderr and b"Ger" in made.stderr


def test_what_a_locale_cannot_write_is_printed_as_an_escape(capsys, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(foreign, "refuse_missing", lambda name: None)
    assert main(["evaluate", "--questions", "V\xf6gel.json", "--model", "no"]) == 2
    print("V\xf6gel", file=stream)
    assert stream.buffer.getvalue().endswith(b"V\\xf6gel\n")


def test_without_docstrings_transformers_is_named(tmp_path, monkeypatch, capsys):
    """Its modules raise a ValueError on import; what needs none of them works."""

    def fails(args):
        raise ValueError("No `Args` or `Parameters` section is found in the docstring of `BaseModelOutput`.")

    monkeypatch.setattr("aqa_lib.cli.plan.run", fails)
    with pytest.raises(ValueError, match="No `Args`"):
        main(["plan"])
    monkeypatch.setattr("aqa_lib.__main__.WITHOUT_DOCSTRINGS", True)
    assert main(["plan"]) == 2
    assert "error: transformers does not work without docstrings: unset PYTHONOPTIMIZE" in capsys.readouterr().err
    environment = os.environ | {"PYTHONOPTIMIZE": "2", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-m", "aqa_lib", "score", "nowhere.jsonl"]
    made = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert made.returncode == 2 and "nowhere.jsonl cannot be read" in made.stderr


def test_the_commit_of_another_users_checkout_is_recorded(monkeypatch):
    """Git refuses to say anything about a folder that belongs to another user ("dubious ownership")."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    if not commit:
        pytest.skip("this is no checkout")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    if subprocess.run(git, capture_output=True).returncode == 0:
        pytest.skip("this git, or its settings, trusts every folder")
    made = files.environment.__wrapped__()
    assert made["commit"] == commit and made["dirty"] in (True, False)


def test_what_only_computes_needs_no_ipywidgets(monkeypatch):
    for path in (ROOT / "aqa_lib" / "course").glob("*.py"):
        assert path.name == "widgets.py" or "import ipywidgets" not in path.read_text("utf-8"), path
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(AqaError, match="what can be clicked needs ipywidgets: pip install ipywidgets"):
        browser.choose("order", ["a", "b"])


class Float64(TorchDispatchMode):
    """Note every operation that makes a tensor of float64, which Apple's GPUs do not have."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
            self.found.append(str(function))
        return made


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_nothing_is_computed_in_float64(train, model, processor, questions, beta):
    with Float64() as used:
        train(max_steps=1, beta=beta)
        evaluation.predict(model, processor, questions, max_completion_length=2, progress=False)
        odds = evaluation.choice_probabilities(model, processor, questions[0])
    assert sum(odds.values()) == pytest.approx(1, abs=1e-12)
    assert not used.found

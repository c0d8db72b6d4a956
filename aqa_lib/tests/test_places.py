"""Where things are written: never among installed packages, not on a disk that is read only, and never half."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from aqa_lib import scale
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

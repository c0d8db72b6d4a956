"""Two processes, one place: one waits or is refused in a sentence, and a kill leaves nothing locked."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch

from aqa_lib import prepare
from aqa_lib.__main__ import main
from aqa_lib.course import artifacts
from aqa_lib.results import causes
from aqa_lib.runtime import locks
from aqa_lib.runtime.locks import LockError
from aqa_lib.tiny import synth

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(locks.fcntl is None, reason="this system has no flock")
HOLD = """
import sys, time
from aqa_lib.runtime import locks
with locks.hold(sys.argv[1], "the place", shared=len(sys.argv) > 2):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other():
    """Start another process that holds a lock until it is killed."""
    started = []

    def hold(path, *shared):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", HOLD, str(path), *shared]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.wait()


def test_the_second_is_refused_by_name_and_a_kill_releases(tmp_path, other):
    process = other(tmp_path / "lock")
    with pytest.raises(LockError, match=rf"^the place is in use by process {process.pid} on .*; wait for"):
        with locks.hold(tmp_path / "lock", "the place"):
            pytest.fail("both hold it")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locks.hold(tmp_path / "lock", "the place"):
        pass


def test_who_waits_gets_it_when_the_other_is_killed(tmp_path, other):
    process = other(tmp_path / "lock")
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {process.pid}"])
    with locks.hold(tmp_path / "lock", "the place", wait=math.inf):
        assert process.wait(10) == -signal.SIGKILL


def test_readers_share_and_keep_a_writer_out(tmp_path, other):
    other(tmp_path / "lock", "shared")
    with locks.hold(tmp_path / "lock", "it", shared=True):
        pass
    with pytest.raises(LockError), locks.hold(tmp_path / "lock", "it"):
        pass


def test_a_disk_without_locks_is_told_and_does_not_stop_the_work(tmp_path, monkeypatch, caplog):
    def flock(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with locks.hold(tmp_path / "lock", "runs/a"):
        pass
    monkeypatch.setattr(locks, "fcntl", None)  # Windows
    with locks.hold(tmp_path / "lock", "runs/b"):
        pass
    told = [record.getMessage() for record in caplog.records]
    assert "runs/a: this disk has no locks" in told[0] and "runs/b: locks do not work here" in told[1]


def test_two_trainings_do_not_share_a_folder(train, tmp_path, other):
    other(tmp_path / ".lock")
    with pytest.raises(LockError, match="is in use by process"):
        train(max_steps=1)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_an_artifact_is_made_once(tmp_path, monkeypatch):
    """Two kernels run the same cell at the same time."""
    made = tmp_path / "made"
    pids = []
    monkeypatch.setenv(artifacts.VARIABLE, str(tmp_path / "artifacts"))
    monkeypatch.setattr(artifacts, "inputs", lambda settings: {})

    def build(folder):
        with open(made, "a") as file:
            file.write("once\n")
        time.sleep(0.5)
        (folder / "file").write_text("whole")

    for _ in range(3):
        if not (pid := os.fork()):
            try:
                code = (artifacts.load_or_build("thing", build) / "file").read_text() != "whole"
            except BaseException:
                code = 2
            os._exit(code)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    assert made.read_text() == "once\n"


def test_no_note_is_lost(tmp_path):
    path, pids = tmp_path / "run.jsonl", []
    for process in range(4):
        if not (pid := os.fork()):
            try:
                for number in range(25):
                    causes.tag(path, f"{process}-{number}", "misheard", "heard twice")
            except BaseException:
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
    assert len(causes.read_tags(path)) == 100


def test_nobody_trains_on_what_prepare_writes_nor_the_other_way(tmp_path, other, capsys):
    soundfile.write(tmp_path / "a.wav", torch.randn(16_000).numpy() / 5, 16_000)
    row = {"id": 1, "audio": "a.wav", "question": "What?", "choices": ["a", "b"], "answer": "a"}
    (tmp_path / "raw.jsonl").write_text(json.dumps(row) + "\n")
    clean = tmp_path / "clean.jsonl"
    prepare.prepare(tmp_path / "raw.jsonl", clean, progress=False)
    process = other(locks.beside(clean))
    assert main(["train", "--train", str(clean), "--output_dir", str(tmp_path / "run")]) == 2
    assert f"clean.jsonl is in use by process {process.pid}" in capsys.readouterr().err
    process.kill()
    process.wait()
    other(locks.beside(clean), "shared")  # a training
    before = clean.read_bytes()
    with pytest.raises(LockError, match="clean.jsonl is in use by process"):
        prepare.prepare(tmp_path / "raw.jsonl", clean, progress=False)
    assert clean.read_bytes() == before


def test_the_tiny_world_is_made_once_and_leaves_no_parts(tmp_path):
    (tmp_path / ".tiny.123").mkdir()  # of a process that was killed
    pids = []
    for _ in range(2):
        if not (pid := os.fork()):
            try:
                synth.write(tmp_path / "tiny", train=3, validation=3, test=3)
            except BaseException:
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tiny.lock", "tiny"]

"""Run jobs of `python -m aqa_lib` that are killed at a given place: the libraries are imported once, a job is a fork.

Each line of input is a JSON object: arguments, and where to be killed: `place` and `count`, just before the count-th
call of what the place names. Each line of output is the exit code, -9 for a job that was killed.
"""

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import accelerate
import torch

from aqa_lib import rollout
from aqa_lib.__main__ import main
from aqa_lib.runtime import files


def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def killing(holder, name: str, count: int, last=kill) -> None:
    """Let the count-th call of a function be the last."""
    original, calls = getattr(holder, name), iter(range(1, 1_000_000))

    def counted(*args, **kwargs):
        if next(calls) == count:
            last(original, *args, **kwargs)
        return original(*args, **kwargs)

    setattr(holder, name, counted)


def half_written(original, thing, path, *args, **kwargs):
    original(thing, path, *args, **kwargs)
    os.truncate(path, os.path.getsize(path) // 2)
    kill()


def half_a_line(original, file, row):
    line = files.as_line(row).encode()
    file.write(line[: len(line) // 2])
    kill()


def within(original, self, loss, **kwargs):
    loss.register_hook(kill)  # called as the gradient comes by


def interrupted(*_, **__):
    signal.raise_signal(signal.SIGINT)


PLACES = {
    "rollout": (rollout, "draw"),
    "backward": (accelerate.Accelerator, "backward", within),
    "half a file": (torch, "save", half_written),
    "on the way to the disk": (os, "fsync"),
    "renaming": (Path, "rename"),
    "pruning": (shutil, "rmtree"),
    "replacing a file": (os, "replace"),
    "half a line": (files, "append", half_a_line),
    "Ctrl-C": (rollout, "draw", interrupted),
    "Ctrl-C before a line": (files, "append", interrupted),
}


def run(job: dict) -> int:
    """Run a job in a fork and return its exit code."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.dup2(2, 1)  # what it prints is not an exit code
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a script's background
    if job.get("place") == "any moment":
        threading.Timer(job["count"], kill).start()
    elif job.get("place"):
        holder, name, *last = PLACES[job["place"]]
        killing(holder, name, job["count"], *last)
    os._exit(main(job["arguments"]))


if __name__ == "__main__":
    for line in sys.stdin:
        print(run(json.loads(line)), flush=True)

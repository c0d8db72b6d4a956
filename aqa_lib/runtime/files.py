"""Write files that survive a kill, hash what they hold, and record what software made them.

It knows nothing of audio, models or torch, so anything may use it: predictions and checkpoints, the tables and the
course.
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__
from .errors import AqaError

PACKAGES = (  # that a result may depend on
    *("torch", "transformers", "tokenizers", "trl", "peft", "accelerate"),
    *("numpy", "librosa", "soxr", "soundfile"),
)


# Of another user's checkout, too, whose code is running in any case; but nothing that its settings name is run.
GIT = ("git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false")


class FileError(AqaError):
    """A file that cannot be written; the message names the file, the reason and the remedy."""


def write_whole(path: str | Path, text: str) -> None:
    """Write a file atomically: a kill leaves the old one or the new one, never half of it."""
    half = Path(f"{path}.part")
    with open(half, "w", encoding="utf-8", newline="\n", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, path)


def append(file, row: dict) -> None:
    """Write one row to an unbuffered binary file, so that a later kill cannot lose it.

    Raises FileError if the disk is full.
    """
    line = as_line(row).encode()
    try:
        while line:
            line = line[file.write(line) :]
    except OSError as error:
        raise FileError(
            f"{file.name}: cannot be written ({error.strerror}); its rows so far are safe: make room, then run it "
            "again."
        ) from error


def as_line(row: dict) -> str:
    """Format a row as a line of JSON; half of a surrogate pair, which UTF-8 cannot hold, becomes an escape."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace").decode() + "\n"


def c_name(path: str | Path) -> str | bytes:
    """Return a file's name as a C library takes it: in bytes, which no locale can fail to encode."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def sha256(path: str | Path) -> str:
    """Hash a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(rows: Iterable[Mapping]) -> str:
    """Hash the questions of some rows (`id, question, choices, answer`), whatever the order of rows and choices.

    Two files of predictions can be compared if their fingerprints are equal.

    >>> row = {"id": "1", "question": "What?", "choices": ["a", "b"], "answer": "a"}
    >>> fingerprint([row]) == fingerprint([row | {"choices": ["b", "a"], "model_output": "a"}])
    True
    """

    def fold(text: str) -> str:  # readers may tidy white space
        return " ".join(text.split())

    def key(row: Mapping) -> str:
        choices = sorted(map(fold, row["choices"]))
        return json.dumps([str(row["id"]), fold(row["question"]), choices, fold(row["answer"])])

    return hashlib.sha256("\n".join(sorted(map(key, rows))).encode()).hexdigest()


def now() -> str:
    """Return the current UTC time in ISO format, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache  # what counts is the code as it was loaded
def environment() -> dict:
    """Record what ran: package versions, Python, and the commit of this package (`dirty`: with local changes)."""
    versions: dict[str, str | None] = {"aqa_lib": __version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    here = Path(__file__)

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run([*GIT, "-C", here.parent, *words], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    ours = git("ls-files", here.name)  # empty if the package lies inside somebody else's repository
    commit = git("rev-parse", "HEAD") if ours else None
    dirty = bool(git("status", "--porcelain", "--untracked-files=no")) if commit else None
    return {"python": platform.python_version(), **versions, "commit": commit, "dirty": dirty}

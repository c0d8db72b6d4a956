"""Keep two processes from writing to one place: a lock that a kill releases, and a sentence that names its holder.

`[locks] -> training, artifacts, notes, prepare`. The lock is the kernel's (`flock` on a file that stays where it is,
with the last holder's name in it): a process that dies, however it dies, no longer holds it, and there is nothing to
clean up. Where a system or a network disk has no such locks, work continues after one sentence that says so.
"""

import errno
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import AqaError
from .files import now

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# What a system answers that cannot lock here (a network disk without locks), as against one whose lock is taken.
UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
logger = logging.getLogger(__name__)


class LockError(AqaError):
    """A place that another process writes to; the message names the place, the process and what to do."""


@contextmanager
def hold(path: str | Path, what: str, wait: float = 0.0, shared: bool = False) -> Iterator[None]:
    """Hold a lock file while the block runs.

    path: the lock's own file, which is made. what: what is locked, for a reader ("runs/grpo"). wait: seconds to wait
    for another process (math.inf: as long as it takes). shared: let others hold it too that also only read. Raises
    LockError, which names the process that holds it.
    """
    file = _open(Path(path))
    if file is None:
        logger.warning("%s: locks do not work here; let no second process write to it.", what)
        yield
        return
    with file:
        told, start = False, time.monotonic()
        while not _take(file, what, shared):
            if time.monotonic() - start >= wait:
                raise LockError(f"{what} is in use by {_holder(file)}; wait for it, or choose another place.")
            if not told:
                logger.warning("%s is in use by %s; waiting for it.", what, _holder(file))
                told = True
            time.sleep(0.1)
        _sign(file)
        yield  # closing the file releases the lock


@contextmanager
def reading(*paths: str | Path | None) -> Iterator[None]:
    """Keep `prepare` from writing to files while the block runs; raises LockError where it is at work on one.

    Only files that `prepare` made have a lock, so that nothing is written beside anybody else's.
    """
    with ExitStack() as held:
        for path in filter(None, paths):
            lock = beside(path)
            if lock.exists() and os.access(lock, os.W_OK):
                held.enter_context(hold(lock, str(path), shared=True))
        yield


def beside(path: str | Path) -> Path:
    """Name the lock of a file.

    >>> beside("data/train.jsonl").name
    '.train.jsonl.lock'
    """
    return Path(path).with_name(f".{Path(path).name}.lock")


def _open(path: Path):
    """Open a lock's file for reading and writing; None where this system has no locks."""
    if fcntl is None:
        return None
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8")


def _take(file, what: str, shared: bool) -> bool:
    """Take the lock if it is free; also where the disk has none, with a warning."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in UNKNOWN:
            return False
        logger.warning("%s: this disk has no locks (%s); let no second process write to it.", what, error.strerror)
    return True


def _sign(file) -> None:
    """Write who holds the lock, for others to read; a full disk keeps nobody from working."""
    try:
        file.seek(0)
        file.truncate()
        words = " ".join(sys.argv)[:200]
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": now(), "command": words}, file)
        file.flush()
    except OSError:
        pass


def _holder(file) -> str:
    """Name the process that holds a lock, as it signed."""
    try:
        file.seek(0)
        signed = json.load(file)
        return f"process {signed['pid']} on {signed['host']}, since {signed['since']} ({signed['command']!r})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

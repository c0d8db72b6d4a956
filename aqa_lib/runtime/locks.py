"""Keep two processes from writing to the same place: a lock that a kill releases, and an error that names its holder.

`[locks] -> training, artifacts, notes, prepare`. The lock is the kernel's (`flock` on a file that stays in place and
records its last holder): a process that dies, however it dies, no longer holds it, and there is nothing to clean up.
On a system or a network disk without such locks, work continues after a warning.
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

# What a system answers if it cannot lock here (a network disk without locks), rather than finding the lock taken.
UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
logger = logging.getLogger(__name__)


class LockError(AqaError):
    """A place that another process is writing to; the message names the place, the process and what to do."""


@contextmanager
def hold(path: str | Path, what: str, wait: float = 0.0, shared: bool = False) -> Iterator[None]:
    """Hold a lock file while the block runs.

    path: the lock's own file, created if necessary. what: what is locked, for messages ("runs/grpo"). wait: seconds to
    wait for another process (math.inf: as long as it takes). shared: let other readers hold it too. Raises LockError,
    which names the process that holds it.
    """
    file = _open(Path(path))
    if file is None:
        logger.warning("%s: locks do not work here; make sure that no other process writes to it.", what)
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
    """Keep `prepare` from writing to files while the block runs; raises LockError if it is already writing to one.

    Only files that `prepare` made have a lock, so nothing is written next to anybody else's.
    """
    with ExitStack() as held:
        for path in filter(None, paths):
            lock = beside(path)
            if lock.exists() and os.access(lock, os.W_OK):
                held.enter_context(hold(lock, str(path), shared=True))
        yield


def beside(path: str | Path) -> Path:
    """Return the path of a file's lock.

    >>> beside("data/train.jsonl").name
    '.train.jsonl.lock'
    """
    return Path(path).with_name(f".{Path(path).name}.lock")


def _open(path: Path):
    """Open a lock's file for reading and writing; None if this system has no locks."""
    if fcntl is None:
        return None
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8")


def _take(file, what: str, shared: bool) -> bool:
    """Take the lock if it is free; on a disk without locks it counts as free, with a warning."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in UNKNOWN:
            return False
        logger.warning("%s: this disk has no locks (%s); make sure nobody else writes to it.", what, error.strerror)
    return True


def _sign(file) -> None:
    """Write down who holds the lock, for others to read; a full disk must not stop the work."""
    try:
        file.seek(0)
        file.truncate()
        words = " ".join(sys.argv)[:200]
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": now(), "command": words}, file)
        file.flush()
    except OSError:
        pass


def _holder(file) -> str:
    """Name the process that holds a lock, as it signed itself."""
    try:
        file.seek(0)
        signed = json.load(file)
        return f"process {signed['pid']} on {signed['host']}, since {signed['since']} ({signed['command']!r})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

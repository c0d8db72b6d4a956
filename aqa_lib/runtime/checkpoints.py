"""Write checkpoints that survive a kill: each is whole, absent, or recognized as damaged.

`[checkpoints] -> training`. transformers' Trainer writes into `checkpoint-N` file by file, prunes, and resumes from the
highest N, whole or not. Here a checkpoint is first written to a temporary folder, with a list of its files, their sizes
and sha256; it is flushed to disk and only then renamed to `checkpoint-N`. Older ones are pruned after that, and one
that does not match its list is reported and skipped.
"""

import errno
import json
import logging
import os
import re
import shutil
import time
from pathlib import Path

from .errors import AqaError
from .files import sha256

ASIDE = ".saving"  # where a checkpoint is first written, inside the run's folder
GONE = ".pruned"  # where a checkpoint is moved to be deleted, so that no half-deleted one keeps its name
LIST = "files.json"  # when a checkpoint was saved, and the size and sha256 of each file

NAME = re.compile(r"checkpoint-(\d+)")
FINISHED = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "trainer_state.json")

logger = logging.getLogger(__name__)


class CheckpointError(AqaError):
    """A checkpoint that cannot be written or used; the message says which, why, and what is left."""


def seal(folder: Path) -> None:
    """Write a list of a folder's files into it, and flush everything to disk."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / LIST]
    listed = {path.relative_to(folder).as_posix(): [path.stat().st_size, sha256(path)] for path in files}
    (folder / LIST).write_text(json.dumps({"saved": time.time(), "files": listed}, indent=1), encoding="utf-8")
    for path in (*files, folder / LIST, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        _to_disk(path)


def put(folder: Path, run: Path) -> None:
    """Move a sealed folder into the run's folder, replacing one of the same name."""
    old = run / folder.name
    if old.exists():
        _remove(old)
    folder.rename(old)
    _to_disk(run)


def prune(run: Path, limit: int | None, best: str | None, newest: str | None = None) -> None:
    """Delete the oldest checkpoints until `limit` are left; the newest and the best always stay.

    newest: the one just saved; later ones, which were damaged and skipped, are neither counted nor touched.
    """
    found = [path for path in in_order(run) if newest is None or step_of(path) <= step_of(Path(newest))]
    kept = {path for path in found if best and path.name == Path(best).name} | set(found[-1:])
    spare = [path for path in found if path not in kept]
    for path in spare[: max(0, len(found) - max(limit or len(found), len(kept)))]:
        _remove(path)
    shutil.rmtree(run / GONE, ignore_errors=True)  # left by an earlier run that was killed at this point


def in_order(run: Path) -> list[Path]:
    """List a run's checkpoints by step, not by time: clocks get set back. `checkpoint-4-keep` is the user's own."""
    found = [path for path in Path(run).glob("checkpoint-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was saved.

    >>> step_of(Path("runs/grpo/checkpoint-150"))
    150
    """
    found = NAME.fullmatch(Path(checkpoint).name)
    if not found:
        raise CheckpointError(f"{checkpoint} is not named checkpoint-N; give a checkpoint's folder.")
    return int(found[1])


def refuse_other_run(run: Path, checkpoint: Path | None) -> None:
    """Raise CheckpointError if training would overwrite another run, or later checkpoints of its own.

    checkpoint: what it resumes from; None if it starts from scratch.
    """
    run, found = Path(run), in_order(Path(run))
    if checkpoint is not None and Path(checkpoint).resolve().parent == run.resolve():
        later = [path for path in found if step_of(path) > step_of(checkpoint) and not fault(path)]
        if later:
            raise CheckpointError(
                f"{later[-1]} is later than {Path(checkpoint).name} and would be overwritten: resume from it, or move "
                "it away."
            )
        return
    there = [path.name for path in found[-1:]] or [name for name in FINISHED if (run / name).exists()]
    if there:
        raise CheckpointError(
            f"{run} holds another run ({there[0]}), which would be overwritten: resume it with --resume "
            "(train(resume_from_checkpoint=True)), or choose another output_dir."
        )


def fault(folder: str | Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if all its files are as they were written."""
    folder = Path(folder)
    if not folder.is_dir():
        return "is not a folder"
    files = _list(folder).get("files")
    if not files:
        return f"has no readable {LIST}, so saving it never finished"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"is missing {name}"
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} bytes of {name} where {size} were written"
        if sha256(path) != digest:
            return f"holds a {name} that differs from the one written"
    return None


def last_whole(run: str | Path) -> Path | None:
    """Find the checkpoint to resume from; None if there are no checkpoints at all.

    Damaged ones are named in a warning and skipped. Raises CheckpointError if all are damaged.
    """
    found = in_order(Path(run))
    for path in reversed(found):
        if not (reason := fault(path)):
            return path
        logger.warning("%s %s; skipped.", path, reason)
    if found:
        raise CheckpointError(f"{run}: none of its {len(found)} checkpoints is whole; delete them to start over.")
    return None


def not_saved(run: Path, name: str, error: Exception) -> CheckpointError:
    """Return an error that says why a checkpoint could not be written, and remove the half that was."""
    # on a full disk torch merely reports an unexpected position
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error) or _no_space(run)
    shutil.rmtree(run / ASIDE, ignore_errors=True)
    reason = "the disk is full" if full else (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    left = in_order(run)
    safe = f"{left[-1].name} and all before it are safe" if left else "there is no earlier one"
    return CheckpointError(f"{run / name} could not be saved ({reason}); {safe}: make room, then resume.")


def _no_space(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < 2**20
    except OSError:
        return False


def _list(folder: Path) -> dict:
    try:
        found = json.loads((folder / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remove(path: Path) -> None:
    gone = path.parent / GONE
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _to_disk(path: Path) -> None:
    if path.is_dir() and os.name != "posix":  # other systems cannot open a folder, and need not
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)

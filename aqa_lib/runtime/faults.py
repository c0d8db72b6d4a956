"""Stop a run with one sentence: what happened, what is kept, and how to resume.

`[faults] -> evaluation, training`. What a long run meets and a short one does not: Ctrl-C, a folder that cannot be
written to, a loss that is not finite, a full GPU, a DataLoader worker that dies or hangs.
"""

import json
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .errors import AqaError

PATIENCE = 600.0  # seconds that one clip may take to decode before its worker counts as hung


class RunError(AqaError):
    """A run that had to stop; the message says why, what is kept, and how to resume."""


def check_writable(folder: str | Path) -> None:
    """Raise RunError unless files can be written to a folder, which is created if necessary."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in its name
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{folder} cannot be written to ({reason}); choose another folder.") from error


@contextmanager
def memory_advice(advice: Callable[[], str]) -> Iterator[None]:
    """Turn a full GPU's traceback into RunError: how much was missing, and what to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        tried = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
        free = re.search(r"of which ([\d.]+ \w+) is free", str(error))
        missing = f" ({tried[1]} requested{f', {free[1]} free' if free else ''})" if tried else ""
        raise RunError(f"the GPU's memory is full{missing}; {advice()}.") from error


@contextmanager
def worker_advice(resume: str) -> Iterator[None]:
    """Turn a DataLoader's error about a worker into one sentence; a bad clip's own sentence is kept."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        said = str(error)
        if "in DataLoader worker" in said:  # a traceback as text; its last line is the worker's own error
            raise RunError(said.strip().splitlines()[-1].partition(": ")[2]) from error
        if "DataLoader worker" in said or "DataLoader timed out" in said:
            reason = said.splitlines()[0].rstrip(". ")
            raise RunError(
                f"a worker that prepares clips died or hung ({reason}); {resume}; if it happens again, set "
                "dataloader_num_workers to 0, which names the clip."
            ) from error
        raise


STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def interruptible(on_first: Callable[[], None]) -> Iterator[None]:
    """Call `on_first` on the first Ctrl-C instead of raising; a second one interrupts as usual.

    The same goes for the system's request to end (SIGTERM, sent before a machine is preempted) and for a closed
    terminal (SIGHUP). Only the main thread receives signals, so elsewhere this does nothing; nor does it touch a signal
    that is ignored, as Ctrl-C is in a shell script's background and SIGHUP under nohup.
    """
    before = {number: signal.getsignal(number) for number in STOPS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def first(number, frame):
        restore()
        on_first()

    for number in before:
        signal.signal(number, first)
    try:
        yield
    finally:
        restore()


def not_finite(model: torch.nn.Module) -> str | None:
    """Name the first weight that holds NaN or infinity; None if all are finite."""
    for name, weight in model.named_parameters():
        weight = weight.to_local() if hasattr(weight, "to_local") else weight  # this rank's part of a sharded one
        # a NaN takes over the minimum and maximum, which need no memory besides the weights
        if (
            weight.is_floating_point()
            and weight.numel()
            and not torch.stack(weight.detach().aminmax()).isfinite().all()
        ):
            return name
    return None


def refuse_dead_weights(model: torch.nn.Module, step: int) -> None:
    """Raise RunError if a model that is about to be saved holds NaN or infinity."""
    if name := not_finite(model):
        raise RunError(
            f"step {step}: the weights are NaN or infinite ({name} first), so they were not saved; earlier checkpoints "
            "are kept: start over with a lower learning rate."
        )


def refuse(value: float, what: str, step: int, batches: list[dict], folder: str | Path) -> None:
    """Raise RunError if a loss or a gradient is not finite, after dumping the step's batches to a readable file.

    batches: one dict per question, with its "id". Call it before the optimizer step.
    """
    if torch.isfinite(torch.as_tensor(value)):
        return
    path = Path(folder) / f"bad_batch_{step}.json"
    found = {"step": step, what: str(float(value)), "questions": batches}
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False, default=str), encoding="utf-8")
    names = ", ".join(str(row["id"]) for row in batches[:4]) + (", ..." if len(batches) > 4 else "")
    raise RunError(
        f"step {step}: the {what} is {float(value)}, so the run stopped before it reached the weights; the batch "
        f"({names}) is in {path}: inspect it, then start over with a lower learning rate or without the question that "
        "caused it."
    )

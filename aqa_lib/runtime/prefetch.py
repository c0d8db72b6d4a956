"""Prepare batches in threads while earlier ones are used, and notice an item that never becomes ready.

It knows nothing of audio or models; `evaluation` decodes clips with it.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread

from .faults import PATIENCE, RunError

AHEAD = 2  # batches that are prepared while another is used


def prefetch(
    batches: Sequence[Sequence[int]], work: Callable, ahead: int = AHEAD, patience: float = PATIENCE
) -> Iterator[list]:
    """Yield `[work(i) for i in batch]` for each batch, computed in threads while earlier batches are used.

    Raises RunError if one is not done after `patience` seconds of waiting. The threads are daemons, unlike an
    executor's: one that hangs must not keep the program from exiting.
    """
    jobs: SimpleQueue = SimpleQueue()
    waiting: deque[list[tuple[int, Future]]] = deque()
    threads = [Thread(target=_work_off, args=(jobs, work), daemon=True) for _ in range(min(8, os.cpu_count() or 1))]
    for thread in threads:
        thread.start()

    try:
        for batch in batches:
            waiting.append([(i, Future()) for i in batch])
            for job in waiting[-1]:
                jobs.put(job)
            if len(waiting) > ahead:
                yield _results(waiting.popleft(), patience)
        while waiting:
            yield _results(waiting.popleft(), patience)
    finally:
        for batch in waiting:
            for _, future in batch:
                future.cancel()
        for _ in threads:
            jobs.put(None)


def _results(batch: list[tuple[int, Future]], patience: float) -> list:
    made = []
    for i, future in batch:
        try:
            made.append(future.result(patience))
        except TimeoutError as error:
            raise RunError(
                f"clip {i + 1} was not ready after {patience:g} s of waiting: its decoding hangs; check the file, "
                "then run again, which resumes where this run stopped."
            ) from error
    return made


def _work_off(jobs: SimpleQueue, work: Callable) -> None:
    while (job := jobs.get()) is not None:
        i, future = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(i))
            except BaseException as error:  # whatever it is, it is raised again where the result is wanted
                future.set_exception(error)

"""Run in several processes, one per GPU: `torchrun --nproc_per_node 8 -m aqa_lib train` (or evaluate, or sft).

Each process holds the model and takes its share of a step's questions; gradients are averaged once per step.
`DistributedDataParallel` is not used: it expects every pass to go through the model's own `forward`, equally often on
every rank, and neither holds here. Outside torchrun there is a single process, and all of this does nothing.

Under FSDP (`large/fsdp.py`) a layer's weights are gathered from all ranks whenever one computes with it. Every rank
must therefore run the same number of forward passes: `lockstep` gives a rank with fewer a dummy pass with weight 0.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from . import locks


def start() -> None:
    """Join the processes that torchrun or `accelerate launch` started, if one did."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        PartialState(cpu=not torch.cuda.is_available())  # which also selects this process's GPU


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes.

    >>> rank_and_world_size()
    (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(value: Any) -> list:
    """Return every rank's value, in rank order; waits for all of them.

    >>> gather("mine")
    ['mine']
    """
    values = [value] * rank_and_world_size()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold a lock (`locks.hold`) in rank 0 on behalf of all ranks; if it is taken, raise LockError in each."""
    with ExitStack() as held:
        refused = None
        if rank_and_world_size()[0] == 0:
            try:
                held.enter_context(locks.hold(path, what))
            except locks.LockError as error:
                refused = error
        if refused := gather(refused)[0]:
            raise refused
        yield


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average every gradient over all ranks; a gradient missing on a rank counts as zero there."""
    if (world_size := rank_and_world_size()[1]) == 1:
        return
    trained = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]  # FSDP averages the others
    present = [any(ranks) for ranks in zip(*gather([p.grad is not None for p in trained]), strict=True)]
    waiting = []
    for parameter in [p for p, found in zip(trained, present, strict=True) if found]:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad /= world_size
        waiting.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in waiting:
        work.wait()


# -- what FSDP requires of code that runs the model --------------------------------------------------------------------


def forward_method(function: Callable) -> Callable:
    """Make a function of a model count as its forward pass, so that FSDP gathers the weights outside the layers too."""

    @wraps(function)
    def run(model: nn.Module, *args, **kwargs):
        if isinstance(model, FSDPModule):
            return model.run_as_forward(function, *args, **kwargs)  # attached by fsdp.shard
        return function(model, *args, **kwargs)

    return run


def max_over_ranks(model: nn.Module, count: int) -> int:
    """Return the largest count on any rank under FSDP; otherwise this rank's own."""
    return max(gather(count)) if isinstance(model, FSDPModule) else count


def lockstep(model: nn.Module, items: Iterable, filler: Any) -> Iterator[tuple[Any, bool]]:
    """Yield each item with True; then, under FSDP, `filler` with False for as long as another rank has more.

    >>> [*lockstep(nn.Linear(1, 1), "ab", "c")]
    [('a', True), ('b', True)]
    """
    items = list(items)
    for index in range(max_over_ranks(model, len(items))):
        yield (items[index], True) if index < len(items) else (filler, False)

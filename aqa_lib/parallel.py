"""Share a run among processes, one a card: `torchrun --nproc_per_node 8 -m aqa_lib train` (or evaluate, or sft).

Beside the flow. Each process holds the model and takes its share of a step's questions; gradients are averaged once a
step. `DistributedDataParallel` is not used: it counts on passes through the model's own `forward`, and on as many of
them in every process, and here neither holds. Outside torchrun there is one process, and all of this does nothing.
"""

import os
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed as dist
from torch import nn


def start() -> None:
    """Join the processes that torchrun or `accelerate launch` started, if one did."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        PartialState(cpu=not torch.cuda.is_available())  # and choose this process's card


def place() -> tuple[int, int]:
    """Tell which process this is, and of how many.

    >>> place()
    (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(value: Any) -> list:
    """Return what every process has, in their order; waits for all of them.

    >>> gather("mine")
    ['mine']
    """
    values = [value] * place()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average every gradient over all processes; one that a process lacks counts as zero there."""
    if place()[1] == 1:
        return
    learn = [p for p in parameters if p.requires_grad]
    there = [any(some) for some in zip(*gather([p.grad is not None for p in learn]), strict=True)]
    waiting = []
    for parameter in [p for p, found in zip(learn, there, strict=True) if found]:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad /= place()[1]
        waiting.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in waiting:
        work.wait()

"""Share a run among processes, one a card: `torchrun --nproc_per_node 8 -m aqa_lib train` (or evaluate, or sft).

Beside the flow. Each process holds the model and takes its share of a step's questions; gradients are averaged once a
step. `DistributedDataParallel` is not used: it counts on passes through the model's own `forward`, and on as many of
them in every process, and here neither holds. Outside torchrun there is one process, and all of this does nothing.

A model that no card can hold is shared out too (`--fsdp`, FSDP2): each process keeps a part of every weight, gradient
and state, and whoever computes with a layer first gathers it from all. So all must run as many passes: who has fewer
repeats one, and it counts for nothing. The layout is ours and not accelerate's, which splits on GPUs alone (here it is
tested on CPUs), keeps all weights that learn in float32, and gathers the head anew for each chunk of answers that it
sees, when the processes differ in how many they have.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from ..model import parts


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
    learn = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]  # FSDP has averaged the others
    there = [any(some) for some in zip(*gather([p.grad is not None for p in learn]), strict=True)]
    waiting = []
    for parameter in [p for p, found in zip(learn, there, strict=True) if found]:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad /= place()[1]
        waiting.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in waiting:
        work.wait()


def shard(model: nn.Module, device: torch.device, dtype: torch.dtype | None = None, tower: bool = True) -> None:
    """Share a model's weights out among all processes, in place, and move each one's part to its device.

    dtype: what weights are gathered as, and so computed with; their own if not given. tower: whether audio tower and
    projector are shared out too. They need not be where both are frozen: `training.Hearing` runs them on new clips
    alone, which are more in one process than in another.
    """
    if isinstance(model, FSDPModule):
        return
    p = parts(model)
    layers, whole = [*p.language_model.layers], set()
    if tower:
        layers += p.audio_tower.layers
    else:
        whole = {weight for module in (p.audio_tower, p.projector) for weight in module.to(device).parameters()}
    options = {
        "mesh": init_device_mesh(device.type, (place()[1],)),
        # outputs are log-probabilities, which stay float32, as does the sum of gradients
        "mp_policy": MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False),
        "ignored_params": whole,
        "reshard_after_forward": True,
    }
    for layer in layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)  # embeddings, head, norms, projector: gathered once a pass
    model.one_pass = lambda function, *args, **kwargs: function(model, *args, **kwargs)
    register_fsdp_forward_method(model, "one_pass")


def one_pass(function: Callable) -> Callable:
    """Let a function of a model count as a pass through it, so that what no layer holds is gathered as well."""

    @wraps(function)
    def run(model: nn.Module, *args, **kwargs):
        if isinstance(model, FSDPModule):
            return model.one_pass(function, *args, **kwargs)
        return function(model, *args, **kwargs)

    return run


def most(model: nn.Module, count: int) -> int:
    """Return the largest count in any process, where they share the model out; elsewhere this one's."""
    return max(gather(count)) if isinstance(model, FSDPModule) else count


def in_step(model: nn.Module, items: Iterable, spare: Any) -> Iterator[tuple[Any, bool]]:
    """Yield items, each with True; then, where the model is shared out and others have more, `spare` with False.

    >>> [*in_step(nn.Linear(1, 1), "ab", "c")]
    [('a', True), ('b', True)]
    """
    items = list(items)
    for index in range(most(model, len(items))):
        yield (items[index], True) if index < len(items) else (spare, False)


def whole(value: Any) -> Any:
    """Bring a shared-out tensor together in every process; anything else is given back.

    >>> whole(1.5)
    1.5
    """
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Bring a shared-out model's weights together, in the host memory of the first process; others get none."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load whole weights, which every process has, into a model that may be shared out."""
    if isinstance(model, FSDPModule):
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(weights)


def whole_states(optimizer: torch.optim.Optimizer, states: dict) -> dict:
    """Bring an optimizer's states together in the first process, as if nothing were shared out; a hook of its
    `state_dict`, which all processes must call."""

    def in_first(shards: DTensor) -> Tensor | None:
        tensor = whole(shards)
        return None if place()[0] else tensor.cpu()

    return tree_map_only(DTensor, in_first, states)


def load_states(optimizer: torch.optim.Optimizer, states: dict) -> None:
    """Load whole states, of which every process keeps its part."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, values in states["state"].items():
        for name, value in values.items():
            if isinstance(weights[index], DTensor) and value.shape == weights[index].shape:
                mesh = weights[index].device_mesh
                values[name] = distribute_tensor(value.to(mesh.device_type), mesh, weights[index].placements)
    optimizer.load_state_dict(states)

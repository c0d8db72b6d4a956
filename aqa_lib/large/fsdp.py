"""Shard a model that no single GPU can hold (`--fsdp`, FSDP2): each rank keeps its part of every tensor.

Weights, gradients and optimizer states are sharded; a layer's weights are gathered whenever it computes. The layout is
ours, not accelerate's, which shards only on GPUs (ours is tested on CPUs), keeps all trained weights in float32, and
gathers the head again for each chunk of answers, of which ranks have different numbers. What is saved is whole, so a
checkpoint can be resumed with any number of processes, with or without FSDP.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from ..model import parts
from ..runtime.distributed import rank_and_world_size


def shard(model: nn.Module, device: torch.device, dtype: torch.dtype | None = None, tower: bool = True) -> None:
    """Shard a model's weights among all ranks, in place, and move each rank's part to its device.

    dtype: what weights are gathered as, and so computed with; by default their own. tower: whether to shard the audio
    tower and the projector too. Leave them whole if both are frozen: `AudioCache` then runs them only on new clips, of
    which one rank may have more than another.
    """
    if isinstance(model, FSDPModule):
        return
    p = parts(model)
    layers, ignored = [*p.language_model.layers], set()
    if tower:
        layers += p.audio_tower.layers
    else:
        ignored = {weight for module in (p.audio_tower, p.projector) for weight in module.to(device).parameters()}
    options = {
        "mesh": init_device_mesh(device.type, (rank_and_world_size()[1],)),
        # outputs are log-probabilities, which stay float32, as does the sum of gradients
        "mp_policy": MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False),
        "ignored_params": ignored,
        "reshard_after_forward": True,
    }
    for layer in layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)  # embeddings, head, norms, projector: gathered once per pass
    model.run_as_forward = lambda function, *args, **kwargs: function(model, *args, **kwargs)
    register_fsdp_forward_method(model, "run_as_forward")


def full_tensor(value: Any) -> Any:
    """Gather a sharded tensor on every rank; return anything else as it is.

    >>> full_tensor(1.5)
    1.5
    """
    return value.full_tensor() if isinstance(value, DTensor) else value


def full_weights(model: nn.Module) -> dict[str, Tensor]:
    """Gather a sharded model's weights in the host memory of rank 0; the others get none."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load full weights, which every rank has, into a model that may be sharded."""
    if isinstance(model, FSDPModule):
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(weights)


def full_states(optimizer: torch.optim.Optimizer, states: dict) -> dict:
    """Gather an optimizer's states on rank 0, as if nothing were sharded.

    This is a hook on its `state_dict`, which all ranks must call.
    """

    def in_rank_0(shards: DTensor) -> Tensor | None:
        tensor = full_tensor(shards)
        return None if rank_and_world_size()[0] else tensor.cpu()

    return tree_map_only(DTensor, in_rank_0, states)


def load_states(optimizer: torch.optim.Optimizer, states: dict) -> None:
    """Load full states, of which each rank keeps its own part."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, values in states["state"].items():
        for name, value in values.items():
            if isinstance(weights[index], DTensor) and value.shape == weights[index].shape:
                mesh = weights[index].device_mesh
                values[name] = distribute_tensor(value.to(mesh.device_type), mesh, weights[index].placements)
    optimizer.load_state_dict(states)

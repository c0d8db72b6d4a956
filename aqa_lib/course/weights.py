"""Measure how far a training moved a model's weights.

Beside the flow, for the notebooks: `trainer, sft -> [weights] -> plotting`.
"""

from collections import defaultdict

import torch
from torch import nn

NAMES = {"audio_tower": "audio tower", "projector": "projector", "language_model": "language model", "lm_head": "head"}


@torch.no_grad()
def changes(base: nn.Module, tuned: nn.Module) -> dict[str, list[float]]:
    """Measure how far each weight matrix that may learn was moved, grouped by part of the model.

    The change of a matrix is |after - before| / |before|, Frobenius. tuned: a model with the base's own names, or one
    with adapters, whose base lies inside it; then only the matrices that have an adapter are listed.
    """
    moves = {}
    if hasattr(tuned, "disable_adapter"):
        from peft.utils.integrations import dequantize_module_weight

        for name, layer in tuned.named_modules():
            if hasattr(layer, "get_delta_weight"):
                delta = sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
                moves[name] = delta, dequantize_module_weight(layer.base_layer)
    else:
        old = dict(base.named_parameters())
        for name, weight in tuned.named_parameters():
            if weight.requires_grad and weight.ndim > 1:
                before = old[name].to(weight.device)
                moves[name] = weight.float() - before.float(), before
    found = defaultdict(list)
    for name, (delta, before) in moves.items():
        part = next(word for key, word in NAMES.items() if key in name)
        found[part].append(float(delta.float().norm() / before.float().norm()))
    return dict(found)

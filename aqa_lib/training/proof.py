"""Prove what a run trained: which tensors learned, how far each part moved, whether the clip still counts.

`record -> [proof] -> training.base`. A run may end well and have trained nothing that hears: a part frozen by mistake,
a clip that never reaches the logits, groups without any deviation. So every run's `run.json` says under "learned" what
became of its weights; `train` ends with it as a table, and `python -m aqa_lib learned RUN` prints it again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..large.fsdp import full_tensor
from ..model import hearing, parts

VALUES = 1024  # of each tensor that are compared: enough for a norm, at any size
ADAPTERS = "lora_"  # in the names of their tensors


@dataclass(frozen=True)
class Start:
    """What is kept of a model before training: some values of every tensor that learns, and how the clip moved it."""

    values: dict[str, Tensor]
    hearing: float | None


def start(model: nn.Module, processor) -> Start:
    """Look at a model before its first step."""
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return Start({name: _values(parameter) for name, parameter in learning.items()}, _hearing(model, processor))


def learned(model: nn.Module, processor, before: Start, log: Sequence[Mapping], step: int, sharded: bool) -> dict:
    """Say what training did to a model since `before`; all ranks must call it.

    log: transformers' log_history. sharded: whether the model is spread by FSDP, and cannot be listened to. Returns
    `step`, `parts` (by name: `tensors` and `parameters` in all, `learning`: those that may change, `moved_tensors`, and
    `moved`: the norm of their change over their norm before), `hearing` (before, after) and `groups`: the share of
    GRPO's groups whose rewards differed, so that they taught something; None for SFT.
    """
    names = _parts(model)
    rows: dict[str, dict] = {}
    changes: dict[str, list[tuple[float, float]]] = {}
    for name, parameter in model.named_parameters():
        part, size = names.get(id(parameter), "other"), parameter.numel()
        part = "adapters" if ADAPTERS in name else part
        row = rows.setdefault(part, dict.fromkeys(("tensors", "parameters", "learning", "moved_tensors"), 0))
        row["tensors"] += 1
        row["parameters"] += size
        if parameter.requires_grad and name in before.values:
            then, now = before.values[name], _values(parameter)
            share = size / len(then)
            change = share * float((now - then).square().sum())
            row["learning"] += size
            row["moved_tensors"] += int(change != 0)
            changes.setdefault(part, []).append((change, share * float(then.square().sum())))
    for part, row in rows.items():
        change, norm = (math.fsum(values) for values in zip(*changes.get(part, [(0.0, 0.0)]), strict=True))
        row["learning_tensors"] = len(changes.get(part, ()))
        row["moved"] = _finite(math.sqrt(change / norm)) if norm else None
    after = None if sharded else _hearing(model, processor)
    heard = {"before": before.hearing, "after": after}
    return {"step": step, "parts": rows, "hearing": heard, "groups": groups(log)}


def groups(log: Sequence[Mapping]) -> float | None:
    """Return the share of all groups that taught something, from the logs of a run; None where there are none.

    >>> groups([{"step": 1, "frac_reward_zero_std": 1.0}, {"step": 4, "frac_reward_zero_std": 0.5}, {"step": 4}])
    0.375
    """
    last, taught = 0, 0.0
    for row in log:
        if "frac_reward_zero_std" in row and row["step"] > last:
            taught += (row["step"] - last) * (1 - row["frac_reward_zero_std"])
            last = row["step"]
    return taught / last if last else None


def markdown(found: Mapping) -> str:
    """Write what a run learned as a small table, and what is wrong with it below."""
    lines = ["| part | parameters | that learn | tensors moved | moved by |", "|---|---|---|---|---|"]
    for part, row in found["parts"].items():
        moved = "frozen" if not row["learning"] else f"{row['moved_tensors']} of {row['learning_tensors']}"
        norm = "" if not row["learning"] or row["moved"] is None else f"{row['moved']:.2g}"
        lines.append(f"| {part} | {row['parameters']:,} | {row['learning']:,} | {moved} | {norm} |")
    lines += ["", f"Weights of step {found['step']}; moved by: the norm of the change over the norm before."]
    heard = [
        f"{found['hearing'][when]:.3g} {when}" for when in ("before", "after") if found["hearing"][when] is not None
    ]
    if heard:
        lines.append(f"A clip moves the next token's logits by {' and '.join(heard)} training.")
    if found["groups"] is not None:
        lines.append(f"{100 * found['groups']:.0f} % of the groups taught something: their rewards differed.")
    return "\n".join([*lines, *(f"Note: {fault}" for fault in faults(found))])


def faults(found: Mapping) -> list[str]:
    """Say what shows that a run trained less than it meant to."""
    told = [
        f"the {part} was to learn, and no tensor of it moved."
        for part, row in found["parts"].items()
        if row["learning"] and not row["moved_tensors"]
    ]
    if found["hearing"]["after"] == 0:
        told.append("the model is deaf: its logits are the same with and without the clip.")
    if found["groups"] == 0:
        told.append("no group taught anything: in each, all answers were rewarded alike.")
    return told


def _parts(model: nn.Module) -> dict[int, str]:
    """Name the part of each parameter; a projector may lie in the tower, a head may be the embeddings."""
    p = parts(model)
    modules = (("audio tower", p.audio_tower), ("projector", p.projector), ("language model", p.language_model))
    return {id(w): name for name, module in (*modules, ("language model", p.head)) for w in module.parameters()}


def _values(parameter: Tensor) -> Tensor:
    """Take some values of a tensor, evenly spread over it, in float32 on the host."""
    flat = full_tensor(parameter.detach()).reshape(-1)
    return flat[:: max(1, flat.numel() // VALUES)].float().cpu().clone()  # not a view of what will change


@torch.no_grad()
def _hearing(model: nn.Module, processor) -> float | None:
    training = model.training
    model.eval()
    try:
        return _finite(hearing(model, processor))
    finally:
        model.train(training)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

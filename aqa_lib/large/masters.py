"""Keep trained weights in more than bfloat16, in as little memory as possible.

`[masters] -> planner -> training`. A bfloat16 weight has 8 significant bits, and an update of 1e-6 is less than half of
the last of them: plain bfloat16 rounds about 98 % of the updates away, so it is not offered here. The paper keeps
float32 masters and offloads them to the CPU; on one GPU two libraries make do with less. Measured against AdamW in
float32, 500 steps at 1e-6 (tests/large/test_masters.py), kahan keeps the update to a cosine of 0.9997, and 24bit, with
its 8-bit states, to 0.994. The 24bit figure is from flashoptim's own kernels in Triton's interpreter on a CPU: they
have not yet run here on a GPU. A weight, its gradient and its states take 16 bytes in fp32, 10 in kahan, 7.1 in 24bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch


@dataclass(frozen=True)
class Master:
    """One way to keep trained weights.

    width: bytes per weight, and per gradient. states: the bytes that AdamW adds for a tensor of n weights. library: the
    module it needs besides torch. cuda: whether it runs only on CUDA.
    """

    says: str
    width: int
    states: Callable[[int], int]
    library: str | None = None
    package: str | None = None
    cuda: bool = False


MASTERS = {  # in the order that `auto` prefers
    "fp32": Master("float32 weights and states", 4, lambda n: 8 * n),
    "24bit": Master(
        "bfloat16 weights with 8 more bits, 8-bit states",
        2,
        lambda n: 3 * n + 2 * 2 * -(-n // 32),  # and a float16 scale for every 32
        "flashoptim",
        "flashoptim",
        cuda=True,
    ),
    "kahan": Master("bfloat16 weights, rounding errors, and states", 2, lambda n: 6 * n, "optimi", "torch-optimi"),
}


def refusal(master: str, device: torch.device | str, fsdp: bool = False) -> str | None:
    """Return why weights cannot be kept this way on a device, or under FSDP; None if they can."""
    if master not in MASTERS:
        return (
            f"master {master!r} is unknown; choose auto, {', '.join(MASTERS)}. Plain bfloat16 is not among them: at a "
            "learning rate of 1e-6 it rounds about 98 % of the updates away."
        )
    if fsdp and master == "24bit":
        return "master 24bit packs its states in a way that has not been tried with --fsdp; choose fp32 or kahan."
    row = MASTERS[master]
    if row.library and find_spec(row.library) is None:
        return f"master {master} needs {row.package}; pip install {row.package}, or choose another master."
    if row.cuda and torch.device(device).type != "cuda":
        return f"master {master} needs an NVIDIA GPU; choose another master."
    return None


def adamw(master: str) -> Callable[..., torch.optim.Optimizer]:
    """Return the AdamW that keeps weights as `master` says; call it with groups, lr, betas and eps.

    Gradients have the weights' dtype, so with bfloat16 weights those of a step's micro-batches are summed in bfloat16.
    """
    if master == "24bit":
        from flashoptim import FlashAdamW

        return partial(FlashAdamW, master_weight_bits=24)
    if master == "kahan":
        from optimi import AdamW

        return partial(AdamW, kahan_sum=True)
    return torch.optim.AdamW

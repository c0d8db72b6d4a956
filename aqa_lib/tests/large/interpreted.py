"""Run flashoptim's own kernels on a CPU: Triton's interpreter executes their source, an operation at a time, in NumPy.

What is here stands in for what the interpreter lacks, and lifts flashoptim's demand for a GPU. The arithmetic stays
flashoptim's; of its speed, and of what a GPU's compiler makes of it, nothing is learned.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from aqa_lib.large import masters


def allow(patch: pytest.MonkeyPatch) -> None:
    """Let master 24bit run on a CPU until `patch` is undone; skip the test where flashoptim or Triton is absent."""
    flash = pytest.importorskip("flashoptim.optimizers", reason="24bit on a CPU needs flashoptim and triton: make cuda")
    tl, interpreter = flash.tl, flash.triton.runtime.interpreter
    patch.setitem(masters.MASTERS, "24bit", replace(masters.MASTERS["24bit"], cuda=False))

    # flashoptim asks for a GPU in three places
    def quantize(self, data):
        self._data = None
        how = {name: getattr(self, f"_{name}") for name in ("signed", "sqrt", "softsign")}
        self._quantized, self._scales = flash.quantize(data, **how)

    gpu = SimpleNamespace(is_available=lambda: True)
    patch.setattr(flash, "torch", SimpleNamespace(**vars(torch) | {"cuda": gpu}))
    patch.setattr(flash._MaybeQuantizedTensor, "set_data", quantize)
    patch.setattr(flash, "_get_sm_count", lambda: 1)

    # two functions of CUDA's, in Triton's words
    patch.setattr(
        flash,
        "libdevice",
        SimpleNamespace(
            pow=lambda base, n: tl.exp2(n * math.log2(base)),
            copysign=lambda size, of: tl.where(of < 0, -size, size),
        ),
    )

    # the interpreter cuts bits off where a GPU rounds to the nearest; a cosine of 0.63 would be left
    convert = interpreter._convert_float

    def rounded(data, source, target, mode):
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.tensor(data).bfloat16().view(torch.uint16).numpy()
        return convert(data, source, target, mode)

    patch.setattr(interpreter, "_convert_float", rounded)

    # an operation takes it as long on one number as on thousands: one block a tensor, and no search for the best size
    for name in ("_triton_adam_kernel", "_triton_quantize_kernel", "_triton_dequantize_kernel"):
        kernel = getattr(flash, name)
        patch.setattr(flash, name, _OneBlock(kernel.fn if hasattr(kernel, "configs") else kernel))


class _OneBlock:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            size = max(1 << (arguments[0].numel() - 1).bit_length(), 32)  # a power of two, of groups of 32
            return self.kernel[(1,)](*arguments, **options | {"BLOCK_SIZE_N": size})

        return launch

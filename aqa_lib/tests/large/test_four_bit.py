"""Train adapters of a 4-bit model, as scale colab does: bitsandbytes can on a CPU too, though slowly."""

import pytest
import torch
from torch.testing import assert_close

from aqa_lib import model as models
from aqa_lib.large import planner

bitsandbytes = pytest.importorskip("bitsandbytes", reason="4bit needs bitsandbytes: make cuda")


@pytest.fixture
def folder(model, processor, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    # as on a processor for which bitsandbytes has ways that only inference can take
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    return tmp_path / "base"


def test_packed_weights_take_the_bytes_that_are_planned_for(folder):
    """The plan of a skeleton, the count of the loaded model, and what bitsandbytes holds are one."""
    model, _ = models.load(folder, quantization="4bit", lora={"r": 4})
    held = 0
    for weight in model.parameters():
        if isinstance(weight, bitsandbytes.nn.Params4bit):
            scales = weight.quant_state
            held += weight.nbytes + scales.absmax.nbytes + scales.state2.absmax.nbytes
        elif not weight.requires_grad:
            held += weight.nbytes
    planned = planner.ModelSizes.of(planner.skeleton(folder, models.PARTS, 4, "bfloat16"), "4bit")
    counted = planner.ModelSizes.of(model)
    assert counted.learn == planned.learn and counted.adapters
    assert counted.frozen == pytest.approx(planned.frozen) == pytest.approx(held, rel=1e-3)


def test_two_steps_move_the_adapters_and_nothing_else(folder, train, tmp_path):
    model, _ = models.load(folder, quantization="4bit", lora={"r": 4})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"bf16": True, "gradient_checkpointing": True, "save_strategy": "steps", "save_steps": 2}
    trainer = train(policy=model, num_generations=2, max_completion_length=3, **options)
    kl = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert kl[0] == 0 < kl[1]  # the model without its adapters is the reference
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, weight in model.named_parameters() if "lora_" in name and weight.requires_grad}
    again, _ = models.load(tmp_path / "checkpoint-2", quantization="4bit")
    for name, value in again.state_dict().items():
        assert_close(value, model.state_dict()[name], atol=0, rtol=0, msg=name)
    assert any(weight.requires_grad for weight in again.parameters())

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from aqa_lib import model as models
from aqa_lib.architectures import families
from aqa_lib.course.weights import changes


def test_a_part_that_was_scaled_moved_by_its_factor(model):
    tuned = copy.deepcopy(model)
    models.choose_trainable(tuned, models.PARTS)
    with torch.no_grad():
        tuned.model.multi_modal_projector.linear.weight.mul_(1.25)
    moved = changes(model, tuned)
    assert set(moved) == {"audio tower", "projector", "language model", "head"}
    assert moved.pop("projector") == pytest.approx([0.25])
    assert all(value == 0 for part in moved.values() for value in part)


def test_adapters_move_what_merging_them_would(model):
    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=families.WhisperEncoder.lora_targets))
    assert set(changes(model, tuned)["language model"]) == {0.0}  # fresh adapters are zero
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    moved = changes(model, tuned)["language model"]
    merged = changes(model, tuned.merge_and_unload().requires_grad_(True))["language model"]
    assert sorted(moved) == pytest.approx(sorted(value for value in merged if value), rel=1e-4)

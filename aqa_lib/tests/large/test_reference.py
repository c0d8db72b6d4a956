"""The reference gives the same log-probabilities wherever its weights are, and holds what it should."""

import pytest
import torch

from aqa_lib import model as models
from aqa_lib.grpo import GRPOTrainer
from aqa_lib.large import reference
from aqa_lib.logps import completion_logps
from aqa_lib.tests.helpers import config, length_reward


def logps(model, rollouts, half):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        return completion_logps(model, rollouts)[0]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("place", ["resident", "streamed"])
def test_the_same_to_the_last_bit(model, rollouts, place, half):
    expected = logps(model, rollouts, half)
    copy = reference.make(model, place, torch.bfloat16 if half else None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.requires_grad)  # what is learned does not reach the reference
    for _ in range(2):
        assert torch.equal(logps(copy, rollouts, half), expected)
    assert not any(p.requires_grad for p in copy.parameters())


def test_half_precision_takes_half_the_memory(model):
    """Of the matrices; norms and embeddings stay, so that autocast finds them as in the policy."""
    copy = reference.make(model, dtype=torch.bfloat16)
    assert copy.lm_head.weight.dtype == copy.model.audio_tower.conv1.weight.dtype == torch.bfloat16
    assert copy.get_input_embeddings().weight.dtype == copy.model.language_model.norm.weight.dtype == torch.float32
    assert model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("place", ["resident", "streamed"])
def test_frozen_parts_are_the_policys_own(model, rollouts, place):
    models.choose_trainable(model, ["projector"])
    copy = reference.make(model, place, torch.bfloat16)
    own, theirs = dict(model.named_parameters()), dict(copy.named_parameters())
    copied = {name for name in own if own[name] is not theirs[name]}
    assert copied == {"model.multi_modal_projector.linear.weight", "model.multi_modal_projector.linear.bias"}
    assert torch.equal(logps(copy, rollouts, True), logps(model, rollouts, True))


def test_two_layers_at_a_time_are_on_the_device(model, rollouts):
    """Between passes every layer's weights are those in host memory, none of them one of the two buffers."""
    layers = [*model.model.audio_tower.layers, *model.model.language_model.layers]
    stream = reference.Stream(layers, torch.device("cpu"))
    sizes = [sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers]
    held = sum(map(len, stream.buffers))
    assert held < 2 * max(sizes) + 2 * 256 * 20 and held < sum(sizes) / 2
    logps(model, rollouts, False)
    hosts = {flat.untyped_storage().data_ptr() for flat in stream.host}
    assert {p.untyped_storage().data_ptr() for layer in layers for p in layer.parameters()} == hosts


def test_a_run_is_the_same_with_either(model, processor, questions, tmp_path):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    for place in ("resident", "streamed"):
        model.load_state_dict(start)
        args = config(tmp_path / place, reference=place, beta=0.04)
        trainer = GRPOTrainer(model, processor, [length_reward], args, questions)
        trainer.train()
        found.append([(row["loss"], row["kl"]) for row in trainer.state.log_history if "kl" in row])
    assert found[0] == found[1] and found[0][1][1] > 0
    with pytest.raises(ValueError, match="reference 'disk' is unknown; choose auto, resident, streamed"):
        config(tmp_path, reference="disk")

"""Log-probabilities of answers that share a prompt, against the plain form: a full row an answer, logits everywhere."""

import math

import pytest
import torch
from torch.testing import assert_close

from aqa_lib import inputs, logps
from aqa_lib import model as models
from aqa_lib.inputs import Rollouts
from aqa_lib.logps import completion_logps, separate_answers, shared_row


def repeated_logps(model, rollouts):
    """The plain form: each answer a full row behind its own copy of the prompt, logits everywhere."""
    prompts, ids, mask = rollouts.prompts, rollouts.completion_ids, rollouts.mask
    B, G, C = ids.shape
    table = model.get_input_embeddings()
    embeds = models.embed(model, prompts).repeat_interleave(G, 0)
    embeds = torch.cat([embeds, table(ids.flatten(0, 1))], 1)  # (B * G, P + C, H)
    seen = torch.cat([prompts.attention_mask.repeat_interleave(G, 0), mask.flatten(0, 1).long()], 1)
    logits = model.lm_head(models.backbone(model, embeds, seen, inputs.positions(seen)))
    found = logits[:, -C - 1 : -1].float().log_softmax(-1).gather(-1, ids.flatten(0, 1)[..., None])
    return found.view(B, G, C) * mask


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.fixture
def long_rollouts(prompts):
    """Eight answers of up to 60 tokens to each prompt, long enough to be attended from one by one; some end early."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(50, 61, (4, 8), generator=draw)
    lengths[1, 2], lengths[3] = 1, 5
    ids, mask = torch.randint(10, 300, (4, 8, 60), generator=draw), torch.arange(60) < lengths[..., None]
    return Rollouts(prompts, torch.where(mask, ids, 0), mask, torch.ones(4, 8, dtype=torch.bool))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("chunk_size", [7, 1024])
@pytest.mark.parametrize("length", ["short", "long"])
def test_shared_prompts_equal_repeated_ones(model, request, length, checkpointing, chunk_size, monkeypatch):
    """In one masked row (short answers), and with the answers' attention taken apart (long ones)."""
    rollouts, apart = request.getfixturevalue("long_rollouts" if length == "long" else "rollouts"), []
    monkeypatch.setattr(logps, "separate_answers", lambda *masks: apart.append(masks) or separate_answers(*masks))
    model.train()
    weights = torch.randn(rollouts.mask.shape, generator=torch.Generator().manual_seed(1))
    theirs = repeated_logps(model, rollouts)
    (theirs * weights).sum().backward()
    expected = gradients(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        assert model.model.language_model.gradient_checkpointing
    ours, entropies = completion_logps(model, rollouts, chunk_size=chunk_size)
    (ours * weights).sum().backward()
    assert len(apart) == (length == "long")
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    found = gradients(model)
    assert found.keys() == expected.keys() and len(found) > 50
    for name in expected:
        scale = expected[name].abs().max()
        assert_close(found[name], expected[name], atol=float(1e-5 * scale + 1e-7), rtol=1e-4, msg=name)
    assert (entropies[rollouts.mask] >= 0).all() and (entropies[~rollouts.mask] == 0).all()
    assert not entropies.requires_grad


@pytest.mark.parametrize(("chunk_size", "times"), [(7, 2), (1024, 1)])
def test_logits_are_held_for_one_chunk_and_computed_again(model, rollouts, chunk_size, times):
    seen = []
    model.lm_head.register_forward_hook(lambda head, inputs, output: seen.append(len(output)))
    completion_logps(model, rollouts, chunk_size=chunk_size)[0].sum().backward()
    assert max(seen) <= chunk_size and sum(seen) == times * rollouts.mask.sum()


def test_groups_and_prompts_do_not_see_each_other(model, rollouts):
    """Changing one answer changes no other answer's log-probabilities."""
    with torch.no_grad():
        before, _ = completion_logps(model, rollouts)
        rollouts.completion_ids[2, 0, 0] += 1
        after, _ = completion_logps(model, rollouts)
    changed = (before - after).abs() > 1e-6
    assert changed[2, 0].any()
    changed[2, 0] = False
    assert not changed.any()


def test_micro_batches_add_up(model, rollouts):
    with torch.no_grad():
        whole, _ = completion_logps(model, rollouts)
        for rows in ([3, 1], [0], [2]):
            part, _ = completion_logps(model, rollouts.select(rows))
            assert_close(part, whole[rows][..., : part.shape[-1]], atol=1e-5, rtol=1e-5)


def test_one_token_answers(model, rollouts):
    one = Rollouts(rollouts.prompts, rollouts.completion_ids[..., :1], rollouts.mask[..., :1], rollouts.ended)
    with torch.no_grad():
        assert_close(completion_logps(model, one)[0], repeated_logps(model, one), atol=1e-5, rtol=1e-5)


def test_temperature_divides_the_logits(model, rollouts):
    with torch.no_grad():
        ours, _ = completion_logps(model, rollouts, temperature=0.5)
        model.lm_head.weight.mul_(2)
        assert_close(ours, repeated_logps(model, rollouts), atol=2e-5, rtol=1e-5)


def test_low_precision_is_summed_in_float32():
    head, hidden = torch.nn.Linear(8, 16, dtype=torch.bfloat16), torch.randn(3, 8, dtype=torch.bfloat16)
    found, entropies = logps._logps(head, hidden, torch.tensor([0, 7, 15]), 1.0)
    assert found.dtype == entropies.dtype == torch.float32
    assert_close(found, head(hidden).float().log_softmax(1)[range(3), [0, 7, 15]])


def test_entropy_of_a_uniform_head_is_log_v(model, rollouts):
    with torch.no_grad():
        model.lm_head.weight.zero_()
        found, entropies = completion_logps(model, rollouts)
    V = model.lm_head.weight.shape[0]
    assert_close(entropies[rollouts.mask], torch.full((int(rollouts.mask.sum()),), math.log(V)))
    assert_close(found[rollouts.mask], torch.full((int(rollouts.mask.sum()),), -math.log(V)))


def test_left_padding_is_seen_by_nobody_but_itself():
    mask, place, _ = shared_row(torch.tensor([[0, 1, 1]]), torch.tensor([[[1], [1]]]))
    assert mask.int()[0, 0].tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 0, 1],
    ]
    assert place.tolist() == [[0, 0, 1, 2, 2]]

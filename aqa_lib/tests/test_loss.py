import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from trl import GRPOTrainer as TRLTrainer

from aqa_lib import loss as losses
from aqa_lib import model as models
from aqa_lib.loss import answers_apart, completion_logps, group_advantages, grpo_loss, kl_divergence, shared_row
from aqa_lib.rollout import Rollouts


def repeated_logps(model, rollouts):
    """The plain form: each answer a full row behind its own copy of the prompt, logits everywhere."""
    prompts, ids, mask = rollouts.prompts, rollouts.completion_ids, rollouts.mask
    B, G, C = ids.shape
    table = model.get_input_embeddings()
    embeds = models.embed(model, prompts).repeat_interleave(G, 0)
    embeds = torch.cat([embeds, table(ids.flatten(0, 1))], 1)  # (B * G, P + C, H)
    seen = torch.cat([prompts.attention_mask.repeat_interleave(G, 0), mask.flatten(0, 1).long()], 1)
    logits = model.lm_head(models.backbone(model, embeds, seen, models.positions(seen)))
    logps = logits[:, -C - 1 : -1].float().log_softmax(-1).gather(-1, ids.flatten(0, 1)[..., None])
    return logps.view(B, G, C) * mask


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.fixture
def long_rollouts(prompts):
    """Eight answers of up to 60 tokens to each prompt, so many that their attention is taken apart; some end early."""
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
    monkeypatch.setattr(losses, "answers_apart", lambda *masks: apart.append(masks) or answers_apart(*masks))
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
    logps, entropies = losses._logps(head, hidden, torch.tensor([0, 7, 15]), 1.0)
    assert logps.dtype == entropies.dtype == torch.float32
    assert_close(logps, head(hidden).float().log_softmax(1)[range(3), [0, 7, 15]])


def test_entropy_of_a_uniform_head_is_log_v(model, rollouts):
    with torch.no_grad():
        model.lm_head.weight.zero_()
        logps, entropies = completion_logps(model, rollouts)
    V = model.lm_head.weight.shape[0]
    assert_close(entropies[rollouts.mask], torch.full((int(rollouts.mask.sum()),), math.log(V)))
    assert_close(logps[rollouts.mask], torch.full((int(rollouts.mask.sum()),), -math.log(V)))


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


# -- advantages, KL and the loss, by hand ---------------------------------------------------------------------------


def test_advantages_by_hand():
    """Rewards 2, 1, 0, 1: mean 1, unbiased deviation sqrt(2 / 3)."""
    expected = torch.tensor([[1.0, 0.0, -1.0, 0.0]]) / (math.sqrt(2 / 3) + 1e-4)
    rewards = torch.tensor([[2.0, 1.0, 0.0, 1.0]])
    assert_close(group_advantages(rewards), expected)
    assert_close(group_advantages(rewards, "none"), torch.tensor([[1.0, 0.0, -1.0, 0.0]]))
    assert_close(group_advantages(torch.full((2, 4), 2.0)), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="group or none"):
        group_advantages(rewards, "batch")


def test_kl_by_hand():
    """p = 0.5, q = 0.25: d = log(1/2), k3 = 1/2 - log(1/2) - 1."""
    kl = kl_divergence(torch.tensor(0.5).log(), torch.tensor(0.25).log())
    assert kl.item() == pytest.approx(0.5 + math.log(2) - 1)


def fixed():
    """Two answers of 2 tokens and 1 token; the ratios are 1.5, 0.5 and 1.1, the advantages 1 and -1."""
    logps = torch.tensor([[1.5, 0.5], [1.1, 1.0]]).log().requires_grad_()
    return logps, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), torch.tensor([[1, 1], [1, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        # tokens: -min(1.5, 1.2) = -1.2; -min(0.5, 0.8) = -0.5; -min(-1.1, -1.1) = 1.1
        ("grpo", ((-1.2 - 0.5) / 2 + 1.1) / 2),
        ("bnpo", (-1.2 - 0.5 + 1.1) / 3),
        ("dr_grpo", (-1.2 - 0.5 + 1.1) / (2 * 10)),
    ],
)
def test_loss_by_hand(loss_type, expected):
    loss, sums = grpo_loss(*fixed(), beta=0, loss_type=loss_type, max_completion_length=10)
    assert loss.item() == pytest.approx(expected)
    assert sums["clip_ratio"].item() == 1  # the first token alone is clipped
    loss.backward()


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo"])
def test_an_answer_without_tokens_adds_nothing(loss_type):
    logps, old, advantages, _ = fixed()
    for mask, total in (([[1, 1], [0, 0]], -1.7), ([[1, 0], [0, 0]], -1.2), ([[0, 0], [0, 0]], 0)):
        mask = torch.tensor(mask)
        loss, _ = grpo_loss(logps, old, advantages, mask, beta=0, loss_type=loss_type, max_completion_length=10)
        tokens = max(1, int(mask.sum()))
        share = {"grpo": tokens * 2, "bnpo": tokens, "dr_grpo": 2 * 10}[loss_type]
        assert loss.item() == pytest.approx(total / share)


def test_what_counts_as_clipped():
    """Not a ratio at the very edge, and no token whose advantage is zero."""
    logps, old, advantages, mask = fixed()
    _, edge = grpo_loss(old, old, advantages, mask, beta=0, epsilon=0)
    _, flat = grpo_loss(logps, old, torch.zeros(2), mask, beta=0)
    assert edge["clip_ratio"] == flat["clip_ratio"] == 0


def test_the_defaults_are_the_reports():
    ours, _ = grpo_loss(*fixed(), torch.zeros(2, 2))
    told, _ = grpo_loss(*fixed(), torch.zeros(2, 2), beta=0.04, epsilon=0.2, epsilon_high=0.2, loss_type="grpo")
    assert ours == told


def test_a_clipped_token_has_no_gradient():
    logps, *rest = fixed()
    grpo_loss(logps, *rest, beta=0)[0].backward()
    assert logps.grad[0, 0] == 0 and logps.grad[0, 1] != 0 and logps.grad[1, 1] == 0


def test_the_loss_at_the_start_is_zero_but_its_gradient_is_not():
    """Ratio 1 everywhere: the loss is minus the mean advantage, 0, while each answer is pushed up or down."""
    logps = torch.randn(4, 3, requires_grad=True)
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))[0]
    loss, _ = grpo_loss(logps, logps.detach(), advantages, torch.ones(4, 3), beta=0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert_close(logps.grad, -advantages[:, None].expand(4, 3) / 12)


def test_parts_of_a_step_add_up_to_the_whole():
    torch.manual_seed(0)
    logps, old, ref = (torch.randn(4, 3, 5) for _ in range(3))
    advantages, mask = torch.randn(4, 3), torch.rand(4, 3, 5) < 0.7
    for loss_type in ("grpo", "bnpo", "dr_grpo"):
        options = {"loss_type": loss_type, "max_completion_length": 5}
        whole, _ = grpo_loss(logps, old, advantages, mask, ref, **options)
        parts = [
            grpo_loss(
                *(t[rows] for t in (logps, old, advantages, mask, ref)),
                num_completions=12,
                num_tokens=int(mask.sum()),
                **options,
            )[0]
            for rows in ([0], [1, 3], [2])
        ]
        assert_close(sum(parts), whole)


def trl_loss(logps, old, ref, advantages, mask, loss_type, beta, max_completion_length):
    """Call TRL's own `_compute_loss` on given log-probabilities."""
    N, C = logps.shape
    args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    fake = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=args,
        accelerator=SimpleNamespace(gather=lambda t: t, num_processes=1, reduce=lambda t, reduction: t),
        beta=beta,
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=0.3,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=max_completion_length,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *a, **k: (logps, torch.zeros(N, C), None),
    )
    inputs = {
        "prompt_ids": torch.zeros(N, 1, dtype=torch.long),
        "prompt_mask": torch.ones(N, 1, dtype=torch.long),
        "completion_ids": torch.zeros(N, C, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }
    return TRLTrainer._compute_loss(fake, fake.model, inputs), fake._metrics["train"]


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(
    ("loss_type", "trls"), [("grpo", "grpo"), ("bnpo", "bnpo"), ("bnpo", "dapo"), ("dr_grpo", "dr_grpo")]
)
def test_loss_equals_trls_own(loss_type, trls, beta):
    torch.manual_seed(1)
    logps = -torch.rand(6, 8).requires_grad_()
    old, ref = logps.detach() + torch.randn(6, 8) / 3, logps.detach() + torch.randn(6, 8) / 3
    advantages, mask = torch.randn(6), torch.arange(8) < torch.tensor([1, 8, 3, 5, 2, 7])[:, None]
    leaf = logps.detach().requires_grad_()
    theirs, metrics = trl_loss(leaf, old, ref, advantages, mask, trls, beta, 16)
    theirs.backward()
    own = logps.detach().requires_grad_()
    ours, sums = grpo_loss(
        own, old, advantages, mask, ref, beta, 0.2, 0.3, loss_type=loss_type, max_completion_length=16
    )
    ours.backward()
    assert_close(ours, theirs)
    assert_close(own.grad, leaf.grad)
    assert not any(value.requires_grad for value in sums.values())
    if beta:
        assert float(sums["kl"] / mask.sum()) == pytest.approx(metrics["kl"][0], rel=1e-5)
    assert float(sums["clip_ratio"] / mask.sum()) == pytest.approx(metrics["clip_ratio/region_mean"][0], rel=1e-5)


def test_an_unknown_loss_type_is_named():
    with pytest.raises(ValueError, match="ppo.*choose from grpo"):
        grpo_loss(*fixed(), loss_type="ppo")

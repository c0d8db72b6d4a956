"""Advantages, KL and the loss: by hand, and against TRL's own."""

import inspect
import math
import sys
import textwrap
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from trl import GRPOTrainer as TRLTrainer
from trl import RLOOTrainer

from aqa_lib.loss import BASELINES, LOSS_TYPES, group_advantages, grpo_loss, kl_divergence


def test_advantages_by_hand():
    """Rewards 2, 1, 0, 1: mean 1, unbiased deviation sqrt(2 / 3)."""
    expected = torch.tensor([[1.0, 0.0, -1.0, 0.0]]) / (math.sqrt(2 / 3) + 1e-4)
    rewards = torch.tensor([[2.0, 1.0, 0.0, 1.0]])
    assert_close(group_advantages(rewards), expected)
    assert_close(group_advantages(rewards, "none"), torch.tensor([[1.0, 0.0, -1.0, 0.0]]))
    assert_close(group_advantages(torch.full((2, 4), 2.0)), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="scale_rewards='std' is unknown; choose from group, batch, none"):
        group_advantages(rewards, "std")
    with pytest.raises(ValueError, match="baseline='value' is unknown; choose from group, leave_one_out, batch"):
        group_advantages(rewards, baseline="value")


def test_baselines_by_hand():
    """Two questions, rewards 3, 0, 0 and 1, 1, 1: the mean of all is 1."""
    rewards = torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    deviation = math.sqrt((4 + 1 + 1) / 5) + 1e-4
    found = {name: group_advantages(rewards, "none", name) for name in BASELINES}
    assert_close(found["group"], torch.tensor([[2.0, -1.0, -1.0], [0.0, 0.0, 0.0]]))
    assert_close(found["leave_one_out"], torch.tensor([[3.0, -1.5, -1.5], [0.0, 0.0, 0.0]]))
    assert_close(found["batch"], torch.tensor([[2.0, -1.0, -1.0], [0.0, 0.0, 0.0]]))
    assert_close(group_advantages(rewards + torch.tensor([[0.0], [6.0]]), "none", "batch")[1], torch.full((3,), 3.0))
    assert_close(group_advantages(rewards, "batch", "batch"), found["batch"] / deviation)


@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
def test_rewards_that_differ_in_their_last_bit_alone_teach_nothing(baseline):
    rewards = torch.tensor([[0.1 + 0.2, 0.3, 0.3, 0.3]]) + torch.tensor([[0.0, 0.0, 0.0, 6e-8]])
    assert rewards.std() > 0 and not group_advantages(rewards, "group", baseline).any()


def trl_lines(trainer, first, last):
    """Run some lines of TRL's method that turns rewards into advantages, as they stand in its source."""

    def run(**names):
        source = inspect.getsource(trainer._generate_and_score_completions)
        lines = source[source.index(first) : source.index(last)]
        indent = source[: source.index(first)].rpartition("\n")[2]
        exec(textwrap.dedent(indent + lines), vars(sys.modules[trainer.__module__]), names)
        return names["advantages"]

    return run


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_equal_trls_own(scale):
    torch.manual_seed(3)
    rewards = torch.randint(0, 3, (6, 4)).float()
    run = trl_lines(TRLTrainer, "mean_grouped_rewards = ", "is_std_zero")
    fake = SimpleNamespace(scale_rewards=scale)
    theirs = run(rewards=rewards.flatten(), num_generations=4, self=fake)
    assert_close(group_advantages(rewards, scale).flatten(), theirs, atol=2e-6, rtol=1e-5)


def test_leave_one_out_equals_trls_rloo():
    torch.manual_seed(4)
    rewards = torch.randn(6, 4)
    run = trl_lines(RLOOTrainer, "scorable_counts = ", "# Normalize advantages")
    theirs = run(grouped_rewards=rewards, rewards=rewards.flatten(), num_generations=4)
    assert_close(group_advantages(rewards, "none", "leave_one_out").flatten(), theirs)


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
        ("dapo", (-1.2 - 0.5 + 1.1) / 3),
        ("dr_grpo", (-1.2 - 0.5 + 1.1) / (2 * 10)),
        # minus weight, at most 1.2, times advantage times log-probability
        ("cispo", (-1.2 * math.log(1.5) - 0.5 * math.log(0.5) + 1.1 * math.log(1.1)) / 3),
    ],
)
def test_loss_by_hand(loss_type, expected):
    high = 1.2 if loss_type == "cispo" else None
    loss, sums = grpo_loss(*fixed(), beta=0, epsilon_high=high, loss_type=loss_type, max_completion_length=10)
    assert loss.item() == pytest.approx(expected)
    assert sums["clip_ratio"].item() == 1  # the first token alone is clipped
    loss.backward()


def test_a_sequence_has_one_ratio_by_hand():
    """The first answer's is the geometric mean of 1.5 and 0.5, 0.87; the second's is 1.1."""
    logps, old, advantages, mask = fixed()
    options = {"beta": 0, "importance_sampling_level": "sequence"}
    loss, metrics = grpo_loss(logps, old, advantages, mask, **options)
    assert loss.item() == pytest.approx((-math.sqrt(1.5 * 0.5) + 1.1) / 2) and metrics["clip_ratio"].item() == 0
    loss, metrics = grpo_loss(logps, old, -advantages, mask, epsilon=0.05, **options)
    assert loss.item() == pytest.approx((0.95 - 1.05) / 2) and metrics["clip_ratio"].item() == 3  # all their tokens


def test_cispo_leaves_no_token_out():
    """Its gradient is the ratio's, at most epsilon_high, times the advantage, at every token."""
    logps, *rest = fixed()
    grpo_loss(logps, *rest, beta=0, epsilon_high=1.2, loss_type="cispo")[0].backward()
    assert_close(logps.grad, torch.tensor([[-1.2, -0.5], [1.1, 0.0]]) / 3)


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
    for loss_type in LOSS_TYPES:
        options = {"loss_type": loss_type, "max_completion_length": 5}
        whole, metrics = grpo_loss(logps, old, advantages, mask, ref, **options)
        parts = [
            grpo_loss(
                *(t[rows] for t in (logps, old, advantages, mask, ref)),
                num_completions=12,
                num_tokens=int(mask.sum()),
                **options,
            )
            for rows in ([0], [1, 3], [2])
        ]
        assert_close(sum(loss for loss, _ in parts), whole)
        assert_close(sum(told["kl"] for _, told in parts), metrics["kl"])


def test_the_kl_in_the_log_is_the_papers():
    """r1-aqa's `mean_kl`: over the tokens of each answer, then over answers; a long answer weighs no more."""
    torch.manual_seed(0)
    logps, ref = -torch.rand(6, 8), -3 * torch.rand(6, 8)
    mask = torch.arange(8) < torch.tensor([1, 8, 3, 5, 2, 7])[:, None]
    per_token = (ref - logps).exp() - (ref - logps) - 1
    theirs = ((per_token * mask).sum(dim=1) / mask.sum(dim=1)).mean()
    _, metrics = grpo_loss(logps, logps, torch.zeros(6), mask, ref)
    assert_close(metrics["kl"], theirs)
    assert abs(float((per_token * mask).sum() / mask.sum() - theirs)) > 0.05  # what all tokens alike would give


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_the_loss_is_beta_times_the_kl_where_the_advantages_cancel(loss_type):
    torch.manual_seed(0)
    logps, ref, mask = -torch.rand(6, 8), -torch.rand(6, 8), torch.rand(6, 8) < 0.7
    options = {"loss_type": loss_type, "max_completion_length": 20}
    loss, metrics = grpo_loss(logps, logps, torch.zeros(6), mask, ref, beta=0.3, **options)
    assert_close(loss, 0.3 * metrics["kl"])


def trl_loss(logps, old, ref, advantages, mask, max_completion_length=16, **options):
    """Call TRL's own `_compute_loss` on given log-probabilities."""
    N, C = logps.shape
    args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    dials = {"epsilon_low": 0.2, "epsilon_high": 0.3, "importance_sampling_level": "token"} | options
    fake = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=args,
        accelerator=SimpleNamespace(gather=lambda t: t, num_processes=1, reduce=lambda t, reduction: t),
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
        **dials,
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


GSPO = {"importance_sampling_level": "sequence"}


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(
    ("loss_type", "trls", "high", "dials"),
    [
        ("grpo", "grpo", 0.3, {}),
        ("grpo", "grpo", 0.2, {}),
        ("bnpo", "bnpo", 0.3, {}),
        ("bnpo", "dapo", 0.3, {}),
        ("dapo", "dapo", 0.28, {}),
        ("dr_grpo", "dr_grpo", 0.3, {}),
        ("cispo", "cispo", 1.2, {}),
        ("cispo", "cispo", 5.0, {}),
        ("grpo", "grpo", 0.3, GSPO),
        ("grpo", "grpo", 0.01, GSPO),
    ],
)
def test_loss_equals_trls_own(loss_type, trls, high, dials, beta):
    torch.manual_seed(1)
    logps = -torch.rand(6, 8)
    old, ref = logps.detach() + torch.randn(6, 8) / 3, logps.detach() + torch.randn(6, 8) / 3
    advantages, mask = torch.randn(6), torch.arange(8) < torch.tensor([1, 8, 3, 5, 2, 7])[:, None]
    leaf = logps.detach().requires_grad_()
    theirs, metrics = trl_loss(leaf, old, ref, advantages, mask, beta=beta, loss_type=trls, epsilon_high=high, **dials)
    theirs.backward()
    own = logps.detach().requires_grad_()
    ours, told = grpo_loss(
        own, old, advantages, mask, ref, beta, 0.2, high, loss_type=loss_type, max_completion_length=16, **dials
    )
    ours.backward()
    assert_close(ours, theirs)
    assert_close(own.grad, leaf.grad)
    assert not any(value.requires_grad for value in told.values())
    if beta and loss_type in ("bnpo", "dapo", "cispo"):  # TRL logs the mean over all tokens, whatever the loss's is
        assert float(told["kl"]) == pytest.approx(metrics["kl"][0], rel=1e-5)
    clipped = metrics["cispo_clip_ratio" if trls == "cispo" else "clip_ratio/region_mean"][0]
    if not dials:  # TRL counts sequences there, and here their tokens
        assert float(told["clip_ratio"] / mask.sum()) == pytest.approx(clipped, rel=1e-5)


def test_with_one_step_a_batch_sequence_ratios_and_cispo_pull_as_the_plain_ones_do():
    """At a ratio of 1 nothing is clipped: GSPO's gradient is GRPO's, and CISPO's is DAPO's."""
    torch.manual_seed(2)
    advantages, mask = torch.randn(6), torch.arange(8) < torch.tensor([1, 8, 3, 5, 2, 7])[:, None]

    def gradient(**options):
        logps = (-torch.rand(6, 8, generator=torch.Generator().manual_seed(0))).requires_grad_()
        grpo_loss(logps, logps.detach(), advantages, mask, beta=0, **options)[0].backward()
        return logps.grad

    assert_close(gradient(**GSPO), gradient())
    assert_close(gradient(loss_type="cispo", epsilon_high=5.0), gradient(loss_type="dapo"))


def test_an_unknown_loss_type_is_named():
    with pytest.raises(ValueError, match="ppo.*choose from grpo"):
        grpo_loss(*fixed(), loss_type="ppo")


HOLES = [[1.0, None, 0.0, 1.0], [None, None, 2.0, None], [None] * 4, [1.0, 1.0, None, 1.0], [3.0, 1.0, 0.0, 2.0]]


def with_holes():
    return torch.tensor([[math.nan if value is None else value for value in row] for row in HOLES])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_answers_without_a_reward_are_in_no_baseline_as_in_trl(scale):
    rewards = with_holes()
    run = trl_lines(TRLTrainer, "unscorable_mask = ", "# Slice to keep only")
    weights, names = torch.ones(1), {"multi_objective_aggregation": "sum_then_normalize", "scale_rewards": scale}
    fake = SimpleNamespace(reward_weights=weights, **names)
    theirs = run(rewards_per_func=rewards.reshape(-1, 1), num_generations=4, device="cpu", self=fake)
    ours = group_advantages(rewards, scale)
    assert_close(ours.flatten(), theirs, atol=2e-6, rtol=1e-5)
    assert not ours[rewards.isnan()].any() and not ours[1:4].any(), "one reward alone, none, or only equal ones"


def test_nor_in_that_of_rloo_and_reinforce():
    rewards = with_holes()
    run = trl_lines(RLOOTrainer, "scorable_counts = ", "# Slice to keep only")
    fake = SimpleNamespace(normalize_advantages=False)
    names = {"grouped_rewards": rewards, "rewards": rewards.flatten(), "std_rewards": torch.ones(20)}
    theirs = run(**names, num_generations=4, self=fake)
    assert_close(group_advantages(rewards, "none", "leave_one_out").flatten(), theirs)
    known = [value for row in HOLES for value in row if value is not None]
    by_hand = [[0.0 if value is None else value - sum(known) / len(known) for value in row] for row in HOLES]
    assert_close(group_advantages(rewards, "none", "batch"), torch.tensor(by_hand))

"""Turn rewards into a loss: group advantages, the clipped ratio, the KL to the reference.

`reward, logps -> [loss] -> grpo`. Tensors in, tensors out: this module imports torch and nothing else, so that it can
be read, and tested against TRL's, without a model.
"""

import torch
from torch import Tensor

BASELINES = ("group", "leave_one_out", "batch")  # whose mean reward is subtracted
SCALES = ("group", "batch", "none")  # whose deviation the difference is divided by
LOSS_TYPES = ("grpo", "bnpo", "dapo", "dr_grpo", "cispo")
LEVELS = ("token", "sequence")  # of the importance ratio


def spread(rewards: Tensor, dim: int | None = None) -> Tensor:
    """Compute the unbiased deviation of the rewards that are numbers, keeping `dim`; 0 where fewer than two are.

    >>> spread(torch.tensor([[1.0, 3.0, torch.nan], [1.0, torch.nan, torch.nan]]), 1)
    tensor([[1.4142],
            [0.0000]])
    """
    known = ~rewards.isnan()
    squares = torch.where(known, rewards - rewards.nanmean(dim, keepdim=True), 0.0).square().sum(dim, keepdim=True)
    part = (squares / (known.sum(dim, keepdim=True) - 1).clamp(min=1)).sqrt()
    whole = known.all() if dim is None else known.all(dim, keepdim=True)
    return torch.where(whole, rewards.std(dim, keepdim=True), part)


def group_advantages(rewards: Tensor, scale_rewards: str = "group", baseline: str = "group") -> Tensor:
    """Subtract a baseline from each answer's reward, and divide by a deviation.

    rewards: (B, G), any unit; NaN where none applies: such an answer is in no mean and no deviation, and its advantage
    is 0, as in TRL. Returns (B, G). baseline: the mean of the answer's "group" (GRPO), of the group's other
    answers, "leave_one_out" (RLOO), or of the whole "batch" (REINFORCE). scale_rewards: the deviation of the "group",
    of the whole "batch", or "none" (Dr. GRPO, RLOO). Where rewards are compared within groups, a group whose rewards
    agree has advantages of exactly zero.
    Source: GRPO, DeepSeekMath eq. 3; the paper divides by std + 1e-4 with the unbiased std. RLOO, arXiv 2402.14740.

    >>> group_advantages(torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    tensor([[ 0.8659,  0.8659, -0.8659, -0.8659]])
    """
    _known(scale_rewards=(scale_rewards, SCALES), baseline=(baseline, BASELINES))
    group, deviation = rewards.nanmean(1, keepdim=True), spread(rewards, 1)
    centred = rewards - (rewards.nanmean() if baseline == "batch" else group)
    centred = torch.where(rewards.isnan(), 0.0, centred)
    if baseline != "batch":  # equal rewards may differ in their last bit, which a deviation of nearly 0 would blow up
        centred = centred * (deviation > 1e-6)
    if baseline == "leave_one_out":  # r - (sum - r) / (G - 1)
        scored = (~rewards.isnan()).sum(1, keepdim=True)
        centred = centred * scored / (scored - 1).clamp(min=1)
    if scale_rewards == "none":
        return centred
    return centred / ((spread(rewards) if scale_rewards == "batch" else deviation) + 1e-4)


def kl_divergence(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate KL(policy || reference) per token by k3, `exp(d) - d - 1` with d = ref - policy: never negative.

    >>> kl_divergence(torch.tensor([-1.0]), torch.tensor([-1.0]))
    tensor([0.])
    """
    d = ref_logps - logps
    return d.exp() - d - 1


def grpo_loss(  # noqa: PLR0913 (TRL's options by name)
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logps: Tensor | None = None,
    beta: float = 0.04,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    loss_type: str = "grpo",
    importance_sampling_level: str = "token",
    max_completion_length: int | None = None,
    num_completions: float | None = None,
    num_tokens: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the clipped policy loss plus beta times the KL to the reference.

    logps, old_logps, ref_logps, mask: (..., C); advantages: (...), one for each answer. loss_type: "grpo" (the paper's:
    mean over an answer's tokens, then over answers), "bnpo" and "dapo" (mean over all tokens), "dr_grpo" (sum over
    `num_completions * max_completion_length`), or "cispo" (mean over all tokens of log-probabilities, weighted by
    ratios of at most epsilon_high, so that no token is left out). importance_sampling_level: a ratio for every "token",
    or one for the "sequence" (GSPO). num_completions, num_tokens: of the whole step, where this call sees only a part
    of it; the parts' losses then add up to the whole's, and so do the metrics. Returns the loss and {"clip_ratio": how
    many tokens were clipped, "kl": the same mean of the KL, so that the loss is about beta times it}.
    Source: DeepSeekMath eq. 3; Dr. GRPO (arXiv 2503.20783); DAPO (2503.14476); CISPO (2506.13585); GSPO (2507.18071);
    names as in TRL.
    """
    _known(loss_type=(loss_type, LOSS_TYPES), importance_sampling_level=(importance_sampling_level, LEVELS))
    advantages, mask = advantages[..., None], mask.float()
    lengths = mask.sum(-1).clamp(min=1)
    log_ratio = logps - old_logps
    if importance_sampling_level == "sequence":
        log_ratio = ((log_ratio * mask).sum(-1) / lengths)[..., None]
    ratio = log_ratio.exp()
    high = epsilon if epsilon_high is None else epsilon_high
    if loss_type == "cispo":
        per_token = -ratio.clamp(max=high).detach() * advantages * logps
        beyond = (ratio > high) & (advantages > 0)
    else:
        per_token = -torch.min(ratio * advantages, ratio.clamp(1 - epsilon, 1 + high) * advantages)
        beyond = ((ratio < 1 - epsilon) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))
    num_completions = num_completions or lengths.numel()

    def mean(values: Tensor) -> Tensor:
        if loss_type == "grpo":
            return ((values * mask).sum(-1) / lengths).sum() / num_completions
        if loss_type == "dr_grpo":
            return (values * mask).sum() / (num_completions * max_completion_length)
        return (values * mask).sum() / (num_tokens or mask.sum().clamp(min=1))

    metrics = {"clip_ratio": (beyond * mask).sum()}
    if beta:
        kl = kl_divergence(logps, ref_logps)
        metrics["kl"] = mean(kl.detach())
        per_token = per_token + beta * kl
    return mean(per_token), metrics


def _known(**options: tuple[str, tuple[str, ...]]) -> None:
    for name, (value, known) in options.items():
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown; choose from {', '.join(known)}.")

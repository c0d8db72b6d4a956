"""Turn rewards into a loss: group advantages, the clipped ratio, the KL to the reference.

`reward, logps -> [loss] -> grpo`. Tensors in, tensors out: this module imports torch and nothing else, so that it can
be read, and tested against TRL's, without a model.
"""

import torch
from torch import Tensor

SCALES = ("group", "none")  # what advantages are divided by
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo")


def group_advantages(rewards: Tensor, scale_rewards: str = "group") -> Tensor:
    """Centre each group's rewards, and divide them by the group's deviation.

    rewards: (B, G), any unit. Returns (B, G). `scale_rewards="none"` leaves out the division (Dr. GRPO).
    Source: GRPO, DeepSeekMath eq. 3; the paper divides by std + 1e-4 with the unbiased std.

    >>> group_advantages(torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    tensor([[ 0.8659,  0.8659, -0.8659, -0.8659]])
    """
    if scale_rewards not in SCALES:
        raise ValueError(f"scale_rewards={scale_rewards!r} is unknown; choose {' or '.join(SCALES)}.")
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale_rewards == "none":
        return centred
    return centred / (rewards.std(1, keepdim=True) + 1e-4)


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
    max_completion_length: int | None = None,
    num_completions: float | None = None,
    num_tokens: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the clipped policy loss plus beta times the KL to the reference.

    logps, old_logps, ref_logps, mask: (..., C); advantages: (...), one for each answer. loss_type: "grpo" (the paper's:
    mean over an answer's tokens, then over answers), "bnpo" (mean over all tokens; DAPO's, if a step is one batch),
    "dr_grpo" (sum over `num_completions * max_completion_length`). num_completions, num_tokens: of the whole step,
    if this call sees only part of it; the parts' losses then add up to the whole's, and so do the metrics. Returns
    the loss and {"clip_ratio": how many tokens were clipped, "kl": the same mean of the KL, so that the loss is about
    beta times it}.
    Source: DeepSeekMath eq. 3; Dr. GRPO (arXiv 2503.20783); DAPO (arXiv 2503.14476); names as in TRL.
    """
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type={loss_type!r} is unknown; choose from {', '.join(LOSS_TYPES)}.")
    advantages, mask = advantages[..., None], mask.float()
    ratio = (logps - old_logps).exp()
    high = epsilon if epsilon_high is None else epsilon_high
    clipped = ratio.clamp(1 - epsilon, 1 + high)
    per_token = -torch.min(ratio * advantages, clipped * advantages)
    lengths = mask.sum(-1).clamp(min=1)
    num_completions = num_completions or lengths.numel()

    def mean(values: Tensor) -> Tensor:
        if loss_type == "grpo":
            return ((values * mask).sum(-1) / lengths).sum() / num_completions
        if loss_type == "dr_grpo":
            return (values * mask).sum() / (num_completions * max_completion_length)
        return (values * mask).sum() / (num_tokens or mask.sum().clamp(min=1))

    beyond = ((ratio < 1 - epsilon) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))
    metrics = {"clip_ratio": (beyond * mask).sum()}
    if beta:
        kl = kl_divergence(logps, ref_logps)
        metrics["kl"] = mean(kl.detach())
        per_token = per_token + beta * kl
    return mean(per_token), metrics

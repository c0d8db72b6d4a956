"""Take a GRPO step as the paper does, written plainly: what `bench` measures this package against.

Only `bench` imports it. It computes what `trainer` computes, by transformers' own means alone: every
answer is a full row behind its own copy of the prompt and of the clip, each clip is padded to 30 s, and logits are
made at every position. So it encodes a clip 3 x G times a step: to sample, for the policy, for the reference.
"""

import torch
from torch import Tensor, nn
from transformers import BatchFeature

from aqa_lib.inputs import Prompts
from aqa_lib.loss import group_advantages, grpo_loss

FRAMES_PER_POSITION = 2  # of the encoder


def padded(model: nn.Module, prompts: Prompts, num_generations: int) -> BatchFeature:
    """Copy every prompt and its clip, padded to the longest that the model holds, for transformers' own `forward`."""
    whole = FRAMES_PER_POSITION * model.config.audio_config.max_source_positions
    mel = prompts.input_features
    silence = mel.amin((1, 2), keepdim=True)  # what the mel of silence is, once the clip has set the range
    features = torch.cat([mel, silence.expand(*mel.shape[:2], whole - mel.shape[2])], 2)
    inputs = {
        "input_ids": prompts.input_ids,
        "attention_mask": prompts.attention_mask,
        "input_features": features,
        "feature_attention_mask": (torch.arange(whole) < prompts.feature_lengths[:, None]).long(),
    }
    return BatchFeature({name: value.repeat_interleave(num_generations, 0) for name, value in inputs.items()})


def row_logps(model: nn.Module, inputs: BatchFeature, rows: Tensor) -> Tensor:
    """Compute the log-probabilities of the tokens in `rows`, (B * G, P + C), behind the prompt: (B * G, C)."""
    P = inputs["input_ids"].shape[1]
    seen = torch.cat([inputs["attention_mask"], torch.ones_like(rows[:, P:])], 1)
    logits = model(**inputs | {"input_ids": rows, "attention_mask": seen}, use_cache=False).logits  # (B * G, P + C, V)
    logps = [  # row by row, as the paper: the softmax of all at once would need twice the memory
        row.log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
        for row, ids in zip(logits[:, :-1], rows[:, 1:], strict=True)
    ]
    return torch.stack(logps)[:, P - 1 :]


def step(
    model: nn.Module,
    reference: nn.Module,
    optimizer: torch.optim.Optimizer,
    prompts: Prompts,
    rewards,
    num_generations: int = 8,
    completion_length: int = 256,
    beta: float = 0.04,
) -> Tensor:
    """Sample, reward, reinforce: one optimizer step on B prompts whose answers all have `completion_length` tokens.

    rewards: a function from rows of token ids, (B, G, C), to (B, G). Returns the loss.
    """
    B, G, P = len(prompts), num_generations, prompts.input_ids.shape[1]
    lengths = {"max_new_tokens": completion_length, "min_new_tokens": completion_length}
    with torch.no_grad():
        rows = model.eval().generate(
            **padded(model, prompts, 1), num_return_sequences=G, do_sample=True, top_k=50, **lengths
        )
        inputs = padded(model, prompts, G)
        ref_logps = row_logps(reference, inputs, rows)
    logps = row_logps(model.train(), inputs, rows)
    advantages = group_advantages(rewards(rows[:, P:].view(B, G, -1))).flatten()
    loss, _ = grpo_loss(logps, logps.detach(), advantages, torch.ones_like(logps), ref_logps, beta)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()

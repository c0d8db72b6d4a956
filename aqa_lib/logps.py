"""Compute the log-probability of every answer token, with each prompt run once for all of its answers.

`rollout -> [logps] -> loss`. The paper (and TRL) run the prompt again for each of its G answers; here one row
`[prompt, answer 1 ... answer G]` with a mask and restarted positions gives the same log-probabilities and the same
gradients, and the head is applied only to the answers' positions. For long answers, what the mask would hide is not
even computed (`attention`).
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import attention
from .attention import SeparateAnswers
from .inputs import Rollouts, positions
from .model import backbone, embed, parts
from .runtime import distributed


def shared_row(prompt_mask: Tensor, completion_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out G answers after one prompt: which token sees which, each token's position, and which token it is.

    prompt_mask: (B, P), completion_mask: (B, G, C). Answers are packed without padding between them, so a row has
    T = P + K tokens, K the most answer tokens in any row. Returns the attention mask, (B, 1, T, T) bool; position ids,
    (B, T); and for each of the K packed tokens its index into the flattened (G * C) answers, (B, K), padding last.
    Each answer sees the prompt and itself, and its positions continue the prompt's.

    >>> mask, position_ids, order = shared_row(torch.ones(1, 2), torch.tensor([[[1, 1], [1, 0]]]))
    >>> mask.int()[0, 0]
    tensor([[1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 0, 0, 1]], dtype=torch.int32)
    >>> position_ids, order
    (tensor([[0, 1, 2, 3, 2]]), tensor([[0, 1, 2]]))
    """
    order, position_ids = _pack(prompt_mask, completion_mask)
    (B, P), K, C = prompt_mask.shape, order.shape[1], completion_mask.shape[2]
    answer = torch.cat([order.new_full((B, P), -1), order // C], 1)  # (B, T), -1 for the prompt
    related = (answer[:, :, None] == answer[:, None]) | (answer[:, None] == -1)  # key: same answer, or the prompt
    real = torch.cat([prompt_mask.bool(), completion_mask.bool().flatten(1).gather(1, order)], 1)  # (B, T)
    mask = related.tril() & real[:, None]
    mask |= torch.eye(P + K, dtype=torch.bool, device=order.device)  # padding sees itself: softmax of nothing is NaN
    return mask[:, None], position_ids, order


def separate_answers(prompt_mask: Tensor, completion_mask: Tensor) -> tuple[SeparateAnswers, Tensor, Tensor]:
    """Lay out the same row for an attention that takes one answer at a time, and never scores it against another."""
    order, position_ids = _pack(prompt_mask, completion_mask)
    (B, P), (_, G, C) = prompt_mask.shape, completion_mask.shape
    real = prompt_mask.bool()[:, None]  # (B, 1, P)
    ones = torch.ones(max(P, C), max(P, C), dtype=torch.bool, device=order.device)
    among = ones[:P, :P].tril() & real | torch.eye(P, dtype=torch.bool, device=order.device)
    before = real[:, None].expand(B, G, C, P)
    own = ones[:C, :C].tril().expand(B, G, C, C)
    mask = torch.cat([before, own], 3).flatten(0, 1)[:, None]  # (B * G, 1, C, P + C)
    return SeparateAnswers(among[:, None], mask, _row_index(order, P, G, C), order), position_ids, order


def _pack(prompt_mask: Tensor, completion_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Put the answers' tokens one after the other: (B, K) indices into (G * C), and (B, P + K) position ids."""
    C, real = completion_mask.shape[2], completion_mask.bool().flatten(1)  # (B, G * C)
    order = (~real).long().argsort(dim=1, stable=True)[:, : int(real.sum(1).max())]
    behind = prompt_mask.sum(1, keepdim=True).long() + order % C
    return order, torch.cat([positions(prompt_mask).long(), behind], 1)


def _row_index(order: Tensor, P: int, G: int, C: int) -> Tensor:
    """Return the index in its row at which each answer's token was put, (B, G, C); 0 if it was not."""
    behind = P + torch.arange(order.shape[1], device=order.device).expand_as(order)
    return order.new_zeros(len(order), G * C).scatter_(1, order, behind).view(len(order), G, C)


@distributed.forward_method
def completion_logps(
    model: nn.Module, rollouts: Rollouts, temperature: float = 1.0, chunk_size: int = 1024
) -> tuple[Tensor, Tensor]:
    """Compute the log-probability and the entropy of every answer token, with each prompt run once.

    Returns two (B, G, C) float32 tensors, zero where the mask is false. The head sees `chunk_size` positions at a time
    and is recomputed in the backward pass, so that memory never holds the logits of all positions.
    """
    prompts, ids, mask = rollouts.prompts, rollouts.completion_ids, rollouts.mask
    (B, G, C), P = ids.shape, prompts.input_ids.shape[1]
    # An answer's last token predicts nothing, so only those with a successor are run.
    fed = mask[..., 1:]
    separate = attention.pays(P, G, C - 1, int(fed.sum((1, 2)).max()))
    row_mask, position_ids, order = (separate_answers if separate else shared_row)(prompts.attention_mask, fed)
    fed = ids[..., :-1].flatten(1).gather(1, order)  # (B, K)
    table = parts(model).language_model.get_input_embeddings()
    hidden = backbone(model, torch.cat([embed(model, prompts), table(fed)], 1), row_mask, position_ids)  # (B, T, H)

    # Token (g, 0) is predicted at the prompt's end, token (g, t) where token (g, t - 1) was packed.
    source = nn.functional.pad(_row_index(order, P, G, C - 1), (1, 0), value=P - 1)  # (B, G, C)
    row = torch.arange(B, device=ids.device)[:, None, None].expand_as(source)
    hidden, targets = hidden[row[mask], source[mask]], ids[mask]  # (n, H), (n,) for the n tokens of all answers
    head = parts(model).head
    chunks = list(zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True))
    if len(chunks) == 1:  # nothing needs to be recomputed
        pieces = [_logps(head, hidden, targets, temperature)]
    else:
        pieces = [checkpoint(_logps, head, *chunk, temperature, use_reentrant=False) for chunk in chunks]
    logps, entropies = (torch.cat(piece) for piece in zip(*pieces, strict=True))
    zeros = torch.zeros(B, G, C, device=ids.device)
    return zeros.masked_scatter(mask, logps), zeros.masked_scatter(mask, entropies)


def _logps(head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logps = (head(hidden).float() / temperature).log_softmax(-1)  # (n, V)
    with torch.no_grad():
        entropy = -(logps.exp() * logps).sum(-1)
    return logps.gather(1, targets[:, None]).squeeze(1), entropy

"""Attend from each of G answers to their shared prompt and to itself, without scoring answers against each other.

`model -> [attention] -> logps`. In a row `[prompt, answer 1 ... answer G]` a mask hides answers from each other, but
what it hides is computed all the same: for 8 answers of 256 tokens after a prompt of 280, four fifths of the scores.
Here the answers are batched for the attention only; all other layers still see one row. `model.load` sets this
attention once; without `answers` it is transformers' sdpa.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_answers"  # this attention's name, in a config's _attn_implementation


@dataclass(frozen=True)
class SeparateAnswers:
    """Where the tokens of G answers to each of B prompts are in rows of T = P + K tokens, prompts first.

    prompt_mask: (B, 1, P, P) bool, which of a prompt's tokens see which. mask: (B * G, 1, C, P + C) bool, which of the
    prompt's and of its own tokens an answer's token sees. index: (B, G, C), a token's index in its row, arbitrary after
    an answer's end. order: (B, K), for each place after the prompt, its token's index into (G * C).
    """

    prompt_mask: Tensor
    mask: Tensor
    index: Tensor
    order: Tensor


def pays(P: int, G: int, C: int, K: int) -> bool:
    """Return whether separate attention halves the scores of G answers, of up to C tokens each and K in all.

    It costs G copies of the prompt's keys and values.

    >>> pays(280, 8, 256, 2048), pays(280, 8, 12, 96)
    (True, False)
    """
    return 2 * (P * P + G * C * (P + C)) < (P + K) ** 2


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs):
    """Attend as transformers' sdpa attention does or, given `answers`, from one answer at a time.

    query, key, value: (B, heads, T, D). Returns (B, T, heads, D), and None for the weights.
    """
    answers: SeparateAnswers | None = kwargs.pop("answers", None)
    if answers is None:
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    P = answers.prompt_mask.shape[-1]
    prompt = (x[:, :, :P] for x in (query, key, value))
    first, _ = sdpa_attention_forward(module, *prompt, answers.prompt_mask, **kwargs)

    B, G, C = answers.index.shape
    row = torch.arange(B, device=query.device)[:, None]
    indices = (row * query.shape[2] + answers.index.flatten(1)).flatten()  # (B * G * C,)

    def own(x: Tensor) -> Tensor:  # (B, heads, T, D) to (B, G, heads, C, D)
        rows = x.transpose(1, 2).flatten(0, 1).index_select(0, indices)  # (B * G * C, heads, D)
        return rows.unflatten(0, (B, G, C)).transpose(2, 3)

    def seen(x: Tensor) -> Tensor:  # (B, heads, T, D) to (B * G, heads, P + C, D)
        prompt = x[:, None, :, :P].expand(-1, G, -1, -1, -1)
        return torch.cat([prompt, own(x)], 3).flatten(0, 1)

    asked = own(query).flatten(0, 1)  # (B * G, heads, C, D)
    rest, _ = sdpa_attention_forward(module, asked, seen(key), seen(value), answers.mask, **kwargs)
    back = (row * (G * C) + answers.order).flatten()
    rest = rest.flatten(0, 1).index_select(0, back).unflatten(0, (B, -1))  # (B, K, heads, D)
    return torch.cat([first, rest], 1), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)

"""Attend from each of G answers to their one prompt and to itself, without scoring the answers against each other.

`model -> [attention] -> loss`. In a row `[prompt, answer 1 ... answer G]` a mask hides the answers from each other, but
what it hides has been computed: for 8 answers of 256 tokens behind a prompt of 280 that is four fifths of the scores.
Here the answers are set beside each other for the attention alone; all other layers go on seeing one row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_answers"  # of the attention, in a config's _attn_implementation


@dataclass(frozen=True)
class Answers:
    """Where the tokens of G answers to each of B prompts stand in rows of P + K tokens, prompts first.

    prompt_mask: (B, 1, P, P) bool, who sees whom among a prompt's tokens. mask: (B * G, 1, L, P + L) bool, which of
    the prompt's and of its own tokens an answer's token sees. place: (B, G, L), a token's place in its row, anything
    where an answer has ended. order: (B, K), for each place behind the prompt its token's index into (G * L).
    """

    prompt_mask: Tensor
    mask: Tensor
    place: Tensor
    order: Tensor


def pays(P: int, G: int, L: int, K: int) -> bool:
    """Tell whether it halves the scores to set G answers of L places and K tokens in all apart.

    It costs G copies of the prompt's keys and values.

    >>> pays(280, 8, 256, 2048), pays(280, 8, 12, 96)
    (True, False)
    """
    return 2 * (P * P + G * L * (P + L)) < (P + K) ** 2


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs):
    """Do as transformers' sdpa attention does, apart where it is given `answers`.

    query, key, value: (B, heads, T, D). Returns (B, T, heads, D), and None for the weights.
    """
    answers: Answers | None = kwargs.pop("answers", None)
    if answers is None:
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    P = answers.prompt_mask.shape[-1]
    prompt = (x[:, :, :P] for x in (query, key, value))
    first, _ = sdpa_attention_forward(module, *prompt, answers.prompt_mask, **kwargs)

    B, G, L = answers.place.shape
    row = torch.arange(B, device=query.device)[:, None]
    places = (row * query.shape[2] + answers.place.flatten(1)).flatten()  # (B * G * L,)

    def own(x: Tensor) -> Tensor:  # (B, h, T, D) to (B, G, h, L, D)
        rows = x.transpose(1, 2).flatten(0, 1).index_select(0, places)  # (B * G * L, h, D)
        return rows.unflatten(0, (B, G, L)).transpose(2, 3)

    def seen(x: Tensor) -> Tensor:  # (B, h, T, D) to (B * G, h, P + L, D)
        prompt = x[:, None, :, :P].expand(-1, G, -1, -1, -1)
        return torch.cat([prompt, own(x)], 3).flatten(0, 1)

    asked = own(query).flatten(0, 1)  # (B * G, h, L, D)
    rest, _ = sdpa_attention_forward(module, asked, seen(key), seen(value), answers.mask, **kwargs)
    back = (row * (G * L) + answers.order).flatten()
    rest = rest.flatten(0, 1).index_select(0, back).unflatten(0, (B, -1))  # (B, K, h, D)
    return torch.cat([first, rest], 1), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)

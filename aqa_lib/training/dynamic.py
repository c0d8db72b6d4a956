"""Replace questions that teach nothing: dynamic sampling (DAPO, arXiv 2503.14476).

`rollout, reward -> [dynamic] -> grpo`. A group whose rewards agree has no better answer, so a step with many of them
learns from a fraction of its batch. Others are asked in their place, until all deviate or the rounds are over. What is
asked in addition costs answers too, and is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..dataset import Question
from ..inputs import Prompts, Rollouts
from ..loss import spread

EQUAL = 1e-6  # deviation up to which a group's rewards count as equal


@dataclass
class Answered:
    """Questions with their answers, one group each: texts, (B, G), and rewards, (B, G); NaN: none applies."""

    questions: list[Question]
    rollouts: Rollouts
    texts: list[list[str]]
    rewards: Tensor

    @property
    def deviation(self) -> Tensor:
        """The deviation of each group's rewards, (B,)."""
        return spread(self.rewards, 1)[:, 0]

    @property
    def agree(self) -> list[int]:
        """The rows whose rewards are all alike, or fewer than two."""
        return (self.deviation <= EQUAL).nonzero().flatten().tolist()

    def replace(self, rows: Sequence[int], others: "Answered") -> "Answered":
        """Put the first of `others` in place of some rows, in their order."""
        take = list(range(len(self.questions)))
        for place, row in enumerate(rows[: len(others.questions)]):
            take[row] = len(self.questions) + place
        questions, texts = [*self.questions, *others.questions], [*self.texts, *others.texts]
        return Answered(
            [questions[row] for row in take],
            join(self.rollouts, others.rollouts).select(take),
            [texts[row] for row in take],
            torch.cat([self.rewards, others.rewards])[take],
        )


def others(size: int, taken: set[int], count: int, seed: Sequence[int]) -> list[int]:
    """Draw `count` different indices below `size` that are not taken, or as many as there are.

    >>> others(4, {0, 2}, 5, [0]) in ([1, 3], [3, 1])
    True
    """
    order = np.random.default_rng(list(seed)).permutation(size)
    return [int(index) for index in order if index not in taken][:count]


def join(first: Rollouts, second: Rollouts) -> Rollouts:
    """Put two batches behind each other; both have clips encoded before, or both their mels, or neither a clip."""
    pad = {"input_ids": (-1, True), "attention_mask": (-1, True), "input_features": (-1, False)}
    pad |= {"audio_embeds": (1, False), "feature_lengths": (None, False), "audio_lengths": (None, False)}
    pad |= {"clips": (None, False)}
    prompts = {}
    for name, (dim, left) in pad.items():
        a, b = (getattr(some.prompts, name) for some in (first, second))
        if name == "clips" and (a is None) != (b is None):  # None is one each
            one = [torch.ones(len(some.prompts), dtype=torch.long, device=some.mask.device) for some in (first, second)]
            a, b = (ones if own is None else own for own, ones in zip((a, b), one, strict=True))
        prompts[name] = None if a is None or b is None else _cat(a, b, dim, left)
    ids, mask = (_cat(a, b, -1) for a, b in ((first.completion_ids, second.completion_ids), (first.mask, second.mask)))
    return Rollouts(Prompts(**prompts), ids, mask, torch.cat([first.ended, second.ended]))


def _cat(a: Tensor, b: Tensor, dim: int | None, left: bool = False) -> Tensor:
    """Concatenate rows, after padding the shorter of both along `dim` with zeros."""
    if dim is None:
        return torch.cat([a, b])
    width, behind = max(a.shape[dim], b.shape[dim]), 2 * (a.dim() - 1 - dim % a.dim())

    def padded(tensor: Tensor) -> Tensor:
        more = width - tensor.shape[dim]
        return nn.functional.pad(tensor, [0] * behind + ([more, 0] if left else [0, more]))

    return torch.cat([padded(a), padded(b)])

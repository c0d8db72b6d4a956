"""Sample G answers to each prompt, running every prompt once.

`model -> [rollout] -> reward -> loss`. The G answers of a prompt grow side by side in one row of the KV cache, which
holds `prompt, t_0 of answers 1..G, t_1 of answers 1..G, ...`; a mask lets each answer see the prompt and itself. The
paper generates from G copies of every prompt; here nothing of the prompt is copied, neither its encoding nor its cache,
so the cache is up to G times smaller and each decoding step reads it once for all G answers. Answers that have ended
leave the computation, so that one that rambles does not keep its neighbours busy. The cache is allocated once, and a
step copies nothing in it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Cache, RepetitionPenaltyLogitsProcessor, TopPLogitsWarper
from transformers.cache_utils import DynamicLayer

from .dataset import Question
from .inputs import Prompts, Rollouts, positions
from .model import backbone, context, embed, parts
from .runtime import distributed, faults

SHARED, NOBODY = -1, -2  # who owns a key that belongs to no answer: the prompt, its padding


class RolloutEngine:
    """What samples answers for training and evaluation: here `sample`, with the policy itself.

    Another engine, such as vLLM, is a class with these two methods, passed to `GRPOTrainer(engine=...)` or
    `evaluation.predict(engine=...)`. They have the names that TRL's `VLLMGeneration` gives them.
    """

    def __init__(self, model: nn.Module, processor):
        self.model, self.processor = model, processor

    def sync_weights(self, model: nn.Module) -> None:
        """Take the policy's current weights; called before every batch of answers that should come from new ones."""
        self.model = model

    def generate(self, prompts: Prompts, *, questions: Sequence[Question] = (), **sampling) -> Rollouts:
        """Sample answers to each prompt.

        questions: the prompts' own, for an engine that reads clips itself. sampling: `num_generations,
        max_completion_length, temperature, top_k, top_p, repetition_penalty, seed`, as in `sample`.
        """
        return sample(self.model, self.processor, prompts, **sampling)


def end_ids(model: nn.Module, processor) -> list[int]:
    """List the ids that end an answer: those of the generation config, else the tokenizer's."""
    ids = model.generation_config.eos_token_id
    ids = processor.tokenizer.eos_token_id if ids is None else ids
    return [ids] if isinstance(ids, int) else list(ids)


class KVCacheLayer(DynamicLayer):
    """A layer's keys and values, (R, heads, width, D), allocated once; the first `used` of `width` are filled."""

    def __init__(self, width: int):
        super().__init__()
        self.width, self.used = width, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            R, heads, _, D = key_states.shape
            self.keys, self.values = (key_states.new_zeros(R, heads, self.width, D) for _ in range(2))
        start, self.used = self.used, self.used + key_states.shape[2]
        self.keys[:, :, start : self.used] = key_states
        self.values[:, :, start : self.used] = value_states
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def get_seq_length(self) -> int:
        return self.used


@torch.no_grad()
@distributed.forward_method
def sample(  # noqa: PLR0913 (generate's options by name)
    model: nn.Module,
    processor,
    prompts: Prompts,
    num_generations: int = 1,
    max_completion_length: int = 256,
    temperature: float = 1.0,
    top_k: int | None = 50,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
) -> Rollouts:
    """Sample `num_generations` answers to each prompt; temperature 0 decodes greedily.

    top_k, top_p, repetition_penalty: as transformers' `generate` reads them. The same seed, prompts and device give
    the same answers, whatever else was drawn before. Greedy answers equal `generate(do_sample=False)`.
    """
    B, G, device = len(prompts), num_generations, prompts.input_ids.device
    head, lm, pad = parts(model).head, parts(model).language_model, processor.tokenizer.pad_token_id
    ends = torch.tensor(end_ids(model, processor), device=device)
    penalise = RepetitionPenaltyLogitsProcessor(repetition_penalty) if repetition_penalty != 1.0 else None
    generator = torch.Generator(device).manual_seed(seed)
    training = model.training
    model.eval()

    P = prompts.input_ids.shape[1]
    if (longest := context(model)) and P + max_completion_length > longest:
        raise faults.RunError(
            f"a prompt of {P} tokens and answers of up to {max_completion_length} do not fit the model's context of "
            f"{longest}; shorten the question, or lower max_completion_length."
        )
    width = P + G * (max_completion_length - 1)
    cache = Cache(layers=[KVCacheLayer(width) for _ in range(lm.config.num_hidden_layers)])
    prompt_mask = prompts.attention_mask.bool()  # (B, P)
    hidden = backbone(model, embed(model, prompts), prompts.attention_mask, positions(prompts.attention_mask), cache)
    logits = head(hidden[:, -1]).float().repeat_interleave(G, 0)  # (B * G, V)
    lengths = prompt_mask.sum(1, keepdim=True)  # (B, 1)

    # Still being decoded: L answers to each of R prompts. The cache keeps the other answers; none of these sees them.
    rows = torch.arange(B, device=device)[:, None]  # (R, 1)
    lanes = torch.arange(G, device=device).expand(B, G)  # (R, L)
    owner = torch.full((B, width), NOBODY, device=device)  # (R, keys): the answer that a key belongs to
    owner[:, :P] = torch.where(prompt_mask, SHARED, NOBODY)
    unfinished = torch.ones(B, G, dtype=torch.bool, device=device)
    ids = torch.full((B, G, max_completion_length), pad, device=device)
    mask = torch.zeros(B, G, max_completion_length, dtype=torch.bool, device=device)
    used = P
    finite = torch.ones((), dtype=torch.bool, device=device)
    for step in range(max_completion_length):
        finite &= logits.amax().isfinite()  # a maximum that any NaN would take over
        if penalise:
            before = prompts.input_ids[rows].expand(-1, lanes.shape[1], -1)
            logits = penalise(torch.cat([before, ids[rows, lanes, :step]], 2).flatten(0, 1), logits)
        token = logits.argmax(-1) if temperature == 0 else draw(logits / temperature, top_k, top_p, generator)
        token = token.view_as(lanes)
        ids[rows, lanes, step] = torch.where(unfinished[rows, lanes], token, pad)
        mask[rows, lanes, step] = unfinished[rows, lanes]
        unfinished[rows, lanes] &= ~torch.isin(token, ends)
        some_left = bool(unfinished.any())
        if step == max_completion_length - 1 or not distributed.max_over_ranks(model, some_left):
            break
        alive = unfinished[rows, lanes].any(1)
        if some_left and 2 * int(alive.sum()) <= len(rows):  # half of the prompts are done: drop their rows
            cache.batch_select_indices(alive.nonzero().squeeze(1))
            rows, lanes, owner, token = rows[alive], lanes[alive], owner[alive], token[alive]
        ended = ~unfinished[rows, lanes]
        most = int((~ended).sum(1).max())  # unfinished answers of any prompt
        if some_left and 4 * most <= 3 * lanes.shape[1]:  # a quarter of the lanes is idle in every row: drop those
            order = ended.long().argsort(dim=1, stable=True)[:, :most]
            lanes, token = lanes.gather(1, order), token.gather(1, order)
        new = slice(used, used := used + lanes.shape[1])
        owner[:, new] = lanes
        keys = owner[:, None, :used]
        seen = (keys == SHARED) | (keys == lanes[..., None])  # (R, L, keys)
        embeds = lm.get_input_embeddings()(token)  # (R, L, H)
        position_ids = (lengths[rows[:, 0]] + step).repeat(1, lanes.shape[1])  # (R, L)
        logits = head(backbone(model, embeds, seen[:, None], position_ids, cache)).float().flatten(0, 1)
    model.train(training)
    if not finite:
        raise faults.RunError(
            "the model's logits are NaN or infinite, so its answers mean nothing; its weights are damaged, or its "
            "learning rate was too high: use an earlier checkpoint, or start over with a lower learning rate."
        )
    longest = int(mask.sum(-1).max())
    return Rollouts(prompts, ids[..., :longest], mask[..., :longest], ~unfinished)


def draw(scores: Tensor, top_k: int | None, top_p: float, generator: torch.Generator) -> Tensor:
    """Draw one token per row, (n, V) to (n,), from one uniform number each.

    Draws among the `top_k` best, and of these the likeliest with a total mass of `top_p`, as `generate` does.

    >>> draw(torch.tensor([[0.0, 9.0, -torch.inf]]), 1, 1.0, torch.Generator())
    tensor([1])
    """
    scores, tokens = scores.topk(min(top_k or scores.shape[-1], scores.shape[-1]))  # likeliest first
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(None, scores)
    cumulative = scores.softmax(-1).cumsum(-1)  # (n, top_k)
    uniform = torch.rand(len(scores), 1, device=scores.device, generator=generator)
    index = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).clamp(max=scores.shape[-1] - 1)
    return tokens.gather(1, index).squeeze(1)


def decode(processor, rollouts: Rollouts) -> list[list[str]]:
    """Turn completions into text, (B, G) strings without special tokens."""
    ids = rollouts.completion_ids
    texts = processor.tokenizer.batch_decode(ids.flatten(0, 1), skip_special_tokens=True)
    return [texts[row : row + ids.shape[1]] for row in range(0, len(texts), ids.shape[1])]

import pytest
import torch

from aqa_lib import inputs, prompt, rollout
from aqa_lib import model as models
from aqa_lib.rollout import decode, end_ids, sample


def reference(model, processor, questions, clips, **kwargs):
    """Answer with transformers' own processor and generate; returns lists of new ids up to the end token."""
    texts = [
        processor.apply_chat_template(prompt.messages(q, 2), tokenize=False, add_generation_prompt=True)
        for q in questions
    ]
    waves = [clip.wave for clip in clips]
    inputs = processor(text=texts, audio=waves, sampling_rate=16_000, return_tensors="pt", padding=True)
    ids = model.generate(**inputs, **kwargs)[:, inputs.input_ids.shape[1] :]
    ends = set(end_ids(model, processor))
    rows = []
    for row in ids.tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
        rows.append(row[: stop + 1])
    return rows


def answers(rollouts):
    return [
        [ids[m].tolist() for ids, m in zip(*row, strict=True)]
        for row in zip(rollouts.completion_ids, rollouts.mask, strict=True)
    ]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_generate_on_a_ragged_batch(model, processor, prompts, questions, clips, penalty):
    theirs = reference(
        model, processor, questions, clips, do_sample=False, max_new_tokens=24, repetition_penalty=penalty
    )
    ours = sample(model, processor, prompts, 3, 24, temperature=0, repetition_penalty=penalty)
    assert len({tuple(row) for row in theirs}) > 1  # the prompts do not all get the same answer
    assert answers(ours) == [[row] * 3 for row in theirs]


def test_greedy_equals_generate_where_answers_end(model, processor, prompts, questions, clips):
    """Make frequent tokens end an answer, so that rows finish at different steps and are dropped on the way."""
    free = reference(model, processor, questions, clips, do_sample=False, max_new_tokens=24)
    ends = [free[0][2], free[1][9], free[2][15]]
    model.generation_config.eos_token_id = ends
    theirs = reference(model, processor, questions, clips, do_sample=False, max_new_tokens=24, eos_token_id=ends)
    ours = sample(model, processor, prompts, 2, 24, temperature=0)
    assert len({len(row) for row in theirs}) > 1
    assert answers(ours) == [[row] * 2 for row in theirs]
    for row, ended in zip(theirs, ours.ended.tolist(), strict=True):
        assert ended == [row[-1] in ends] * 2


def test_the_same_seed_gives_the_same_answers(model, processor, prompts):
    first = sample(model, processor, prompts, 4, 12, seed=3)
    torch.rand(5)  # whatever was drawn in between
    second = sample(model, processor, prompts, 4, 12, seed=3)
    third = sample(model, processor, prompts, 4, 12, seed=4)
    assert torch.equal(first.completion_ids, second.completion_ids)
    assert not torch.equal(first.completion_ids, third.completion_ids)
    assert len({tuple(ids) for ids in first.completion_ids[0].tolist()}) > 1


def test_sampling_follows_the_models_probabilities(model, processor, prompts):
    """The first token's frequencies over many answers equal the softmax of the top 5 at temperature 2."""
    one = prompts.select([1])
    with torch.no_grad():
        hidden = models.backbone(
            model, models.embed(model, one), one.attention_mask, inputs.positions(one.attention_mask)
        )
        logits = model.lm_head(hidden[:, -1])[0] / 2
    top = logits.topk(5)
    drawn = sample(model, processor, one, 4000, 1, temperature=2.0, top_k=5).completion_ids.flatten()
    share = torch.stack([(drawn == token).float().mean() for token in top.indices])
    assert share.sum() == 1
    assert torch.allclose(share, top.values.softmax(0), atol=0.03)


def test_top_k_of_one_is_greedy(model, processor, prompts):
    greedy = sample(model, processor, prompts, 2, 8, temperature=0)
    assert torch.equal(sample(model, processor, prompts, 2, 8, top_k=1).completion_ids, greedy.completion_ids)
    assert torch.equal(sample(model, processor, prompts, 2, 8, top_p=1e-6).completion_ids, greedy.completion_ids)


def test_shapes_padding_and_mode(model, processor, prompts):
    model.generation_config.eos_token_id = list(range(0, 960, 2))  # half of all tokens end an answer
    model.train()
    r = sample(model, processor, prompts, 5, 16, seed=1)
    assert model.training
    assert r.completion_ids.shape == r.mask.shape and r.mask.shape[:2] == (4, 5)
    lengths = r.mask.sum(-1)
    assert lengths.min() >= 1 and lengths.max() == r.mask.shape[2] <= 16
    assert torch.equal(r.mask, torch.arange(r.mask.shape[2]) < lengths[..., None])  # true up to the end, then false
    assert (r.completion_ids[~r.mask] == processor.tokenizer.pad_token_id).all()
    last = r.completion_ids.gather(-1, lengths[..., None] - 1).squeeze(-1)
    assert torch.equal(r.ended, last % 2 == 0)
    texts = decode(processor, r)
    assert len(texts) == 4 and all(len(row) == 5 for row in texts)


def test_an_answer_cut_at_the_longest_length_has_not_ended(model, processor, prompts):
    model.generation_config.eos_token_id = [959]
    assert not sample(model, processor, prompts, 2, 3, temperature=0).ended.any()


def test_select_keeps_groups_whole(model, processor, prompts):
    model.generation_config.eos_token_id = list(range(0, 960, 4))
    whole = sample(model, processor, prompts, 3, 16, seed=2)
    some = whole.select([2, 0])
    assert answers(some) == [answers(whole)[2], answers(whole)[0]]
    assert some.mask.shape[2] == some.mask.sum(-1).max()


def test_no_dependence_on_neighbours(model, processor, prompts):
    """A prompt's greedy answer is the same alone and in a batch."""
    whole = sample(model, processor, prompts, 1, 16, temperature=0)
    for row in range(4):
        assert answers(sample(model, processor, prompts.select([row]), 1, 16, temperature=0)) == [answers(whole)[row]]


def test_end_ids(model, processor):
    assert rollout.end_ids(model, processor) == model.generation_config.eos_token_id
    model.generation_config.eos_token_id = 7
    assert rollout.end_ids(model, processor) == [7]
    model.generation_config.eos_token_id = None
    assert rollout.end_ids(model, processor) == [processor.tokenizer.eos_token_id]


def test_answers_that_end_leave_their_neighbours_alone(model, processor, prompts, monkeypatch):
    """Start five answers with a prompt's five likeliest tokens: each continues, greedily, as it would alone."""
    model.generation_config.eos_token_id = list(range(0, 960, 4))  # so that they end at different steps

    def answers_from(ranks):
        calls, widths = [], []

        def draw(logits, *_):
            calls.append(logits)
            widths.append(len(logits))
            if len(calls) > 1:
                return logits.argmax(-1)
            return logits.topk(5).indices.gather(1, torch.tensor(ranks * len(prompts))[:, None])[:, 0]

        monkeypatch.setattr(rollout, "draw", draw)
        return answers(sample(model, processor, prompts, len(ranks), 16)), widths

    together, widths = answers_from([0, 1, 2, 3, 4])
    assert any(width % 5 for width in widths)  # some were closed while others of the same prompt went on
    for rank in range(5):
        assert [row[rank] for row in together] == [row[0] for row in answers_from([rank])[0]]

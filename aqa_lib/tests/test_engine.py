"""Another engine samples in place of ours; trainer and evaluation call only `sync_weights` and `generate` on it."""

import pytest
import torch

from aqa_lib import evaluation, rollout
from aqa_lib.grpo import GRPOTrainer
from aqa_lib.inputs import Rollouts
from aqa_lib.tests.helpers import config

TEXTS = ("<answer>rain</answer>", "a dog", "a siren, or a car", "")


class Parrot:
    """An engine that knows no model: it says the same texts to every prompt, and writes down what it is asked."""

    def __init__(self, processor):
        self.processor, self.calls, self.synced = processor, [], []

    def sync_weights(self, model):
        self.synced.append(model.lm_head.weight.detach().clone())

    def generate(self, prompts, *, questions=(), num_generations=1, max_completion_length=256, **sampling):
        self.calls.append({"questions": [q.id for q in questions], "synced": len(self.synced)} | sampling)
        tokenizer = self.processor.tokenizer
        end = tokenizer.eos_token_id
        said = [[*tokenizer(text).input_ids, end] for text in TEXTS[:num_generations]]
        C = max(map(len, said))
        ids = torch.tensor([[*row, *[0] * (C - len(row))] for row in said]).expand(len(prompts), -1, -1)
        mask = (torch.arange(C) < torch.tensor([[len(row)] for row in said])).expand_as(ids)
        return Rollouts(prompts, ids, mask, mask.any(-1))


@pytest.fixture
def parrot(processor, monkeypatch):
    monkeypatch.setattr(rollout, "sample", lambda *args, **options: pytest.fail("our own engine was asked"))
    return Parrot(processor)


def test_grpo_learns_from_what_an_engine_says(parrot, model, processor, questions, tmp_path):
    said = []

    def reward(prompts, completions, **columns):
        said.extend(completion[0]["content"] for completion in completions)
        return [float(len(completion[0]["content"])) for completion in completions]

    start = model.lm_head.weight.detach().clone()
    options = {"eval_strategy": "steps", "eval_steps": 2, "num_iterations": 1, "beta": 0.0}
    args = config(tmp_path, **options)
    trainer = GRPOTrainer(model, processor, [reward], args, questions, questions, engine=parrot)
    trainer.train()
    assert said == [*TEXTS] * 8  # two steps of four questions
    asked = [set(call["questions"]) for call in parrot.calls]
    assert asked == [{q.id for q in questions}] * 3 and parrot.calls[-1]["temperature"] == 0
    # It was given weights before each step and before the evaluation, and they were those of that moment.
    assert [call["synced"] for call in parrot.calls] == [1, 2, 3]
    assert torch.equal(parrot.synced[0], start) and torch.equal(parrot.synced[2], model.lm_head.weight)
    assert not torch.equal(parrot.synced[1], start) and not torch.equal(parrot.synced[1], parrot.synced[2])
    held_out = next(row for row in trainer.state.log_history if "eval_format" in row)
    assert held_out["eval_format"] == 1 and held_out["eval_length"] == len(processor.tokenizer(TEXTS[0]).input_ids) + 1


def test_answers_that_serve_two_steps_are_asked_for_once(parrot, model, processor, questions, tmp_path):
    args = config(tmp_path, num_iterations=2, beta=0.0)
    GRPOTrainer(model, processor, ["accuracy"], args, questions, engine=parrot).train()
    assert len(parrot.calls) == len(parrot.synced) == 1


def test_an_evaluation_asks_an_engine(parrot, model, processor, questions):
    rows = evaluation.predict(model, processor, questions, progress=False, batch_size=3, engine=parrot)
    assert {row["prediction"] for row in rows} == {"rain"}
    assert [len(call["questions"]) for call in parrot.calls] == [3, 1]

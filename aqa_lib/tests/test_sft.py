import csv
import dataclasses

import pytest
import torch
from torch.testing import assert_close
from transformers import HfArgumentParser

from aqa_lib import model as models
from aqa_lib import prompt, sft
from aqa_lib.audio import load
from aqa_lib.dataset import Question
from aqa_lib.grpo import GRPOConfig, GRPOTrainer
from aqa_lib.rollout import end_ids
from aqa_lib.runtime.faults import RunError
from aqa_lib.tests.helpers import SHORT


def config(folder, **options):
    return sft.SFTConfig(str(folder), **SHORT | options)


@pytest.fixture
def train(model, processor, questions, tmp_path):
    """Train the fixture's model and return its trainer."""

    def run(resume=None, policy=None, eval_dataset=None, folder=None, **options):
        args = config(folder or tmp_path, **options)
        trainer = sft.SFTTrainer(policy or model, processor, args, questions, eval_dataset)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


@pytest.fixture
def loss(model, processor, questions, tmp_path):
    """Compute the loss of some questions."""

    def run(some=questions, **options):
        trainer = sft.SFTTrainer(model, processor, config(tmp_path, **options), some)
        batch = trainer.train_dataset.collate([trainer.train_dataset[i] for i in range(len(some))])
        with torch.no_grad():
            return trainer.compute_loss(model, batch)

    return run


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("target", ["tagged", "plain"])
def test_the_loss_is_transformers_own_on_the_whole_conversation(model, processor, questions, clips, loss, target):
    """Render prompt and reply by the chat template, run the model's own forward on 30 s style features."""
    reply = sft.TARGETS[target]
    total, count = 0.0, 0
    for question, clip in zip(questions, clips, strict=True):
        turns = prompt.messages(question, 1)
        asked = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        turns += [{"role": "assistant", "content": [{"type": "text", "text": reply(question)}]}]
        told = processor.apply_chat_template(turns, tokenize=False).rstrip("\n")
        assert told.startswith(asked)
        batch = processor(text=told, audio=[clip.wave], sampling_rate=16_000, return_tensors="pt")
        C = len(processor.tokenizer(told[len(asked) :], add_special_tokens=False).input_ids)
        labels = torch.full_like(batch["input_ids"], -100)
        labels[:, -C:] = batch["input_ids"][:, -C:]
        with torch.no_grad():
            total, count = total + model(**batch, labels=labels).loss * C, count + C
    assert_close(loss(target=target), total / count, atol=1e-5, rtol=1e-5)


def test_dft_weighs_each_token_by_its_probability_and_does_not_learn_the_weight(model, processor, questions, tmp_path):
    """Logits of the model's own forward, and the gradient of `-p log p` with p held (arXiv 2508.05629)."""
    question = questions[1]
    args = config(tmp_path, loss_type="dft")
    trainer = sft.SFTTrainer(model, processor, args, [question])
    batch = trainer.train_dataset.collate([trainer.train_dataset[0]])
    head = model.lm_head.weight
    loss = trainer.compute_loss(model, batch)
    (ours,) = torch.autograd.grad(loss, head)
    asked = processor.apply_chat_template(prompt.messages(question, 1), tokenize=False, add_generation_prompt=True)
    told = asked + prompt.target(question) + sft.ending(processor)
    whole = processor(text=told, audio=[load(question.audio).wave], sampling_rate=16_000, return_tensors="pt")
    C = len(processor.tokenizer(told[len(asked) :], add_special_tokens=False).input_ids)
    logps = model(**whole).logits[0, -C - 1 : -1].log_softmax(-1)
    logps = logps.gather(-1, whole["input_ids"][0, -C:, None])[:, 0]
    assert_close(loss, -(logps.exp() * logps).mean(), atol=1e-6, rtol=1e-4)
    (theirs,) = torch.autograd.grad(-(logps.exp().detach() * logps).mean(), head)
    assert_close(ours, theirs, atol=1e-6, rtol=1e-3)


def test_a_reply_is_learned_word_for_word(processor, questions):
    told = [dataclasses.replace(q, meta={"reply": f"It is {q.answer}, I think."}) for q in questions]
    examples = sft.SupervisedExamples(told, processor, 1, "reply")
    labels = examples.collate([examples[i] for i in range(len(told))])["labels"]
    texts = processor.tokenizer.batch_decode([row[row != sft.IGNORED] for row in labels])
    assert texts == [q.meta["reply"] + sft.ending(processor) for q in told]


def test_the_clip_changes_the_loss(questions, loss):
    heard = loss()
    other = [dataclasses.replace(q, audio=questions[i - 1].audio) for i, q in enumerate(questions)]
    assert abs(loss(other) - heard) > 1e-4


def test_question_and_answer_change_the_loss_but_padding_does_not(questions, loss):
    one, two = loss(questions[:1]), loss(questions[1:2])
    assert min(one, two) < loss(questions[:2]) < max(one, two)
    assert loss([dataclasses.replace(questions[0], answer=questions[0].choices[1])]) != one
    assert loss(questions[:1], prompt_style=2) != one


def test_the_ending_is_the_one_that_stops_generation(model, processor):
    ids = processor.tokenizer(sft.ending(processor), add_special_tokens=False).input_ids
    assert len(ids) == 1 and ids[0] in end_ids(model, processor)


def test_the_right_answers_are_learned_and_then_given(train, questions):
    trainer = train(max_steps=25, learning_rate=4e-3, max_completion_length=24)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0] / 5
    found = trainer.evaluate(questions)
    assert found["eval_accuracy"] == found["eval_format"] == 1


def test_metrics_count_the_budget_and_are_written(train, questions, processor, tmp_path):
    trainer = train()
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["num_questions"] for row in rows][:2] == ["4", "8"]
    batch = sft.SupervisedExamples(questions, processor, 1).collate([trainer.train_dataset[i] for i in range(4)])
    tokens = int(batch["prompts"].attention_mask.sum() + (batch["labels"] != sft.IGNORED).sum())
    assert [int(row["num_tokens"]) for row in rows[:2]] == [tokens, 2 * tokens]
    assert {"loss", "entropy", "step_time", "learning_rate", "grad_norm"} <= set(rows[0])


def test_accumulated_batches_equal_one(train, model):
    start = {k: v.clone() for k, v in model.state_dict().items()}
    found = []
    for options in ({}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}):
        model.load_state_dict(start)
        found.append(weights(train(max_steps=1, optim="sgd", max_grad_norm=0, **options).model))
    for name in found[0]:
        assert_close(found[0][name], found[1][name], atol=1e-6, rtol=1e-5, msg=name)


def test_a_run_sees_the_questions_that_a_grpo_run_sees(model, processor, questions, tmp_path):
    options = {"per_device_train_batch_size": 2, "eval_strategy": "no", "load_best_model_at_end": False, "seed": 3}
    trainers = (
        sft.SFTTrainer(model, processor, config(tmp_path, **options), questions),
        GRPOTrainer(model, processor, ["format"], GRPOConfig(str(tmp_path), **options), questions),
    )
    drawn = [[[q.id for q in batch["questions"]] for batch in t.get_train_dataloader()] for t in trainers]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2


def test_a_resumed_run_equals_an_uninterrupted_one(train, model, tmp_path):
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    start = {k: v.clone() for k, v in model.state_dict().items()}
    whole = train(folder=tmp_path / "whole", **options)
    expected = weights(whole.model)
    model.load_state_dict(start)
    again = train(folder=tmp_path / "again", resume=str(tmp_path / "whole" / "checkpoint-2"), **options)
    for name, value in weights(again.model).items():
        assert torch.equal(value, expected[name]), name
    pairs = zip(whole.state.log_history[:-1], again.state.log_history[:-1], strict=True)
    for row, other in pairs:
        assert {**row, "step_time": 0} == {**other, "step_time": 0}


@pytest.mark.parametrize("lora", [False, True])
def test_the_best_held_out_checkpoint_is_kept(model, processor, questions, train, tmp_path, monkeypatch, lora):
    """Held-out accuracy is made to peak at step 2: training ends with those weights."""
    from aqa_lib import evaluation

    predict, scores = evaluation.predict, iter([0, 0, 1, 0])

    def fake(*args, **kwargs):
        rows, correct = predict(*args, **kwargs), bool(next(scores))
        return [row | {"correct": correct} for row in rows]

    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    policy, _ = models.load(tmp_path / "base", lora={"r": 2} if lora else None)
    frozen = {name for name, p in policy.named_parameters() if not p.requires_grad}
    start = weights(policy)
    monkeypatch.setattr(evaluation, "predict", fake)
    trainer = train(
        policy=policy, max_steps=3, eval_dataset=questions, eval_strategy="steps", eval_steps=1, eval_on_start=True,
        save_strategy="steps", save_steps=1, save_total_limit=1, load_best_model_at_end=True,
    )  # fmt: skip
    assert trainer.state.best_global_step == 2
    best, _ = models.load(tmp_path / "checkpoint-2")
    policy = trainer.model
    for name in frozen:
        assert torch.equal(start[name], weights(policy)[name]), name
    assert (len(frozen) > 0) and any(not torch.equal(start[name], value) for name, value in weights(policy).items())
    saved, kept = weights(best), weights(policy.merge_and_unload() if lora else policy)
    for name, value in saved.items():
        assert torch.equal(value, kept[name]), name


def test_options_parse_and_have_help():
    parser = HfArgumentParser(sft.SFTConfig)
    (args,) = parser.parse_args_into_dataclasses(
        ["--prompt_style", "2", "--target", "plain", "--report_to", "none", "--eval_steps", "7", "--save_steps", "7"]
    )
    assert (args.prompt_style, args.target, args.eval_steps) == (2, "plain", 7)
    helps = {action.dest: action.help for action in parser._actions}
    own = set(sft.SFTConfig.__annotations__) - {"num_iterations", "remove_unused_columns"}
    assert not [name for name in own if not helps[name]]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"target": "thought"}, "target 'thought' is unknown; choose tagged, plain, reply"),
        ({"prompt_style": 4}, "prompt_style 4 is unknown"),
        ({"packing": True}, "packing has no effect"),
        ({"loss_type": "mean"}, "loss_type 'mean' is not supported.*nll or dft"),
    ],
)
def test_impossible_options_are_refused_in_a_sentence(tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        config(tmp_path, **options)


def test_a_full_gpu_gives_advice(train, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(sft, "completion_logps", full)
    with pytest.raises(RunError, match="lower per_device_train_batch_size from 4 to 2 and raise .* from 1 to 2, with"):
        train()


def test_impossible_runs_are_refused_in_a_sentence(model, processor, questions, tmp_path):
    withheld = [*questions, Question("q9", questions[0].audio, "What?", ("a", "b"), "")]
    cases = [
        ({"train_dataset": []}, {}, "no questions to train on"),
        ({}, {"eval_strategy": "steps", "eval_steps": 1}, "no held-out questions"),
        ({"train_dataset": withheld}, {}, "1 questions have no answer"),
        ({}, {"per_device_train_batch_size": 9}, "4 questions are fewer than the 9 that one step takes"),
    ]
    for arguments, options, reason in cases:
        with pytest.raises(ValueError, match=reason):
            arguments = {"train_dataset": questions} | arguments
            sft.SFTTrainer(model, processor, config(tmp_path, **options), **arguments).train()

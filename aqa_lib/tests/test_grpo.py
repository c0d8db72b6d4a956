import copy
import csv
import io
import json
import os
import time
from dataclasses import replace

import pytest
import soundfile
import torch
from accelerate.data_loader import prepare_data_loader
from torch.testing import assert_close

from aqa_lib import audio, evaluation, inputs, rollout
from aqa_lib import model as models
from aqa_lib.grpo import GRPOTrainer
from aqa_lib.logps import completion_logps
from aqa_lib.runtime.checkpoints import CheckpointError
from aqa_lib.runtime.errors import AqaError
from aqa_lib.tests.helpers import config, length_reward
from aqa_lib.training import data, dynamic
from aqa_lib.training.data import QuestionBatches


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_reward_rises(train):
    trainer = train(max_steps=25, num_generations=8, beta=0.0, temperature=2.0)
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 2


def test_metrics_are_named_as_in_trl_and_written(train, tmp_path):
    trainer = train(rewards=("accuracy", "format", length_reward), beta=0.04)
    names = set(trainer.state.log_history[0])
    assert {
        "loss", "reward", "reward_std", "kl", "clip_ratio", "entropy", "frac_reward_zero_std", "step_time",
        "rewards/accuracy/mean", "rewards/format/mean", "rewards/length_reward/mean",
        "completions/mean_length", "completions/min_length", "completions/max_length", "completions/clipped_ratio",
    } <= names  # fmt: skip
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows][:2] == ["1", "2"]
    assert float(rows[0]["reward"]) == trainer.state.log_history[0]["reward"]
    samples = [json.loads(line) for line in open(tmp_path / "completions.jsonl")]
    assert len(samples) == 2 and len(samples[0]["completions"]) == len(samples[0]["rewards"]) == 4
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-5)  # the policy is the reference at first
    assert trainer.state.log_history[1]["kl"] > 0


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_micro_batches_change_nothing(model, processor, questions, tmp_path, beta):
    results = []
    start = {k: v.clone() for k, v in model.state_dict().items()}
    for tokens in (100_000, 100):
        model.load_state_dict(start)
        args = config(tmp_path, max_tokens_per_forward=tokens, beta=beta, max_steps=1)
        trainer = GRPOTrainer(model, processor, [length_reward], args, questions)
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer.training_step(model, batch)
        results.append((loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
        model.zero_grad()
    (loss, expected), (other, found) = results
    assert_close(loss, other, atol=1e-6, rtol=1e-4)
    for name, gradient in expected.items():
        assert_close(found[name], gradient, atol=float(1e-5 * gradient.abs().max() + 1e-8), rtol=1e-3, msg=name)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo"])
def test_the_kl_does_not_depend_on_how_a_step_is_cut(train, model, loss_type):
    start, found = {k: v.clone() for k, v in model.state_dict().items()}, []
    for tokens in (100_000, 1):
        model.load_state_dict(start)
        trainer = train(beta=0.04, loss_type=loss_type, max_tokens_per_forward=tokens, optim="sgd", learning_rate=0.1)
        found.append([row["kl"] for row in trainer.state.log_history if "kl" in row])
    assert found[0][1] > 1e-5
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-6)


def test_groups_without_deviation_are_left_out_and_nothing_changes(train, model, monkeypatch):
    """The third question's answers are all rewarded alike: with beta 0 its gradient is zero anyway."""

    def uneven(prompts, completions, id, **columns):
        return [0.0 if i == "q2" else float(number) for number, i in enumerate(id)]

    start = {k: v.clone() for k, v in model.state_dict().items()}
    cut, found, taken = GRPOTrainer._micro_batches, [], ([], [])
    for every in (False, True):

        def batches(rollouts, rows, *sizes, every=every):
            taken[every].append(len(rows))
            return cut(rollouts, range(4) if every else rows, *sizes)

        monkeypatch.setattr(GRPOTrainer, "_micro_batches", staticmethod(batches))
        model.load_state_dict(start)
        found.append(weights(train(rewards=[uneven], beta=0.0, optim="sgd").model))
    assert taken == ([3, 3], [3, 3])
    for name in found[0]:
        assert_close(found[0][name], found[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"loss_type": "dapo", "epsilon_high": 0.28},
        {"baseline": "leave_one_out", "scale_rewards": "none"},
        {"baseline": "batch", "scale_rewards": "batch"},
    ],
)
def test_every_method_learns(train, options):
    trainer = train(max_steps=24, num_generations=8, num_iterations=2, beta=0.0, temperature=2.0, **options)
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert len(rewards) == 12 and sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 1


def test_questions_whose_groups_agree_are_replaced_and_counted(model, processor, questions, tmp_path):
    """Every answer to q0 is rewarded alike, and so is every one to q1 when it is asked first."""

    def some(prompts, completions, id, **columns):
        return [0.0 if name == "q0" else float(len(c[0]["content"])) for name, c in zip(id, completions, strict=True)]

    found = {}
    for turns in (0, 2):
        options = {"per_device_train_batch_size": 2, "max_steps": 2, "seed": 1, "learning_rate": 0.0, "beta": 0.04}
        args = config(tmp_path / str(turns), dynamic_sampling=turns, temperature=2.0, **options)
        trainer = GRPOTrainer(model, processor, [some], args, questions)
        record = trainer._record

        def keep(answered, record=record, turns=turns):
            found.setdefault(turns, []).append([question.id for question in answered.questions])
            return record(answered)

        trainer._record = keep
        trainer.train()
        log = [row for row in trainer.state.log_history if "loss" in row]
        found[turns, "log"] = log
    assert sorted(sum(found[0], [])) == ["q0", "q1", "q2", "q3"]  # an epoch
    (step,) = [step for step, asked in enumerate(found[0]) if "q0" in asked]
    place = found[0][step].index("q0")
    replaced, partner = found[2][step][place], found[0][step][1 - place]
    assert replaced not in ("q0", partner) and found[2][step][1 - place] == partner
    assert found[2][1 - step] == found[0][1 - step]  # that step is left as it is
    asked_again = [row["dynamic_sampling/replaced"] for row in found[2, "log"]]
    assert asked_again[step] == 0.5 and asked_again[1 - step] == 0  # one in the first of two turns
    assert "dynamic_sampling/replaced" not in found[0, "log"][0]
    assert found[2, "log"][step]["frac_reward_zero_std"] == 0 < found[0, "log"][step]["frac_reward_zero_std"]
    assert found[2, "log"][-1]["num_tokens"] > found[0, "log"][-1]["num_tokens"]


def test_a_run_whose_answers_are_all_the_same_stops_with_a_checkpoint(train, tmp_path, capsys):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4, "beta": 0.0}
    trainer = train(min_entropy=100.0, folder=tmp_path / "low", **options)
    assert trainer.state.global_step == 1 and (tmp_path / "low" / "checkpoint-1").is_dir()
    assert "is below min_entropy" in capsys.readouterr().out
    assert train(min_entropy=1e-6, folder=tmp_path / "high", **options).state.global_step == 4


def test_a_majority_teaches_without_labels(train, questions):
    """Answers are the first choice or the second; the reward is what most of the group says."""
    unknown = [replace(question, answer="") for question in questions]
    other = [replace(question, answer=question.choices[1]) for question in questions]
    found = [train(rewards=["majority"], train_dataset=some, max_steps=1, beta=0.0) for some in (unknown, other)]
    assert found[0].state.log_history[0]["reward"] == found[1].state.log_history[0]["reward"]
    assert not found[0].needs_answers
    with pytest.raises(AqaError, match="4 questions have no answer, q0 among them; .* rewards do without"):
        train(rewards=["majority", "accuracy"], train_dataset=unknown)
    with pytest.raises(AqaError, match="4 held-out questions have no answer"):
        train(rewards=["majority"], train_dataset=unknown, eval_dataset=unknown)


def test_all_groups_alike_train_nothing(train, model):
    start = weights(model)
    trainer = train(rewards=[lambda prompts, completions, **columns: [1.0] * len(completions)], beta=0.0)
    assert trainer.state.log_history[0]["frac_reward_zero_std"] == 1
    for name, value in weights(model).items():
        assert torch.equal(value, start[name])


def test_each_part_learns_at_its_own_rate(train, model):
    start = weights(model)
    trainer = train(
        learning_rate=1e-3, projector_learning_rate=0.0, audio_tower_learning_rate=1e-5, max_steps=1, beta=0.0
    )
    assert sorted(group["initial_lr"] for group in trainer.optimizer.param_groups) == [0.0, 1e-5, 1e-3]
    moved = {name: (value - start[name]).abs().max().item() for name, value in weights(model).items()}
    assert max(v for k, v in moved.items() if "projector" in k) == 0
    assert 0 < max(v for k, v in moved.items() if "audio_tower" in k) < 2e-5
    assert max(v for k, v in moved.items() if "language_model" in k) > 5e-4


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}])
def test_a_resumed_run_equals_an_uninterrupted_one(train, model, tmp_path, options):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "beta": 0.04} | options
    start = {k: v.clone() for k, v in model.state_dict().items()}
    whole = train(folder=tmp_path / "whole", **options)
    expected = weights(whole.model)
    model.load_state_dict(start)
    again = train(folder=tmp_path / "again", resume=str(tmp_path / "whole" / "checkpoint-2"), **options)
    for name, value in weights(again.model).items():
        assert torch.equal(value, expected[name]), name
    timed = {"step_time", "rollout_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
    pairs = zip(whole.state.log_history[:-1], again.state.log_history[:-1], strict=True)
    for row, other in pairs:
        assert {k: v for k, v in row.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}


def test_answers_serve_several_steps(train):
    trainer = train(num_iterations=2, max_steps=4, beta=0.0, learning_rate=5e-3, epsilon=0.05)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [("reward" in row) for row in rows] == [True, False, True, False]
    assert rows[0]["clip_ratio"] == 0 and rows[1]["clip_ratio"] > 0


def test_truncated_answers_can_be_left_out(train, model, monkeypatch):
    monkeypatch.setattr(rollout, "end_ids", lambda model, processor: [10_000])  # nothing ever ends
    start = weights(model)
    trainer = train(mask_truncated_completions=True, beta=0.0, max_steps=1)
    assert trainer.state.log_history[0]["completions/clipped_ratio"] == 1
    for name, value in weights(model).items():
        assert torch.equal(value, start[name])


def test_lora_is_its_own_reference(model, processor, questions, train, tmp_path):
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    policy, _ = models.load(tmp_path / "base", lora={"r": 2})
    trainer = train(policy=policy, beta=0.04)
    assert trainer.ref_model is None
    kl = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[1] > 0


def test_the_best_held_out_checkpoint_is_kept(train, questions, tmp_path, monkeypatch):
    """Held-out accuracy is made to peak at step 2: training ends with those weights."""
    predict, scores = evaluation.predict, iter([0, 0, 1, 0])

    def fake(*args, **kwargs):
        rows, correct = predict(*args, **kwargs), bool(next(scores))
        return [row | {"correct": correct} for row in rows]

    monkeypatch.setattr(evaluation, "predict", fake)
    trainer = train(
        max_steps=3, eval_dataset=questions, eval_strategy="steps", eval_steps=1, eval_on_start=True,
        save_strategy="steps", save_steps=1, save_total_limit=1, load_best_model_at_end=True, beta=0.0,
    )  # fmt: skip
    assert trainer.state.best_global_step == 2
    best, _ = models.load(tmp_path / "checkpoint-2")
    for name, value in weights(best).items():
        assert torch.equal(value, weights(trainer.model)[name])
    held_out = [row for row in trainer.state.log_history if "eval_accuracy" in row]
    assert [row["step"] for row in held_out] == [0, 1, 2, 3]
    assert {"eval_format", "eval_length", "eval_accuracy_sound"} <= set(held_out[0])
    (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="checkpoint-2, the best by held-out accuracy, has 0 bytes"):
        trainer._load_best_model()


def test_a_reward_may_not_apply(train):
    def some(prompts, completions, id, **columns):
        return [None if i == "q0" else 1.0 for i in id]

    trainer = train(rewards=[some, length_reward], beta=0.0, max_steps=1)
    assert trainer.state.log_history[0]["rewards/some/mean"] == 1


def test_answers_that_no_reward_applies_to_teach_nothing(train, model, tmp_path, monkeypatch):
    """Half of each group has no reward: its gradient is that of the loss of the others, written out here."""

    def some(prompts, completions, **columns):
        return [None if number % 2 else float(number % 4) for number in range(len(completions))]

    start, taken, original = {k: v.clone() for k, v in model.state_dict().items()}, [], GRPOTrainer._backward
    monkeypatch.setattr(GRPOTrainer, "_backward", lambda *args: taken.append(args[2]) or original(*args))
    trainer = train(
        rewards=[some],
        beta=0.0,
        max_steps=1,
        optim="sgd",
        learning_rate=1.0,
        max_grad_norm=0,
        lr_scheduler_type="constant",
    )
    (row,) = [row for row in trainer.state.log_history if "reward" in row]
    assert row["reward"] == 1.0 and row["frac_reward_none"] == 0.5 and row["frac_reward_zero_std"] == 0.0
    assert row["reward_std"] == pytest.approx(2**0.5)
    kept = json.loads((tmp_path / "completions.jsonl").read_text())
    assert kept["rewards"] == [0.0, None, 2.0, None]
    trained = weights(trainer.model)
    model.load_state_dict(start)
    model.train()
    (experience,) = taken
    logps, _ = completion_logps(model, experience.rollouts)
    advantages = torch.tensor([-1.0, 0.0, 1.0, 0.0]) / (2**0.5 + 1e-4)  # rewards 0 and 2 of two answers
    mask = experience.loss_mask.float()
    loss = -(advantages[None, :, None] * logps.exp() / logps.exp().detach() * mask).sum(-1) / mask.sum(-1)
    loss.mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert_close(trained[name], start[name] - parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_a_step_without_any_reward_is_no_training(train, model):
    def never(prompts, completions, **columns):
        return [None] * len(completions)

    before = weights(model)
    said = r"step 1: no reward \(never\) applied to any of its 16 answers, all were None, so there is nothing to learn"
    for options in ({"beta": 0.0}, {"beta": 0.04, "weight_decay": 0.1}):
        with pytest.raises(AqaError, match=said):
            train(rewards=[never], **options)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_part_of_a_step_may_be_without_reward(train):
    """Two batches a step, the second without any reward: the means are of what there is."""
    calls = []

    def some(prompts, completions, **columns):
        calls.append(len(completions))
        return [None if len(calls) == 2 else float(number) for number in range(len(completions))]

    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "beta": 0.0}
    trainer = train(rewards=[some], max_steps=1, **options)
    row = trainer.state.log_history[0]
    assert calls == [8, 8] and row["reward"] == 3.5 and row["frac_reward_none"] == 0.5


def test_dynamic_sampling_replaces_groups_without_two_rewards(rollouts, questions):
    rewards = torch.tensor([[1.0, torch.nan, torch.nan], [torch.nan] * 3, [1.0, torch.nan, 0.0], [1.0, 1.0, 1.0]])
    assert dynamic.Answered(questions, rollouts, [["", "", ""]] * 4, rewards).agree == [0, 1, 3]


def test_rewards_are_weighted(train):
    one = lambda prompts, completions, **columns: [1.0] * len(completions)  # noqa: E731
    trainer = train(rewards=[one, one], reward_weights=[2.0, 0.5], beta=0.0, max_steps=1)
    assert trainer.state.log_history[0]["reward"] == 2.5


def test_batches_cover_an_epoch_once_and_repeat_whole_steps():
    batches = QuestionBatches(11, 2, batches_per_step=2, repeats=3, seed=5)
    drawn = list(batches)
    assert len(drawn) == len(batches) == 2 * 2 * 3
    steps = [drawn[i : i + 2] for i in range(0, 12, 2)]
    assert steps[0] == steps[1] == steps[2] and steps[3] == steps[5]
    seen = [i for step in steps[::3] for batch in step for i in batch]
    assert len(set(seen)) == 8
    assert list(batches) == drawn
    batches.set_epoch(1)
    assert list(batches) != drawn


def test_an_epoch_has_its_own_order_in_every_process():
    """As accelerate shares the batches out, which hands the epoch on to what it calls a sampler."""

    def share(process):
        loader = torch.utils.data.DataLoader(range(8), batch_sampler=QuestionBatches(8, 2, batches_per_step=2))
        shared = prepare_data_loader(loader, num_processes=2, process_index=process)
        shared.set_epoch(1)
        return [batch.tolist() for batch in shared]

    alone = QuestionBatches(8, 2, batches_per_step=2)
    first = list(alone)
    alone.set_epoch(1)
    assert [batch for pair in zip(share(0), share(1), strict=True) for batch in pair] == list(alone) != first


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_generations": 1}, "num_generations must be at least 2"),
        ({"loss_type": "ppo"}, "loss_type 'ppo' is unknown"),
        ({"scale_rewards": "std"}, "scale_rewards 'std' is unknown; choose group, batch, none"),
        ({"baseline": "value"}, "baseline 'value' is unknown; choose group, leave_one_out, batch"),
        ({"baseline": "batch"}, "baseline batch needs scale_rewards batch or none"),
        ({"importance_sampling_level": "word"}, "importance_sampling_level 'word' is unknown"),
        ({"importance_sampling_level": "sequence", "loss_type": "dapo"}, "sequence goes with loss_type grpo"),
        ({"loss_type": "cispo"}, "cispo needs epsilon_high"),
        ({"loss_type": "dapo", "gradient_accumulation_steps": 2}, "dapo is a mean over all tokens of a step"),
        ({"dynamic_sampling": -1}, "dynamic_sampling"),
        ({"min_entropy": -1.0}, "min_entropy"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"max_completion_length": 0}, "max_completion_length"),
        ({"num_iterations": 3, "save_strategy": "steps", "save_steps": 100}, "at a multiple of it"),
        ({"num_iterations": 2, "save_strategy": "best"}, "save by steps"),
        ({"beta": -1.0}, "beta must not"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"top_p": 0.0}, "top_p"),
        ({"prompt_style": 9}, "prompt_style 9"),
        ({"max_tokens_per_forward": 0}, "max_tokens_per_forward"),
        ({"logits_chunk_size": 0}, "logits_chunk_size"),
    ],
)
def test_impossible_options_are_refused_in_a_sentence(tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        config(tmp_path, **options)


def test_impossible_runs_are_refused_in_a_sentence(model, processor, questions, tmp_path):
    cases = [
        ({"train_dataset": []}, {}, "no questions to train on"),
        ({}, {"eval_strategy": "steps", "eval_steps": 1}, "no held-out questions"),
        ({}, {"reward_weights": [1.0]}, "1 reward_weights for 2 rewards"),
        ({}, {"per_device_train_batch_size": 9}, "4 questions are fewer than the 9 that one step takes"),
    ]
    for arguments, options, reason in cases:
        with pytest.raises(ValueError, match=reason):
            trainer = GRPOTrainer(
                model, processor, args=config(tmp_path, **options), **{"train_dataset": questions} | arguments
            )
            trainer.train()
    with pytest.raises(ValueError, match="reward bad .*test_grpo.py:.*it returned 1 values for 16 answers"):

        def bad(prompts, completions, **columns):
            return [1.0]

        GRPOTrainer(model, processor, [bad], config(tmp_path), questions).train()


def test_weights_that_learn_are_kept_in_float32_or_refused(model, train):
    model.to(torch.bfloat16)
    models.choose_trainable(model, ["projector"])
    with pytest.raises(ValueError, match="set bf16"):
        train(max_steps=1, beta=0.0)
    train(max_steps=1, beta=0.0, bf16=True, learning_rate=1e-6)
    kept = {p.dtype for p in model.parameters() if p.requires_grad}
    assert kept == {torch.float32} and model.lm_head.weight.dtype == torch.bfloat16


def test_clips_that_are_cut_are_counted_aloud(model, processor, questions, tmp_path, caplog):
    """Three of four clips last 4 s, and the fixture's model hears 3 s."""
    file = io.BytesIO()
    soundfile.write(file, torch.randn(64_000).numpy() / 5, 16_000, format="WAV")
    some = [*(replace(question, audio=file.getvalue()) for question in questions[:3]), questions[3]]
    evaluation.predict(model, processor, some, max_completion_length=2, progress=False)
    assert "3 of 4 clips were cut to the 3 s that the model hears." in caplog.text
    trainer = GRPOTrainer(model, processor, [length_reward], config(tmp_path, max_steps=2, beta=0.0), some)
    trainer.train()
    assert [row["clips/cut"] for row in trainer.state.log_history if "loss" in row] == [3, 6]


@pytest.mark.parametrize("gigabytes", [2.0, 20e-6, 0.0])
def test_a_frozen_audio_tower_hears_every_clip_once(train, model, clips, monkeypatch, gigabytes):
    """The same numbers as when every pass encodes again, with one encoding a clip as long as memory lasts."""
    models.choose_trainable(model, ["language_model"])
    again = copy.deepcopy(model)
    monkeypatch.setattr(data.AudioCache, "__call__", lambda self, questions, prompts: prompts)
    options = {"beta": 0.1, "max_steps": 3, "learning_rate": 1e-2, "optim": "sgd"}  # AdamW would scale rounding up
    expected = weights(train(policy=again, **options).model)
    monkeypatch.undo()
    encoded = []
    encode = data.encode_audio
    monkeypatch.setattr(data, "encode_audio", lambda *args: encoded.append(args[2].item()) or encode(*args))
    found = weights(train(audio_cache_gb=gigabytes, **options).model)
    assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert set(encoded) == {audio.num_frames(len(clip.wave)) for clip in clips}
    assert len(encoded) == 4 if gigabytes == 2.0 else 4 < len(encoded) <= 3 * 4


def test_what_was_heard_is_cut_with_its_prompts(model, prompts, questions):
    models.choose_trainable(model, [])
    heard = data.AudioCache(model, 1.0)(questions, prompts)
    assert heard.input_features is None
    with torch.no_grad():
        for rows in ([0, 1, 2, 3], [2], [3, 0]):
            ours, theirs = (models.embed(model, some.select(rows)) for some in (heard, prompts))
            real = prompts.select(rows).attention_mask.bool()
            assert_close(ours[real], theirs[real], atol=1e-5, rtol=1e-5)


def test_the_next_step_is_made_ready_behind_the_current_one(train, tmp_path, monkeypatch):
    """While the first step's answers are rewarded, a worker decodes the second step's clips and makes its prompts."""

    def prepare(processor, question, style):
        (tmp_path / f"{question.id} {os.getpid()}").touch()
        return inputs.prepare(processor, question, style)

    def reward(prompts, completions, **columns):
        deadline = time.monotonic() + 30
        while len(ready := list(tmp_path.glob("q* *"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        found.append({path.name.split()[1] for path in ready} if len(ready) == 4 else set())
        return [1.0] * len(completions)

    found = []
    monkeypatch.setattr(data, "prepare", prepare)
    train(rewards=[reward], max_steps=2, per_device_train_batch_size=2, dataloader_num_workers=1, beta=0.0)
    assert len(found[0]) == 1 and found[0] != {str(os.getpid())}


def test_a_batch_is_pinned_for_a_gpu(prompts, monkeypatch):
    """By the loader's thread, which knows tensors, and what has a method for it."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.shape) or tensor)
    torch.utils.data._utils.pin_memory.pin_memory({"questions": ("a",), "prompts": prompts, "cut": 0})
    assert prompts.input_features.shape in pinned and len(pinned) == 4


def test_fsdp_refuses_what_it_cannot_do_in_a_sentence(model, processor, questions, tmp_path, monkeypatch):
    for options, reason in [
        ({}, "start several with torchrun"),
        ({"fsdp_config": {"cpu_offload": True}}, "drop cpu_offload"),
        ({"reference": "streamed"}, "drop --reference streamed"),
    ]:
        with pytest.raises(ValueError, match=reason):
            GRPOTrainer(model, processor, [length_reward], config(tmp_path, fsdp=True, **options), questions)
    args = config(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate launch --use_fsdp does
    with pytest.raises(ValueError, match="pass --fsdp"):
        GRPOTrainer(model, processor, [length_reward], args, questions)


def test_a_finished_run_that_is_gone_on_with_takes_no_step_more(train, tmp_path):
    """It ends in the middle of an epoch, where transformers alone would take a fourth step."""
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 3, "per_device_train_batch_size": 2}
    done = train(**options)
    weights = {name: value.clone() for name, value in done.model.state_dict().items()}
    again = train(resume=True, **options)
    assert again.state.global_step == 3
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())


def test_every_rank_knows_that_a_run_is_finished(train, tmp_path, monkeypatch):
    trainer = train(save_strategy="steps", save_steps=2, max_steps=2)
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer._restore(tmp_path / "checkpoint-2")
    assert len(trainer.get_train_dataloader()) == 0

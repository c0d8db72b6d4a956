"""A model whose numbers are no numbers neither answers, nor learns, nor is saved; nor do options lead to one."""

import pytest
import torch

from aqa_lib import evaluation, rollout
from aqa_lib.grpo import GRPOConfig
from aqa_lib.model import ModelError, check_model, load
from aqa_lib.runtime.errors import AqaError
from aqa_lib.runtime.faults import RunError
from aqa_lib.sft import SFTConfig
from aqa_lib.training.refusals import refuse_not_finite

BAD = [float("nan"), float("inf")]


def kill(model, value):
    """Make one weight of the language model no number."""
    with torch.no_grad():
        model.model.language_model.layers[-1].mlp.down_proj.weight[0, 0] = value


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_it_answers_nothing(model, processor, prompts, questions, tmp_path, value, temperature):
    kill(model, value)
    with pytest.raises(RunError, match="the model's logits are NaN or infinite, so its answers mean nothing"):
        rollout.sample(model, processor, prompts, 2, 4, temperature)
    with pytest.raises(RunError, match="logits are NaN"):
        evaluation.predict(model, processor, questions, tmp_path / "p.jsonl", progress=False)
    assert not (tmp_path / "p.jsonl").read_bytes(), "no answer of it is scored"


@pytest.mark.parametrize("value", BAD)
def test_it_is_not_said_to_hear(model, processor, tmp_path, value):
    kill(model, value)
    with pytest.raises(ModelError, match="its weights are NaN or infinite .*down_proj.weight first"):
        check_model(model, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="its weights are NaN or infinite"):
        load(tmp_path)


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_it_does_not_train(train, model, beta):
    kill(model, float("nan"))
    with pytest.raises(RunError, match="logits are NaN"):
        train(max_steps=1, beta=beta)


def test_it_is_not_saved(train, tmp_path):
    """A learning rate that float32 cannot hold; without the reference's KL nothing else notices."""
    options = {"beta": 0.0, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    with pytest.raises(RunError, match="step 1: the weights are NaN or infinite .* so they were not saved"):
        train(learning_rate=1e39, **options)
    assert not list(tmp_path.glob("checkpoint-*")) and not (tmp_path / "model.safetensors").exists()


def test_weights_without_bounds_stop_at_the_next_rollout(train):
    with pytest.raises(RunError, match="logits are NaN or infinite"):
        train(learning_rate=1e30, beta=0.0, max_steps=2)


def test_a_dead_model_is_not_saved_by_hand_either(train, model, tmp_path):
    trainer = train(max_steps=1)
    kill(model, float("nan"))
    with pytest.raises(RunError, match="step 1: the weights are NaN or infinite .* were not saved"):
        trainer.save_model()
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("value", [*BAD, -float("inf")])
def test_a_reward_that_is_no_number_is_named(train, value):
    def odd(prompts, completions, **columns):
        return [value, *[1.0] * (len(completions) - 1)]

    with pytest.raises(AqaError, match=rf"reward odd .*it returned {value}: return finite numbers, or None"):
        train(rewards=[odd], max_steps=1)


def test_none_is_how_a_reward_does_not_apply(train):
    def some(prompts, completions, **columns):
        return [None if number % 2 else float(number) for number in range(len(completions))]

    assert train(rewards=[some], max_steps=1).state.global_step == 1


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("kind", [GRPOConfig, SFTConfig])
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon", "audio_cache_gb"])
def test_options_that_are_no_numbers_are_refused(tmp_path, kind, name, value):
    with pytest.raises(AqaError, match=f"{name} is {value}: give a finite number"):
        kind(str(tmp_path), report_to="none", **{name: value})


def test_so_are_those_of_grpo_alone(tmp_path):
    for name in ("beta", "temperature", "epsilon", "top_p", "memory"):
        with pytest.raises(AqaError, match=f"{name} is nan"):
            GRPOConfig(str(tmp_path), report_to="none", **{name: float("nan")})
    with pytest.raises(AqaError, match="reward_weights is inf"):
        GRPOConfig(str(tmp_path), report_to="none", reward_weights=[1.0, float("inf")])
    refuse_not_finite(GRPOConfig(str(tmp_path), report_to="none"))


def test_empty_answers_are_told(train, model, processor, capsys, monkeypatch):
    """The end token is all that it says."""
    ends = rollout.end_ids(model, processor)
    monkeypatch.setattr(rollout, "end_ids", lambda *args: list(range(model.get_input_embeddings().num_embeddings)))
    train(rewards=["accuracy"], max_steps=1)
    assert ends and "step 1: all answers since the last log are empty" in capsys.readouterr().out


def test_a_finite_learning_rate_that_kills_is_told_in_the_log_and_at_the_end(train, capsys):
    """Its weights stay finite; its answers never end, and none of them earns more than another."""
    calls = []

    def once(prompts, completions, **columns):  # what an untrained model can earn: something in the first step
        calls.append(1)
        return [float(number % 2 and len(calls) == 1) for number in range(len(completions))]

    trainer = train(rewards=[once], max_steps=2, beta=0.0, learning_rate=1e3)
    said = "step 2: all answers since the last log were cut off, and none was better than another; is the model dead?"
    assert said in capsys.readouterr().out
    assert trainer.doubt() == (
        "at the end all answers were cut off, and none was better than another (reward 0, at best 0.5): the model may "
        "be dead; evaluate it, or start over with a lower learning_rate"
    )
    trainer.args.load_best_model_at_end, trainer.state.best_global_step = True, 1
    assert not trainer.doubt(), "the model that is saved is an earlier one"


def test_a_model_that_learns_is_not_doubted(train):
    assert not train(max_steps=1, beta=0.0).doubt()


def test_a_prompt_longer_than_the_context_is_refused_by_name(train, model, processor, questions, prompts, tmp_path):
    room = int(prompts.attention_mask.sum(1).median())
    model.config.get_text_config().max_position_embeddings = room + 6
    message = rf"q\d: its prompt has \d+ tokens, and the model's context leaves room for {room}; shorten the question"
    with pytest.raises(AqaError, match=message):
        train(max_steps=2)
    with pytest.raises(AqaError, match=message):
        evaluation.predict(model, processor, questions, max_completion_length=6, progress=False)
    options = {"max_completion_length": 6, "progress": False, "on_error": "skip"}
    rows = evaluation.predict(model, processor, questions, tmp_path / "p.jsonl", **options)
    assert {row["model_output"] is None for row in rows} == {True, False}
    with pytest.raises(RunError, match=f"do not fit the model's context of {room + 6}"):
        rollout.sample(model, processor, prompts, 1, 6)

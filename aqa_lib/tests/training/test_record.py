"""A run is resumed as it was made, or not at all: its record never claims later settings for earlier steps."""

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from aqa_lib import model as models
from aqa_lib.runtime.checkpoints import in_order
from aqa_lib.runtime.faults import RunError
from aqa_lib.sft import SFTConfig, SFTTrainer
from aqa_lib.tests.helpers import SHORT
from aqa_lib.training import record

SAVED = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}


def quiet(prompts, completions, **columns):
    return [0.0] * len(completions)


@pytest.fixture
def begun(train, questions, tmp_path):
    """A run of one step, ranked on held-out questions, and a way to resume it with other options."""
    rest = SAVED | {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "accuracy"}
    train(eval_dataset=questions[:2], **rest)

    def again(**options):
        given = {"eval_dataset": questions[:2], **rest, "max_steps": 2, **options}
        return train(resume=True, **given)

    return again


def test_what_would_change_the_result_is_refused_by_name(begun, questions, tmp_path):
    before = (tmp_path / "run.json").read_bytes()
    others = [replace(question, answer=question.choices[-1]) for question in questions]
    for name, options in {
        r"seed 42, now 7": {"seed": 7},
        r"beta 0\.04, now 0\.0": {"beta": 0.0},
        r'loss_type "grpo", now "dr_grpo"': {"loss_type": "dr_grpo"},
        r"num_generations 4, now 2": {"num_generations": 2},
        r"questions_per_step 4, now 2": {"per_device_train_batch_size": 2},
        r'lr_scheduler_type "linear", now "constant"': {"lr_scheduler_type": "constant"},
        r"learning_rate 0\.001, now 0\.1": {"learning_rate": 0.1},
        r"prompt_style 2, now 3": {"prompt_style": 3},
        r'rewards \["length_reward"\], now \["quiet"\]': {"rewards": [quiet]},
        r"reward_weights null, now \[2\.0\]": {"reward_weights": [2.0]},
        r"train questions' content ": {"train_dataset": others},
        r"train questions' order ": {"train_dataset": questions[::-1]},
        r"held_out questions' number 2, now 3": {"eval_dataset": questions[:3]},
        r'metric_for_best_model "accuracy", now "format"': {"metric_for_best_model": "format"},
        r"max_steps 1, now -1": {"max_steps": -1},
        r"temperature 1\.0, now 0\.5; top_p 1\.0, now 0\.9": {"temperature": 0.5, "top_p": 0.9},
    }.items():
        with pytest.raises(RunError, match=f"checkpoint-1 was made differently .*{name}.*start a new run"):
            begun(**options)
        assert (tmp_path / "run.json").read_bytes() == before


def test_what_changes_no_result_is_allowed_and_recorded(begun, tmp_path):
    """Two passes of half the questions learn the same; a run may be longer, and watched and kept in another way."""
    begun(
        per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=2, save_total_limit=5, eval_steps=2
    )
    made = json.loads((tmp_path / "run.json").read_text())
    (resumed,) = made["resumes"]
    assert resumed["changed"]["max_steps"] == [1, 2] and resumed["changed"]["save_total_limit"] == [2, 5]
    assert made["options"]["max_steps"] == 2 and [path.name for path in in_order(tmp_path)][-1] == "checkpoint-2"


def test_another_trainer_and_other_trainable_weights_are_refused(begun, model, processor, questions, tmp_path):
    options = {name: value for name, value in SHORT.items() if name != "max_steps"}
    args = SFTConfig(output_dir=str(tmp_path), max_steps=2, prompt_style=2, **options)
    with pytest.raises(RunError, match='trainer "GRPOTrainer", now "SFTTrainer"'):
        SFTTrainer(model, processor, args, questions).train(resume_from_checkpoint=True)
    models.choose_trainable(model, ["projector"])
    with pytest.raises(RunError, match="trainable weights .train_parts, lora_r, quantization."):
        begun()


def test_another_base_of_the_same_name_is_refused(train, model, processor, tmp_path):
    """The folder's weights were replaced between the two commands."""
    base = tmp_path / "base"
    model.save_pretrained(base)
    processor.save_pretrained(base)
    options = SAVED | {"folder": tmp_path / "run"}
    train(policy=models.load(base, "float32")[0], **options)
    train(policy=models.load(base, "float32")[0], resume=True, **options | {"max_steps": 2})
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor * 0.5 for name, tensor in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="base model .*, now "):
        train(policy=models.load(base, "float32")[0], resume=True, **options | {"max_steps": 3})


def test_a_run_without_a_record_is_resumed_with_a_warning(begun, tmp_path, caplog):
    (tmp_path / "run.json").write_text("{")
    begun(seed=7)
    assert "has no readable run.json: how it was made is unknown" in caplog.text


def test_an_option_that_one_release_does_not_know_is_no_difference():
    then = {"trainer": "GRPOTrainer", "options": {"max_steps": 5, "gone": 1}}
    assert record.differences(then, {"trainer": "GRPOTrainer", "options": {"max_steps": 5, "new": 1}}) == []

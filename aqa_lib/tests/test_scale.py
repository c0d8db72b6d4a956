from dataclasses import FrozenInstanceError

import pytest

from aqa_lib import scale
from aqa_lib.assembly.align import AlignConfig
from aqa_lib.grpo import GRPOConfig
from aqa_lib.sft import SFTConfig


def test_the_environment_turns_the_dial(monkeypatch):
    monkeypatch.delenv(scale.VARIABLE, raising=False)
    assert scale.get().name == "tiny"
    for name in scale.SCALES:
        monkeypatch.setenv(scale.VARIABLE, name)
        assert scale.get().name == name and name in str(scale.get())
        assert str(scale.ROOT) not in str(scale.get())  # it stands in the notebooks' outputs


def test_an_unknown_name_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv(scale.VARIABLE, "huge")
    with pytest.raises(ValueError, match="'huge'; set AQA_SCALE to one of tiny, small, colab, full"):
        scale.get()


@pytest.mark.parametrize("steps", ["0", "-3", "many"])
def test_no_number_of_steps_is_refused(monkeypatch, steps):
    monkeypatch.setenv(scale.SHORTER, steps)
    with pytest.raises(ValueError, match=f"='{steps}' must be a positive whole number"):
        scale.get("tiny")


def test_a_scale_is_frozen():
    with pytest.raises(FrozenInstanceError):
        scale.get("tiny").name = "big"


@pytest.mark.parametrize("name", scale.SCALES)
def test_its_options_are_the_trainers(name, tmp_path):
    here = scale.get(name)
    for config, options in ((GRPOConfig, here.grpo), (SFTConfig, here.sft), (AlignConfig, here.align)):
        config(**options | {"output_dir": str(tmp_path)})


def test_full_is_the_report():
    """The hyper-parameters of the paper, section 1 of its appendix and its public code."""
    config = GRPOConfig(**scale.get("full").grpo)
    expected = {
        "learning_rate": 1e-6, "beta": 0.04, "num_generations": 8, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
        "max_completion_length": 256, "per_device_train_batch_size": 16, "max_steps": 1000, "save_steps": 100,
        "lr_scheduler_type": "linear", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "loss_type": "grpo", "scale_rewards": "group", "num_iterations": 1,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected


def test_float16_where_the_gpu_has_no_bfloat16(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for supported in (True, False):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation, supported=supported: supported)
        config = GRPOConfig(**scale.get("colab").grpo | {"output_dir": str(tmp_path), "use_cpu": True})
        assert (config.bf16, config.fp16) == (supported, not supported)

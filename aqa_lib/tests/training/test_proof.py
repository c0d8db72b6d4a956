"""Proof of what was trained: by part, against the weights themselves; and what is wrong is said."""

import copy
import json
import math

import pytest
import torch

from aqa_lib import model as models
from aqa_lib.__main__ import main
from aqa_lib.sft import SFTConfig, SFTTrainer
from aqa_lib.tests.helpers import SHORT
from aqa_lib.training import proof, record


def exactly(before, after, prefix):
    """The norm of the change over the norm before, of all tensors whose name begins so."""
    pairs = [
        (w, dict(after.named_parameters())[name]) for name, w in before.named_parameters() if name.startswith(prefix)
    ]
    change = sum(float((b - a).detach().double().square().sum()) for a, b in pairs)
    return math.sqrt(change / sum(float(a.detach().double().square().sum()) for a, _ in pairs))


def test_a_run_says_what_it_trained(train, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(proof, "VALUES", 10**9)  # all of them
    models.choose_trainable(model, ["projector", "language_model"])
    before = copy.deepcopy(model)
    trainer = train(beta=0.0)
    found = record.learned(tmp_path)
    assert found["step"] == 2 and set(found["parts"]) == {"audio tower", "projector", "language model"}
    tower, projector = found["parts"]["audio tower"], found["parts"]["projector"]
    assert tower["learning"] == 0 == tower["moved_tensors"] and tower["moved"] is None
    own = list(model.model.multi_modal_projector.parameters())
    assert projector["tensors"] == projector["learning_tensors"] == projector["moved_tensors"] == len(own)
    assert projector["parameters"] == projector["learning"] == sum(w.numel() for w in own)
    assert projector["moved"] == pytest.approx(exactly(before, model, "model.multi_modal_projector"), rel=1e-4)
    assert sum(row["parameters"] for row in found["parts"].values()) == sum(w.numel() for w in model.parameters())
    assert found["hearing"]["before"] == pytest.approx(models.hearing(before.eval(), trainer.processing_class))
    assert found["hearing"]["after"] == pytest.approx(models.hearing(model.eval(), trainer.processing_class))
    logs = [row["frac_reward_zero_std"] for row in trainer.state.log_history if "frac_reward_zero_std" in row]
    assert found["groups"] == pytest.approx(1 - sum(logs) / len(logs))
    assert proof.faults(found) == []
    assert main(["learned", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "| audio tower |" in said and "| frozen |  |" in said and f"| {len(own)} of {len(own)} |" in said
    assert "% of the groups taught something" in said and "A clip moves the next token's logits by" in said


def test_some_values_of_each_tensor_estimate_the_same_norm(train, model, tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "VALUES", 256)
    before = copy.deepcopy(model)
    train(beta=0.0)
    moved = record.learned(tmp_path)["parts"]["language model"]["moved"]
    assert moved == pytest.approx(exactly(before, model, ("model.language_model", "lm_head")), rel=0.2)


def test_a_run_that_taught_nothing_says_so(train, tmp_path):
    train(rewards=[lambda prompts, completions, **columns: [1.0] * len(completions)], beta=0.0)
    found = record.learned(tmp_path)
    assert found["groups"] == 0
    told = proof.faults(found)
    assert "the audio tower was to learn, and no tensor of it moved." in told and len(told) == 4
    assert "no group taught anything: in each, all answers were rewarded alike." in proof.markdown(found)
    deaf = found | {"hearing": {"before": 1.0, "after": 0.0}}
    assert "the model is deaf" in proof.markdown(deaf)


def test_a_resumed_run_is_measured_from_its_base(train, model, tmp_path):
    base = copy.deepcopy(model)
    options = {"save_strategy": "steps", "save_steps": 1, "beta": 0.0}
    train(max_steps=3, folder=tmp_path / "whole", policy=copy.deepcopy(base), **options)
    train(max_steps=1, folder=tmp_path / "two", policy=copy.deepcopy(base), **options)
    train(max_steps=3, folder=tmp_path / "two", policy=copy.deepcopy(base), resume=True, **options)
    whole, two = (record.learned(tmp_path / name)["parts"] for name in ("whole", "two"))
    assert [row["moved_tensors"] for row in whole.values()] == [row["moved_tensors"] for row in two.values()]


def test_adapters_are_a_part_and_sft_has_no_groups(model, processor, questions, tmp_path):
    adapted = models.add_adapters(model, r=2)
    args = SFTConfig(str(tmp_path), **SHORT)
    SFTTrainer(adapted, processor, args, questions).train()
    found = record.learned(tmp_path)
    adapters = found["parts"]["adapters"]
    assert (
        found["groups"] is None and adapters["moved_tensors"] == adapters["tensors"] == adapters["learning_tensors"] > 0
    )
    assert all(not row["learning"] for name, row in found["parts"].items() if name != "adapters")
    assert "groups" not in proof.markdown(found)


def test_numbers_that_are_none_are_written_as_none(model, processor, monkeypatch):
    before = proof.start(model, processor)
    monkeypatch.setattr(proof, "hearing", lambda *_: float("nan"))
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    found = proof.learned(model, processor, before, [], 1, sharded=False)
    assert found["hearing"]["after"] is None and found["parts"]["language model"]["moved"] is None
    assert json.dumps(found, allow_nan=False) and proof.markdown(found)


@pytest.mark.parametrize("text", [None, "{", '{"learned": 3}', "{}"])
def test_a_record_that_does_not_say_is_refused_in_a_sentence(tmp_path, capsys, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert main(["learned", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "give the folder of a training run" in said if text is None else "does not say what was learned" in said

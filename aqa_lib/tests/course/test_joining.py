"""The tiny base comes apart into two parts that compute what they did, and is put together again."""

import hashlib
import json
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperModel

from aqa_lib import model, scale
from aqa_lib.assembly import assemble, facts
from aqa_lib.course import joining, real
from aqa_lib.tiny import parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return parts.write(tmp_path_factory.mktemp("apart") / "parts")


@pytest.fixture(scope="module")
def whole():
    return model.load(scale.SCALES["tiny"].model, "float32", train=())


def test_each_part_keeps_its_weights_and_the_language_model_its_logits(folder, whole):
    base, processor = whole
    encoder = WhisperModel.from_pretrained(folder / parts.ENCODER).encoder.state_dict()
    for name, weight in model.parts(base).audio_tower.state_dict().items():
        assert torch.equal(encoder[name], weight), name
    talks = AutoModelForCausalLM.from_pretrained(folder / parts.LANGUAGE_MODEL)
    ids = AutoTokenizer.from_pretrained(folder / parts.LANGUAGE_MODEL)("What barks?", return_tensors="pt").input_ids
    assert torch.equal(ids, processor.tokenizer("What barks?", return_tensors="pt").input_ids)
    with torch.no_grad():
        torch.testing.assert_close(talks(ids).logits, base(input_ids=ids).logits)


def test_joined_again_only_the_projector_is_new(folder, whole):
    made, _ = assemble.assemble(folder / parts.ENCODER, folder / parts.LANGUAGE_MODEL)
    old, new = (dict(each.named_parameters()) for each in (whole[0], made))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {name for name in old if "projector" in name}


def test_the_clips_are_of_every_split_and_the_same_bytes_each_time(folder, tmp_path):
    clips = facts.read(folder / parts.CLIPS)
    assert Counter((clip.meta["split"], clip.task) for clip in clips) == {
        (split, task): count
        for split, count in parts.SPLITS.items()
        for task in (parts.FACTS if split != parts.ASKED else ("sound",))
    }
    assert {parts.ASKED, *parts.SPLITS} >= {facts.ASKED, facts.TEST, *facts.TRAIN[:1], *facts.HELD_OUT[:1]}
    heard = [hashlib.sha256(clip.audio.read_bytes()).hexdigest() for clip in clips]
    assert len(set(heard)) == len(heard)
    parts.write_clips(tmp_path)
    assert (tmp_path / parts.CLIPS).read_bytes() == (folder / parts.CLIPS).read_bytes()
    again = [hashlib.sha256((tmp_path / "audio" / clip.audio.name).read_bytes()).hexdigest() for clip in clips]
    assert again == heard


def test_a_scale_with_clips_of_its_own_keeps_its_parts(monkeypatch):
    small = scale.SCALES["small"]
    monkeypatch.setattr(scale, "get", lambda name=None: small)
    assert joining.made_of() == small


def test_a_model_is_trained_once_by_each_method_and_then_found(monkeypatch, tmp_path, folder):
    monkeypatch.setenv("AQA_ARTIFACTS", str(tmp_path))
    monkeypatch.setattr(joining.parts, "write", lambda where: folder)
    ran = []

    def run(trial, folder, material):
        ran.append(trial)
        return {"last": trial.name}

    monkeypatch.setattr(real, "run", run)
    for _ in range(2):
        assert joining.tested("grpo", tmp_path)["last"].startswith("grpo-wrong0-lr0.0001-steps30")
        assert joining.tested("base", tmp_path)["last"] == real.BASE.name
    assert [trial.method for trial in ran] == ["grpo", "base"]
    assert ran[1] == real.BASE and json.loads(next(tmp_path.glob("real-base-*/row.json")).read_text())

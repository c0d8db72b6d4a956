from dataclasses import replace

import pytest

from aqa_lib import scale
from aqa_lib.course import recipes
from aqa_lib.tiny import synth


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A tiny scale with few questions and no held-out file, in a folder of its own."""
    synth.write(tmp_path / "data", train=24, validation=6, test=6)
    here = scale.get("tiny")
    files = {"train": tmp_path / "data" / "train.jsonl", "test": tmp_path / "data" / "test.json", "held_out": None}
    few = {"max_steps": 2, "per_device_train_batch_size": 4, "eval_steps": 2, "save_steps": 2, "disable_tqdm": True}
    made = replace(here, held_out_fraction=0.25, grpo=here.grpo | few, sft=here.sft | few, **files)
    monkeypatch.setattr(scale, "get", lambda name=None: made)
    monkeypatch.setenv("AQA_ARTIFACTS", str(tmp_path / "artifacts"))
    return made


def test_a_held_out_part_is_split_off_where_no_file_names_one(small):
    asked = recipes.questions()
    assert len(asked.held_out) == 6 and len(asked.train) == 18 and len(asked.test) == 6
    assert not {q.id for q in asked.held_out} & {q.id for q in asked.train}


def test_a_row_is_trained_tested_and_found_again(small, capsys):
    row = recipes.row("grpo-2")
    assert row.metrics.is_file() and len(row.predictions.read_text().splitlines()) == 6
    said = capsys.readouterr().out
    assert said.count("making it") == 2
    assert recipes.row("grpo-2") == row
    assert capsys.readouterr().out.count("found") == 2


def test_lora_learns_at_a_rate_of_its_own(small, tmp_path):
    trainer = recipes.sft(tmp_path / "sft", lora_r=4)
    assert trainer.args.learning_rate == pytest.approx(10 * small.sft["learning_rate"])
    assert (tmp_path / "sft" / "adapter_config.json").is_file()


@pytest.mark.parametrize("name", ["grpo", "grpo-4", "magic-2", ""])
def test_an_unknown_row_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="choose from base-2, base-3"):
        recipes.row(name)

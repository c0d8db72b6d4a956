"""Checkpoints: whole, or recognized as damaged and skipped; never the reason that an older one is lost."""

import errno
import json
import os
import shutil

import pytest
import torch

from aqa_lib.grpo import GRPOTrainer
from aqa_lib.runtime import checkpoints
from aqa_lib.runtime.checkpoints import CheckpointError
from aqa_lib.tests.helpers import config, length_reward


def write(run, step, content="weights"):
    folder = run / checkpoints.ASIDE / f"checkpoint-{step}"
    (folder / "adapter").mkdir(parents=True)
    (folder / "model.safetensors").write_text(f"{content} {step}")
    (folder / "adapter" / "optimizer.pt").write_text(f"moments {step}")
    checkpoints.seal(folder)
    checkpoints.put(folder, run)
    return run / f"checkpoint-{step}"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda c: (c / "model.safetensors").write_text("half"), "has 4 bytes of model.safetensors where 9 were"),
        (lambda c: (c / "model.safetensors").write_text("weights 7"), "holds a model.safetensors that differs"),
        (lambda c: shutil.rmtree(c / "adapter"), "is missing adapter/optimizer.pt"),
        (lambda c: (c / checkpoints.LIST).unlink(), "saving it never finished"),
        (lambda c: (c / checkpoints.LIST).write_text('{"files": {'), "saving it never finished"),
        (lambda c: (c / checkpoints.LIST).write_text("[]"), "saving it never finished"),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, caplog, damage, reason):
    first, second = write(tmp_path, 1), write(tmp_path, 2)
    assert checkpoints.last_whole(tmp_path) == second
    damage(second)
    assert reason in checkpoints.fault(second)
    assert checkpoints.last_whole(tmp_path) == first
    assert second.exists() == ("checkpoint-2" in caplog.text)
    shutil.rmtree(first / "adapter")
    if second.exists():
        with pytest.raises(CheckpointError, match="none of its 2 checkpoints is whole"):
            checkpoints.last_whole(tmp_path)


def test_there_need_be_none(tmp_path):
    (tmp_path / "checkpoint-old").mkdir()
    assert checkpoints.last_whole(tmp_path) is checkpoints.last_whole(tmp_path / "nowhere") is None


def test_the_step_counts_and_not_the_clock(tmp_path, monkeypatch):
    """A clock that was set back must not make the newest checkpoint the oldest, which is pruned."""
    for step, time in ((90, 2e9), (100, 1e9)):
        monkeypatch.setattr("time.time", lambda time=time: time)
        new = write(tmp_path, step)
        os.utime(new, (time, time))
    assert checkpoints.last_whole(tmp_path) == new
    checkpoints.prune(tmp_path, 1, None, new.name)
    assert checkpoints.in_order(tmp_path) == [new]


def test_a_copy_with_a_name_of_the_users_own_is_no_checkpoint(tmp_path):
    write(tmp_path, 3)
    kept = [shutil.copytree(tmp_path / "checkpoint-3", tmp_path / f"checkpoint-{name}") for name in ("4-keep", "5.bak")]
    assert checkpoints.last_whole(tmp_path).name == "checkpoint-3"
    for step in (6, 7):
        checkpoints.prune(tmp_path, 1, None, write(tmp_path, step).name)
    assert [path.name for path in checkpoints.in_order(tmp_path)] == ["checkpoint-7"]
    assert all(checkpoints.fault(path) is None for path in kept)


def test_a_damaged_later_checkpoint_does_not_cost_the_new_one(tmp_path):
    for step in (1, 9):
        write(tmp_path, step)
    (tmp_path / "checkpoint-9" / "model.safetensors").write_text("half")
    checkpoints.prune(tmp_path, 1, None, write(tmp_path, 2).name)
    assert checkpoints.last_whole(tmp_path).name == "checkpoint-2"
    assert (tmp_path / "checkpoint-9").exists()


SAVED = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}


def test_another_run_is_not_written_over(train, tmp_path):
    train(max_steps=3, **SAVED)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(CheckpointError, match=r"holds another run \(checkpoint-3\), .*resume it with --resume"):
        train(max_steps=1, **SAVED)
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "aside" / "checkpoint-2")
    with pytest.raises(CheckpointError, match="holds another run"):
        train(resume=str(tmp_path / "aside" / "checkpoint-2"), **SAVED)
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_finished_model_is_not_written_over(train, tmp_path):
    train(max_steps=1).save_model()
    with pytest.raises(CheckpointError, match=r"holds another run \(model.safetensors\)"):
        train(max_steps=1)


def test_a_later_part_of_the_same_run_is_not_written_over(train, tmp_path):
    train(max_steps=3, **SAVED | {"save_total_limit": 5})
    with pytest.raises(CheckpointError, match="checkpoint-3 is later than checkpoint-1 and would be overwritten"):
        train(resume=str(tmp_path / "checkpoint-1"), max_steps=3)


def test_the_best_checkpoint_is_found_after_a_move(train, questions, tmp_path, monkeypatch):
    """Its path is saved as it was given: relative to a working directory, or in a folder that was moved."""
    monkeypatch.chdir(tmp_path)
    options = SAVED | {"eval_dataset": questions, "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": False}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "format", "learning_rate": 1e-9}
    train(folder="first", max_steps=2, **options)  # nothing is learned: the first is the best
    assert [path.name for path in checkpoints.in_order(tmp_path / "first")] == ["checkpoint-1", "checkpoint-2"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "first").rename(tmp_path / "elsewhere" / "second")
    monkeypatch.chdir(tmp_path / "elsewhere")
    trainer = train(folder="second", resume=True, max_steps=4, **options)
    names = [path.name for path in checkpoints.in_order(tmp_path / "elsewhere" / "second")]
    assert names == ["checkpoint-1", "checkpoint-4"] and trainer.state.best_global_step == 1


def test_one_damaged_line_of_completions_does_not_block_resuming(train, tmp_path, capsys):
    train(max_steps=2, **SAVED)
    path = tmp_path / "completions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"step": \xff\n[]\n' + lines[1])
    train(resume=True, max_steps=3, **SAVED)
    assert [json.loads(line)["step"] for line in path.read_text("utf-8").splitlines()] == [0, 1, 2]
    assert "completions.jsonl: 2 of 4 lines are damaged and were dropped" in capsys.readouterr().out


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 6):
        write(tmp_path, step)
    checkpoints.prune(tmp_path, None, None)
    assert len(checkpoints.in_order(tmp_path)) == 5
    checkpoints.prune(tmp_path, 3, str(tmp_path / "checkpoint-2"))
    assert [path.name[-1] for path in checkpoints.in_order(tmp_path)] == ["2", "4", "5"]
    checkpoints.prune(tmp_path, 1, str(tmp_path / "checkpoint-2"))
    assert [path.name[-1] for path in checkpoints.in_order(tmp_path)] == ["2", "5"]
    assert not (tmp_path / checkpoints.GONE).exists()


def test_a_checkpoint_replaces_an_older_one_of_its_step(tmp_path):
    write(tmp_path, 3)
    assert (write(tmp_path, 3, "new") / "model.safetensors").read_text() == "new 3"
    assert len(checkpoints.in_order(tmp_path)) == 1


def test_why_it_could_not_be_saved(tmp_path):
    write(tmp_path, 4)
    (tmp_path / checkpoints.ASIDE).mkdir(exist_ok=True)
    full = checkpoints.not_saved(tmp_path, "checkpoint-6", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert "checkpoint-6 could not be saved (the disk is full); checkpoint-4 and all before it are safe" in str(full)
    assert not (tmp_path / checkpoints.ASIDE).exists()
    other = checkpoints.not_saved(tmp_path / "empty", "checkpoint-6", RuntimeError("writer failed.\nat line 9"))
    assert "(writer failed); there is no earlier one" in str(other)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile",)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_no_pickle_in_a_checkpoint_runs(train, questions, tmp_path, monkeypatch, name):
    """Even one whose list was written anew to agree with it."""
    train(save_strategy="steps", save_steps=1, max_steps=1)
    checkpoint = tmp_path / "checkpoint-1"
    assert not list(tmp_path.rglob("*.bin")), "a pickle that nobody needs"
    monkeypatch.chdir(tmp_path)
    torch.save({"state": Hostile()}, checkpoint / name)
    with pytest.raises(CheckpointError, match=f"holds a {name} that differs|bytes of {name}"):
        train(resume=str(checkpoint), max_steps=2)
    checkpoints.seal(checkpoint)
    with pytest.raises(CheckpointError, match=r"does not belong there .UnpicklingError"):
        train(resume=str(checkpoint), max_steps=2)
    assert not (tmp_path / "hostile").exists()


def test_tokens_are_not_saved(model, processor, questions, tmp_path):
    args = config(tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    args.hub_token = "hf_secret_of_mine"
    GRPOTrainer(model, processor, [length_reward], args, questions).train()
    options = json.loads((tmp_path / "checkpoint-1" / "training_args.json").read_text())
    assert options["learning_rate"] == 1e-3 and options["hub_token"] == "<HUB_TOKEN>"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"secret_of_mine" in path.read_bytes()]

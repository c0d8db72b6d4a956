"""What stops a long run: each time one sentence, weights untouched, and a way to go on."""

import errno
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace

import pytest
import soundfile
import torch

from aqa_lib import evaluation, rollout
from aqa_lib.audio import AudioError
from aqa_lib.runtime import checkpoints, faults
from aqa_lib.runtime.checkpoints import CheckpointError
from aqa_lib.runtime.faults import RunError
from aqa_lib.training import data

OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.03 GiB is free."
)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_loss_that_is_no_number_stops_before_the_weights(train, model, tmp_path):
    def reward(prompts, completions, **columns):  # finite, but beyond float32
        return [3e38, *(-3e38 for c in completions[1:])]

    before = weights(model)
    with pytest.raises(RunError, match=r"step 1: the loss is nan, .*the batch \(q\d, q\d, q\d, q\d\) is in") as error:
        train(rewards=[reward], max_steps=1)
    assert same(model, before) and "\n" not in str(error.value)
    dumped = json.loads((tmp_path / "bad_batch_1.json").read_text())
    assert {row["id"] for row in dumped["questions"]} == {"q0", "q1", "q2", "q3"}
    assert len(dumped["questions"][0]["completions"]) == len(dumped["questions"][0]["rewards"]) == 4


def test_a_gradient_that_is_no_number_stops_before_the_weights(train, model, tmp_path):
    model.lm_head.weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weights(model)
    with pytest.raises(RunError, match="the gradient is nan"):
        train(max_steps=1)
    assert same(model, before) and (tmp_path / "bad_batch_1.json").exists()


@pytest.fixture
def ctrl_c():
    """Listen to Ctrl-C, which a suite in a script's background would ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(step, monkeypatch, times=1, number=signal.SIGINT):
    """Press Ctrl-C in the rollout of a step."""
    steps, original = iter(range(1, 100)), rollout.sample

    def sample(*args, **kwargs):
        if next(steps) == step:
            for _ in range(times):
                signal.raise_signal(number)
        return original(*args, **kwargs)

    monkeypatch.setattr("aqa_lib.rollout.sample", sample)


def test_ctrl_c_saves_and_says_how_to_go_on(train, model, tmp_path, monkeypatch, ctrl_c):
    start, options = weights(model), {"max_steps": 4, "save_strategy": "steps", "save_steps": 100, "logging_steps": 3}
    whole = train(folder=tmp_path / "whole", **options)
    expected = weights(model)
    model.load_state_dict(start, strict=False)
    interrupt_at(2, monkeypatch)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"after step 2, .*call train\(resume_from_checkpoint=True\)"):
        train(**options)
    assert signal.getsignal(signal.SIGINT) is before
    model.load_state_dict(start, strict=False)
    resumed = train(resume=True, **options)  # in the middle of what one log is about
    assert same(model, expected)
    losses = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_machine_that_goes_and_a_terminal_that_closes_save_too(train, tmp_path, monkeypatch, name):
    number = getattr(signal, name)
    outer = signal.signal(number, signal.SIG_DFL)  # under nohup a hangup is ignored, and stays so: see below
    try:
        interrupt_at(1, monkeypatch, number=number)
        with pytest.raises(KeyboardInterrupt, match="after step 1, which is saved"):
            train(max_steps=3, save_strategy="steps", save_steps=100)
        assert checkpoints.last_whole(tmp_path).name == "checkpoint-1"
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, outer)


def test_a_second_ctrl_c_stops_at_once(train, monkeypatch, tmp_path, ctrl_c):
    interrupt_at(1, monkeypatch, times=2)
    with pytest.raises(KeyboardInterrupt):
        train(max_steps=3)
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_that_is_ignored_stays_ignored(name):
    number = getattr(signal, name)
    outer = signal.signal(number, signal.SIG_IGN)
    try:
        with faults.interruptible(lambda: pytest.fail("it was heard")):
            signal.raise_signal(number)
    finally:
        signal.signal(number, outer)


def test_a_thread_has_no_ctrl_c():
    raised = []

    def work():
        with faults.interruptible(raised.append):
            raised.append(threading.current_thread())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == [thread]


@pytest.mark.parametrize("place", ["torch.save", "aqa_lib.runtime.checkpoints.seal"])
def test_a_full_disk_loses_nothing_that_was_written(train, model, tmp_path, monkeypatch, place):
    options = {"save_strategy": "steps", "save_steps": 1}
    train(max_steps=1, **options)
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoint-1").rglob("*") if path.is_file()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(place, full)
    with pytest.raises(
        CheckpointError, match=r"checkpoint-2 could not be saved \(the disk is full\); checkpoint-1 and"
    ):
        train(resume=True, max_steps=2, **options)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / checkpoints.ASIDE).exists() and not (tmp_path / "checkpoint-2").exists()
    assert train(resume=True, max_steps=2, **options).state.global_step == 2


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 20 MB, which one checkpoint of the tests' model and optimizer fits, and two do not."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs takes Linux and its superuser")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # the failed save is still open


def test_a_disk_that_is_really_full(train, small_disk):
    """A run stops at the checkpoint that does not fit, keeps the one before, and goes on once there is room."""
    options = {"folder": small_disk, "save_strategy": "steps", "save_steps": 1, "max_steps": 3, "save_total_limit": 1}
    with pytest.raises(
        CheckpointError, match=r"checkpoint-2 could not be saved \(the disk is full\); checkpoint-1 and"
    ):
        train(**options)
    assert checkpoints.fault(small_disk / "checkpoint-1") is None
    assert sorted(path.name for path in small_disk.glob("checkpoint-*")) == ["checkpoint-1"]
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    assert train(resume=True, **options).state.global_step == 3


def test_a_disk_that_can_only_be_read(train, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(RunError, match="cannot be written to .*; choose another folder"):
        train(folder=small_disk)


def test_a_damaged_checkpoint_is_passed_over(train, tmp_path, caplog):
    options = {"save_strategy": "steps", "save_steps": 1}
    train(max_steps=2, **options)
    with open(tmp_path / "checkpoint-2" / "model.safetensors", "r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\x00\xff\x00")
    resumed = train(resume=True, max_steps=2, **options)
    assert [row["step"] for row in resumed.state.log_history if "loss" in row] == [1, 2]
    assert "checkpoint-2 holds a model.safetensors that differs from the one written; skipped." in caplog.text
    assert checkpoints.fault(tmp_path / "checkpoint-2") is None


def test_a_folder_that_cannot_be_written_to_is_told_before_the_first_step(train, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written to \(.*\); choose another folder"):
        train(folder=tmp_path / "file" / "run")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_vanishes_is_named_in_one_sentence(model, processor, questions, tmp_path, workers, train):
    """The clip of one question is deleted while the run goes on; with a worker the error comes from another process."""
    soundfile.write(tmp_path / "gone.wav", torch.randn(16_000).numpy() / 5, 16_000)
    some = [replace(question, audio=tmp_path / "gone.wav") for question in questions]

    def reward(prompts, completions, **columns):
        (tmp_path / "gone.wav").unlink(missing_ok=True)
        return [1.0] * len(completions)

    options = {"dataloader_prefetch_factor": 1} if workers else {}
    with pytest.raises((AudioError, RunError), match=r"^q\d \(.*gone.wav\): no such file; check the path") as error:
        train(
            rewards=[reward], train_dataset=some, max_steps=8, dataloader_num_workers=workers,
            per_device_train_batch_size=2, save_strategy="steps", save_steps=1, beta=0.0, **options,
        )  # fmt: skip
    assert "\n" not in str(error.value)
    assert checkpoints.last_whole(tmp_path) is not None  # what was learned before is kept


@pytest.mark.parametrize(("fate", "said"), [("die", "exited unexpectedly|is killed by signal"), ("hang", "timed out")])
def test_a_worker_that_dies_or_hangs_does_not_hang_the_run(train, monkeypatch, fate, said):
    def prepare(*args):
        if fate == "die":
            os._exit(1)
        time.sleep(60)

    monkeypatch.setattr(data, "prepare", prepare)
    monkeypatch.setattr(faults, "PATIENCE", 2)
    start = time.monotonic()
    with pytest.raises(RunError, match=rf"died or hung \(.*({said}).*\); resume .* dataloader_num_workers to 0"):
        train(max_steps=1, dataloader_num_workers=1)
    assert time.monotonic() - start < 30


def test_a_clip_that_is_never_ready_does_not_hang_an_evaluation():
    never = threading.Event()
    with pytest.raises(RunError, match="clip 3 was not ready after 0.1 s of waiting: its decoding hangs"):
        list(evaluation.prefetch([[0, 1], [2]], lambda i: never.wait() if i == 2 else i, patience=0.1))
    never.set()


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        (
            "aqa_lib.rollout.sample",
            "lower per_device_train_batch_size from 4 to 2 and raise gradient_accumulation_steps",
        ),
        ("aqa_lib.grpo.grpo_loss", "lower max_tokens_per_forward from 8192 to 4096, with the same result; if that"),
        ("torch.optim.AdamW.step", "weights, gradients and optimizer do not fit"),
        ("aqa_lib.evaluation.inputs.collate", "lower the evaluation's batch size from 32 to 16"),
    ],
)
def test_a_full_gpu_gives_advice(train, questions, monkeypatch, place, advice):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(place, full)
    held_out = {"eval_dataset": questions, "eval_strategy": "steps", "eval_on_start": True} if "eval" in place else {}
    with pytest.raises(RunError) as error:
        train(max_steps=1, **held_out)
    assert f"the GPU's memory is full (2.50 GiB requested, 1.03 GiB free); {advice}" in str(error.value)


def test_advice_when_a_single_question_is_too_much(train, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("aqa_lib.rollout.sample", full)
    with pytest.raises(RunError, match="memory is full; lower max_completion_length from 6 to 3, or num_generations"):
        train(max_steps=1, per_device_train_batch_size=1)

"""A training in a notebook shows one picture and one reply, and an interrupted cell ends in one line."""

import json
import sys
from types import SimpleNamespace

import IPython.display
import numpy as np
import pytest
import soundfile
from jupyter_client.manager import start_new_kernel

from aqa_lib.course import kernel, live, recipes
from aqa_lib.dataset import Question

ROWS = [
    {"step": 0, "eval_accuracy": 0.4},
    {"step": 1, "loss": 0.0, "reward": 0.5, "rewards/think_format/mean": 0.1, "reward_std": 0.5},
    {"step": 5, "loss": 0.0, "reward": 1.5, "rewards/think_format/mean": 0.9, "reward_std": 0.25},
]
SAID = {"step": 4, "id": "q", "question": "What <b>barks</b>?", "choices": ["a dog", "a cat"], "answer": "a dog"}
SAID |= {"completions": ["<img src=x onerror=alert(1)>", "a dog"], "rewards": [0.0, 2.0]}


@pytest.fixture
def shown(monkeypatch):
    """All that a notebook would have been shown: the first frame's parts, then what replaced them."""
    shown = []

    def display(part, display_id):
        shown.append(part)
        return SimpleNamespace(update=shown.append)

    monkeypatch.setattr(IPython.display, "display", display)
    return shown


def picture(tmp_path):
    soundfile.write(tmp_path / "clip.wav", np.sin(np.arange(16_000) / 9) / 2, 16_000)
    asked = Question("q", tmp_path / "clip.wav", SAID["question"], tuple(SAID["choices"]), SAID["answer"])
    trainer = SimpleNamespace(train_dataset=SimpleNamespace(questions=[asked]), eval_dataset=[asked] * 20)
    return live.Picture(trainer), SimpleNamespace(output_dir=tmp_path)


def state(rows, step=5):
    return SimpleNamespace(log_history=rows, global_step=step, max_steps=10)


def test_each_log_replaces_the_picture_and_the_reply(tmp_path, shown):
    callback, args = picture(tmp_path)
    callback.on_train_begin(args, None, None)
    callback.on_log(args, state(ROWS[:2], 1), None)
    assert len(shown) == 2 and "Step 1 of 10: reward 0.5, format reward 0.1" in shown[1].data
    assert "reply" not in shown[1].data
    (tmp_path / "completions.jsonl").write_text(json.dumps(SAID) + "\n")
    callback.on_train_end(args, state(ROWS), None)
    curves, text = shown[2:]
    assert len(curves.axes) == 4 and [axis.get_xlim()[1] for axis in curves.axes] == [pytest.approx(10.3)] * 4
    assert "reward 1.5" in text.data and "held-out accuracy 0.4" in text.data and "<audio" in text.data
    assert "A reply of step 5" in text.data and "It earned 0; right is <em>a dog</em>" in text.data
    assert "<img" not in text.data and "<b>" not in text.data


def test_a_picture_names_its_run_without_its_hash(tmp_path, shown):
    callback, args = picture(tmp_path)
    for folder, name in ((".sft-lora-1-seed0-0123456789ab", "sft-lora-1-seed0"), ("mine", "mine")):
        args.output_dir = tmp_path / folder
        callback.on_train_begin(args, None, None)
        callback.on_log(args, state(ROWS), None)
        assert shown[-2].get_suptitle() == name


def test_drawing_takes_a_small_share_of_the_time(tmp_path, shown):
    callback, args = picture(tmp_path)
    for _ in range(50):  # logs without a pause between them
        callback.on_log(args, state(ROWS), None)
    assert len(shown) == 2


def test_sft_shows_its_loss_and_no_reply(tmp_path, shown):
    callback, args = picture(tmp_path)
    callback.on_train_end(args, state([{"step": 5, "loss": 1.2, "entropy": 0.3}, *ROWS[:1]]), None)
    assert (
        sum(axis.get_visible() for axis in shown[0].axes) == 3
        and "loss 1.2" in shown[1].data
        and "<audio" not in shown[1].data
    )


@pytest.mark.parametrize("line", ["", "half a li", json.dumps(SAID | {"id": "gone"})])
def test_no_damaged_line_and_no_missing_clip_stops_a_training(tmp_path, shown, line):
    callback, args = picture(tmp_path)
    (tmp_path / "completions.jsonl").write_text(line)
    callback.on_train_end(args, state(ROWS), None)
    assert "Step 5 of 10" in shown[1].data and "<audio" not in shown[1].data


def test_a_terminal_is_shown_nothing():
    assert not kernel.here()
    live.attach(None)  # nothing of it is touched


def test_a_picture_takes_the_place_of_the_lines(model, processor, questions, tmp_path, capsys, monkeypatch, shown):
    monkeypatch.setattr(kernel, "here", lambda: True)
    made = {"output_dir": str(tmp_path), "max_steps": 1, "per_device_train_batch_size": 2, "num_generations": 2}
    made |= {"save_strategy": "no", "eval_strategy": "no", "eval_on_start": False, "load_best_model_at_end": False}
    args = recipes.GRPOConfig(**made, report_to="none", disable_tqdm=True, max_completion_length=4)
    trainer = recipes.GRPOTrainer(model, processor, args=args, train_dataset=questions)
    live.attach(trainer)
    trainer.train()
    assert "asked for" not in capsys.readouterr().out
    assert "Step 1 of 1: reward" in shown[-1].data and "A reply of step 1" in shown[-1].data


def test_an_interrupt_in_a_terminal_stays_what_it_is():
    with pytest.raises(KeyboardInterrupt) as raised, kernel.one_line_when_interrupted("run"):
        raise KeyboardInterrupt
    assert type(raised.value) is KeyboardInterrupt


CELL = """
from aqa_lib.course import artifacts

def build(folder):
    done = folder / "half"
    if not done.exists():
        done.touch()
        print("half done", flush=True)
        import time
        time.sleep(600)

artifacts.load_or_build("long", build)
"""


def test_an_interrupted_cell_ends_in_one_line_and_resumes_when_it_is_run_again(tmp_path, monkeypatch):
    monkeypatch.setenv("AQA_ARTIFACTS", str(tmp_path))
    manager, client = start_new_kernel(startup_timeout=600)

    def run(interrupt):
        said = []

        def heard(message):
            said.append(message["content"])
            if interrupt and "half done" in message["content"].get("text", ""):
                manager.interrupt_kernel()

        client.execute_interactive(CELL, timeout=600, output_hook=heard)
        return said

    try:
        (stopped,) = [content["traceback"] for content in run(True) if "traceback" in content]
        assert stopped == ["long: stopped; what it had made is kept. Run this cell again to resume."]
        text = "".join(content.get("text", "") for content in run(False))
        assert "long: resuming what was interrupted" in text and "half done" not in text
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_training_says_after_which_step_it_stopped(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    with pytest.raises(kernel.Stopped) as raised, kernel.one_line_when_interrupted("grpo-2"):
        raise KeyboardInterrupt("stopped after step 40, which is saved in runs/a; to resume, call train(...)")
    said = "grpo-2: stopped after step 40, which is saved in runs/a. Run this cell again to resume."
    assert raised.value._render_traceback_() == [said]

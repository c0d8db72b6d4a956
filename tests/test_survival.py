"""Kill trainings and evaluations with SIGKILL, again and again: what they come to is what an unharmed one comes to."""

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aqa_lib.runtime import checkpoints

ROOT = Path(__file__).resolve().parents[1]
CLOCK = ("time", "runtime", "per_second")  # what a clock measured differs from run to run
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the jobs are forks")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Run a job to its end or to its kill; returns the exit code, and what was printed since the last job."""
    log = tmp_path_factory.mktemp("nursery") / "log"
    with (
        open(log, "w") as printed,
        subprocess.Popen(
            [sys.executable, ROOT / "tests" / "nursery.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed, text=True, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        ) as nursery,
    ):  # fmt: skip

        def run(arguments, place=None, count=1):
            start = log.stat().st_size
            nursery.stdin.write(json.dumps({"arguments": arguments, "place": place, "count": count}) + "\n")
            nursery.stdin.flush()
            return int(nursery.stdout.readline()), log.read_text()[start:]

        yield run
        nursery.stdin.close()


def training(world, output, *more):
    return [
        "train", "--model", f"{world}/model", "--train", f"{world}/data/train.jsonl",
        "--held_out", f"{world}/data/val.jsonl", "--output_dir", str(output), "--max_completion_length", "4",
        "--per_device_train_batch_size", "4", "--num_generations", "2", "--beta", "0.04", "--max_steps", "10",
        "--learning_rate", "1e-3", "--logging_steps", "3", "--eval_steps", "2", "--save_steps", "2",
        "--save_total_limit", "2", "--report_to", "none", "--disable_tqdm", "true", "--resume", *more,
    ]  # fmt: skip


def metrics(folder):
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not any(word in k for word in CLOCK)} for row in rows]


def outcome(folder):
    """Everything that a training leaves: weights, optimizer, metrics, and the questions and answers of its steps."""
    last = folder / "checkpoint-10"
    optimizer = torch.load(last / "optimizer.pt", weights_only=True)
    return {
        "model": (folder / "model.safetensors").read_bytes(),
        "last weights": (last / "model.safetensors").read_bytes(),
        "moments": [value.numpy().tobytes() for state in optimizer["state"].values() for value in state.values()],
        "rates": [group["lr"] for group in optimizer["param_groups"]],
        "metrics": metrics(folder),
        "answers": (folder / "completions.jsonl").read_bytes(),
    }


def test_a_training_killed_ten_times_equals_one_that_was_not(job, world, tmp_path):
    assert job(training(world, tmp_path / "whole"))[0] == 0
    chance = random.Random(6)
    places = [
        ("rollout", chance.randint(1, 4)),  # before anything was saved
        ("half a file", 1),
        ("rollout", chance.randint(9, 12)),
        ("backward", chance.randint(1, 3)),
        ("on the way to the disk", chance.randint(1, 30)),
        ("renaming", chance.randint(1, 2)),
        ("pruning", chance.randint(3, 6)),
        ("backward", chance.randint(3, 4)),
        ("replacing a file", 2),
        ("Ctrl-C", 1),
        ("any moment", chance.uniform(1, 3)),
    ]
    for place, count in places:
        code, said = job(training(world, tmp_path / "killed"), place, count)
        if place == "Ctrl-C":
            assert code == 130 and said.strip().endswith("the same command with --resume."), said
        else:
            assert code == -9 or place == "any moment", (place, said)
    code, said = job(training(world, tmp_path / "killed"))
    assert code == 0, said
    whole, killed = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert len(whole["metrics"]) > 8
    for name in whole:
        assert killed[name] == whole[name], name
    left = [sorted(path.name for path in (tmp_path / run).iterdir() if path.is_file()) for run in ("whole", "killed")]
    assert left[0] == left[1]
    assert not (tmp_path / "killed" / checkpoints.ASIDE).exists()


def test_an_evaluation_killed_ten_times_answers_every_question_once(job, world, tmp_path):
    def arguments(name):
        return [
            "evaluate", "--model", f"{world}/model", "--questions", f"{world}/data/test.json",
            "--output", str(tmp_path / name), "--max_completion_length", "4", "--batch_size", "2",
        ]  # fmt: skip

    assert job(arguments("whole.jsonl"))[0] == 0
    code, said = job(arguments("killed.jsonl"), "Ctrl-C before a line", 3)
    assert code == 130 and said.strip().endswith("stopped; the same command resumes here."), said
    chance = random.Random(6)
    for place, count in [("half a line", chance.randint(1, 3)) for _ in range(8)] + [("replacing a file", 1)] * 2:
        assert job(arguments("killed.jsonl"), place, count)[0] == -9
    code, said = job(arguments("killed.jsonl"))
    assert code == 0, said
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len((tmp_path / "whole.jsonl").read_text().splitlines()) == 12

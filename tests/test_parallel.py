"""Two processes on one machine do what one does with twice the accumulation."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from aqa_lib import model as models
from aqa_lib.tiny import synth

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Train and evaluate in two processes, and the same in this one."""
    folder = tmp_path_factory.mktemp("parallel")
    synth.write(folder / "data", train=8, validation=5, test=3)
    for name in ("one", "two", "fsdp", "resumed", "alone"):
        (folder / name).mkdir()
    script = HERE / "two_processes.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    made = subprocess.run(
        [*torchrun, script, folder], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True,
        timeout=1800,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-3000:]
    spec = importlib.util.spec_from_file_location("two_processes", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.both(folder / "one", accumulate=2)
    module.train(folder / "alone", 2, ["grpo"], resume=folder / "fsdp")
    return folder


@pytest.mark.parametrize("name", ["grpo", "sft"])
def test_the_same_weights_in_every_process_and_as_one_with_twice_the_accumulation(folder, name):
    one, *two = (
        torch.load(folder / where, weights_only=True)
        for where in (f"one/{name}.0.pt", f"two/{name}.0.pt", f"two/{name}.1.pt")
    )
    assert one.keys() == two[0].keys()
    for key, value in one.items():
        assert torch.equal(two[0][key], two[1][key]), key
        assert_close(two[0][key], value, atol=1e-5, rtol=1e-5, msg=key)


@pytest.mark.parametrize("run", ["fsdp/grpo", "fsdp/sft", "resumed/grpo", "alone/grpo"])
def test_a_sharded_model_learns_the_same(folder, run):
    """To the end, and when its second checkpoint is resumed, by two processes or by one."""
    one = torch.load(folder / "one" / f"{run.split('/')[1]}.0.pt", weights_only=True)
    shared = torch.load(folder / f"{run}.0.pt", weights_only=True)
    saved = models.load(folder / run / "checkpoint-3", check=False)[0].state_dict()
    assert one.keys() == shared.keys() == saved.keys()
    for key, value in one.items():
        assert_close(shared[key], value, atol=1e-5, rtol=1e-5, msg=key)
        assert torch.equal(saved[key], shared[key]), key


def test_each_process_holds_half_and_waits_for_the_other(folder):
    """Micro-batches and answers' lengths differ between the two, so passes that count for nothing were needed."""
    whole, *halves = (
        json.loads((folder / where).read_text())
        for where in ("one/found.0.json", "fsdp/found.0.json", "fsdp/found.1.json")
    )
    assert all(half["bytes"] < 0.51 * whole["bytes"] for half in halves)
    assert whole["spares"] == 0 < sum(half["spares"] for half in halves)


@pytest.mark.parametrize("where", ["two", "fsdp"])
@pytest.mark.parametrize("name", ["grpo", "sft"])
def test_metrics_are_gathered_once(folder, name, where):
    one, two = (json.loads((folder / run / f"{name}.json").read_text()) for run in ("one", where))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            if not key.endswith(("time", "runtime", "per_second")):
                assert theirs[key] == pytest.approx(ours[key], rel=1e-4, abs=1e-5), key
    assert next(row for row in two if "num_questions" in row)["num_questions"] == 12
    files = [{path.name for path in (folder / run / name).iterdir()} for run in ("one", where)]
    assert files[0] == files[1] - {"checkpoint-2"}


def test_evaluation_is_shared_without_loss_or_repeats(folder):
    one, first, second = (
        json.loads((folder / where).read_text()) for where in ("one/rows.0.json", "two/rows.0.json", "two/rows.1.json")
    )
    assert first == second and [row["index"] for row in first] == list(range(5))
    assert [row["id"] for row in first] == [row["id"] for row in one]
    written = [json.loads(line) for line in (folder / "two" / "p.jsonl").read_text().splitlines()]
    assert written == first
    assert "finished" in json.loads((folder / "two" / "p.jsonl.meta.json").read_text())
    assert not list(folder.glob("two/p.jsonl.*of*"))

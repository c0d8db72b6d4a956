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

from aqa_lib import synth

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Train and evaluate in two processes, and the same in this one."""
    folder = tmp_path_factory.mktemp("parallel")
    synth.write(folder / "data", train=8, validation=5, test=3)
    (folder / "two").mkdir()
    (folder / "one").mkdir()
    script = HERE / "two_processes.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    made = subprocess.run(
        [*torchrun, script, folder / "two"], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-3000:]
    spec = importlib.util.spec_from_file_location("two_processes", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.run(folder / "one", accumulate=2)
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


@pytest.mark.parametrize("name", ["grpo", "sft"])
def test_metrics_are_gathered_once(folder, name):
    one, two = (json.loads((folder / where / f"{name}.json").read_text()) for where in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            if not key.endswith(("time", "runtime", "per_second")):
                assert theirs[key] == pytest.approx(ours[key], rel=1e-4, abs=1e-5), key
    assert next(row for row in two if "num_questions" in row)["num_questions"] == 12
    assert sorted(path.name for path in (folder / "two" / name).iterdir()) == sorted(
        path.name for path in (folder / "one" / name).iterdir()
    )


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

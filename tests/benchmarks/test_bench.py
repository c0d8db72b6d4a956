"""The benchmarks run, compare like with like, and docs/speed.md shows what was kept. No test here looks at a clock."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from aqa_lib.inputs import Rollouts, collate
from aqa_lib.logps import completion_logps

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # they are scripts, not a package
import baseline  # noqa: E402
import bench  # noqa: E402
import gpu  # noqa: E402

KEPT = sorted(path.stem for path in HERE.glob("*.json"))


@pytest.fixture(scope="module")
def tiny():
    return bench.build("tiny").eval(), bench.build_processor("tiny")


def test_the_full_size_is_qwen2_audio_7b():
    assert sum(p.numel() for p in bench.build("full", "meta").parameters()) == 8_397_094_912


@pytest.mark.parametrize("shape", list(bench.GOALS))
def test_a_group_costs_what_was_promised(shape):
    (row,) = bench.bench_flops(shapes=[shape])
    P, C = shape
    linear = 6 * (32 * (4 * 4096**2 + 3 * 4096 * 11008) * (P + 8 * (C - 1)) + 4096 * 156032 * 8 * C) / 1e12
    assert linear < row["language_model"] < 1.06 * linear  # attention is the rest
    assert row["language_model"] <= bench.GOALS[shape]
    assert 6 * 0.636e-3 * 2 * (P - bench.TEXT) < row["audio_tower"] < 1.25 * 6 * 0.636e-3 * 2 * (P - bench.TEXT)


def test_the_papers_way_gives_the_same_numbers(tiny):
    model, processor = tiny
    prompts = collate(processor, [bench.example(model, processor, 60)])
    said = torch.randint(20, 900, (1, 3, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        inputs = baseline.padded(model, prompts, 3)
        theirs = baseline.row_logps(model, inputs, torch.cat([inputs["input_ids"], said[0]], 1))
        ours, _ = completion_logps(model, Rollouts(prompts, said, said > 0, torch.ones(1, 3, dtype=torch.bool)))
    assert_close(ours[0], theirs, atol=1e-5, rtol=1e-5)


def test_a_step_is_timed_by_all_four_means():
    (row,) = bench.bench_step("tiny", [(40, 3)], rounds=1)
    assert set(row["median_s"]) == {"ours", "report", "ours, text", "trl, text"}
    assert all(0 < row["min_s"][name] <= seconds for name, seconds in row["median_s"].items())
    assert row["tokens"] == 8 * 43 / (40 + 8 * 2)
    assert "| 40, 3 |" in bench.markdown("step", [row])


def test_our_answers_are_as_long_as_they_should_be(tiny, tmp_path):
    model, processor = tiny
    asked = bench.example(model, processor, 40)
    trainer = bench.our_trainer(model, processor, asked, 5, 2, **bench.quiet(str(tmp_path)))
    lengths = []
    record = trainer._record
    trainer._record = lambda *args: lengths.extend(args[-1].rollouts.mask.sum(-1).flatten()) or record(*args)
    trainer.train()
    assert lengths == [5] * 16


def test_what_is_faster_is_equal():
    rows = bench.bench_audio("tiny", seconds=2.0, rounds=1)
    assert [row["largest_difference"] < 1e-4 for row in rows if "padded_s" in row] == [True, True]
    assert {"encoder", "mel"} < {row["what"] for row in rows} and "| mel |" in bench.markdown("audio", rows)


def test_the_gpu_benchmark_runs_end_to_end_without_one():
    rows = gpu.bench_gpu("tiny", [(40, 3), (44, 2)], questions=2, steps=1, asked=3)
    steps = [row for row in rows if row["what"] == "step"]
    for row in steps:
        parts = row["seconds"]
        assert set(parts) == {"step", "rollout", "reference", "policy", "optimizer"}
        assert 0 < sum(parts.values()) - parts["step"] <= parts["step"]
        assert row["hours"][1000] == 2 * row["hours"][500] > 0
    assert rows[-1]["questions_per_s"] > 0
    assert "| 44, 2 |" in gpu.markdown(rows) and "32 to 40 GPU-hours" in gpu.markdown(rows)


def test_a_shape_that_does_not_fit_is_told(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(gpu.grpo.GRPOTrainer, "train", full)
    rows = gpu.bench_gpu("tiny", [(40, 3)], questions=1, steps=1, asked=1)
    assert rows[2]["did_not_fit"] == "CUDA out of memory" and "| CUDA out of memory |" in gpu.markdown(rows)


def test_from_a_shell(capsys):
    bench.main(["flops", "--size", "tiny", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["kind"] == "flops" and len(record["rows"]) == 4
    assert {"cpu", "threads", "load"} <= set(record["machine"]) and "torch" in record["environment"]


@pytest.mark.parametrize("kind", KEPT)
def test_the_page_on_speed_shows_the_kept_figures(kind):
    text = (HERE / f"{kind}.json").read_text()
    record = json.loads(text)
    assert record["kind"] == kind and record["environment"]["commit"]
    assert record["machine"]["threads"] == 1  # as the page says; more would count for and against both sides
    assert bench.markdown(kind, record["rows"]) in (HERE.parents[1] / "docs" / "speed.md").read_text()
    assert not re.search(r'": "/', text), "a path of the machine is in the record"

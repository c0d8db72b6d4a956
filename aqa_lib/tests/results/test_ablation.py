"""What is measured is written out by hand, and found again."""

from argparse import ArgumentParser

import numpy as np
import pytest

from aqa_lib.cli import ablation as command
from aqa_lib.predictions import PredictionsError
from aqa_lib.results import ablation
from aqa_lib.tests.helpers import write_run


@pytest.fixture
def files(tmp_path):
    """Two seeds of prompt 2, two of prompt 3, and the base."""
    trained = [
        write_run(tmp_path, f"grpo-{style}-{seed}", style, seed=seed, shift=seed / 10)
        for style in (2, 3)
        for seed in (0, 1)
    ]
    return [*trained, write_run(tmp_path, "base-2", 2, "base", trained=False)]


def test_arms_are_methods_and_prompts_with_their_seeds(files):
    arms = ablation.gather(files)
    assert [(a.name, len(a.runs), len(a.folders)) for a in arms] == [
        ("grpo, prompt 2", 2, 2), ("grpo, prompt 3", 2, 2), ("base, prompt 2", 1, 0),
    ]  # fmt: skip
    assert arms[0].folders[1].name == "grpo-2-1"


def test_the_test_is_measured(files):
    two, three, base = (ablation.measure(arm) for arm in ablation.gather(files))
    assert two["accuracy, official rule (%)"][0] == pytest.approx(100 * 31 / 40)
    assert three["accuracy, official rule (%)"][0] == pytest.approx(100 * 25 / 40)
    assert two["accuracy over seeds (%)"] == (pytest.approx(77.5),) * 3  # both seeds are alike
    assert np.isnan(base["accuracy over seeds (%)"][0])
    assert two["replies in the form asked for (%)"][0] == pytest.approx(100 * 39 / 40)
    assert three["replies in the form asked for (%)"][0] == pytest.approx(100 * 35 / 40)
    assert three["replies cut off at the maximum length (%)"][0] == pytest.approx(100 * 5 / 40)
    assert two["replies cut off at the maximum length (%)"][0] == 0
    assert np.isnan(two["thought (words)"][0])
    assert three["thought (words)"][0] == pytest.approx((20 * 5 + 5 * 7 + 10 + 5 * 6) / 40)
    assert three["thought names the answer given (%)"][0] == pytest.approx(100 * 20 / 35)
    assert three["thought names it and no other choice (%)"][0] == pytest.approx(100 * 20 / 35)
    assert three["thought names only other choices (%)"][0] == pytest.approx(100 * 5 / 35)
    assert two["time per question (s)"][0] == pytest.approx(0.2)
    low, high = three["thought names the answer given (%)"][1:]
    assert 35 < low < 100 * 20 / 35 < high < 80


def test_training_is_measured_over_seeds(files):
    two, three, base = (ablation.measure_training(arm) for arm in ablation.gather(files))
    assert base == {}
    mean, low, high = two["accuracy reward, first step"]
    assert mean == pytest.approx(0.27) and low < 0.22 and high > 0.32
    assert three["format reward, last fifth"] == (1.0, 1.0, 1.0)
    assert three["group deviation, last fifth"][0] == pytest.approx(0.1)
    assert three["training time (min)"][0] == pytest.approx(3 * 20 / 60)
    assert three["training answer (tokens, mean)"][0] == pytest.approx(60)
    assert "training tokens (millions)" not in three


def test_accuracy_by_length_of_thought(files):
    two, three, _ = ablation.gather(files)
    assert ablation.by_length(two) == []
    found = ablation.by_length(three)
    assert [(a, b, n, round(bounds[0])) for a, b, n, bounds in found] == [(1, 5, 60, 67), (6, 7, 20, 50)]
    assert all(low <= mean <= high for *_, (mean, low, high) in found)


def test_agreement_is_followed_over_training(files):
    _, three, _base = ablation.gather(files)
    steps, values = ablation.agreement_curve(three.folders[0])
    assert steps.tolist() == [1, 10] and values.tolist() == [0.5, 0.5]


def test_table_figure_and_command(files, tmp_path, capsys):
    parser = ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([*map(str, files), "--output", str(tmp_path / "out")]))
    text = capsys.readouterr().out
    assert "| test, mean [95 % over questions] | grpo, prompt 2 | grpo, prompt 3 | base, prompt 2 |" in text
    assert "| grpo, prompt 3 - grpo, prompt 2 | -15.0 [" in text
    assert "| thought (words) |  | 4.38 [" in text
    assert "nan" not in text
    assert text.startswith((tmp_path / "out" / "ablation.md").read_text().split("![")[0].rstrip())
    once = (tmp_path / "out" / "ablation.svg").read_bytes()
    ablation.write(files, tmp_path / "out")
    assert (tmp_path / "out" / "ablation.svg").read_bytes() == once


def test_one_arm_without_training_or_thoughts_is_enough(files, tmp_path):
    (arm,) = ablation.write(files[-1:], tmp_path / "out")
    assert "difference" not in ablation.markdown([arm])


def test_nothing_to_read_is_refused():
    with pytest.raises(PredictionsError, match="nothing to compare"):
        ablation.gather([])

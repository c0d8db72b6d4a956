"""The methods' trials: equally many answers for each, one row a trial, and tables of what is there."""

import json
from dataclasses import asdict, replace

import pytest

from aqa_lib import __main__
from aqa_lib.course import lab, methods
from aqa_lib.grpo import GRPOConfig
from aqa_lib.results import methods as results
from aqa_lib.runtime.errors import AqaError
from aqa_lib.tests.course.test_lab import small, world  # noqa: F401 (fixtures)


def finished(trial, last="10", **measured):
    made = {"last": last, "entropy": 0.1, "agreeing": 0.5, "clipped": 0.01, "steps_taken": 8, "seconds": 1}
    return asdict(trial) | made | measured


def test_every_method_is_tried_with_right_and_wrong_labels_and_the_first_seed_comes_first():
    made = methods.trials([0, 1])
    assert len(set(made)) == len(made) and [trial.seed for trial in made] == sorted(trial.seed for trial in made)
    assert {(t.method, t.wrong) for t in made} >= {(name, wrong) for name in methods.METHODS for wrong in (0.0, 0.3)}


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_is_options_that_the_trainer_takes(name, tmp_path):
    options = {"num_iterations": methods.REUSE, "save_strategy": "no", "eval_strategy": "no"}
    GRPOConfig(str(tmp_path), **options | methods.METHODS[name])


@pytest.mark.parametrize("method", ["dynamic", "majority"])
def test_a_trial_spends_its_answers_and_no_more_than_a_step_beyond(small, tmp_path, method):  # noqa: F811
    trial = lab.Trial(method, 0.3, methods.RATE, 2 * methods.REUSE, 0)
    row = methods.run(trial, tmp_path / "run")
    assert not (tmp_path / "run").exists() and not lab.missing([trial], [json.loads(json.dumps(row))])
    assert len(row["last"]) == 4 and row["entropy"] > 0 and 0 <= row["agreeing"] <= 1
    step = 4 * 8  # questions and answers of a batch
    assert 2 * step <= row["answers"] < 2 * step + 4 * step and row["steps_taken"] in (4, 8)
    assert method == "dynamic" or row["answers"] == 2 * step


def test_a_base_is_measured_without_a_training(small, tmp_path):  # noqa: F811
    row = methods.run(replace(methods.trials([0])[0]), tmp_path / "run")
    assert row["method"] == "base" and len(row["last"]) == 4 and row["entropy"] > 0


def test_methods_are_compared_on_the_seeds_that_both_have():
    grpo, gspo = (lab.Trial(name, 0.0, methods.RATE, methods.STEPS, 0) for name in ("grpo", "gspo"))
    rows = [finished(grpo, "1100"), finished(replace(grpo, seed=1), "1111"), finished(gspo, "1000")]
    (one, other) = results.labelled(rows)
    assert one["right labels"].startswith("75.0 [") and one["right labels"].endswith("(2)")
    assert other["right labels, minus GRPO"].startswith("-25.0 [") and other["30 % wrong"] == ""


def test_a_vote_is_compared_with_the_base():
    vote = lab.Trial("majority", 0.0, methods.RATE, methods.STEPS, 0)
    base, made = results.vote([finished(vote, "1110")], "1000")
    assert base["right"].startswith("25.0") and made["gain"].startswith("+50.0") and made["rate"] == "0.0002"


def test_the_report_is_of_the_trials_that_are_there(tmp_path, capsys):
    with pytest.raises(AqaError, match="holds no trial yet"):
        methods.report(tmp_path)
    rows = [finished(trial) for trial in methods.trials([0])]
    (tmp_path / "methods.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    __main__.main(["study", "--methods", "--report", "--output", str(tmp_path)])
    assert "| GSPO | 50.0 [" in (tmp_path / "methods.md").read_text()

"""Which differences are called real, what is refused, and the controls."""

import json

import numpy as np
import pytest

from aqa_lib.predictions import Predictions, PredictionsError, control_path
from aqa_lib.results import comparison
from aqa_lib.results.scoring import Rate

N = 200


def run(name, right, method=None, train_seed=None, **settings):
    """A run of N questions, of which the first `right` (or those in a mask) are answered rightly."""
    mask = np.arange(N) < right if isinstance(right, int) else right
    rows = [
        {
            "index": i, "id": str(i), "question": "?", "choices": ["dog", "cat"], "answer": "dog",
            "task": "sound", "model_output": "dog" if ok else "cat", "prediction": "dog" if ok else "cat",
        }
        for i, ok in enumerate(mask)
    ]  # fmt: skip
    defaults = {"style": 2, "decoding": "greedy", "audio": "heard", "shuffle_choices": None, "weights": name}
    labels = {"method": method, "train_seed": train_seed}
    return Predictions(name, rows, {"settings": defaults | settings, "labels": labels} if method else {})


def test_single_runs_are_compared_by_mcnemar_with_holm():
    made = comparison.compare([run("a.jsonl", 100), run("b.jsonl", 101), run("c.jsonl", 150)])
    assert [(d.a, d.b) for d in made.differences] == [("b", "a"), ("c", "a"), ("c", "b")]
    points = [round(d.points, 6) for d in made.differences]
    assert points == [0.5, 25.0, 24.5]
    assert [d.real for d in made.differences] == [False, True, True]
    assert made.differences[0].p == 1.0  # one question apart
    assert made.differences[1].p == pytest.approx(2 * 0.5**50)
    assert made.differences[1].p_holm == pytest.approx(3 * 2 * 0.5**50, abs=1e-12)
    assert made.n == N and made.recipes[0].over_questions == pytest.approx((50, 43.13, 56.87), abs=0.01)
    text = made.markdown()
    assert "| c - b | +24.5 [+18.5, +30.5] |" in text and "| yes |" in text
    assert "One seed only, so nothing is known about other seeds: a, b, c." in text
    assert json.dumps(made.to_dict(), allow_nan=False)


def test_seeds_of_one_recipe_are_taken_together():
    base = run("base.jsonl", 90, "base")
    grpo = [run(f"g{seed}.jsonl", 120 + 2 * seed, "grpo", seed) for seed in range(3)]
    made = comparison.compare([base, *grpo])
    assert [(r.name, len(r.runs)) for r in made.recipes] == [("base", 1), ("grpo, prompt 2", 3)]
    (d,) = made.differences
    assert d.points == pytest.approx(16.0) and d.real
    assert d.p == max(d.p_questions, d.p_seeds) > 0
    mean, low, high = made.recipes[1].over_seeds
    assert mean == pytest.approx(61) and high - low == pytest.approx(2 * 4.302653 / np.sqrt(3), rel=1e-6)
    assert "One seed only" not in made.markdown()  # the base was not trained here


def test_a_difference_that_seeds_do_not_bear_out_is_not_real():
    a = [run(f"a{seed}.jsonl", right, "sft", seed) for seed, right in enumerate([60, 100, 140])]
    b = [run(f"b{seed}.jsonl", right, "grpo", seed) for seed, right in enumerate([90, 130, 170])]
    (d,) = comparison.compare([*a, *b]).differences
    assert d.p_questions < 0.001 < 0.05 < d.p_seeds and not d.real


def test_runs_that_differ_in_more_than_seeds_stay_apart():
    made = comparison.compare(
        [run("a.jsonl", 1, "grpo", 0), run("b.jsonl", 2, "grpo", 0, style=3), run("c.jsonl", 3, "sft", 0)]
    )
    assert len(made.recipes) == 3


def test_files_of_one_name_are_told_apart():
    base, grpo = run("a/p.jsonl", 1, "base"), run("b/p.jsonl", 2, "grpo", 0)
    assert [recipe.name for recipe in comparison.recipes_of([base, grpo])] == ["base, prompt 2", "grpo, prompt 2"]
    others = [run("a/p.jsonl", 1), run("b/p.jsonl", 2, "base")]
    assert [recipe.name for recipe in comparison.recipes_of(others)] == ["a/p.jsonl", "base, prompt 2"]
    cold = run("c/p.jsonl", 1, "grpo", 0, scale="full")
    assert [recipe.name for recipe in comparison.recipes_of([grpo, cold])] == ["b/p.jsonl", "c/p.jsonl"]


def test_different_questions_and_versions_are_refused():
    a, b = run("a.jsonl", 1), run("b.jsonl", 1)
    b.rows[0] |= {"question": "Which?"}
    with pytest.raises(PredictionsError, match=r"a.jsonl is on unknown data \(.*never share a table"):
        comparison.compare([a, b])


def test_what_cannot_be_compared_is_refused():
    withheld, twice = run("a.jsonl", 1), run("b.jsonl", 1)
    for row in withheld.rows:
        row["answer"] = ""
    twice.rows[1]["id"] = "0"
    for bad, fault in [(withheld, "answers are withheld"), (twice, "ids occur twice")]:
        with pytest.raises(PredictionsError, match=fault):
            comparison.compare([bad, bad])
    same = run("a.jsonl", 3, "grpo", 1)
    for other in (same, run("b.jsonl", 5, "grpo", 1)):  # one run twice, and two trainings under one name
        with pytest.raises(PredictionsError, match="these grpo, prompt 2 runs have a seed in common"):
            comparison.compare([same, other])
    with pytest.raises(PredictionsError, match="nothing to compare"):
        comparison.compare([])


def test_a_question_that_was_not_reached_is_wrong():
    whole, part = run("a.jsonl", 150, "sft", 0, questions="q"), run("b.jsonl", 150, "grpo", 0, questions="q")
    part = Predictions(part.name, part.rows[:100], part.meta)
    (d,) = comparison.compare([whole, part]).differences
    assert d.points == -25.0


def write(path, made):
    path.write_text("".join(json.dumps(row) + "\n" for row in made.rows))
    (path.parent / f"{path.name}.meta.json").write_text(json.dumps(made.meta))


def test_controls_stand_beside_their_run(tmp_path):
    path = tmp_path / "p.jsonl"
    mine = {"weights": "w", "questions": "q"}
    write(path, run("p", 150, "grpo", 0, **mine))
    assert comparison.controls(path) == []
    assert comparison.controls_markdown([]).count("not run") == 3
    write(control_path(path, "silent"), run("s", 90, "grpo", 0, audio="silent", **mine))
    shuffled = run("x", 150, "grpo", 0, shuffle_choices=0, **mine)
    for row in shuffled.rows[:20]:
        row["prediction"], row["choices"] = "Dog.", ["cat", "dog"]  # the same answer in other dress
    for row in shuffled.rows[20:50]:
        row["prediction"] = "cat"
    write(control_path(path, "shuffled"), shuffled)
    silent, changed = comparison.controls(path)
    assert silent.official.percent == 45.0 and silent.difference[0] == 30.0 and silent.changed.right == 60
    assert changed.changed.right == 30 and changed.name == "shuffled"
    text = comparison.controls_markdown([silent, changed])
    assert "| silent | 45.0 [38.3, 51.9] | +30.0 [+2" in text and " | 30.0 [24.1, 36.7] |" in text
    assert "| text-only | not run | | | |" in text
    assert silent.where_wrong == Rate(60, 110)  # the first 90 are right on silence, the first 150 with the clip
    assert f"| {Rate(60, 110)} of 110 | {silent.changed} |" in text and "|  | 15.0 [10.7, 20.6] |" in text
    assert silent.to_dict()["where_wrong"]["n"] == 110
    write(control_path(path, "silent"), run("s", 90, "grpo", 0, audio="silent", weights="v", questions="q"))
    with pytest.raises(PredictionsError, match=r"p.silent.jsonl: is not a control of .*\(weights differ\)"):
        comparison.controls(path)

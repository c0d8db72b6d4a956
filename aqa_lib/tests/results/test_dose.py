"""The laboratory's tables: seeds are averaged before questions are drawn, and a verdict is what its interval says."""

from collections import Counter

import numpy as np
import pytest

from aqa_lib.results import dose
from aqa_lib.runtime.errors import AqaError

N = 200


def row(method, right, seed=0, chosen=None, **point):
    """One training that gets the first `right` of the test questions right."""

    def signs(count):
        return "1" * count + "0" * (N - count)

    last = {"last": signs(right), "chosen": signs(right if chosen is None else chosen)}
    return {"method": method, "seed": seed, **dose.FIXED, **last, **point}


def test_a_curve_holds_its_own_points_and_seeds_in_order():
    rows = [row("sft", 2, seed=1, wrong=0.5), row("sft", 1, seed=0, wrong=0.5), row("sft", 3, wrong=0.1)]
    rows += [row("grpo", 4, wrong=0.5), row("sft", 5, wrong=0.5, rate=5e-4), row("sft", 6, wrong=0.5, steps=8)]
    found = dose.curve(rows, "sft", "wrong")
    assert [*found] == [0.1, 0.5] and found[0.5].sum(1).tolist() == [1, 2] and found[0.1].sum() == 3
    assert [*dose.curve(rows, "sft", "rate")] == []


def test_the_interval_is_over_questions_however_many_seeds_there_are():
    """Three equal seeds say no more about other questions than one does."""
    one = dose.curve([row("sft", 120)], "sft", "wrong")[dose.DOSE]
    three = dose.curve([row("sft", 120, seed) for seed in range(3)], "sft", "wrong")[dose.DOSE]
    mean, low, high = dose.percent(three)
    assert (mean, low, high) == dose.percent(one) and mean == 60
    half = 1.96 * 100 * np.sqrt(0.6 * 0.4 / N)
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)


def test_the_difference_is_paired():
    """The same 10 questions apart are 5 points with a narrow interval; apart by chance it would be 10 wide."""
    a, b = (dose.curve([row("sft", right)], "sft", "wrong")[dose.DOSE] for right in (120, 110))
    points, low, high = dose.difference(a, b)
    assert points == 5 and (high - low) / 2 == pytest.approx(1.96 * 100 * np.sqrt(0.05 * 0.95 / N), rel=0.1)


@pytest.mark.parametrize(("right", "verdict"), [(100, "loses"), (141, "ties"), (139, "ties"), (180, "wins")])
def test_a_repair_loses_ties_or_wins_by_the_paired_interval(right, verdict):
    rows = [row("grpo", 140), row("raft", right), row("sft", 100, chosen=150)]
    found = {one["method"]: one for one in dose.repaired(rows)}
    assert [*found] == ["GRPO", "SFT", "SFT, stopped early", "RAFT"] and found["GRPO"]["against GRPO"] == ""
    assert found["RAFT"]["against GRPO"] == verdict and found["SFT, stopped early"]["right"].startswith("75.0")


def test_points_say_how_many_seeds_they_have_and_leave_open_what_was_not_run():
    rows = [row("sft", 100, seed, wrong=0.1) for seed in (0, 1)] + [row("grpo", 120, wrong=0.5)]
    small, large = dose.points(rows, "wrong")
    assert small["wrong"] == "0.1" and small["SFT"].endswith("(2)") and small["GRPO"] == small["GRPO - SFT"] == ""
    assert large["GRPO"].startswith("60.0 [") and large["GRPO"].endswith("(1)") and large["SFT"] == ""


def test_a_difference_is_taken_over_the_seeds_that_both_have():
    """A lucky second seed of SFT alone must not narrow a gap that the shared seed shows."""
    rows = [row("sft", 100, 0, wrong=0.1), row("sft", 180, 1, wrong=0.1), row("grpo", 120, 0, wrong=0.1)]
    (point,) = dose.points(rows, "wrong")
    assert point["GRPO - SFT"].startswith("+10.0 [") and point["SFT"].startswith("70.0 [")
    (point,) = dose.points([*rows[1:2], row("grpo", 120, 0, wrong=0.1)], "wrong")
    assert point["GRPO - SFT"] == ""


def test_the_mechanism_counts_labels_over_all_seeds():
    left = {"wrong_asked": 100, "wrong_repeated": 10, "wrong_righted": 80, "kl": 1.0, "captions_lost": 0.5}
    more = {"wrong_asked": 300, "wrong_repeated": 90, "wrong_righted": 180, "kl": 2.0, "captions_lost": 0.7}
    (found,) = dose.mechanism([row("sft", 1, **left), row("sft", 1, 1, **more), row("sft", 1, 2)])
    assert [*found.values()] == ["SFT", "25.0 %", "65.0 %", "1.50", "0.600", 2]


def test_the_figure_shows_every_point_of_the_rows_and_is_the_same_twice(tmp_path):
    rows = [row(method, 100 + 10 * seed, seed, chosen=150) for method in ("sft", "grpo") for seed in range(2)]
    figure = dose.plot(rows, path=tmp_path / "a.svg")
    dose.plot(rows, path=tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    axis = figure.axes[0]
    seeds = Counter(round(y) for dots in axis.collections for _, y in np.asarray(dots.get_offsets()).reshape(-1, 2))
    assert seeds[50] == seeds[55] == 2
    elsewhere = dose.plot([row("sft", 100, wrong=0.1), row("grpo", 100, rate=1e-3)], ("wrong", "rate"))
    assert [text.get_text() for text in elsewhere.axes[-1].get_legend().get_texts()] == ["SFT", "GRPO"]
    assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"] == [75, 75]


def test_a_cut_line_is_left_out_and_a_broken_one_is_refused(tmp_path):
    file = tmp_path / "dose.jsonl"
    assert dose.read(file) == []
    file.write_text('{"a": 1}\n{"a"')
    assert dose.read(file) == [{"a": 1}]
    file.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(AqaError, match=r"dose.jsonl: has a line that is not JSON; move the file away"):
        dose.read(file)


def test_no_rows_make_no_table():
    assert dose.table([]) == "(not run)" and dose.repaired([row("raft", 1)]) == [] == dose.mechanism([])

import csv

import numpy as np
import pytest

from aqa_lib.audio import SAMPLE_RATE, Clip
from aqa_lib.course import demo
from aqa_lib.results import plotting, scoring


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "reward_std", "rewards/think_format/mean", "eval_accuracy"])
        writer.writerow([0, "", "", 0.5])
        writer.writerows([step, 1 / step, step / 80, ""] for step in range(1, 81))
        writer.writerow([80, "", "", 0.75])
    return path


def test_metrics_are_read_where_they_were_logged(metrics):
    read = plotting.read_metrics(metrics)
    assert read["eval_accuracy"][0].tolist() == [0, 80] and read["eval_accuracy"][1].tolist() == [0.5, 0.75]
    assert len(read["reward_std"][0]) == 80 and "step" not in read


def test_curves_show_every_metric_with_intervals(metrics, tmp_path):
    figure = plotting.curves({"GRPO": metrics}, tmp_path / "curves.png", held_out=100)
    panels = {axis.get_ylabel(): axis for axis in figure.axes}
    assert all(axis.get_xlabel() == "optimizer step" for axis in figure.axes if axis.get_visible())
    assert len(panels["format reward (0 to 1)"].lines) == 2  # prompt 3's too: the values and their average
    (held_out,) = panels["held-out accuracy (0 to 1)"].containers
    low, high = held_out.lines[2][0].get_segments()[0][:, 1]
    assert low < 0.42 and high > 0.58  # Wilson's interval for 50 of 100
    assert figure.get_figwidth() <= plotting.PAGE and not figure.legends
    both = plotting.curves({"GRPO": metrics, "SFT": metrics})
    assert [text.get_text() for text in both.legends[0].get_texts()] == ["GRPO", "SFT"]
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_a_picture_shows_itself_without_pyplot(metrics):
    assert plotting.curves({"GRPO": metrics})._repr_png_().startswith(b"\x89PNG")


def test_lines_grids_and_strips_draw_what_they_get():
    left, right = plotting.lines([0, 1, 2], {"a": {"y": [1, 2, 3]}, "b": {"y": [3, 2, 1]}}, "step", "share").axes
    assert left.lines[0].get_ydata().tolist() == [1, 2, 3] and right.get_title() == "b"
    one, two, bar = plotting.grids({"low": [[0, 1]], "high": [[1], [2]]}, "answer", "question", "reward").axes
    assert one.images[0].get_clim() == two.images[0].get_clim() == (0, 2)  # one scale for both
    assert bar.get_ylabel() == "reward"
    (axis,) = plotting.strips({"head": [1e-3, 1e-2, 1e-1], "projector": [0.5]}, "change").axes
    assert axis.lines[1].get_xdata().tolist() == [1e-2]  # the median
    assert axis.get_xscale() == "log" and axis.get_ylim()[0] > axis.get_ylim()[1]  # the first on top


def test_sounds_put_a_tone_where_its_frequency_is_written():
    second = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    clips = {f"{f} kHz": Clip(np.sin(2000 * np.pi * f * second).astype(np.float32)) for f in (1, 2)}
    figure = plotting.sounds(clips, num_mel_bins=64)
    for frequency, axis in zip(("1", "2"), figure.axes[2:], strict=True):
        place = next(
            tick for tick, name in zip(axis.get_yticks(), ["0.5", "1", "2", "4"], strict=True) if name == frequency
        )
        assert abs(axis.images[0].get_array().mean(1).argmax() - place) <= 1  # the loudest row
    assert figure._repr_jpeg_().startswith(b"\xff\xd8") and len(figure._repr_jpeg_()) < 100_000


def test_bars_give_counts_an_interval_and_numbers_none():
    (axis,) = plotting.bars({"counted": (50, 100), "known": 0.2}, "share", guess=0.25).axes
    assert [patch.get_width() for patch in axis.patches] == [0.5, 0.2]
    rim, interval = [bar for bar in axis.containers if hasattr(bar, "has_xerr")]
    assert interval.lines[2][0].get_linewidth() < rim.lines[2][0].get_linewidth()  # black on white, in either theme
    low, high = interval.lines[2][0].get_segments()[0][:, 0]
    assert low < 0.42 and high > 0.58


def test_smooth_keeps_a_line_straight():
    values = np.arange(20.0)
    assert np.allclose(plotting.smooth(values)[4:-4], values[4:-4])


def test_the_demos_table():
    rows = [
        {
            "id": str(i),
            "task": task,
            "question": "?",
            "choices": ["a dog", "rain"],
            "answer": "rain",
            "model_output": text,
        }
        for i, (task, text) in enumerate(
            [
                ("speech", "<answer>rain</answer>"),
                ("sound", "rain"),
                ("sound", "a dog"),
                ("music", "<answer>x</answer>"),
            ]
        )
    ]
    from aqa_lib import evaluation
    from aqa_lib.dataset import Question

    for row in rows:
        question = Question(row["id"], None, "?", tuple(row["choices"]), row["answer"])
        row |= evaluation.read_reply(row["model_output"], question)
    text = demo.table({"base": scoring.score(rows)}).splitlines()
    assert text[0] == "| model | sound | music | speech | average | tags |"
    cells = [cell.strip().split()[0] for cell in text[2].strip("|").split("|")]
    assert cells == ["base", "50.0", "0.0", "100.0", "50.0", "50.0"]


def test_intervals_stand_in_their_row_and_series():
    nan = float("nan")
    rows = {"sound": {"base": (40, 30, 50), "GRPO": (70, 60, 75)}, "music": {"GRPO": (50, nan, nan)}}
    figure = plotting.intervals(rows, "right (percent)", {"guess": 25})
    (axis,) = figure.axes
    base, grpo = axis.containers
    assert base.lines[0].get_xdata().tolist() == [40] and grpo.lines[0].get_xdata().tolist() == [70, 50]
    assert [segment[:, 0].tolist() for segment in grpo.lines[2][0].get_segments()] == [[60, 75], [50, 50]]
    assert [round(y) for y in grpo.lines[0].get_ydata()] == [0, 1]  # each in its row, series beside each other
    assert base.lines[0].get_ydata()[0] < grpo.lines[0].get_ydata()[0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["guess", "base", "GRPO"]

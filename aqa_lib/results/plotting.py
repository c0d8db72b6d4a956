"""Draw what a run did, in one style: labelled axes with units, colour-blind safe, an interval with every mean."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import cycler, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..runtime.escape import figure as label_of
from . import stats

if TYPE_CHECKING:
    from ..audio import Clip

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#777777")  # Okabe and Ito's
PAGE = 6.5  # inches: a figure no wider than this is still legible where a page is 560 pixels wide
INK = "#767B82"  # legible on white and on black: a page's theme shows through
METHOD_COLOURS = {  # one colour per method, in every figure
    "base": "#777777", "sft": "#D55E00", "sft-lora": "#E69F00", "grpo": "#0072B2", "grpo-3": "#56B4E9",
    "sft-filtered": "#CC79A7", "raft": "#009E73", "dft": "#8C510A",
}  # fmt: skip
STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 9,
    "figure.dpi": 120,
    "axes.prop_cycle": cycler(color=COLOURS),
}


class Picture(Figure):
    """A figure that shows itself in a notebook once; pyplot's would appear twice."""

    def _repr_png_(self) -> bytes:
        full, small = io.BytesIO(), io.BytesIO()
        self.savefig(full, format="png")
        # 128 colours, some of them see-through: a third of the bytes, as a committed notebook has to be small
        few = Image.open(full).quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(small, "png", optimize=True)
        return small.getvalue()


CARD, CHALK = "#161B22", "#C9D1D9"
BOARD = STYLE | {  # JPEG cannot be see-through: a dark card, which suits a spectrogram in either theme
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), CARD),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), CHALK),
    "axes.prop_cycle": cycler(color=["#56A9DC"]),
}


class Photograph(Figure):
    """A figure that shows itself as JPEG, a quarter of a PNG's size for a picture as fine as a spectrogram."""

    def _repr_jpeg_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="jpeg", pil_kwargs={"quality": 85})
        return file.getvalue()


def colour_of(name: str, place: int) -> str:
    """Give a method its own colour wherever a label names it, as in "GRPO, prompt 3"; other labels get one by place.

    >>> colour_of("SFT LoRA", 0) == METHOD_COLOURS["sft-lora"], colour_of("a run", 1) == COLOURS[1]
    (True, True)
    """
    patterns = {
        "grpo-3": r"grpo(-|[ ,+]+prompt )3",
        "sft-lora": "lora",
        "grpo": "grpo",
        "sft": "sft",
        "base": r"\bbase",
    }
    found = (method for method, pattern in patterns.items() if re.search(pattern, name.lower()))
    return METHOD_COLOURS.get(next(found, ""), COLOURS[place % len(COLOURS)])


def read_metrics(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read a run's `metrics.csv`: for each metric the steps at which it was logged, and its values."""
    columns: dict[str, tuple[list, list]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    steps, values = columns.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(value))
    return {name: (np.array(steps), np.array(values)) for name, (steps, values) in columns.items()}


def smooth(values: Sequence[float], window: int = 9) -> np.ndarray:
    """Average each value with its neighbours, `window` in all; fewer at the ends.

    >>> smooth([0.0, 3.0, 0.0], 3)
    array([1.5, 1. , 1.5])
    """
    values, half = np.asarray(values, float), window // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def curves(runs: Mapping[str, str | Path], path: str | Path | None = None, held_out: int = 0) -> Figure:
    """Plot training curves like the paper's: rewards, their deviation, length, entropy and held-out accuracy.

    runs: name to `metrics.csv`. held_out: number of held-out questions, for 95 % intervals. Saves to `path` if given.
    """
    panels = {
        "rewards/accuracy/mean": "accuracy reward (0 to 1)",
        "rewards/format/mean": "format reward (0 to 1)",
        "reward_std": "deviation of the reward\nwithin a group",
        "completions/mean_length": "answer length (tokens)",
        "entropy": "entropy of a token (nats)\nin the groups that taught",
        "kl": "KL to the reference\n(nats per token)",
        "eval_accuracy": "held-out accuracy (0 to 1)",
    }
    read = {run: read_metrics(file) for run, file in runs.items()}
    for metrics in read.values():  # prompt 3's format reward goes by another name
        if "rewards/think_format/mean" in metrics:
            metrics["rewards/format/mean"] = metrics["rewards/think_format/mean"]
    panels = {name: label for name, label in panels.items() if any(name in metrics for metrics in read.values())}
    with rc_context(STYLE):
        rows = max(-(-len(panels) // 2), 1)
        figure = Picture(figsize=(PAGE, 2 * rows + 0.3 * (len(runs) > 1)), layout="constrained")
        axes = figure.subplots(rows, 2, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, (name, label) in zip(axes.flat, panels.items(), strict=False):
            for place, (run, metrics) in enumerate(read.items()):
                if name in metrics:
                    _line(axis, *metrics[name], run, colour_of(run, place), held_out if name == "eval_accuracy" else 0)
            axis.set(xlabel="optimizer step", ylabel=label)
        if len(runs) > 1:
            named = [axis.get_legend_handles_labels() for axis in axes.flat]
            fullest = max(named, key=lambda found: len(found[1]))  # SFT has no rewards
            figure.legend(*fullest, frameon=False, loc="outside upper center", ncols=3)
        if path:
            figure.savefig(path)
    return figure


def progress(
    metrics: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    panels: Mapping[str, str],
    last: int,
    held_out: int = 0,
    title: str = "",
) -> Figure:
    """Plot the curves of a run in progress, two a row. metrics: steps and values by name; panels: name to label.

    last: the step that the run will end with. held_out: number of held-out questions, for 95 % intervals.
    """
    with rc_context(STYLE):
        rows = max(-(-len(panels) // 2), 1)
        figure = Picture(figsize=(PAGE, 1.9 * rows + 0.3 * bool(title)), layout="constrained")
        if title:
            figure.suptitle(label_of(title), fontsize="medium")
        axes = figure.subplots(rows, 2, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, (name, label) in zip(axes.flat, panels.items(), strict=False):
            steps, values = (np.asarray(part) for part in metrics[name])
            _line(axis, steps, values, "", METHOD_COLOURS["grpo"], held_out if name == "eval_accuracy" else 0)
            axis.set(xlim=(-0.03 * last, 1.03 * last), xlabel="optimizer step", ylabel=label)
    return figure


def _line(axis: Axes, steps: np.ndarray, values: np.ndarray, run: str, colour: str, questions: int) -> None:
    if len(steps) > 60 and not questions:  # many noisy points: draw their moving average over them
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(steps, smooth(values), color=colour, label=label_of(run))
        return
    bounds = None
    if questions:
        low, high = np.array([stats.wilson(round(v * questions), questions) for v in values]).T
        bounds = [np.maximum(values - low, 0), np.maximum(high - values, 0)]
    axis.errorbar(steps, values, bounds, color=colour, marker="o", markersize=4, capsize=3, label=label_of(run))


def lines(x: Sequence[float], panels: Mapping[str, Mapping[str, Sequence[float]]], xlabel: str, ylabel: str) -> Figure:
    """Plot curves over the same x, in panels side by side. panels: title to (name to values)."""
    with rc_context(STYLE):
        figure = Picture(figsize=(min(max(5, 3.8 * len(panels)), PAGE), 3), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (title, named) in zip(axes, panels.items(), strict=True):
            for place, ((name, values), style) in enumerate(zip(named.items(), cycle(("-", "--", "-.", ":")))):
                axis.plot(x, values, style, color=colour_of(name, place), label=label_of(name))
            axis.set(title=label_of(title), xlabel=xlabel)
        axes[0].set_ylabel(ylabel)
        axes[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def grids(panels: Mapping[str, Sequence[Sequence[float]]], xlabel: str, ylabel: str, label: str) -> Figure:
    """Draw tables of numbers as coloured squares on one scale, named by `label`. panels: title to (rows, columns)."""
    tables = {title: np.asarray(values, float) for title, values in panels.items()}
    low, high = min(t.min() for t in tables.values()), max(t.max() for t in tables.values())
    colours = "cividis"
    if low < 0 < high:  # which side of zero, such as an advantage, shows first
        colours, low, high = "PuOr", -max(-low, high), max(-low, high)
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Picture(figsize=(min(max(4.5, 3 * len(tables) + 1), PAGE), 3.4), layout="constrained")
        axes = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
        for axis, (title, table) in zip(axes, tables.items(), strict=True):
            image = axis.imshow(table, cmap=colours, vmin=low, vmax=high, aspect="auto")
            rows, columns = table.shape
            axis.hlines(np.arange(1, rows) - 0.5, -0.5, columns - 0.5, color="white", linewidth=0.5)
            axis.vlines(np.arange(1, columns) - 0.5, -0.5, rows - 0.5, color="white", linewidth=0.5)
            axis.set(title=label_of(title), xlabel=xlabel)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.yaxis.get_major_locator().set_params(integer=True)
        axes[0].set_ylabel(ylabel)
        figure.colorbar(image, ax=axes, label=label)
    return figure


def strips(groups: Mapping[str, Sequence[float]], xlabel: str) -> Figure:
    """Draw each group's values as dots on its own line, with their median as a bar; the x axis is logarithmic."""
    with rc_context(STYLE):
        figure = Picture(figsize=(6, 0.8 + 0.45 * len(groups)), layout="constrained")
        axis = figure.subplots()
        for place, (colour, values) in enumerate(zip(cycle(COLOURS), groups.values(), strict=False)):
            axis.plot(values, [place] * len(values), "o", color=colour, alpha=0.5, markersize=5)
            axis.plot([np.median(values)], [place], "|", color=INK, markersize=16, markeredgewidth=2)
        axis.set(xscale="log", xlabel=xlabel, yticks=range(len(groups)), yticklabels=[*map(label_of, groups)])
        axis.set_ylim(len(groups) - 0.5, -0.5)
    return figure


def sounds(clips: Mapping[str, "Clip"], num_mel_bins: int = 128) -> Figure:
    """Draw clips side by side on the same time axis: as a wave, and as the log-mel spectrogram that a model gets."""
    from transformers.audio_utils import hertz_to_mel  # seconds to import, and only this picture needs them

    from .. import audio

    # where round frequencies lie among the filters, which divide 0 to 8 kHz evenly on the mel scale
    top, khz = hertz_to_mel(audio.SAMPLE_RATE / 2, mel_scale="slaney"), np.array([0.5, 1, 2, 4])
    places = hertz_to_mel(1000 * khz, mel_scale="slaney") / top * (num_mel_bins + 1) - 1
    longest = max(clip.seconds for clip in clips.values())
    mels = [audio.log_mel(c.wave, num_mel_bins)[:, : audio.num_frames(len(c.wave))].numpy() for c in clips.values()]
    loudest = max(mel.max() for mel in mels)  # black: 2 below that, which is 80 dB, the floor of `log_mel`
    with rc_context(BOARD | {"axes.grid": False, "figure.dpi": 100}):
        figure = Photograph(figsize=(min(max(5, 3 * len(clips)), PAGE), 3.6), layout="constrained")
        axes = figure.subplots(2, len(clips), squeeze=False, sharex=True, sharey="row", height_ratios=(1, 2))
        for (caption, clip), mel, wave, picture in zip(clips.items(), mels, *axes, strict=True):
            wave.plot(np.arange(len(clip.wave)) / audio.SAMPLE_RATE, clip.wave, linewidth=0.5)
            wave.set_title(label_of(caption), fontsize="medium")
            wave.set(xlim=(0, longest))
            extent, scale = (0, clip.seconds, -0.5, len(mel) - 0.5), {"vmin": loudest - 2, "vmax": loudest}
            picture.imshow(mel, origin="lower", aspect="auto", cmap="magma", extent=extent, **scale)
            picture.set(xlabel="time (s)", xlim=(0, longest), yticks=places, yticklabels=[f"{f:g}" for f in khz])
        axes[0, 0].set_ylabel("amplitude\n(of full scale)")
        axes[1, 0].set_ylabel("frequency (kHz),\nmel scale")
    return figure


def bars(values: Mapping[str, float | tuple[int, int]], xlabel: str, guess: float | None = None) -> Figure:
    """Draw one bar per name. A pair (count, n) is drawn as count / n with its 95 % interval; guess: a dashed line."""
    with rc_context(STYLE):
        figure = Picture(figsize=(6, 0.8 + 0.3 * len(values)), layout="constrained")
        axis = figure.subplots()
        for place, value in enumerate(values.values()):
            length = value[0] / value[1] if isinstance(value, tuple) else value
            axis.barh(place, length, color=COLOURS[0])
            if isinstance(value, tuple):
                low, high = stats.wilson(*value)
                bounds = [[max(length - low, 0)], [max(high - length, 0)]]
                for colour, width in (("white", 3.5), ("black", 1.5)):  # black, with a rim that a dark page needs
                    style = {"ecolor": colour, "elinewidth": width, "capthick": width, "capsize": 3 + width / 4}
                    axis.errorbar(length, place, xerr=bounds, fmt="none", **style)
        if guess is not None:
            axis.axvline(guess, color=COLOURS[1], linestyle="--")
        axis.set(xlabel=xlabel, yticks=range(len(values)), yticklabels=[*map(label_of, values)])
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
    return figure


def intervals(
    rows: Mapping[str, Mapping[str, Sequence[float]]], xlabel: str, marks: Mapping[str, float] | None = None
) -> Figure:
    """Draw means with their intervals, a line per row, a mark per series. rows: name to (series to (mean, low, high)).

    marks: vertical lines, such as a guesser's score.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    with rc_context(STYLE):
        figure = Picture(figsize=(PAGE, 1.2 + len(rows) * (0.25 + 0.1 * len(series))), layout="constrained")
        axis = figure.subplots()
        for number, (name, marker) in enumerate(zip(series, cycle("osD^v"), strict=False)):
            colour = colour_of(name, number)
            shift = 0.15 * (number - (len(series) - 1) / 2)
            there = [(place + shift, row[name]) for place, row in enumerate(rows.values()) if name in row]
            mean, low, high = np.array([bounds for _, bounds in there], float).T
            spread = np.maximum(np.nan_to_num([mean - low, high - mean]), 0)
            style = {"fmt": marker, "color": colour, "markersize": 4, "capsize": 3}
            axis.errorbar(mean, [place for place, _ in there], xerr=spread, label=label_of(name), **style)
        for (name, value), dashes in zip((marks or {}).items(), cycle(("--", ":")), strict=False):
            axis.axvline(value, color=INK, linestyle=dashes, label=label_of(name))
        axis.set(xlabel=xlabel, yticks=range(len(rows)), yticklabels=[*map(label_of, rows)])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
        if len(series) + len(marks or {}) > 1:
            figure.legend(frameon=False, loc="outside upper center", ncols=4)
    return figure

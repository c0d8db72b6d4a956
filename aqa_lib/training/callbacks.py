"""Record and show a run: means since the last log, `metrics.csv`, one line per log, and a stop that loses nothing."""

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import ClassVar

from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback

from ..runtime import distributed, files


class RunningMeans:
    """What a log sums up: values since the last one, whose means are logged, and how many clips were cut so far."""

    def __init__(self):
        self.values: dict[str, list[float]] = defaultdict(list)
        self.clips_cut = 0

    def add(self, name: str, value: float) -> None:
        self.values[name].append(float(value))

    def gather(self) -> dict:
        """Return all ranks' records, ready for JSON; all ranks must call it."""
        means, cut = defaultdict(list), 0
        for values, count in distributed.gather((dict(self.values), self.clips_cut)):
            cut += count
            for name, some in values.items():
                means[name] += some
        return {"means": means, "cut": cut}

    def restore(self, gathered: dict) -> None:
        self.clips_cut = gathered["cut"]
        self.values.update(gathered["means"])


def _step(line: bytes) -> int | None:
    """Read the step from a line of `completions.jsonl`; None if the line is damaged."""
    try:
        return int(json.loads(line.decode("utf-8"))["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class MetricsFile(TrainerCallback):
    """Write every logged number to `metrics.csv`, one row per log; each time the whole file, even in a resumed run."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop the answers of steps that will be taken again, and lines that a kill or an editor damaged.

        Also find the best checkpoint where it is now: after a move, the saved path is wrong.
        """
        best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if best.is_dir():
            state.best_model_checkpoint = str(best)
        path = Path(args.output_dir) / "completions.jsonl"
        if state.is_world_process_zero and path.is_file():
            lines = path.read_bytes().split(b"\n")[:-1]
            steps = [_step(line) for line in lines]
            if damaged := sum(step is None for step in steps):
                tqdm.write(f"{path}: {damaged} of {len(lines)} lines are damaged and were dropped")
            kept = [
                line.decode()
                for line, step in zip(lines, steps, strict=True)
                if step is not None and step < state.global_step
            ]
            files.write_whole(path, "".join(f"{row}\n" for row in kept))

    def on_log(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        names = dict.fromkeys(name for row in state.log_history for name in row)
        path = Path(args.output_dir) / "metrics.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".tmp"), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["step", *(name for name in names if name != "step")])
            writer.writeheader()
            writer.writerows(state.log_history)
        path.with_suffix(".tmp").replace(path)


class StopAfterStep(TrainerCallback):
    """End a run after the current step, with a checkpoint, once asked to."""

    asked = False

    def ask(self) -> None:
        self.asked = True
        tqdm.write("Stopping after this step, with a checkpoint. Press Ctrl-C again to stop at once, without one.")

    def on_step_end(self, args, state, control, **kwargs):
        asked = any(distributed.gather(self.asked))  # whichever process got the signal
        if asked and state.global_step % args.num_iterations == 0:  # answers in use are not saved
            control.should_save = control.should_training_stop = True


class OneLine(ProgressCallback):
    """Show a progress bar and, at every log, one line that a person can read."""

    SHOWN: ClassVar[dict[str, str]] = {
        "reward": "reward",
        "rewards/accuracy/mean": "accuracy",
        "rewards/format/mean": "format",
        "reward_std": "std",
        "kl": "kl",
        "completions/mean_length": "tokens",
        "eval_accuracy": "held-out accuracy",
        "eval_format": "held-out format",
    }

    def __init__(self, bar: bool = True, shown: dict[str, str] | None = None):
        super().__init__()
        self.bar, self.shown = bar, shown or self.SHOWN

    def on_train_begin(self, args, state, control, **kwargs):
        if self.bar:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar:
            super().on_step_end(args, state, control, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            shown = [f"{word} {logs[name]:.3g}" for name, word in self.shown.items() if name in logs]
            if shown:
                tqdm.write(f"step {state.global_step:>4}: {', '.join(shown)}")

"""Show a training in a notebook while it runs: its curves, and the newest reply with its sound.

`training -> [live] -> recipes`. One picture and one text, which each log replaces, in place of a line a log; the page
that stays keeps the last of both. A terminal gets its lines as ever.
"""

import json
import re
import time
from pathlib import Path

from transformers import TrainerCallback

from .. import audio
from ..results import plotting
from ..runtime import escape
from ..training.base import QuestionTrainer
from . import kernel

PANELS = {  # of GRPO; SFT has no rewards
    "reward": "reward",
    "rewards/format/mean": "format reward",
    "rewards/think_format/mean": "format reward",
    "reward_std": "deviation of the reward\nwithin a group",
    "eval_accuracy": "held-out accuracy",
}
SFT_PANELS = {"loss": "loss", "entropy": "entropy of a token\n(nats)", "eval_accuracy": "held-out accuracy"}
SHARE = 0.1  # of the time that drawing may take


def attach(trainer: QuestionTrainer) -> None:
    """Show a trainer's run by a picture where there is a notebook; else leave it as it is."""
    if kernel.here():
        trainer.show_by(Picture(trainer))


class Picture(TrainerCallback):
    """Draw a run at its logs, as often as `SHARE` of the time allows, and at its end."""

    def __init__(self, trainer: QuestionTrainer):
        self.questions = {question.id: question for question in trainer.train_dataset.questions}
        self.held_out = len(trainer.eval_dataset or ())
        self.handles: list = []
        self.rest = 0.0  # when to draw again, on the monotonic clock

    def on_train_begin(self, args, state, control, **kwargs):
        self.handles, self.rest = [], 0.0

    def on_log(self, args, state, control, **kwargs):
        start = time.monotonic()
        if start >= self.rest:
            self.show(args, state)
            self.rest = time.monotonic() + (time.monotonic() - start) / SHARE

    def on_train_end(self, args, state, control, **kwargs):
        self.show(args, state)

    def show(self, args, state) -> None:
        """Replace what is shown: the curves so far, and the newest reply."""
        from IPython.display import HTML, display

        name = re.sub(r"^\.|-[0-9a-f]{12}$", "", Path(args.output_dir).name)  # an artifact's, without its hash
        frame = curves(state, self.held_out, name), HTML(words(state) + self.reply(Path(args.output_dir)))
        if not self.handles:
            self.handles = [display(part, display_id=True) for part in frame]
            return
        for handle, part in zip(self.handles, frame, strict=True):
            handle.update(part)

    def reply(self, run: Path) -> str:
        """Write the newest of the replies that a run keeps, with the sound that it is about; "" where there is none."""
        path = run / "completions.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if not lines:
            return ""
        try:
            row = json.loads(lines[-1])
        except ValueError:  # another program has written into it: no reason to stop a run
            return ""
        about = f"{row['question']} {' / '.join(row['choices'])}"
        earned = "no reward" if row["rewards"][0] is None else f"{row['rewards'][0]:g}"
        return (
            f"<p>A reply of step {row['step'] + 1} to <em>{escape.html(about)}</em></p>{self.player(row['id'])}"
            f'<pre style="white-space: pre-wrap">{escape.html(row["completions"][0])}</pre>'
            f"<p>It earned {earned}; right is <em>{escape.html(row['answer'])}</em>.</p>"
        )

    def player(self, name: str) -> str:
        from . import show

        question = self.questions.get(name)
        try:
            clip = audio.load(question.audio, question.meta.get("start"), question.meta.get("end"))
        except (audio.AudioError, AttributeError, TypeError):  # gone since, or never there: the reply is worth showing
            return ""
        return show.player(clip, f"{clip.seconds:.1f} s")


def history(state) -> dict[str, tuple[list[int], list[float]]]:
    """Gather what was logged: for each metric its steps and its values."""
    metrics: dict[str, tuple[list[int], list[float]]] = {}
    for row in state.log_history:
        for name, value in row.items():
            steps, values = metrics.setdefault(name, ([], []))
            steps.append(row["step"])
            values.append(value)
    return metrics


def curves(state, held_out: int, name: str = ""):
    """Draw the curves so far, over all steps that the run will have. held_out: questions, for intervals."""
    metrics = history(state)
    panels = PANELS if "reward" in metrics else SFT_PANELS
    return plotting.progress(
        metrics, {name: panels[name] for name in panels if name in metrics}, state.max_steps, held_out, name
    )


def words(state) -> str:
    """Say in words where a run is."""
    metrics = history(state)
    panels = PANELS if "reward" in metrics else SFT_PANELS
    told = [f"{panels[name].replace(chr(10), ' ')} {metrics[name][1][-1]:.3g}" for name in panels if name in metrics]
    return f"<p {escape.NO_MATH}>Step {state.global_step} of {state.max_steps}: {', '.join(told)}.</p>"

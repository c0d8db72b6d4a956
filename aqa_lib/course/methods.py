"""Compare what came after GRPO on one dial: clipping, means, baselines, sampling, and rewards without labels.

`lab -> [methods] -> docs/laboratory.md`. Every method is GRPO with a few options of `GRPOConfig` changed to what its
authors publish, and all may sample equally many answers to sound questions of the tiny world, each used for `REUSE`
optimizer steps: with one step a batch, nothing is clipped and several of them are the same method. The rate is
constant, so that a method which samples more than one batch a step may end earlier. `python -m aqa_lib study --methods`
runs what is missing; each finished trial is one line of `methods.jsonl`.
"""

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import TrainerCallback

from .. import inputs, prompt, rollout, scale
from ..dataset import Question
from ..grpo import GRPOConfig, GRPOTrainer
from ..logps import completion_logps
from ..results import methods as results
from ..runtime import files
from ..runtime.errors import AqaError
from . import lab, recipes
from .lab import Trial

RESULTS = lab.RESULTS.with_name("methods.jsonl")  # of all trials, as they were run
BATCHES, REUSE = 12, 4  # batches of 16 questions with 8 answers, and the steps that each serves
STEPS, RATE = BATCHES * REUSE, 2e-4
DOSES = (0.0, 0.3)  # share of wrong labels
METHODS = {  # what differs from GRPO, as its authors publish it
    "grpo": {},
    "dr-grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "clip-higher": {"epsilon_high": 0.28},
    "dynamic": {"dynamic_sampling": 3},
    "overlong": {"mask_truncated_completions": True},
    "dapo": {
        "loss_type": "dapo", "epsilon_high": 0.28, "dynamic_sampling": 3, "mask_truncated_completions": True,
    },
    "gspo": {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "rloo": {"baseline": "leave_one_out", "scale_rewards": "none"},
    "reinforce": {"baseline": "batch", "scale_rewards": "batch"},
}  # fmt: skip
BASE = "base"  # untrained
LABEL_FREE = {"format-only": ("format",), "majority": ("majority", "format")}


def trials(seeds: Iterable[int] = (0, 1, 2)) -> list[Trial]:
    """List all trials, seed by seed: every method with right and with wrong labels, then what needs no labels.

    >>> len(trials([0])), trials([0])[1].name
    (25, 'grpo-wrong0-lr0.0002-steps48-seed0')
    """
    found = [Trial(BASE, 0.0, 0.0, 0, 0)]
    for seed in seeds:
        found += [Trial(method, wrong, RATE, STEPS, seed) for method in METHODS for wrong in DOSES]
        found += [Trial(method, 0.0, RATE, STEPS, seed) for method in LABEL_FREE]
        found += [Trial(method, 0.0, 5 * RATE, STEPS, seed) for method in ("majority", "grpo")]
    return found


class Counting(rollout.RolloutEngine):
    """Count the answers that are sampled."""

    answers = 0

    def generate(self, prompts: inputs.Prompts, **sampling) -> inputs.Rollouts:
        self.answers += len(prompts) * sampling["num_generations"]
        return super().generate(prompts, **sampling)


class SpendOnly(TrainerCallback):
    """End a training when its engine has sampled so many answers, and each of them has served."""

    def __init__(self, engine: Counting, answers: int):
        self.engine, self.answers = engine, answers

    def on_step_end(self, args, state, control, **kwargs):
        if self.engine.answers >= self.answers and state.global_step % args.num_iterations == 0:
            control.should_training_stop = True


def run(trial: Trial, folder: Path) -> dict:
    """Train and test one trial in a folder, which is deleted at the end; return its row."""
    asked = lab.questions(trial)
    base, processor = recipes.policy(seed=trial.seed)
    if trial.method == BASE:
        return (
            asdict(trial) | _measures(base, processor, asked.test) | {"seconds": 0, "environment": files.environment()}
        )
    here = scale.get()
    rewards = LABEL_FREE.get(trial.method, recipes.REWARDS[2])
    options = {
        "output_dir": str(folder), "seed": trial.seed, "max_steps": trial.steps, "learning_rate": trial.rate,
        "lr_scheduler_type": "constant", "num_iterations": REUSE, "eval_strategy": "no", "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    args = GRPOConfig(**here.grpo | options | METHODS.get(trial.method, {}))
    engine = Counting(base, processor)
    budget = trial.steps // REUSE * args.per_device_train_batch_size * args.num_generations
    callbacks = [SpendOnly(engine, budget)]
    trainer = GRPOTrainer(base, processor, rewards, args, asked.train, callbacks=callbacks, engine=engine)
    start = time.monotonic()
    trainer.train()
    seconds, log = time.monotonic() - start, trainer.state.log_history
    row = (
        asdict(trial)
        | _measures(trainer.model, processor, asked.test)
        | {
            "answers": engine.answers,
            "steps_taken": trainer.state.global_step,
            "agreeing": _mean(log, "frac_reward_zero_std"),
            "clipped": _mean(log, "clip_ratio"),
            "seconds": round(seconds),
            "environment": files.environment(),
        }
    )
    shutil.rmtree(folder)
    return row


def _measures(policy, processor, asked: Sequence[Question], style: int = 2) -> dict:
    return {
        "last": lab.verdicts(policy, processor, asked, style),
        "entropy": entropy(policy, processor, asked, style),
    }


@torch.no_grad()
def entropy(policy, processor, asked: Sequence[Question], style: int, n: int = 200) -> float:
    """Measure how undecided a model still is: nats per token of answers sampled to n questions."""
    policy.eval()
    own = lab.sample(policy, processor, [(q, prompt.messages(q, style)) for q in asked[:n]])
    return float(completion_logps(policy, own)[1][own.mask].mean())


def _mean(log: Sequence[dict], name: str) -> float | None:
    values = [row[name] for row in log if name in row]
    return sum(values) / len(values) if values else None


def run_all(folder: str | Path, seeds: Sequence[int], processes: int = 2) -> None:
    """Run every trial that `methods.jsonl` in a folder lacks, and report on all; raises as `lab.run_missing` does."""
    with lab.run_missing(trials(seeds), Path(folder) / RESULTS.name, processes, run):
        report(folder)


def report(folder: str | Path) -> None:
    """Write the tables of the trials that a folder's `methods.jsonl` holds so far, `methods.md`."""
    folder = Path(folder)
    rows = results.read(folder / RESULTS.name)
    if not rows:
        raise AqaError(f"{folder / RESULTS.name} holds no trial yet; run python -m aqa_lib study --methods first.")
    files.write_whole(folder / "methods.md", results.markdown(rows))
    print(results.markdown(rows))

"""Plan the paper's whole table at full scale: commands, hours, disk and memory, all of them estimates.

`results.paper, large.planner -> [plan] -> report --plan, study`. Nothing here was run. The figures are worked out from
the sizes of Qwen2-Audio-7B (8.4 B parameters) and from counted operations, so that a change of one assumption changes
what follows from it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from .. import model
from .. import scale as scales
from ..grpo import GRPOConfig
from ..large import planner
from ..results import paper
from ..sft import SFTConfig
from .recipes import LORA_R

PEAK = 989  # TFLOP/s, bf16, of one H100
SHARE = 0.35  # of the peak that is reached: an assumption
TOKEN_SECONDS = 0.03  # to decode one token of all answers in a step: an assumption, about 7 times the floor
QUESTIONS, STEPS = 16, 1000  # per step, and steps per run: the paper's
TEST = 1000  # questions of MMAU Test-mini
BASE_GB, CHECKPOINT_GB, AUDIO_GB = 17, 42, 13  # weights in bf16; with optimizer; AVQA's clips as WAV, and MMAU's
TOKENS = {1: 12, 2: 12, 3: 60}  # of a typical answer, by prompt
TRAIN, SFT = "python -m aqa_lib train", "python -m aqa_lib sft"
COMMANDS = {"base": "", "sft": SFT, "sft-lora": f"{SFT} --lora_r {LORA_R}", "grpo": TRAIN}
SEEDS = 3


@dataclass(frozen=True)
class Job:
    """One row of the paper: how it is trained, and what it is likely to take on one 80 GB GPU."""

    name: str
    method: str
    style: int

    @property
    def command(self) -> str:
        """The training's command line; empty for the base."""
        words = COMMANDS[self.method]
        return words and f"{words} --prompt_style {self.style}"

    @property
    def tokens(self) -> int:
        return TOKENS[self.style]

    @property
    def answers(self) -> int:
        """Answers to each question, in training."""
        return {"base": 0, "grpo": GRPOConfig.num_generations}.get(self.method, 1)

    @property
    def memory_gb(self) -> int:
        """The smallest whole number of GB into which `plan --scale full` lays the row out: 30 s clips, 256 tokens."""
        return _memory(self.method)

    @property
    def train_hours(self) -> float:
        """Hours of one training run: forward and backward, reference, decoding."""
        if not self.answers:
            return 0.0
        # 14.8 TFLOP for a prompt of 280 tokens and 8 answers of 12, 98.9 for 8 of 256: linear in between.
        work = 14.8 + (98.9 - 14.8) * (self.tokens - 12) / (256 - 12)
        if self.answers > 1:  # GRPO: a third more each for reference and checkpointing; answers are decoded
            step = QUESTIONS * work * 5 / 3 / (PEAK * SHARE) + self.tokens * TOKEN_SECONDS
        else:
            step = QUESTIONS * 8 * 8.4e-3 * (280 + self.tokens) / (PEAK * SHARE)
        return STEPS * (step + 0.2) / 3600  # 0.2 s: the optimizer and the rest

    @property
    def evaluation_hours(self) -> float:
        """Hours for the test set and its three controls, 32 questions at a time, clips decoded meanwhile."""
        return 4 * TEST / 32 * (0.5 + 2 * self.tokens * TOKEN_SECONDS) / 3600


JOBS = tuple(
    Job(theirs.name.removeprefix("Qwen2-Audio, "), theirs.method, theirs.style or 1) for theirs in paper.OURS.values()
)


@cache
def _memory(method: str) -> int:
    full = scales.get("full")
    config = GRPOConfig if method == "grpo" else SFTConfig
    kind = full.grpo if method == "grpo" else full.sft
    args = config(**kind | {"output_dir": "plan", "report_to": "none", "per_device_eval_batch_size": full.batch_size})
    learn: Sequence[str] = () if method == "base" else model.PARTS
    sizes = planner.ModelSizes.of(planner.skeleton(full.model, learn, LORA_R if method == "sft-lora" else None))
    work = planner.Work.of(args, sizes)
    if method == "base":
        held = planner.phases(sizes, work, "fp32", None, 0, 0)
        return math.ceil((sum(held["evaluation"].values()) + planner.RESERVE) / planner.GB)
    return next(gb for gb in range(1, 1000) if planner.plan(sizes, work, gb * planner.GB, args).fits)


def commands(job: Job, seeds: int = SEEDS) -> list[str]:
    """Write the shell commands of one job: train each seed (the base has none), and evaluate with controls."""
    folder = f"runs/full/{job.method}-{job.style}"
    evaluate = f"python -m aqa_lib evaluate --style {job.style} --method {job.method} --controls"
    if not job.command:
        return [f"{evaluate} --output {folder}.jsonl"]
    return [
        f"for seed in {' '.join(map(str, range(seeds)))}; do",
        f"  {job.command} --seed $seed --output_dir {folder}-$seed",
        f"  {evaluate} --train_seed $seed --model {folder}-$seed --output {folder}-$seed.jsonl",
        "done",
    ]


def markdown(seeds: int = SEEDS) -> str:
    """Write the plan as Markdown."""
    lines = ["# Plan for the paper's table at full scale", ""]
    lines += [
        "Estimates, all of them; nothing below was measured. One 80 GB GPU (H100), "
        f"{SHARE:.0%} of its peak reached, {QUESTIONS} questions a step, {STEPS} steps, {seeds} seeds.",
        "",
        "| row | runs | hours to train one | minutes to evaluate one | least memory, GB | disk, GB |",
        "|---|---|---|---|---|---|",
    ]
    hours, disk = 0.0, BASE_GB + AUDIO_GB
    for job in JOBS:
        runs = seeds if job.answers else 1
        kept = 0 if not job.answers else 1 if "lora" in job.method else BASE_GB
        hours, disk = hours + runs * (job.train_hours + job.evaluation_hours), disk + runs * kept
        train = f"{job.train_hours:.1f}" if job.answers else "-"
        cells = [
            job.name,
            str(runs),
            train,
            f"{60 * job.evaluation_hours:.0f}",
            str(job.memory_gb),
            str(runs * kept),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    disk += 2 * CHECKPOINT_GB  # two checkpoints with optimizer during a run
    lines += [
        "",
        f"In all about {hours:.0f} GPU-hours (the paper's own: 115 to 144 GPU-seconds a step), and on disk",
        f"{disk} GB: the base {BASE_GB}, clips {AUDIO_GB}, one model per trained run,",
        f"and {2 * CHECKPOINT_GB} for the checkpoints of the current run. Memory is the least that",
        "`python -m aqa_lib plan --scale full --memory GB` says fits: clips of 30 s, answers of 256 tokens.",
        "",
        "Data: AVQA's training questions and clips, and MMAU Test-mini of March 2025 for figures that may",
        "stand next to the paper's (v05.15.25 gives a table of its own); `data/README.md` says where they",
        "come from.",
        "",
        "```",
        "export AQA_SCALE=full",
    ]
    for job in JOBS:
        lines += commands(job, seeds)
    return "\n".join([*lines, "python -m aqa_lib report runs/full", "```"]) + "\n"

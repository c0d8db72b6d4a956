"""Plan the paper's whole table at full scale: commands, hours, disk and memory, all of them estimates.

Nothing here was run. The figures are worked out from the sizes of Qwen2-Audio-7B (8.4 B parameters) and from
counted operations, so that a change of one assumption changes what follows from it.
"""

from dataclasses import dataclass

PEAK = 989  # TFLOP/s, bf16, of one H100
SHARE = 0.35  # of the peak that is reached: an assumption
TOKEN_SECONDS = 0.03  # to decode one token of all answers of a step: an assumption, about 7 times the floor
QUESTIONS, STEPS = 16, 1000  # a step, and steps a run: the paper's
TEST = 1000  # questions of MMAU Test-mini
BASE_GB, CHECKPOINT_GB, AUDIO_GB = (
    17,
    42,
    13,
)  # weights in bf16; with optimizer; AVQA's clips as WAV, and MMAU's
SEEDS = 3


@dataclass(frozen=True)
class Job:
    """One row of the paper: how it is trained, and what it is likely to take on one 80 GB GPU."""

    name: str
    method: str
    style: int
    command: str
    tokens: int  # of a typical answer
    answers: int  # to each question, in training
    memory_gb: int

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


TRAIN = "python -m aqa_lib train --prompt_style {style}"
SFT = "python -m aqa_lib sft --prompt_style {style}"
JOBS = (
    Job("base, prompt 2", "base", 2, "", 12, 0, 20),
    Job("base, prompt 3", "base", 3, "", 60, 0, 20),
    Job("SFT full", "sft", 1, SFT, 12, 1, 62),
    Job("SFT LoRA", "sft-lora", 1, SFT + " --lora_r 16", 12, 1, 24),
    Job("GRPO, prompt 2", "grpo", 2, TRAIN, 12, 8, 64),
    Job("GRPO, prompt 3", "grpo", 3, TRAIN, 60, 8, 70),
)


def commands(job: Job, seeds: int = SEEDS) -> list[str]:
    """Write the shell commands of one job: train each seed (but the base has none), and evaluate with
    controls."""
    folder = f"runs/full/{job.method}-{job.style}"
    evaluate = f"python -m aqa_lib evaluate --style {job.style} --method {job.method} --controls"
    if not job.command:
        return [f"{evaluate} --output {folder}.jsonl"]
    train = job.command.format(style=job.style)
    return [
        f"for seed in {' '.join(map(str, range(seeds)))}; do",
        f"  {train} --seed $seed --output_dir {folder}-$seed",
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
        "| row | runs | hours to train one | minutes to evaluate one | memory, GB | disk, GB |",
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
    disk += 2 * CHECKPOINT_GB  # two checkpoints with optimizer while a run goes on
    lines += [
        "",
        f"In all about {hours:.0f} GPU-hours (the paper's own: 115 to 144 GPU-seconds a step), and on disk",
        f"{disk} GB: the base {BASE_GB}, clips {AUDIO_GB}, a model each trained run,",
        f"and {2 * CHECKPOINT_GB} for the checkpoints of the run that is going on. Memory is with 24-bit",
        "masters, 8-bit optimizer states and a streamed reference.",
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

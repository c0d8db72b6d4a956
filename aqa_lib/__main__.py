"""The library's jobs from a shell: `python -m aqa_lib JOB --help`.

Options are the config's own names, so whatever a notebook sets a shell can set too. A user's mistake ends in one
sentence and exit code 2; the scale (AQA_SCALE) gives the defaults and is printed first.
"""

import argparse
import json
import logging
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from . import scale as scales

JOBS = {
    "train": "train a model with GRPO",
    "evaluate": "answer questions and score the answers",
}


@dataclass
class TrainArguments:
    """Where a training run takes its model and questions from. Defaults: the scale's."""

    model: str = field(default=None, metadata={"help": "Folder or hub id of the model to train."})
    train: str = field(default=None, metadata={"help": "Questions to train on: AVQA's JSON lines, or any known form."})
    held_out: str | None = field(default=None, metadata={"help": "Questions that rank the checkpoints."})
    held_out_fraction: float = field(
        default=0.0, metadata={"help": "Without --held_out: the part of the training clips that is held out."}
    )
    audio: str | None = field(default=None, metadata={"help": "Folder of the clips; the question file's if not given."})
    skip_bad_rows: bool = field(default=False, metadata={"help": "Leave bad rows out instead of stopping at them."})
    rewards: list[str] = field(
        default_factory=lambda: ["accuracy", "format"],
        metadata={"help": "accuracy, format, think_format, their faithful_ forms, or package.module:function."},
    )
    train_parts: list[str] = field(
        default_factory=lambda: ["audio_tower", "projector", "language_model"],
        metadata={"help": "Parts that learn; the others are frozen."},
    )
    lora_r: int | None = field(default=None, metadata={"help": "Rank of LoRA adapters; every weight learns if not given."})
    quantization: str | None = field(default=None, metadata={"help": "4bit, for small GPUs; wants --lora_r."})
    dtype: str = field(default="auto", metadata={"help": "Type of the weights: auto, float32, bfloat16, float16."})
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in --output_dir."})


def parse_train(arguments: list[str]):
    """Parse the options of `train`: ours, and every option of GRPOConfig."""
    from transformers import HfArgumentParser

    from .trainer import GRPOConfig

    scale = scales.get()
    parser = HfArgumentParser(
        [TrainArguments, GRPOConfig],
        prog="python -m aqa_lib train",
        description=f"{JOBS['train'].capitalize()}. Defaults are those of {scale}.",
        epilog="--help-all also lists every option of transformers' TrainingArguments.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    own = {f.name for f in fields(TrainArguments)} | set(GRPOConfig.__annotations__)
    if "--help-all" in arguments:
        arguments = ["--help"]
    else:
        for action in parser._actions:
            if action.dest not in own and action.dest != "help":
                action.help = argparse.SUPPRESS
    parser.set_defaults(
        model=scale.model,
        train=str(scale.train),
        held_out=str(scale.held_out) if scale.held_out else None,
        held_out_fraction=scale.held_out_fraction,
        dtype=scale.dtype,
        quantization=scale.quantization,
        lora_r=scale.lora_r,
        **scale.grpo,
    )
    return scale, *parser.parse_args_into_dataclasses(arguments)


def train(arguments: list[str]) -> None:
    """Run `python -m aqa_lib train`."""
    scale, run, config = parse_train(arguments)
    from . import dataset, model
    from .trainer import GRPOTrainer

    print(scale, f"\ntraining {run.model} on {run.train}, into {config.output_dir}")
    ensure_tiny(run.train)
    options = {"audio_root": run.audio, "on_error": "skip" if run.skip_bad_rows else "raise"}
    questions, held_out = dataset.read(run.train, **options), None
    if config.eval_strategy != "no":
        if run.held_out and run.held_out != "none":
            held_out = dataset.read(run.held_out, **options)
        elif run.held_out_fraction:
            questions, held_out = dataset.split(questions, run.held_out_fraction, config.seed)
    policy, processor = model.load(
        run.model,
        run.dtype,
        config.device,
        run.train_parts,
        {"r": run.lora_r, "lora_alpha": 2 * run.lora_r} if run.lora_r else None,
        run.quantization,
    )
    trainer = GRPOTrainer(policy, processor, run.rewards, config, questions, held_out)
    trainer.train(resume_from_checkpoint=run.resume or None)
    trainer.save_model()
    trainer.save_state()
    print(f"saved the model to {config.output_dir}, its curves to {config.output_dir}/metrics.csv")


def ensure_tiny(path: str) -> None:
    """Make the tiny world's clips where a path asks for them and they are not there."""
    if Path(path).parent == scales.TINY:
        from . import synth

        synth.write(scales.TINY)


def main(arguments: list[str] | None = None) -> None:
    """Run one job; end with one sentence and exit code 2 on a user's mistake."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in JOBS:
        parser = argparse.ArgumentParser("python -m aqa_lib", description="Audio question answering with GRPO.")
        jobs = parser.add_subparsers(title="jobs", metavar="JOB", required=True)
        for name, help in JOBS.items():
            jobs.add_parser(name, help=help, add_help=False)
        parser.parse_args(arguments or ["--help"])
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "numexpr", "transformers", "accelerate", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        globals()[arguments[0]](arguments[1:])
    except (ValueError, OSError) as error:
        sys.exit(fail(str(error)))


def fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()

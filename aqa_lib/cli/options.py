"""What several commands take, and how a command line becomes a configuration.

Options are the config's own names, so whatever a notebook sets a shell can set too; the scale gives the defaults.
"""

import argparse
import logging
from dataclasses import dataclass, field, fields
from pathlib import Path

from .. import scale as scales
from ..runtime.errors import AqaError

QUESTIONS = "JSON, JSON lines, CSV, TSV, parquet or Arrow in AVQA's, MMAU's or any form, or hub:NAME:SPLIT"
RULES = ("official", "strict")  # what counts as right
# transformers' options that a training is likely to want; --help-all lists the rest
COMMON = {"seed", "bf16", "fp16", "gradient_accumulation_steps", "num_train_epochs", "optim", "lr_scheduler_type"}
COMMON |= {"warmup_steps", "weight_decay", "gradient_checkpointing", "dataloader_num_workers", "disable_tqdm"}


class Parser(argparse.ArgumentParser):
    """A parser that ends in one sentence, without its long list of options. asked: the words it will parse."""

    def __init__(self, asked: list[str], **options):
        self.asked = asked
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str):
        raise AqaError(f"{message}; {self.prog} --help lists the options.")


@dataclass
class TrainArguments:
    """Where a training run takes its model and questions from. Defaults: the scale's."""

    model: str = field(default=None, metadata={"help": "Folder or hub id of the model to train."})
    train: str = field(default=None, metadata={"help": f"Questions to train on: {QUESTIONS}."})
    held_out: str | None = field(
        default=None, metadata={"help": "Questions that rank the checkpoints; none to hold out a part of --train."}
    )
    held_out_fraction: float = field(
        default=0.02, metadata={"help": "Without --held_out: the part of the training clips that is held out."}
    )
    audio: str | None = field(default=None, metadata={"help": "Folder of the clips; the question file's if not given."})
    columns: str | None = field(
        default=None,
        metadata={
            "help": "OURS=THEIRS,...: names in the files of id, audio, question, choices, answer, task.",
        },
    )
    skip_bad_rows: bool = field(default=False, metadata={"help": "Leave bad rows out instead of stopping at them."})
    rewards: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards to add up: accuracy, format, think_format, their faithful_ forms, paper_accuracy, or "
            "package.module:function. If not given: accuracy and the format that the prompt asks for. Not for sft."
        },
    )
    train_parts: list[str] = field(
        default_factory=lambda: ["audio_tower", "projector", "language_model"],
        metadata={"help": "Parts that learn; the others are frozen. With LoRA its adapters learn, and nothing else."},
    )
    lora_r: str | None = field(
        default=None, metadata={"help": "Rank of LoRA adapters; none to let the weights themselves learn."}
    )
    quantization: str | None = field(
        default=None, metadata={"help": "4bit, for small GPUs, with --lora_r; none for whole weights."}
    )
    dtype: str = field(default="auto", metadata={"help": "Type of the weights: auto, float32, bfloat16, float16."})
    resume: bool = field(default=False, metadata={"help": "Resume from the last checkpoint in --output_dir."})


def add_training(parser: argparse.ArgumentParser, config: type, scale: scales.Scale, job: str) -> None:
    """Add our options of a training and every option of its config, with the scale's defaults."""
    from transformers import HfArgumentParser

    theirs = HfArgumentParser([TrainArguments, config], add_help=False)
    shown = {f.name for f in fields(TrainArguments)} | set(config.__annotations__) | COMMON
    for action in theirs._actions:
        if action.dest not in shown:
            action.help = argparse.SUPPRESS if "--help-all" not in parser.asked else action.help
    parser._add_container_actions(theirs)  # as argparse adds a parent's
    parser.add_argument("--help-all", action="help", help="list every option of transformers' TrainingArguments")
    parser.set_defaults(
        model=scale.model,
        train=str(scale.train),
        held_out=str(scale.held_out) if scale.held_out else None,
        dtype=scale.dtype,
        quantization=scale.quantization,
        lora_r=scale.lora_r,
        **(scale.sft if job == "sft" else scale.grpo),
    )


def training(args: argparse.Namespace, config: type, scale: scales.Scale) -> tuple[TrainArguments, object]:
    """Turn parsed options into `TrainArguments` and a config; raises AqaError for values that cannot be."""
    given = vars(args)
    made = {f.name: given[f.name] for f in fields(config) if f.init and f.name in given}
    run = TrainArguments(**{f.name: given[f.name] for f in fields(TrainArguments)})
    for name in ("held_out", "lora_r", "quantization", "columns"):
        if getattr(run, name) == "none":
            setattr(run, name, None)
    if run.train != str(scale.train) and run.held_out == str(scale.held_out):
        run.held_out = None  # the scale's held-out questions belong to the scale's training questions alone
    if run.lora_r is not None and not (str(run.lora_r).isdecimal() and int(run.lora_r) > 0):
        raise AqaError(f'--lora_r must be a positive integer or "none", got {run.lora_r!r}.')
    run.lora_r = run.lora_r and int(run.lora_r)
    try:
        run.columns = run.columns and mapping(run.columns)
        return run, config(**made)
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:  # transformers' own checks, too
        raise AqaError(str(error)) from error


def mapping(text: str) -> dict[str, str]:
    """Parse `OURS=THEIRS` pairs.

    >>> mapping("question=text,answer=label")
    {'question': 'text', 'answer': 'label'}
    """
    pairs = [pair.strip().split("=") for pair in text.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: give OURS=THEIRS pairs, as in question=text,answer=label")
    return dict(pairs)


def ensure_tiny(path: str) -> None:
    """Make the tiny world's clips where a path asks for them and they are not there."""
    from ..runtime import distributed

    if Path(path).resolve().parent == scales.TINY and distributed.rank_and_world_size()[0] == 0:
        from ..tiny import synth

        synth.write(scales.TINY)
    distributed.gather(None)  # the others wait


def quiet() -> None:
    """Keep the libraries' own chatter off the screen; ours stays."""
    from transformers.utils import logging as theirs

    for noisy in ("httpx", "numexpr", "accelerate", "datasets", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()

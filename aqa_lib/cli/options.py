"""The options that several commands take, and how a command line becomes a configuration.

Options have the config's own names, so whatever a notebook can set, a shell can too; the scale gives the defaults.
"""

import argparse
import logging
import os
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path

from .. import scale as scales
from ..reading import tables
from ..runtime import files
from ..runtime.errors import AqaError

QUESTIONS = "JSON, JSON lines, CSV, TSV, parquet or Arrow in AVQA's, MMAU's or any form, or hub:NAME:SPLIT"
RULES = ("official", "strict")  # what counts as right
# transformers' options that a training run is likely to want; --help-all lists the rest
COMMON = {"seed", "bf16", "fp16", "gradient_accumulation_steps", "num_train_epochs", "optim", "lr_scheduler_type"}
PARTS = ("audio_tower", "projector", "language_model")  # model.PARTS, which takes seconds to import
COMMON |= {"warmup_steps", "weight_decay", "gradient_checkpointing", "dataloader_num_workers", "disable_tqdm"}


class Unasked(int):
    """The default of a number option, distinguishable from the same number typed by a user."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, without the long list of options. asked: the words it will parse."""

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
        default=None, metadata={"help": "Questions that rank the checkpoints; none to hold out part of --train."}
    )
    held_out_fraction: float | None = field(
        default=None,
        metadata={"help": "Without --held_out: the share of --train that is held out; the scale's if not given."},
    )
    audio: str | None = field(default=None, metadata={"help": "Folder of the clips; the question file's if not given."})
    columns: str | None = field(
        default=None,
        metadata={
            "help": "OURS=THEIRS,...: what the files call id, audio, question, choices, answer, task.",
        },
    )
    skip_bad_rows: bool = field(default=False, metadata={"help": "Leave out bad rows instead of stopping at them."})
    rewards: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards to add up: accuracy, format, think_format, their faithful_ versions, paper_accuracy, or "
            "package.module:function. If not given: accuracy and the format that the prompt asks for. Not for sft."
        },
    )
    train_parts: list[str] = field(
        default_factory=lambda: [*PARTS],
        metadata={"help": "Parts to train; the others are frozen. With LoRA, only the adapters are trained."},
    )
    lora_r: str | None = field(
        default=None, metadata={"help": "Rank of LoRA adapters; none to train the weights themselves."}
    )
    quantization: str | None = field(
        default=None, metadata={"help": "4bit, for small GPUs, with --lora_r; none for unquantized weights."}
    )
    dtype: str = field(default="auto", metadata={"help": "Type of the weights: auto, float32, bfloat16, float16."})
    resume: bool = field(default=False, metadata={"help": "Resume from the last checkpoint in --output_dir."})


def add_training(parser: argparse.ArgumentParser, config: type, scale: scales.Scale, job: str) -> None:
    """Add our own training options and every option of its config, with the scale's defaults."""
    defaults = {
        "model": scale.model,
        "train": str(scale.train),
        "held_out": str(scale.held_out) if scale.held_out else None,
        "dtype": scale.dtype,
        "quantization": scale.quantization,
        "lora_r": scale.lora_r,
    }
    add_config(parser, TrainArguments, config, defaults | (scale.sft if job == "sft" else scale.grpo))


def add_config(parser: argparse.ArgumentParser, ours: type, config: type, defaults: dict) -> None:
    """Add the options of two dataclasses, ours and a config of transformers, whose rare ones are not shown."""
    from transformers import HfArgumentParser

    theirs = HfArgumentParser([ours, config], add_help=False)
    shown = {f.name for f in fields(ours)} | set(config.__annotations__) | COMMON
    for action in theirs._actions:
        if action.dest not in shown:
            action.help = argparse.SUPPRESS if "--help-all" not in parser.asked else action.help
    parser._add_container_actions(theirs)  # as argparse adds a parent's
    parser.add_argument("--help-all", action="help", help="list every option of transformers' TrainingArguments")
    steps = Unasked(defaults.get("max_steps", config.max_steps))
    parser.set_defaults(**defaults | {"max_steps": steps, "num_train_epochs": None})


def training(args: argparse.Namespace, config: type, scale: scales.Scale) -> tuple[TrainArguments, object]:
    """Turn parsed options into `TrainArguments` and a config; raises AqaError for invalid values."""
    run = _ours(args, TrainArguments)
    for name in ("held_out", "lora_r", "quantization", "columns"):
        if getattr(run, name) == "none":
            setattr(run, name, None)
    _settle_held_out(run, scale, args.eval_strategy)
    if run.lora_r is not None and not (str(run.lora_r).isdecimal() and int(run.lora_r) > 0):
        raise AqaError(f'--lora_r must be a positive integer or "none", got {run.lora_r!r}.')
    run.lora_r = run.lora_r and int(run.lora_r)
    if run.lora_r and run.train_parts != [*PARTS]:
        raise AqaError("--train_parts has no effect with --lora_r: only adapters are trained; leave out one of them.")
    return configured(args, run, config)


def configured(args: argparse.Namespace, run, config: type) -> tuple:
    """Turn parsed options into `run`, of a dataclass of ours or such an object, and a config."""
    run = _ours(args, run) if isinstance(run, type) else run
    given = vars(args) | {"max_steps": _steps(args)}
    made = {f.name: given[f.name] for f in fields(config) if f.init and f.name in given}
    if made["num_train_epochs"] is None:
        del made["num_train_epochs"]
    try:
        run.columns = run.columns and mapping(run.columns)
        return run, config(**made)
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:  # transformers' own checks, too
        raise AqaError(str(error)) from error


def _ours(args: argparse.Namespace, kind: type):
    return kind(**{f.name: getattr(args, f.name) for f in fields(kind)})


def sources(**paths: str | None) -> dict[str, str | None]:
    """Name what a run reads, each with the hash of its file where it is one, for the run's record."""
    found: dict[str, str | None] = {}
    for name, path in paths.items():
        if path:
            file = tables.on_disk(path)
            found |= {name: Path(path).name, f"{name}_sha256": files.sha256(file) if file else None}
    return found


def _steps(args: argparse.Namespace) -> int:
    """Return the steps asked for, or -1 if epochs are; raises AqaError if both are."""
    if args.num_train_epochs is None:
        return int(args.max_steps)
    if not isinstance(args.max_steps, Unasked):
        if args.max_steps == -1:
            return -1
        raise AqaError("--max_steps and --num_train_epochs both say how long to train; leave one of them out.")
    if os.environ.get(scales.SHORTER):
        raise AqaError(f"{scales.SHORTER} and --num_train_epochs both say how long to train; leave one of them out.")
    return -1


def _settle_held_out(run: TrainArguments, scale: scales.Scale, strategy: str) -> None:
    """Settle which questions rank the checkpoints; raises AqaError for contradictions and empty splits."""
    own = run.held_out == str(scale.held_out)
    if own and (run.train != str(scale.train) or run.held_out_fraction is not None):
        run.held_out = None  # the scale's held-out questions belong to its own training questions only
    fraction, run.held_out_fraction = run.held_out_fraction, run.held_out_fraction or scale.held_out_fraction
    if fraction is None:
        return
    if strategy == "no" or run.held_out:
        other = "--eval_strategy no" if strategy == "no" else "--held_out"
        raise AqaError(f"--held_out_fraction has no effect with {other}; leave one of them out.")
    if not 0 < fraction < 1:
        raise AqaError(
            f"--held_out_fraction is {fraction}: give a number between 0 and 1, or --eval_strategy no to hold out none."
        )


def mapping(text: str) -> dict[str, str]:
    """Parse `OURS=THEIRS` pairs.

    >>> mapping("question=text,answer=label")
    {'question': 'text', 'answer': 'label'}
    """
    pairs = [pair.strip().split("=") for pair in text.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: give OURS=THEIRS pairs, as in question=text,answer=label")
    return dict(pairs)


def at_least_one(text: str) -> int:
    """Parse a number of things.

    >>> at_least_one("3")
    3
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, 1 or more")
    return number


def ensure_tiny(path: str) -> None:
    """Make the tiny world's clips if a path asks for them and they do not exist."""
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
    # an option's new name, which the oldest transformers that we take does not know yet
    warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
    theirs.disable_progress_bar()

"""The library's jobs from a shell: `python -m aqa_lib JOB --help`.

Options are the config's own names, so whatever a notebook sets a shell can set too. A user's mistake ends in one
sentence and exit code 2; the scale (AQA_SCALE) gives the defaults and is printed first.
"""

import argparse
import logging
import os
import sys
from contextlib import redirect_stdout
from copy import copy
from dataclasses import dataclass, field, fields
from functools import partial
from importlib import import_module
from pathlib import Path

from . import escape
from . import scale as scales

JOBS = {
    "demo": "train the scale's model with GRPO, and show it before and after",
    "prepare": "check a question file and its clips, and write a clean one to train on",
    "train": "train a model with GRPO",
    "sft": "train a model on the right answers, the baseline",
    "evaluate": "answer questions with a model, and score the answers",
    "score": "score finished predictions, ours or anybody's, without a model",
    "compare": "set runs side by side, and say which differences are real",
    "report": "gather results into the report's table, its rows beside ours",
    "ablation": "set prompt 2 and prompt 3 side by side: does thinking aloud help?",
    "plan": "count the memory of a training run, and say whether it fits a card",
    "bench": "measure what a step costs, beside the report's way and beside TRL",
    "study": "run all of the report's Qwen2-Audio rows, three seeds each, and print its table",
}


@dataclass
class TrainArguments:
    """Where a training run takes its model and questions from. Defaults: the scale's."""

    model: str = field(default=None, metadata={"help": "Folder or hub id of the model to train."})
    train: str = field(default=None, metadata={"help": "Questions to train on: AVQA's JSON lines, or any known form."})
    held_out: str | None = field(
        default=None, metadata={"help": "Questions that rank the checkpoints; none to hold out a part of --train."}
    )
    held_out_fraction: float = field(
        default=0.02, metadata={"help": "Without --held_out: the part of the training clips that is held out."}
    )
    audio: str | None = field(default=None, metadata={"help": "Folder of the clips; the question file's if not given."})
    skip_bad_rows: bool = field(default=False, metadata={"help": "Leave bad rows out instead of stopping at them."})
    rewards: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards to add up: accuracy, format, think_format, their faithful_ forms, or "
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
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in --output_dir."})


class _OneSentence:
    """Make a parser end in one sentence, without its long list of options."""

    def error(self, message: str):
        raise ValueError(f"{message}; {self.prog} --help lists the options.")


class _Parser(_OneSentence, argparse.ArgumentParser):
    pass


# transformers' options that a training is likely to want; --help-all lists the rest
COMMON = {"seed", "bf16", "fp16", "gradient_accumulation_steps", "num_train_epochs", "optim", "lr_scheduler_type"}
COMMON |= {"warmup_steps", "weight_decay", "gradient_checkpointing", "dataloader_num_workers", "disable_tqdm"}


def parse_training(job: str, config: type, arguments: list[str], scale: scales.Scale | None = None):
    """Parse the options of `train` and `sft`: ours, and every option of their config."""
    from transformers import HfArgumentParser

    from .sft import LORA_RATE

    class Parser(_OneSentence, HfArgumentParser):
        pass

    scale = scale or scales.get()
    parser = Parser(
        [TrainArguments, config],
        prog=f"python -m aqa_lib {job}",
        description=f"{JOBS[job].capitalize()}. Defaults are those of {scale}.",
        epilog="--help-all also lists every option of transformers' TrainingArguments.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    shown = {f.name for f in fields(TrainArguments)} | set(config.__annotations__) | COMMON | {"help"}
    if "--help-all" in arguments:
        arguments = ["--help"]
    else:
        for action in parser._actions:
            if action.dest not in shown:
                action.help = argparse.SUPPRESS
    parser.set_defaults(
        model=scale.model,
        train=str(scale.train),
        held_out=str(scale.held_out) if scale.held_out else None,
        dtype=scale.dtype,
        quantization=scale.quantization,
        lora_r=scale.lora_r,
        **(scale.sft if job == "sft" else scale.grpo),
    )
    run, options, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        raise ValueError(f"there is no option {unknown[0]}; {parser.prog} --help lists the options.")
    for name in ("held_out", "lora_r", "quantization"):
        if getattr(run, name) == "none":
            setattr(run, name, None)
    if run.train != str(scale.train) and run.held_out == str(scale.held_out):
        run.held_out = None  # the scale's held-out questions belong to the scale's training questions alone
    if run.lora_r is not None and not (str(run.lora_r).isdecimal() and int(run.lora_r) > 0):
        raise ValueError(f"lora_r {run.lora_r!r} is no rank; give a number above 0, or none.")
    if job == "sft" and run.lora_r and not scale.lora_r and not any("--learning_rate" in word for word in arguments):
        options.learning_rate *= LORA_RATE  # the scale's rate is for all weights
    return scale, run, options


def train(job: str, arguments: list[str]) -> None:
    """Run `python -m aqa_lib train` or `sft`."""
    from transformers import set_seed

    from . import dataset, model, reward
    from .grpo import GRPOConfig, GRPOTrainer
    from .runtime import checkpoints, files
    from .sft import SFTConfig, SFTTrainer

    scale, run, config = parse_training(job, SFTConfig if job == "sft" else GRPOConfig, arguments)
    print(f"{scale}\ntraining {run.model} on {run.train}, into {config.output_dir}")
    refuse_too_large(run, config)
    rewards = run.rewards or ["accuracy", reward.form_of(config.prompt_style).__name__]
    rewards = [reward.get(name) for name in rewards]
    ensure_tiny(run.train)
    options = {"audio_root": run.audio, "on_error": "skip" if run.skip_bad_rows else "raise"}
    questions, held_out = dataset.read(run.train, **options), None
    if config.eval_strategy != "no":
        if run.held_out:
            held_out = dataset.read(run.held_out, **options)
        else:
            questions, held_out = dataset.split(questions, run.held_out_fraction, config.seed)
    set_seed(config.seed)  # adapters start at random
    lora = {"r": int(run.lora_r)} if run.lora_r else None
    device = "cpu" if config.fsdp else config.device  # from where each process takes its part to its card
    policy, processor = model.load(run.model, run.dtype, device, run.train_parts, lora, run.quantization)
    if job == "sft":
        trainer = SFTTrainer(policy, processor, config, questions, held_out)
    else:
        trainer = GRPOTrainer(policy, processor, rewards, config, questions, held_out)
    trainer.labels = {"model": run.model}
    for name, path in (("train", run.train), ("held_out", run.held_out)):
        if path:
            trainer.labels |= {name: Path(path).name, f"{name}_sha256": files.sha256(path)}
    if run.resume and not checkpoints.in_order(config.output_dir):
        print(f"no checkpoint in {config.output_dir} yet: starting from the base")
    trainer.train(resume_from_checkpoint=run.resume or None)
    trainer.save_model()
    trainer.save_state()
    print(f"saved the model to {config.output_dir}, its curves to {config.output_dir}/metrics.csv")


def refuse_too_large(run: TrainArguments, config) -> None:
    """Refuse a run that will not fit its device, before its model is loaded."""
    from .large import planner

    if planner.card(config):
        try:
            shape = planner.skeleton(run.model, run.train_parts, run.lora_r and int(run.lora_r), run.dtype)
        except (OSError, ValueError):
            return  # loading says what is wrong
        planner.settle(planner.ModelSizes.of(shape, run.quantization), copy(config))


def plan(arguments: list[str]) -> None:
    """Run `python -m aqa_lib plan`."""
    parser = _parser("plan")
    parser.description += " All options of train are understood: --memory GB, --lora_r 16, ..."
    parser.add_argument("--scale", default=scales.get().name, help=f"one of {', '.join(scales.SCALES)}")
    parser.add_argument("--prompt", type=int, help="tokens of a prompt; those of the longest clip if not given")
    args, rest = parser.parse_known_args(arguments)
    from .grpo import GRPOConfig
    from .large import planner

    scale, run, config = parse_training("train", GRPOConfig, rest, scales.get(args.scale))
    shape = planner.skeleton(run.model, run.train_parts, run.lora_r and int(run.lora_r), run.dtype)
    anatomy = planner.ModelSizes.of(shape, run.quantization)
    limit = (config.memory or scale.memory or 0) * planner.GB or planner.card(config)
    work = planner.Work.of(config, anatomy, args.prompt)
    made = planner.plan(anatomy, work, limit, config)
    print(f"{scale.name}: {run.model}\n{planner.table(made, anatomy, work)}")
    if not made.fits:
        print(f"To make it fit: {planner.advice(anatomy, config, limit, prompt=args.prompt)}.")


def demo(arguments: list[str]) -> None:
    """Run `python -m aqa_lib demo`."""
    parser = _parser("demo")
    parser.add_argument("--output_dir", default="runs/demo", help="folder for the results")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--max_steps", type=int, help="optimizer steps; the scale's own number if not given")
    args = parser.parse_args(arguments)
    from .course.demo import run

    options = {"max_steps": args.max_steps} if args.max_steps else {}
    print(run(args.output_dir, args.seed, **options))


def evaluate(arguments: list[str]) -> None:
    """Run `python -m aqa_lib evaluate`."""
    scale, parser = scales.get(), _parser("evaluate")
    option = parser.add_argument
    option("--model", default=scale.model, help="folder or hub id")
    option(
        "--questions",
        default=str(scale.test),
        help="MMAU's JSON, AVQA's JSON lines, or any JSON with --columns",
    )
    option("--audio", help="folder of the clips; the question file's if not given")
    option(
        "--columns",
        type=_mapping,
        metavar="OURS=THEIRS,...",
        help="names in the file of id, audio, question, choices, answer, task",
    )
    option(
        "--output",
        default="runs/predictions.jsonl",
        help="file for the answers; one that is there is resumed",
    )
    option(
        "--style",
        type=int,
        choices=(1, 2, 3),
        default=2,
        help="the report's prompt: 1 plain, 2 answer tags, 3 think first",
    )
    option(
        "--decoding",
        choices=("greedy", "generation_config"),
        default="greedy",
        help="the latter samples as the checkpoint says, like the report",
    )
    option("--seed", type=int, default=0, help="of the sampling")
    option("--batch_size", type=int, default=scale.batch_size, help="questions answered at a time")
    option(
        "--max_completion_length",
        type=int,
        default=scale.max_completion_length,
        help="longest answer in tokens",
    )
    option("--limit", type=int, help="ask only the first questions")
    option(
        "--controls",
        action="store_true",
        help="also ask with silence, with shuffled choices, and without a clip",
    )
    option("--method", help="what made the model: base, sft, sft-lora, grpo; the report finds its rows by it")
    option("--train_seed", type=int, help="seed of the training, so that seeds are taken together")
    option("--dtype", default=scale.dtype, help="type of the weights: auto, float32, bfloat16, float16")
    option("--quantization", default=scale.quantization, help="4bit, for small GPUs")
    option(
        "--skip_bad",
        action="store_true",
        help="leave bad rows out, and count clips that cannot be used as wrong",
    )
    args = parser.parse_args(arguments)
    from . import dataset, evaluation, model
    from .cli import results
    from .runtime import distributed

    print(scale)
    ensure_tiny(args.questions)
    on_error = "skip" if args.skip_bad else "raise"
    questions = dataset.read(args.questions, args.audio, on_error, columns=args.columns)[: args.limit]
    policy, processor = model.load(args.model, args.dtype, train=(), quantization=args.quantization)
    labels = {"method": args.method, "train_seed": args.train_seed, "scale": scale.name}
    options = {
        "style": args.style,
        "batch_size": args.batch_size,
        "max_completion_length": args.max_completion_length,
        "decoding": args.decoding,
        "seed": args.seed,
        "data": args.questions,
        "labels": {name: value for name, value in labels.items() if value is not None},
        "on_error": on_error,
    }
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    evaluation.predict(policy, processor, questions, args.output, **options)
    if args.controls:
        evaluation.predict_controls(policy, processor, questions, args.output, **options)
    if distributed.rank_and_world_size()[0] == 0:
        scored = {"files": [Path(args.output)], "json": False, "questions": None, "official": None}
        results.run_score(argparse.Namespace(**scored))


def prepare(arguments: list[str]) -> None:
    """Run `python -m aqa_lib prepare`."""
    parser = _parser("prepare")
    option = parser.add_argument
    option("questions", help="AVQA's JSON lines, MMAU's JSON, or any JSON with --columns")
    option("output", help="file for the questions that can be used: JSON lines in AVQA's form")
    option("--audio", help="folder of the clips; the question file's if not given")
    option("--columns", type=_mapping, metavar="OURS=THEIRS,...", help="names in the file, as in evaluate")
    option("--flac", action="store_true", help="also write the clips as the model hears them: mono, 16 kHz")
    option("--max_seconds", type=float, default=30.0, help="the longest that the model hears")
    option("--workers", type=int, help="clips checked at a time; one a core if not given")
    args = parser.parse_args(arguments)
    from .prepare import prepare

    options = (args.audio, args.columns, args.flac, args.workers, args.max_seconds)
    report = prepare(args.questions, args.output, *options)
    root = "" if args.flac else f" --audio {args.audio or Path(args.questions).parent}"
    print(f"{report}\nWritten: {args.output} and {args.output}.report.json. Then: train --train {args.output}{root}")


def _other(job: str, arguments: list[str]) -> None:
    """Run a job that another module defines by `add_JOB_arguments` and `run_JOB`."""
    homes = {"study": ".course.study", "ablation": ".results.ablation", "bench": ".bench"}
    module = import_module(homes.get(job, ".cli.results"), __package__)
    parser = _parser(job)
    getattr(module, f"add_{job}_arguments")(parser)
    getattr(module, f"run_{job}")(parser.parse_args(arguments))


def _parser(job: str) -> argparse.ArgumentParser:
    return _Parser(
        prog=f"python -m aqa_lib {job}",
        description=f"{JOBS[job].capitalize()}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )


def _mapping(text: str) -> dict[str, str]:
    """Parse `question=text,answer=label`."""
    pairs = [pair.split("=") for pair in text.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of OURS=THEIRS pairs")
    return dict(pairs)


def ensure_tiny(path: str) -> None:
    """Make the tiny world's clips where a path asks for them and they are not there."""
    from .runtime import distributed

    if Path(path).resolve().parent == scales.TINY and distributed.rank_and_world_size()[0] == 0:
        from .tiny import synth

        synth.write(scales.TINY)
    distributed.gather(None)  # the others wait


def main(arguments: list[str] | None = None) -> int:
    """Run one job and return the exit code: 2, after one sentence, on a user's mistake."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, JOBS))
        print("usage: python -m aqa_lib JOB [options]\n\nJobs (each has a --help):")
        print("\n".join(f"  {name:<{width}}  {what}" for name, what in JOBS.items()))
        print(f"\n{scales.VARIABLE} picks the scale: {', '.join(scales.SCALES)} (tiny if not set).")
        return 0
    _quiet()
    from .runtime import distributed

    distributed.start()
    if distributed.rank_and_world_size()[0]:
        sys.stdout = open(os.devnull, "w")  # one process speaks for all
        logging.disable(logging.INFO)
    job, rest = arguments[0], arguments[1:]
    try:
        if job not in JOBS:
            raise ValueError(f"no job is named {job!r}; choose from {', '.join(JOBS)}.")
        jobs = {"demo": demo, "plan": plan, "prepare": prepare, "evaluate": evaluate}
        jobs |= {name: partial(train, name) for name in ("train", "sft")}
        with redirect_stdout(escape.Terminal(sys.stdout)):
            jobs.get(job, partial(_other, job))(rest)
    except (ValueError, ImportError, OSError) as error:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        print(escape.terminal(f"error: {where}{getattr(error, 'strerror', None) or error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        again = "with --resume goes on from the last checkpoint" if job in ("train", "sft") else "goes on from here"
        print(escape.terminal(str(stopped) or f"stopped; the same command {again}."), file=sys.stderr)
        return 130
    return 0


def _quiet() -> None:
    """Keep the libraries' own chatter off the screen; ours stays."""
    from transformers.utils import logging as theirs

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for handler in logging.root.handlers:
        handler.setFormatter(escape.Formatter("%(message)s"))
    for noisy in ("httpx", "numexpr", "accelerate", "datasets", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())

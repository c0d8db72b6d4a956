"""The library's jobs from a shell: `python -m aqa_lib JOB --help`.

Options are the config's own names, so whatever a notebook sets a shell can set too. A user's mistake ends in one
sentence and exit code 2; the scale (AQA_SCALE) gives the defaults and is printed first.
"""

import argparse
import logging
import sys
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

from . import scale as scales

JOBS = {
    "demo": "train the scale's model with GRPO, and show it before and after",
    "train": "train a model with GRPO",
    "evaluate": "answer questions with a model, and score the answers",
    "score": "score finished predictions, ours or anybody's, without a model",
    "compare": "set runs side by side, and say which differences are real",
    "report": "gather results into the report's table, its rows beside ours",
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
    rewards: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards to add up: accuracy, format, think_format, their faithful_ forms, or "
            "package.module:function. If not given: accuracy and the format that the prompt asks for."
        },
    )
    train_parts: list[str] = field(
        default_factory=lambda: ["audio_tower", "projector", "language_model"],
        metadata={"help": "Parts that learn; the others are frozen."},
    )
    lora_r: int | None = field(
        default=None, metadata={"help": "Rank of LoRA adapters; every weight learns if not given."}
    )
    quantization: str | None = field(default=None, metadata={"help": "4bit, for small GPUs; wants --lora_r."})
    dtype: str = field(default="auto", metadata={"help": "Type of the weights: auto, float32, bfloat16, float16."})
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in --output_dir."})


class _OneSentence:
    """Make a parser end in one sentence, without its long list of options."""

    def error(self, message: str):
        raise ValueError(f"{message}; {self.prog} --help lists the options.")


class _Parser(_OneSentence, argparse.ArgumentParser):
    pass


def parse_train(arguments: list[str]):
    """Parse the options of `train`: ours, and every option of GRPOConfig."""
    from transformers import HfArgumentParser

    from .trainer import GRPOConfig

    class Parser(_OneSentence, HfArgumentParser):
        pass

    scale = scales.get()
    parser = Parser(
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
    rewards = run.rewards or ["accuracy", "think_format" if config.prompt_style == 3 else "format"]
    trainer = GRPOTrainer(policy, processor, rewards, config, questions, held_out)
    trainer.train(resume_from_checkpoint=run.resume or None)
    trainer.save_model()
    trainer.save_state()
    print(f"saved the model to {config.output_dir}, its curves to {config.output_dir}/metrics.csv")


def demo(arguments: list[str]) -> None:
    """Run `python -m aqa_lib demo`."""
    parser = _parser("demo")
    parser.add_argument("--output_dir", default="runs/demo", help="folder for the results")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--max_steps", type=int, help="optimizer steps; the scale's own number if not given")
    args = parser.parse_args(arguments)
    from .demo import run

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
    option("--batch_size", type=int, default=32, help="questions answered at a time")
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
    from . import cli_evaluation, dataset, evaluation, model

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
    cli_evaluation.run_score(argparse.Namespace(files=[Path(args.output)], json=False, questions=None, official=None))


def _finished(job: str, arguments: list[str]) -> None:
    """Run a job on finished predictions: score, compare or report."""
    from . import cli_evaluation

    parser = _parser(job)
    getattr(cli_evaluation, f"add_{job}_arguments")(parser)
    getattr(cli_evaluation, f"run_{job}")(parser.parse_args(arguments))


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
    if Path(path).parent == scales.TINY:
        from . import synth

        synth.write(scales.TINY)


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
    job, rest = arguments[0], arguments[1:]
    try:
        if job not in JOBS:
            raise ValueError(f"no job is named {job!r}; choose from {', '.join(JOBS)}.")
        {"demo": demo, "train": train, "evaluate": evaluate}.get(job, partial(_finished, job))(rest)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _quiet() -> None:
    """Keep the libraries' own chatter off the screen; ours stays."""
    from transformers.utils import logging as theirs

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "numexpr", "accelerate", "datasets", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())

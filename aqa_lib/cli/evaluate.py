"""`evaluate`: answer questions with a model, and score the answers."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from .. import scale as scales
from . import options, score


def add_arguments(parser: ArgumentParser) -> None:
    scale, option = scales.get(), parser.add_argument
    option("--model", default=scale.model, help="folder or hub id")
    option(
        "--questions",
        default=str(scale.test),
        help=f"{options.QUESTIONS}, with --columns where names differ",
    )
    option("--audio", help="folder of the clips; the question file's if not given")
    option(
        "--columns",
        type=options.mapping,
        metavar="OURS=THEIRS,...",
        help="what the file calls id, audio, question, choices, answer, task",
    )
    option(
        "--output",
        default="runs/predictions.jsonl",
        help="file for the answers; an existing one is resumed",
    )
    option(
        "--style",
        type=int,
        choices=(1, 2, 3),
        default=2,
        help="the paper's prompt: 1 plain, 2 answer tags, 3 think first",
    )
    option(
        "--decoding",
        choices=("greedy", "sample", "generation_config"),
        default="greedy",
        help="sample: as in GRPO, at temperature 1; generation_config: as the checkpoint says, as the paper did",
    )
    option("--seed", type=int, default=0, help="sampling seed")
    option("--batch_size", type=int, default=scale.batch_size, help="questions answered at a time")
    option(
        "--max_completion_length",
        type=int,
        default=scale.max_completion_length,
        help="longest answer in tokens",
    )
    option("--limit", type=options.at_least_one, help="ask only the first questions")
    option(
        "--controls",
        action="store_true",
        help="also ask with silence, with shuffled choices, and without a clip",
    )
    option(
        "--robust",
        type=int,
        choices=range(1, 4),
        metavar="N",
        help="also ask in N (1 to 3) other orders of the choices, and in N other wordings of the instruction",
    )
    option("--method", help="what made the model: base, sft, sft-lora, grpo; `report` finds its rows by it")
    option("--train_seed", type=int, help="training seed, so that seeds of one method are grouped")
    option("--dtype", default=scale.dtype, help="type of the weights: auto, float32, bfloat16, float16")
    option("--quantization", default=scale.quantization, help="4bit, for small GPUs")
    option(
        "--skip_bad",
        action="store_true",
        help="leave out bad rows, and count questions whose clips cannot be used as wrong",
    )


def run(args: Namespace) -> None:
    from .. import dataset, evaluation, model, predictions
    from ..architectures import foreign
    from ..runtime import distributed

    scale = scales.get()
    options.quiet()
    print(scale)
    foreign.refuse_missing(args.model)
    options.ensure_tiny(args.questions)
    on_error = "skip" if args.skip_bad else "raise"
    questions = dataset.read(args.questions, args.audio, on_error, columns=args.columns)[: args.limit]
    policy, processor = model.load(args.model, args.dtype, train=(), quantization=args.quantization)
    labels = {"method": args.method, "train_seed": args.train_seed, "scale": scale.name}
    asking = {
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
    evaluation.predict(policy, processor, questions, args.output, **asking)
    if args.controls:
        evaluation.predict_controls(policy, processor, questions, args.output, **asking)
    if args.robust:
        names = [*list(predictions.ORDERS)[: args.robust], *list(predictions.WORDINGS)[: args.robust]]
        evaluation.predict_controls(policy, processor, questions, args.output, names, **asking)
    if distributed.rank_and_world_size()[0] == 0:
        score.show(Path(args.output))

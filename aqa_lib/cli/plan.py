"""`plan`: count the memory of a training run, phase by phase, without loading its model."""

from argparse import ArgumentParser, Namespace

from .. import scale as scales
from . import options


def add_arguments(parser: ArgumentParser) -> None:
    from ..grpo import GRPOConfig

    wanted = parser.asked[parser.asked.index("--scale") + 1 :][:1] if "--scale" in parser.asked else [None]
    options.add_training(parser, GRPOConfig, scales.get(*wanted), "train")
    parser.description += " Takes all of train's options: --memory GB, --lora_r 16, ..."
    parser.add_argument("--scale", default=scales.get().name, help=f"one of {', '.join(scales.SCALES)}")
    parser.add_argument("--prompt", type=int, help="tokens in a prompt; those of the longest clip if not given")


def run(args: Namespace) -> None:
    from ..grpo import GRPOConfig
    from ..large import planner

    options.quiet()
    scale = scales.get(args.scale)
    what, config = options.training(args, GRPOConfig, scale)
    shape = planner.skeleton(what.model, what.train_parts, what.lora_r, what.dtype)
    sizes = planner.ModelSizes.of(shape, what.quantization)
    limit = (config.memory or scale.memory or 0) * planner.GB or planner.card(config)
    work = planner.Work.of(config, sizes, args.prompt)
    made = planner.plan(sizes, work, limit, config)
    print(f"{scale.name}: {what.model}\n{planner.table(made, sizes, work)}")
    if not made.fits:
        print(f"To make it fit: {planner.advice(sizes, config, limit, prompt=args.prompt)}.")

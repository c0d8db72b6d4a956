"""`demo`: the whole idea in minutes; `make demo` runs it."""

from argparse import ArgumentParser, Namespace

from . import options


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--output_dir", default="runs/demo", help="folder for the results")
    parser.add_argument("--seed", type=int, default=0, help="training seed")
    parser.add_argument("--max_steps", type=int, help="optimizer steps; the scale's own number if not given")


def run(args: Namespace) -> None:
    from ..course import demo

    options.quiet()
    more = {"max_steps": args.max_steps} if args.max_steps else {}
    print(demo.run(args.output_dir, args.seed, **more))

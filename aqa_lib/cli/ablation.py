"""`ablation`: put prompt 2 and prompt 3 side by side: does thinking aloud help?"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from . import options


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE",
        help="predictions for prompt 2 and prompt 3; the folder of the same name has the training run's files",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), help="folder for table and figure")
    parser.add_argument("--rule", choices=options.RULES, default="official", help="what counts as right")


def run(args: Namespace) -> None:
    """Print prompt 2 next to prompt 3, and write the table and the figure."""
    from ..results import ablation

    print(ablation.markdown(ablation.write(args.files, args.output, args.rule), args.rule))
    print(f"Written: {args.output / 'ablation.md'}, {args.output / 'ablation.svg'}")

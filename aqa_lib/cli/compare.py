"""`compare`: put runs on the same questions side by side, and say which differences are real."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from . import options


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE",
        help="predictions of two or more runs on the same questions; seeds of one method are grouped",
    )  # fmt: skip
    parser.add_argument("--rule", choices=options.RULES, default="official", help="what counts as right")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: Namespace) -> None:
    """Print the runs side by side, and which of their differences are real."""
    from ..results import comparison

    made = comparison.compare(args.files, args.rule)
    print(json.dumps(made.to_dict(), indent=1, allow_nan=False) if args.json else made.markdown())

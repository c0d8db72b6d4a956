"""`learned`: say what a run trained: which parts moved, how far, whether the clip counts."""

import json
from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a training run")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: Namespace) -> None:
    from ..training import proof, record

    found = record.learned(args.run)
    print(json.dumps(found, indent=1, allow_nan=False) if args.json else proof.markdown(found))

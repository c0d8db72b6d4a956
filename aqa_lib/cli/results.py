"""What `python -m aqa_lib score`, `compare` and `report` take and do; no model is loaded here.

Each pair `add_*_arguments(parser)`, `run_*(args)` is one command; a user's mistake comes out as a ValueError.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from .. import dataset, evaluation, predictions
from ..course import plan
from ..results import comparison, report, scoring
from ..runtime.errors import AqaError


def add_score_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE",
        help="finished predictions: ours, or a JSON list or JSON lines with choices, answer and model_output",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="Q",
        help="the questions that were asked: those not in FILE count as wrong",
    )
    parser.add_argument(
        "--official",
        type=Path,
        metavar="OUT",
        help="also write FILE in MMAU's official form, for the leaderboard",
    )


def run_score(args: Namespace) -> None:
    """Print what each file is worth, with the controls that stand beside it."""
    if args.official and len(args.files) > 1:
        raise AqaError("--official writes one file; give one FILE.")
    asked = None
    if args.questions:
        questions = dataset.read(args.questions, check_audio=False)
        asked = [evaluation.question_row(i, question) for i, question in enumerate(questions)]
    made = []
    for path in args.files:
        run = predictions.read(path)
        run = run if asked is None else scoring.complete(run, asked)
        found = scoring.score(run)
        controls = comparison.controls(path) if found.official else []
        made.append(found.to_dict() | {"controls": {control.name: control.to_dict() for control in controls}})
        if not args.json:
            print(found.markdown())
            if run.meta and found.official:
                print(comparison.controls_markdown(controls))
        if args.official:
            predictions.write_official(run.rows, args.official, args.questions)
    if args.json:
        print(json.dumps(made if len(made) > 1 else made[0], indent=1, allow_nan=False))


def add_compare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE",
        help="predictions of two or more runs on the same questions; seeds of one method are taken together",
    )  # fmt: skip
    parser.add_argument("--rule", choices=scoring.RULES, default="official", help="what counts as right")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run_compare(args: Namespace) -> None:
    """Print the runs side by side, and which of their differences are real."""
    made = comparison.compare(args.files, args.rule)
    print(json.dumps(made.to_dict(), indent=1, allow_nan=False) if args.json else made.markdown())


def add_report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="*",
        type=Path,
        metavar="SOURCE",
        help="folders and files of predictions (default: runs)",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/report"), help="folder for the report's files")
    parser.add_argument("--rule", choices=scoring.RULES, default="official", help="what counts as right")
    parser.add_argument("--plan", action="store_true", help="print the plan for full scale instead (estimates)")


def run_report(args: Namespace) -> None:
    """Write and print the report's table beside ours, or the plan for full scale."""
    if args.plan:
        print(plan.markdown())
        return
    sources = args.sources or [path for path in [Path("runs")] if path.is_dir()]
    print(report.markdown(report.write(sources, args.output, args.rule)))
    print(f"Written: {', '.join(str(args.output / f'report.{kind}') for kind in ('md', 'csv', 'svg'))}")

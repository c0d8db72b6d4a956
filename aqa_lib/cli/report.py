"""`report`: gather results into the paper's table, its rows next to ours."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from . import options


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="*",
        type=Path,
        metavar="SOURCE",
        help="folders and files of predictions (default: runs)",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/report"), help="folder for the report's files")
    parser.add_argument("--rule", choices=options.RULES, default="official", help="what counts as right")
    parser.add_argument("--plan", action="store_true", help="print the plan for full scale instead (estimates)")


def run(args: Namespace) -> None:
    """Write and print the paper's table next to ours, or the plan for full scale."""
    if args.plan:
        from ..course import plan

        options.quiet()
        print(plan.markdown())
        return
    from ..results import report

    sources = args.sources or [path for path in [Path("runs")] if path.is_dir()]
    print(report.markdown(report.write(sources, args.output, args.rule)))
    print(f"Written: {', '.join(str(args.output / f'report.{kind}') for kind in ('md', 'csv', 'svg'))}")

"""`study`: the paper's Qwen2-Audio rows, three seeds each; --dose and --methods are the laboratory's experiments."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..runtime.errors import AqaError
from . import options


def add_arguments(parser: ArgumentParser) -> None:
    option = parser.add_argument
    option("--output", type=Path, default=Path("runs/study"), help="folder for all runs; an existing study is resumed")
    option("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    option("--rows", nargs="+", metavar="ROW", help="only these, as in base-2 sft-1 sft-lora-1 grpo-2 grpo-3")
    option("--processes", type=int, default=2, help="runs at a time; 1 on a machine with one GPU")
    option("--train_options", default="", help="further options for every train and sft, as one string")
    option("--evaluate_options", default="", help="further options for every evaluate, as one string")
    option("--dose", action="store_true", help="measure accuracy against wrong labels, rates and budgets instead")
    option(
        "--methods", action="store_true", help="compare GSPO, CISPO, DAPO, RLOO ... and votes without labels instead"
    )
    option("--report", action="store_true", help="with either: train nothing, report on the finished trials")


def run(args: Namespace) -> None:
    from ..course import lab, methods, study

    options.quiet()
    if args.dose and args.methods:
        raise AqaError("--dose and --methods are separate experiments; run one after the other.")
    if args.report and not (args.dose or args.methods):
        raise AqaError("--report goes with --dose or --methods; for a study, run python -m aqa_lib report.")
    laboratory = methods if args.methods else lab
    if args.report:
        laboratory.report(args.output)
    elif args.dose or args.methods:
        laboratory.run_all(args.output, args.seeds, args.processes)
    else:
        study.run_study(args)

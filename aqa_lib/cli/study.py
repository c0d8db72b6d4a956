"""`study`: the paper's Qwen2-Audio rows, three seeds each; with --dose, the laboratory of wrong labels."""

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
    option("--report", action="store_true", help="with --dose: train nothing, report on the finished trials")


def run(args: Namespace) -> None:
    from ..course import lab, study

    options.quiet()
    if args.report and not args.dose:
        raise AqaError("--report goes with --dose; for the runs of a study, use `python -m aqa_lib report`.")
    if args.report:
        lab.report(args.output)
    elif args.dose:
        lab.run_all(args.output, args.seeds, args.processes)
    else:
        study.run_study(args)

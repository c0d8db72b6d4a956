"""`study`: the paper's Qwen2-Audio rows, three seeds each; --dose, --methods and --real are other experiments."""

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
    option("--real", action="store_true", help="teach an aligned model of real parts by rewards and by answers instead")
    option("--report", action="store_true", help="with any of them: train nothing, report on the finished trials")
    option("--model", help="with --real: the aligned model's folder; the scale's if not given")
    option("--facts", help="with --real: clips with facts, of the splits align, held_out, questions and test")
    option("--audio", help="with --real: the folder of the clips; the file's if not given")
    option("--bf16", action="store_true", help="with --real: compute in bfloat16")


def run(args: Namespace) -> None:
    from ..course import lab, methods, study

    options.quiet()
    if args.dose + args.methods + args.real > 1:
        raise AqaError("--dose, --methods and --real are separate experiments; run one after the other.")
    if not args.real and (args.model or args.facts or args.audio or args.bf16):
        raise AqaError("--model, --facts, --audio and --bf16 go with --real.")
    if args.real:
        return run_real(args)
    if args.report and not (args.dose or args.methods):
        raise AqaError("--report goes with --dose, --methods or --real; for a study, run python -m aqa_lib report.")
    laboratory = methods if args.methods else lab
    if args.report:
        laboratory.report(args.output)
    elif args.dose or args.methods:
        laboratory.run_all(args.output, args.seeds, args.processes)
    else:
        study.run_study(args)


def run_real(args: Namespace) -> None:
    """Teach an aligned model by rewards and by answers, and test it; or report on the trials that are there."""
    from .. import scale as scales
    from ..architectures import foreign
    from ..assembly import facts
    from ..course import real

    if args.report:
        return real.report(args.output)
    here = scales.get()
    small = here if here.facts else scales.SCALES["small"]
    name, file = args.model or small.model, args.facts or str(small.facts)
    foreign.refuse_missing(name)
    material = real.Material(name, tuple(facts.read(file, args.audio)), args.bf16)
    real.run_all(args.output, material, list(dict.fromkeys(args.seeds)))

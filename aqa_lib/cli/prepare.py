"""`prepare`: check a question file and its clips once, before a long run."""

from argparse import ArgumentParser, Namespace
from functools import partial

from .. import scale as scales
from ..runtime.errors import AqaError
from . import options

OF_TRIES = ("tries", "wrong", "without", "style", "batch_size", "max_completion_length")  # go with --audio-dependent


def add_arguments(parser: ArgumentParser) -> None:
    scale, option = scales.get(), parser.add_argument
    option("questions", help=f"{options.QUESTIONS}, with --columns if names differ")
    option("output", help="file for the questions that can be used: JSON lines in AVQA's format")
    option("--audio", help="folder of the clips; the question file's if not given")
    option("--columns", type=options.mapping, metavar="OURS=THEIRS,...", help="the file's own names, as in evaluate")
    option("--flac", action="store_true", help="also write the clips as the model hears them: mono, 16 kHz")
    option("--max_seconds", type=float, default=30.0, help="the longest clip that the model hears whole")
    option("--workers", type=int, help="clips checked at a time; one per core if not given")
    option(
        "--audio-dependent", nargs="+", metavar="MODEL", help="keep only questions that these get wrong without sound"
    )
    option("--tries", type=int, help="times each MODEL is asked (default: 3 with one MODEL, sampled; 1 with several)")
    option("--wrong", type=int, metavar="K", help="keep what is wrong in K of all tries (default: half, rounded up)")
    option("--without", choices=("silent", "text-only"), help="what they get in place of the clip (default: silent)")
    option("--style", type=int, choices=(1, 2, 3), help="their prompt, as in evaluate (default: 2)")
    option("--batch_size", type=int, help=f"questions asked at a time (default: {scale.batch_size})")
    option(
        "--max_completion_length",
        type=int,
        help=f"longest answer in tokens (default: {scale.max_completion_length})",
    )


def run(args: Namespace) -> None:
    from ..prepare import prepare
    from ..reading import tables

    leave_out = _asker(args)
    given = (args.audio, args.columns, args.flac, args.workers, args.max_seconds)
    report = prepare(args.questions, args.output, *given, leave_out=leave_out)
    root = "" if args.flac else f" --audio {args.audio or tables.folder(args.questions)}"
    print(f"{report}\nWritten: {args.output} and {args.output}.report.json.")
    print(f"Next: python -m aqa_lib train --train {args.output}{root}")


def _asker(args: Namespace):
    """Return what asks the models, for `prepare`; None without --audio-dependent."""
    given = {name: getattr(args, name) for name in OF_TRIES if getattr(args, name) is not None}
    if not args.audio_dependent:
        if given:
            raise AqaError(f"--{next(iter(given))} goes with --audio-dependent MODEL; leave it out.")
        return None
    from .. import model
    from ..architectures import foreign
    from ..training import dependence

    scale, names = scales.get(), args.audio_dependent
    asking = {
        "tries": dependence.TRIES if len(names) == 1 else 1,
        "wrong": None,
        "without": "silent",
        "style": 2,
        "batch_size": scale.batch_size,
        "max_completion_length": scale.max_completion_length,
    } | given
    dependence.check(len(names), asking["tries"], asking["wrong"], asking["without"])
    options.quiet()
    for name in names:
        foreign.refuse_missing(name)
    loads = [partial(model.load, name, scale.dtype, train=(), quantization=scale.quantization) for name in names]
    return lambda questions: dependence.answered_unheard(loads, questions, args.output, **asking)

"""`prepare`: check a question file and its clips once, before a long run."""

from argparse import ArgumentParser, Namespace

from . import options


def add_arguments(parser: ArgumentParser) -> None:
    option = parser.add_argument
    option("questions", help=f"{options.QUESTIONS}, with --columns if names differ")
    option("output", help="file for the questions that can be used: JSON lines in AVQA's format")
    option("--audio", help="folder of the clips; the question file's if not given")
    option("--columns", type=options.mapping, metavar="OURS=THEIRS,...", help="the file's own names, as in evaluate")
    option("--flac", action="store_true", help="also write the clips as the model hears them: mono, 16 kHz")
    option("--max_seconds", type=float, default=30.0, help="the longest clip that the model hears whole")
    option("--workers", type=int, help="clips checked at a time; one per core if not given")


def run(args: Namespace) -> None:
    from ..prepare import prepare
    from ..reading import tables

    given = (args.audio, args.columns, args.flac, args.workers, args.max_seconds)
    report = prepare(args.questions, args.output, *given)
    root = "" if args.flac else f" --audio {args.audio or tables.folder(args.questions)}"
    print(f"{report}\nWritten: {args.output} and {args.output}.report.json. Then: train --train {args.output}{root}")

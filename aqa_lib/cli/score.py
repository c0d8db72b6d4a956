"""`score`: score finished predictions, ours or anybody's; no model is loaded."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..runtime.errors import AqaError


def add_arguments(parser: ArgumentParser) -> None:
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
        help="also write FILE as its set's own scorer reads it (MMAU, MMAR, MMSU, ADQA), for the leaderboard",
    )
    parser.add_argument(
        "--tries",
        metavar="KEY",
        help="treat FILEs as tries by one model, and count by this field (question_relation) what it never gets right",
    )


def run(args: Namespace) -> None:
    """Print each file's scores, with the controls that were run with it."""
    from .. import dataset, predictions

    if args.official and len(args.files) > 1:
        raise AqaError("--official writes one file; give one FILE.")
    if args.tries:
        return tries(args)
    asked = None
    if args.questions:
        questions = dataset.read(args.questions, check_audio=False)
        asked = [predictions.question_row(i, question) for i, question in enumerate(questions)]
    made = [show(path, asked, not args.json) for path in args.files]
    if args.official:
        predictions.write_official(predictions.read(args.files[0], asked).rows, args.official, args.questions)
    if args.json:
        print(json.dumps(made if len(made) > 1 else made[0], indent=1, allow_nan=False))


def tries(args: Namespace) -> None:
    """Print what became of several tries, by a field of the questions."""
    from .. import predictions
    from ..results import unheard

    if args.questions or args.official:
        raise AqaError("--tries reads files that evaluate wrote; leave out --questions and --official.")
    runs = [predictions.read(path) for path in args.files]
    found = unheard.tries(runs, args.tries)
    if not args.json:
        return print(unheard.markdown(found, len(runs), args.tries))
    groups = {name: made.to_dict() for name, made in found.items()}
    made = {"tries": len(runs), "by": args.tries, "groups": groups, "labels": runs[0].labels}
    print(json.dumps(made | {"environment": runs[0].meta.get("environment")}, indent=1, allow_nan=False))


def show(path: Path, asked: list[dict] | None = None, tables: bool = True) -> dict:
    """Score a file and its controls; print them as tables, and return them for JSON. asked: all its questions."""
    from .. import predictions
    from ..results import comparison, robust, scoring

    run = predictions.read(path, asked)
    run = run if asked is None else scoring.complete(run, asked)
    found = scoring.score(run)
    controls = comparison.controls(path) if found.official else []
    others = robust.beside(path) if found.official else []
    if tables:
        print(found.markdown())
        if run.meta and found.official:
            print(comparison.controls_markdown(controls))
        if others:
            print(robust.markdown(others))
    made = {"controls": {control.name: control.to_dict() for control in controls}}
    return found.to_dict() | made | {"robust": {some.name: some.to_dict() for some in others}}

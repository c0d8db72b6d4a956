"""The library's commands from a shell: `python -m aqa_lib COMMAND --help`.

A user's mistake ends in one sentence and exit code 2. The scale (AQA_SCALE) gives the defaults and is printed first.
"""

import logging
import os
import sys
from contextlib import redirect_stdout
from importlib import import_module

from . import scale as scales
from .cli import COMMANDS, options
from .runtime import escape
from .runtime.errors import AqaError

WITHOUT_DOCSTRINGS = sys.flags.optimize > 1


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code: 2, after one sentence, for a user's mistake."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: python -m aqa_lib COMMAND [options]\n\nCommands (each has a --help):")
        print("\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()))
        print(f"\n{scales.VARIABLE} picks the scale: {', '.join(scales.SCALES)} (tiny if not set).")
        return 0
    name, rest = arguments[0], arguments[1:]
    for_people()
    try:
        if odd := [word for word in arguments if "\0" in word]:
            raise AqaError(f"{odd[0]!r} holds a NUL character, which no name of a file may; remove it.")
        if name not in COMMANDS:
            raise AqaError(f"no command is named {name!r}; choose from {', '.join(COMMANDS)}.")
        join_processes()
        command = import_module(f".cli.{name}", __package__)
        parser = options.Parser(
            prog=f"python -m aqa_lib {name}", description=f"{COMMANDS[name].capitalize()}.", asked=rest
        )
        command.add_arguments(parser)
        with redirect_stdout(escape.Terminal(sys.stdout)):
            command.run(parser.parse_args(rest))
    except (AqaError, ImportError, OSError) as error:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        print(escape.terminal(f"error: {where}{getattr(error, 'strerror', None) or error}"), file=sys.stderr)
        return 2
    except ValueError:
        if not WITHOUT_DOCSTRINGS:
            raise
        print(
            "error: transformers does not work without docstrings: unset PYTHONOPTIMIZE, or drop -OO.", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt as stopped:
        resumes = name in ("train", "sft", "align")
        again = "with --resume continues from the last checkpoint" if resumes else "resumes here"
        print(escape.terminal(str(stopped) or f"stopped; the same command {again}."), file=sys.stderr)
        return 130
    return 0


def for_people() -> None:
    """Make what is printed and logged fit for a terminal, whatever its locale can write."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # where a locale has no letter of a name
    for handler in logging.root.handlers:
        handler.setFormatter(escape.Formatter("%(message)s"))


def join_processes() -> None:
    """Join the processes that torchrun started, if any; only the first one prints."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from .runtime import distributed

        distributed.start()
        if distributed.rank_and_world_size()[0]:
            sys.stdout = open(os.devnull, "w")
            logging.disable(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())

"""Keep what took long to make, so that a notebook runs alone in minutes and after its neighbours in seconds.

`[artifacts] -> recipes -> notebooks`. An artifact is a folder whose name holds a hash of what made it: the scale, the
settings, the contents of question files and models, and the code that ran (its syntax tree: a changed comment throws
nothing away). So a stale one is never loaded, and an interrupted one is resumed. Everything lies under `artifacts/`, or
where AQA_ARTIFACTS points; delete it at any time.
"""

import ast
import hashlib
import inspect
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

from .. import scale
from ..runtime import contents, locks
from ..tiny import synth
from . import kernel

PACKAGE = Path(__file__).parents[1]
VARIABLE = scale.ARTIFACTS
RECORD = "artifact.json"  # what made a folder; written last


def folder() -> Path:
    """Return the folder of all artifacts."""
    return scale.artifacts()


def load_or_build(name: str, build: Callable, **settings) -> Path:
    """Return the folder that `build(folder, **settings)` fills, or that it filled before from the same inputs.

    name: what a person calls it. settings: anything JSON can hold; the scale and the code are added to them. build gets
    a folder that may hold what an interrupted call left, and should resume it. Prints which of the two it did. Raises
    what build raises; nothing half-made is ever returned. A notebook's cell that is interrupted ends in one line.
    """
    made_by = {
        "scale": repr(scale.get()),
        "code": code_version(build),
        "settings": settings,
        "inputs": inputs(settings),
    }
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:12]
    done = folder() / f"{name}-{digest}"
    draft = folder() / f".{name}-{digest}"
    if not (done / RECORD).is_file():
        folder().mkdir(parents=True, exist_ok=True)
        with locks.hold(f"{draft}.lock", name, wait=math.inf):  # another notebook may be making it
            if not (done / RECORD).is_file():
                print(f"{name}: {'resuming what was interrupted' if draft.exists() else 'not there yet, making it'}")
                draft.mkdir(parents=True, exist_ok=True)
                with kernel.one_line_when_interrupted(name):
                    build(draft, **settings)
                (draft / RECORD).write_text(json.dumps({"name": name} | made_by, indent=1), encoding="utf-8")
                draft.replace(done)
                return done
    print(f"{name}: found, made before by the same code and settings")
    return done


def inputs(settings: dict) -> dict[str, str]:
    """Hash the files that a build reads: the scale's questions and model, and what its settings name.

    A hub id stands for its files: the hub's cache keeps them by their hashes.
    """
    here = scale.get()
    if here.train.parent == scale.TINY:
        synth.write(scale.TINY)  # before it is hashed, not after
    named = {"model": here.model, "train": here.train, "held_out": here.held_out, "test": here.test} | settings
    found = {key: contents.digest(path) for key, path in named.items() if isinstance(path, str | Path)}
    return {key: digest for key, digest in found.items() if digest}


def code_version(function: Callable) -> str:
    """Hash what a function's code does: its module and all of `aqa_lib` that this imports, without docstrings.

    For a function that was defined in a notebook: its own text and the whole package.
    """
    module = inspect.getmodule(function)
    file = Path(getattr(module, "__file__", None) or "")
    if PACKAGE in file.parents:
        codes = [meaning(path.read_text(encoding="utf-8")) for path in sorted(imports(file))]
    else:
        own = inspect.getsource(function)
        codes = [own, *(meaning(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py")))]
    return hashlib.sha256("".join(codes).encode()).hexdigest()[:12]


def meaning(source: str) -> str:
    """Return a module's syntax tree as text, without what changes nothing: comments, docstrings, layout.

    >>> meaning("def f():\\n    'Say one.'\\n    return 1  # one") == meaning("def f(): return 1")
    True
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            body[:1] = [] if len(body) > 1 else [ast.Pass()]
    return ast.dump(tree)


@cache
def imports(file: Path) -> frozenset[Path]:
    """List a module's file and those of `aqa_lib` that it imports, directly or through others."""
    found, waiting = set(), [file]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("aqa_lib")):
                here = file.parents[node.level - 1] if node.level else PACKAGE
                module = here.joinpath(*((node.module or "").removeprefix("aqa_lib").strip(".").split(".")))
                named = [module.with_suffix(".py"), *(module / f"{alias.name}.py" for alias in node.names)]
                waiting += [path for path in named if path.is_file()]
    return frozenset(found)

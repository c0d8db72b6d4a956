"""Keep what took long to make, so that a notebook runs alone in minutes and after its neighbours in seconds.

`[artifacts] -> recipes -> notebooks`. An artifact is a folder whose name holds a hash of what made it: the scale, the
settings, and the source of the code that was at work. So a stale one is never loaded, and one that was interrupted is
gone on with. Everything lies under `artifacts/`, or where AQA_ARTIFACTS points; delete it at any time.
"""

import ast
import hashlib
import inspect
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from . import scale

PACKAGE = Path(__file__).parent
VARIABLE = "AQA_ARTIFACTS"
RECORD = "artifact.json"  # what made a folder; written last


def folder() -> Path:
    """Return the folder of all artifacts."""
    return Path(os.environ.get(VARIABLE) or scale.ROOT / "artifacts")


def load_or_build(name: str, build: Callable, **settings) -> Path:
    """Return the folder that `build(folder, **settings)` fills, or that it filled before from the same things.

    name: what a person calls it. settings: what JSON can hold; the scale and the code come by themselves. build gets a
    folder that may hold what an interrupted call left, and should go on with it. Says which of the two it did. Raises
    what build raises; nothing half-made is ever returned.
    """
    made_by = {"scale": repr(scale.get()), "code": code_version(build), "settings": settings}
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:12]
    done = folder() / f"{name}-{digest}"
    if (done / RECORD).is_file():
        print(f"{name}: found, made before by the same code and settings")
        return done
    draft = folder() / f".{name}-{digest}"
    print(f"{name}: {'going on with what was interrupted' if draft.exists() else 'not there yet, making it'}")
    draft.mkdir(parents=True, exist_ok=True)
    build(draft, **settings)
    (draft / RECORD).write_text(json.dumps({"name": name} | made_by, indent=1), encoding="utf-8")
    draft.replace(done)
    return done


def code_version(function: Callable) -> str:
    """Hash the source that a function runs: its module and all of `aqa_lib` that this imports.

    Of a function that was typed in a notebook: its own text and the whole package.
    """
    module = inspect.getmodule(function)
    file = Path(getattr(module, "__file__", None) or "")
    if file.parent == PACKAGE:
        texts = [path.read_bytes() for path in sorted(imports(file))]
    else:
        texts = [inspect.getsource(function).encode(), *(path.read_bytes() for path in sorted(PACKAGE.glob("*.py")))]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:12]


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
                module = (node.module or "").removeprefix("aqa_lib").strip(".")
                names = [module] if module else [alias.name for alias in node.names]
                waiting += [path for name in names if (path := PACKAGE / f"{name}.py").is_file()]
    return frozenset(found)

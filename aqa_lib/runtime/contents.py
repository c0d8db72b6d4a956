"""Tell what files hold, cheaply: so that a replaced model or question file is not taken for the one before.

`[contents] -> training, artifacts`. Names say little: a folder called `runs/sft` holds another model after the next
training. A file is hashed once for each size and time of change that it is found with.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

from .files import sha256

# What makes a saved model what it is; not its optimizer, its curves or its checkpoints.
WEIGHTS = ("*.safetensors", "*.bin", "config.json", "adapter_config.json", "tokenizer.json", "chat_template.*")


def digest(path: str | Path) -> str | None:
    """Hash a file, or the weights and settings of a model's folder; None where there is neither."""
    path = Path(path)
    if path.is_file():
        return _of(path)
    files = sorted({file for pattern in WEIGHTS for file in path.glob(pattern)}) if path.is_dir() else []
    if not files:
        return None
    return hashlib.sha256("".join(f"{file.name} {_of(file)}\n" for file in files).encode()).hexdigest()


def _of(file: Path) -> str:
    state = file.stat()
    return _hash(str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=1024)
def _hash(path: str, size: int, changed: int, number: int) -> str:
    return sha256(path)

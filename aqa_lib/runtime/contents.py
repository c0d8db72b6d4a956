"""Identify files by content, cheaply, so that a replaced model or question file is not mistaken for the old one.

`[contents] -> training, artifacts`. Names say little: a folder called `runs/sft` holds a different model after the next
training run. A file is hashed again only when its size or modification time has changed.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

from .files import sha256

# The files that define a saved model, as opposed to its optimizer, its curves and its checkpoints.
WEIGHTS = ("*.safetensors", "*.bin", "config.json", "adapter_config.json", "tokenizer.json", "chat_template.*")


def digest(path: str | Path) -> str | None:
    """Hash a file, or the weights and settings in a model's folder; None if there is neither."""
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

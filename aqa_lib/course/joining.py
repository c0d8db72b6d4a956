"""Join, align, train and test a model of two parts in one call each, and keep what was made: notebook 08.

`assembly, real, artifacts -> [joining] -> notebook 08`. At the scale `small` the parts are pretrained ones of a hub or
of folders, and the clips yours. At any scale without clips of its own, the parts are the tiny base taken apart
(`tiny.parts`), and the clips the tiny world's.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch

from .. import model, scale
from ..assembly import align, assemble, facts
from ..assembly.align import AlignConfig
from ..scale import Scale
from ..tiny import parts
from . import artifacts, real
from .lab import Trial

STEPS, RATE = 30, 1e-4  # of a notebook's trials; the study chooses its rates


def made_of() -> Scale:
    """Return the scale, with the parts and clips of the tiny world where it has no clips of its own."""
    here = scale.get()
    if here.facts:
        return here
    folder = parts.write(scale.TINY.with_name("parts"))
    named = {"encoder": folder / parts.ENCODER, "language_model": folder / parts.LANGUAGE_MODEL}
    return replace(here, **{key: str(value) for key, value in named.items()}, facts=folder / parts.CLIPS)


def joined() -> Path:
    """Join the scale's two parts, or find the model where it was made before."""
    here = made_of()
    return artifacts.load_or_build("joined", join, encoder=here.encoder, language_model=here.language_model)


def join(folder: Path, encoder: str, language_model: str) -> None:
    made, processor = assemble.assemble(encoder, language_model)
    model.save(made, processor, folder, torch.float32)


def aligned(base: Path) -> Path:
    """Teach a joined model to say what it hears, or find it where it was made before; `alignment.json` says how."""
    return artifacts.load_or_build("aligned", teach, base=str(base), clips=str(made_of().facts))


def teach(folder: Path, base: str, clips: str) -> None:
    options = scale.get().align | {"output_dir": str(folder), "report_to": "none", "disable_tqdm": True}
    args = AlignConfig(**options)
    train, held_out = facts.parts(facts.read(clips), 0.1, args.seed)
    align.align(base, train, held_out, args, "float32", resume=True)


def tested(method: str, aligned: Path, wrong: float = 0.0, rate: float = RATE, seed: int = 0) -> dict:
    """Train an aligned model by a method ("base": not at all) and test it, or find the row that was made before."""
    steps = min(STEPS, scale.get().grpo["max_steps"])
    trial = {"method": method, "wrong": wrong, "rate": rate, "steps": steps, "seed": seed}
    trial |= {} if method != real.BASE.method else {"wrong": 0.0, "rate": 0.0, "steps": 0, "seed": 0}
    named = {"aligned": str(aligned), "clips": str(made_of().facts)}
    folder = artifacts.load_or_build(f"real-{method}", test, **named, **trial)
    return json.loads((folder / "row.json").read_text(encoding="utf-8"))


def test(folder: Path, aligned: str, clips: str, **trial) -> None:
    material = real.Material(aligned, tuple(facts.read(clips)))
    row = real.run(Trial(**trial), folder / "run", material)
    (folder / "row.json").write_text(json.dumps(row), encoding="utf-8")

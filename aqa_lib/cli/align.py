"""`align`: teach an assembled model to say what it hears."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field

from .. import scale as scales
from . import options


@dataclass
class AlignArguments:
    """Where an alignment takes its model and clips from. Defaults: the scale's."""

    model: str = field(default=None, metadata={"help": "Folder or hub id of the model, such as `assemble` makes."})
    train: str = field(
        default=None,
        metadata={"help": "Clips with facts: CSV, JSON lines or hub:NAME; its splits align and held_out are used."},
    )
    held_out: str | None = field(default=None, metadata={"help": "Clips with facts that rank the checkpoints."})
    held_out_fraction: float = field(
        default=0.1, metadata={"help": "Without --held_out and splits: the share of the clips that is held out."}
    )
    audio: str | None = field(default=None, metadata={"help": "Folder of the clips; the file's if not given."})
    columns: str | None = field(
        default=None,
        metadata={"help": "OURS=THEIRS,...: names in the file of id, audio, task, split and of each fact."},
    )
    dtype: str = field(default="float32", metadata={"help": "Type of the weights: auto, float32, bfloat16, float16."})
    resume: bool = field(default=False, metadata={"help": "Resume what was interrupted in --output_dir."})


def add_arguments(parser: ArgumentParser) -> None:
    from ..assembly.align import AlignConfig

    scale = scales.get()
    small = scale if scale.facts else scales.SCALES["small"]
    defaults = {"model": small.base, "train": str(small.facts), "output_dir": str(scales.SMALL / "aligned")}
    options.add_config(parser, AlignArguments, AlignConfig, defaults | small.align)


def run(args: Namespace) -> None:
    from ..architectures import foreign
    from ..assembly import align, facts

    options.quiet()
    what, config = options.configured(args, AlignArguments, align.AlignConfig)
    print(f"aligning {what.model} with {what.train}, into {config.output_dir}")
    foreign.refuse_missing(what.model)
    clips = facts.read(what.train, what.audio, what.columns)
    if what.held_out:
        train, held_out = clips, facts.read(what.held_out, what.audio, what.columns)
    else:
        train, held_out = facts.parts(clips, what.held_out_fraction, config.seed)
    print(f"{len(train)} clips to learn from, {len(held_out)} held out")
    labels = options.sources(train=what.train, held_out=what.held_out)
    report = align.align(what.model, train, held_out, config, what.dtype, what.resume, labels)
    print(f"{align.told(report)}\nsaved the model and {align.REPORT} to {config.output_dir}")

"""`assemble`: an audio-language model from a Whisper encoder and a language model."""

from argparse import ArgumentParser, Namespace

from .. import scale as scales
from . import options

DTYPES = ("bfloat16", "float32", "float16")


def add_arguments(parser: ArgumentParser) -> None:
    small, option = scales.SCALES["small"], parser.add_argument
    option("--out", default=small.base, help="folder for the model and its processor")
    option("--encoder", default=small.encoder, help="folder or hub id of a Whisper model, whose encoder is used")
    option(
        "--language_model",
        default=small.language_model,
        help="folder or hub id of a causal language model, or a GGUF file",
    )
    option("--dtype", choices=DTYPES, default=DTYPES[0], help="type of the saved weights")
    option("--seed", type=int, default=0, help="of the projector and the new embeddings")


def run(args: Namespace) -> None:
    import torch

    from .. import model as models
    from ..assembly import assemble
    from ..runtime import faults

    options.quiet()
    faults.check_writable(args.out)
    model, processor = assemble.assemble(args.encoder, args.language_model, args.seed)
    models.save(model, processor, args.out, getattr(torch, args.dtype))
    parts = models.parts(model)
    tower, lm = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (parts.audio_tower, parts.language_model))
    print(
        f"{args.out}: {tower:.1f} M of {args.encoder} and {lm:.1f} M of {args.language_model}, joined by an untrained "
        f"projector; teach it to say what it hears: python -m aqa_lib align --model {args.out}"
    )

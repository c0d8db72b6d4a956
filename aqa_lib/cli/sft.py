"""`sft`: train a model on the right answers, the baseline that the paper compares GRPO with."""

from argparse import ArgumentParser, Namespace

from .. import scale as scales
from ..runtime.errors import AqaError
from . import options
from .train import train


def add_arguments(parser: ArgumentParser) -> None:
    from ..sft import SFTConfig

    options.add_training(parser, SFTConfig, scales.get(), "sft")
    parser.set_defaults(learning_rate=None)


def run(args: Namespace) -> None:
    from ..sft import LORA_RATE, SFTConfig, SFTTrainer

    scale = scales.get()
    if args.rewards:
        raise AqaError("--rewards has no effect in sft, which learns from answers; leave it out.")
    if args.learning_rate is None:  # the scale's rate is for all weights
        adapters = args.lora_r not in (None, "none") and not scale.lora_r
        rate = scale.sft.get("learning_rate", SFTConfig.learning_rate)
        args.learning_rate = rate * LORA_RATE if adapters else rate
    what, config = options.training(args, SFTConfig, scale)

    def trainer(policy, processor, questions, held_out):
        return SFTTrainer(policy, processor, config, questions, held_out)

    train(scale, what, config, trainer)

"""`train`: train a model with GRPO. `sft` is the same command with another trainer."""

from argparse import ArgumentParser, Namespace
from copy import copy

from .. import scale as scales
from . import options


def add_arguments(parser: ArgumentParser) -> None:
    from ..grpo import GRPOConfig

    options.add_training(parser, GRPOConfig, scales.get(), "train")


def run(args: Namespace) -> None:
    from .. import reward
    from ..grpo import GRPOConfig, GRPOTrainer

    scale = scales.get()
    what, config = options.training(args, GRPOConfig, scale)
    rewards = [reward.get(name) for name in what.rewards or ("accuracy", reward.form_of(config.prompt_style).__name__)]

    def trainer(policy, processor, questions, held_out):
        return GRPOTrainer(policy, processor, rewards, config, questions, held_out)

    train(scale, what, config, trainer)


def train(scale: scales.Scale, what: options.TrainArguments, config, make_trainer) -> None:
    """Read the questions, load the model, train, and save.

    make_trainer: takes the model, its processor, the training questions and the held-out ones.
    """
    from ..architectures import foreign
    from ..runtime import checkpoints, locks

    options.quiet()
    print(f"{scale}\ntraining {what.model} on {what.train}, into {config.output_dir}")
    if not what.resume:
        checkpoints.refuse_other_run(config.output_dir, None)  # now, before a model is loaded
    foreign.refuse_missing(what.model)
    refuse_too_large(what, config)
    with locks.reading(what.train, what.held_out):
        _train(what, config, make_trainer)


def _train(what: options.TrainArguments, config, make_trainer) -> None:
    from transformers import set_seed

    from .. import dataset, model
    from ..reading import recordings
    from ..runtime import checkpoints
    from ..training import proof, record

    options.ensure_tiny(what.train)
    reading = {"audio_root": what.audio, "on_error": "skip" if what.skip_bad_rows else "raise", "columns": what.columns}
    questions, held_out = dataset.read(what.train, **reading), None
    if config.eval_strategy != "no":
        if what.held_out:
            held_out = dataset.read(what.held_out, **reading)
            if leaks := recordings.shared(questions, held_out):
                print(f"warning: {leaks} of {len(held_out)} held-out questions use recordings from the training set")
        else:
            questions, held_out = dataset.split(questions, what.held_out_fraction, config.seed)
    set_seed(config.seed)  # adapters start at random
    lora = {"r": what.lora_r} if what.lora_r else None
    device = "cpu" if config.fsdp else config.device  # from there each process takes its part to its GPU
    policy, processor = model.load(what.model, what.dtype, device, what.train_parts, lora, what.quantization)
    trainer = make_trainer(policy, processor, questions, held_out)
    trainer.labels = {"model": what.model} | options.sources(train=what.train, held_out=what.held_out)
    if what.resume and not checkpoints.in_order(config.output_dir):
        print(f"no checkpoint in {config.output_dir} yet: starting from the base")
    trainer.train(resume_from_checkpoint=what.resume or None)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        print(proof.markdown(record.learned(config.output_dir)))
    print(f"saved the model to {config.output_dir}, its curves to {config.output_dir}/metrics.csv")
    if doubt := trainer.doubt():
        print(f"warning: {doubt}.")


def refuse_too_large(what: options.TrainArguments, config) -> None:
    """Refuse a run that will not fit its device, before its model is loaded."""
    from ..architectures import foreign
    from ..large import planner

    if planner.card(config):
        try:
            shape = planner.skeleton(what.model, what.train_parts, what.lora_r, what.dtype)
        except foreign.ModelError:
            return  # loading says what is wrong
        planner.settle(planner.ModelSizes.of(shape, what.quantization), copy(config))

"""Make each row of the paper in one call, at whatever scale: what the notebooks and the demonstration share.

`trainer, sft, evaluation, artifacts -> [recipes] -> notebooks`. Each recipe fills a folder and resumes one that
was interrupted; `row` keeps what they made and finds it again. Checkpoints are ranked on held-out training questions,
never on the test set as in the paper.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import set_seed
from transformers.utils import logging

from .. import dataset, evaluation, model, reward, scale
from ..architectures import foreign
from ..dataset import Question
from ..grpo import GRPOConfig, GRPOTrainer
from ..results import paper
from ..runtime.errors import AqaError
from ..sft import LORA_RATE, SFTConfig, SFTTrainer
from ..tiny import synth
from . import artifacts, live

logging.disable_progress_bar()  # "Loading weights", in every cell that loads a model
LORA_R = 16  # rank of the adapters of the paper's LoRA row, which it does not name
REWARDS = {style: ("accuracy", reward.form_of(style).__name__) for style in (1, 2, 3)}


@dataclass(frozen=True)
class Questions:
    """The questions of a scale: to train on, to rank checkpoints on, to test on."""

    train: list[Question]
    held_out: list[Question]
    test: list[Question]


def questions(seed: int = 0) -> Questions:
    """Read the scale's questions, making the tiny world's clips where they are not there yet (10 s).

    seed: of the split, where the scale names no held-out questions of its own.
    """
    here = scale.get()
    foreign.refuse_missing(here.model)  # before anything is made for it
    if here.train.parent == scale.TINY:
        synth.write(scale.TINY)
    train, test = dataset.read(here.train), dataset.read(here.test)
    if here.held_out:
        return Questions(train, dataset.read(here.held_out), test)
    return Questions(*dataset.split(train, here.held_out_fraction, seed), test)


def policy(path: str | Path | None = None, lora_r: int | None = None, seed: int = 0):
    """Load `(model, processor)` from a folder, or the scale's base where none is named.

    lora_r: rank of new adapters, which start at random by the seed; the scale's own where not given.
    """
    here, rank = scale.get(), lora_r or scale.get().lora_r
    set_seed(seed)
    lora = {"r": rank} if rank else None
    return model.load(path or here.model, here.dtype, lora=lora, quantization=here.quantization)


def grpo(folder: str | Path, style: int = 2, seed: int = 0, **options) -> GRPOTrainer:
    """Train the scale's base with GRPO into a folder; style: prompt 2 or 3, options: of `GRPOConfig`."""
    asked, (base, processor) = questions(seed), policy(seed=seed)
    args = _options("grpo", folder, seed, prompt_style=style, **options)
    trainer = GRPOTrainer(base, processor, REWARDS[style], GRPOConfig(**args), asked.train, asked.held_out)
    return _finish(trainer, folder)


def sft(folder: str | Path, lora_r: int | None = None, seed: int = 0, **options) -> SFTTrainer:
    """Train the scale's base on the right answers into a folder: all weights, or adapters of rank `lora_r`."""
    asked, (base, processor) = questions(seed), policy(lora_r=lora_r, seed=seed)
    args = SFTConfig(**_options("sft", folder, seed, **options))
    if lora_r and not scale.get().lora_r and "learning_rate" not in options:
        args.learning_rate *= LORA_RATE  # the scale's rate is for all weights
    return _finish(SFTTrainer(base, processor, args, asked.train, asked.held_out), folder)


def _options(method: str, folder: str | Path, seed: int, **options) -> dict:
    mine = {"output_dir": str(folder), "seed": seed, "report_to": "none"}
    return getattr(scale.get(), method) | mine | options


def _finish(trainer: GRPOTrainer | SFTTrainer, folder: str | Path):
    """Train, from the last checkpoint where there is one, and save the best held-out model."""
    live.attach(trainer)
    trainer.train(resume_from_checkpoint=any(Path(folder).glob("checkpoint-*")) or None)
    trainer.save_model()
    trainer.save_state()
    return trainer


def answers(
    folder: str | Path,
    path: str | Path | None = None,
    style: int = 2,
    controls: Sequence[str] = (),
    file: str = "predictions.jsonl",
    **labels,
) -> list[dict]:
    """Ask a model all test questions, greedily; writes `file` into a folder, or resumes the one that is there.

    path: the model's folder, the scale's base where not given. controls: of `predictions.CONTROLS`, each into a file
    beside. labels: what the record says of the run, as `method` and `train_seed`.
    """
    here, test = scale.get(), questions().test
    asked, processor = model.load(path or here.model, here.dtype, train=(), quantization=here.quantization)
    options = {
        "style": style,
        "batch_size": here.grpo.get("per_device_eval_batch_size", GRPOConfig.per_device_eval_batch_size),
        "max_completion_length": here.max_completion_length,
        "data": here.test,
        "labels": {"scale": here.name} | labels,
    }
    rows = evaluation.predict(asked, processor, test, Path(folder) / file, **options)
    evaluation.predict_controls(asked, processor, test, Path(folder) / file, controls, **options)
    return rows


@dataclass(frozen=True)
class Row:
    """One row of the paper, made here. model: a folder or hub id; training: its folder, None for the base."""

    name: str
    model: str
    training: Path | None
    predictions: Path

    @property
    def metrics(self) -> Path:
        """The curves of the training."""
        return self.training / "metrics.csv"


def _training(method: str, style: int) -> tuple[Callable, dict] | None:
    """Say how a row is trained: the recipe and its settings; None for the base."""
    adapters = {"lora_r": LORA_R} if method == "sft-lora" else {}
    return {"base": None, "grpo": (grpo, {"style": style})}.get(method, (sft, adapters))


def row(name: str, seed: int = 0, controls: Sequence[str] = ()) -> Row:
    """Train and test a row of the paper, or find it where it was made before.

    name: one of `paper.OURS`, the method and the prompt that it is tested with.
    """
    if name not in paper.OURS:
        raise AqaError(f"no row is named {name!r}; choose from {', '.join(paper.OURS)}.")
    method, _, style = name.rpartition("-")
    training, labels = None, {"method": method}
    if how := _training(method, int(style)):
        recipe, settings = how
        training = artifacts.load_or_build(f"{name}-seed{seed}", recipe, seed=seed, **settings)
        labels["train_seed"] = seed
    settings = {"path": str(training) if training else None, "style": int(style), "controls": list(controls)}
    tested = artifacts.load_or_build(f"{name}-seed{seed}-answers", answers, **settings, **labels)
    return Row(name, str(training or scale.get().model), training, tested / "predictions.jsonl")

"""One dial for four machines: a laptop for minutes or for hours, a Colab GPU, an 80 GB card.

`AQA_SCALE=tiny|small|colab|full` picks a frozen `Scale`. A scale changes sizes and names, never logic: the same
classes, loaders, trainer and scorer run at each. `AQA_MAX_STEPS=10` cuts every training run short, so that you can see
a notebook run to its end before you spend the hours.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from .runtime.errors import AqaError

ROOT = Path(__file__).resolve().parents[1]
VARIABLE = "AQA_SCALE"
SHORTER = "AQA_MAX_STEPS"
ARTIFACTS = "AQA_ARTIFACTS"
CHECKOUT = (ROOT / "pyproject.toml").is_file()  # else ROOT is where packages are installed


@dataclass(frozen=True)
class Scale:
    """What to run on a machine: model, data, and the training options that differ from the paper's.

    model: folder or hub id. train: questions in AVQA's format, of which `held_out_fraction` ranks the checkpoints
    unless `held_out` names a file. test: questions in MMAU's format. memory: GB of the machine's GPU. batch_size:
    questions that `evaluate` asks at a time. grpo, sft, align: options of `GRPOConfig`, `SFTConfig` and `AlignConfig`.
    encoder, language_model: what `assemble` joins into `base`, which `align` turns into `model` with the clips `facts`.
    """

    name: str
    machine: str
    model: str
    train: Path
    test: Path
    held_out: Path | None = None
    held_out_fraction: float = 0.02
    dtype: str = "auto"
    quantization: str | None = None
    lora_r: int | None = None
    memory: float | None = None
    batch_size: int = 32
    max_completion_length: int = 256
    grpo: dict = field(default_factory=dict)
    sft: dict = field(default_factory=dict)
    align: dict = field(default_factory=dict)
    encoder: str = "openai/whisper-tiny.en"
    language_model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    base: str = ""
    facts: Path | None = None

    def __str__(self) -> str:
        line = f"scale {self.name} ({self.machine}): {self.model}, trained on {self.train}, tested on {self.test}"
        return line.replace(f"{ROOT}{os.sep}", "")  # paths relative to the repository's root


def artifacts() -> Path:
    """Return the folder for all that is made once and kept: AQA_ARTIFACTS, the checkout's own, or the user's cache."""
    if asked := os.environ.get(ARTIFACTS):
        return Path(asked)
    if _writable(ROOT / "artifacts"):
        return ROOT / "artifacts"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aqa_lib"


def _writable(folder: Path) -> bool:
    """Return whether the checkout's artifacts can be written; an installed package has no checkout around it."""
    return CHECKOUT and os.access(folder if folder.exists() else folder.parent, os.W_OK)


def tiny() -> Path:
    """Return the folder of the tiny world: the checkout's if it already exists, else one among the artifacts."""
    own = ROOT / "artifacts" / "tiny"
    return own if _writable(own.parent) and (own / "fingerprint.json").is_file() else artifacts() / "tiny"


TINY = tiny()
SMALL = artifacts() / "small"  # models that `assemble` and `align` make
DATA = (ROOT if CHECKOUT else Path()) / "data"  # for an installed package, under the current folder
SCALES = {
    "tiny": Scale(
        name="tiny",
        machine="a laptop, 2 cores, no downloads",
        model=str(ROOT / "data" / "tiny" / "model"),
        train=TINY / "train.jsonl",
        held_out=TINY / "val.jsonl",
        test=TINY / "test.json",
        dtype="float32",
        max_completion_length=32,
        grpo={
            "max_steps": 150,
            "learning_rate": 1e-4,
            "max_completion_length": 32,
            "beta": 0.0,
            "logging_steps": 5,
            "eval_steps": 50,
            "save_steps": 50,
            "per_device_eval_batch_size": 75,
        },
        sft={  # the budget and the rate of GRPO
            "max_steps": 150,
            "learning_rate": 1e-4,
            "max_completion_length": 32,
            "eval_steps": 50,
            "save_steps": 50,
            "per_device_eval_batch_size": 75,
        },
        align={  # of the tiny base, taken apart; short enough to leave something to learn
            "projector_steps": 40,
            "max_steps": 8,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 60,
            "max_completion_length": 16,
            "eval_steps": 8,
            "save_steps": 8,
            "first_learning_rate": 3e-3,
            "projector_learning_rate": 1e-3,
            "learning_rate": 3e-4,
            "logging_steps": 8,
        },
    ),
    "small": Scale(  # steps and rates of docs/real_recordings.md, which were measured on a CPU
        name="small",
        machine="a laptop for hours, or any GPU",
        base=str(SMALL / "base"),
        model=str(SMALL / "aligned"),
        facts=DATA / "small" / "facts.jsonl",
        train=DATA / "small" / "train.jsonl",
        test=DATA / "small" / "test.jsonl",
        held_out_fraction=0.1,
        dtype="float32",
        max_completion_length=16,
        align={
            "projector_steps": 120,
            "max_steps": 180,
            "per_device_train_batch_size": 8,
            "max_completion_length": 16,
            "eval_steps": 60,
            "save_steps": 60,
        },
        grpo={
            "max_steps": 40,
            "learning_rate": 3e-5,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 16,
            "max_completion_length": 16,
            "beta": 0.0,
            "eval_steps": 20,
            "save_steps": 20,
        },
        sft={  # the budget of GRPO
            "max_steps": 40,
            "learning_rate": 3e-5,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 16,
            "max_completion_length": 16,
            "eval_steps": 20,
            "save_steps": 20,
        },
    ),
    "colab": Scale(
        name="colab",
        machine="one GPU of 16 to 24 GB",
        model="Qwen/Qwen2-Audio-7B-Instruct",
        train=DATA / "avqa" / "train.jsonl",
        test=DATA / "mmau" / "mmau-test-mini.json",
        held_out_fraction=0.01,
        quantization="4bit",
        lora_r=16,
        memory=16,
        batch_size=8,  # 32 with clips of 30 s would take 17 GB of cache
        grpo={
            "bf16": True,  # float16 if the GPU has no bfloat16
            "max_steps": 200,
            "learning_rate": 1e-5,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 8,
            "max_completion_length": 64,
            "gradient_checkpointing": True,
            "dataloader_num_workers": 2,
        },
        sft={
            "bf16": True,
            "max_steps": 200,
            "learning_rate": 1e-5,  # GRPO's, for the same adapters
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 8,
            "max_completion_length": 64,
            "gradient_checkpointing": True,
            "dataloader_num_workers": 2,
        },
    ),
    "full": Scale(
        name="full",
        machine="one GPU of 80 GB",
        model="Qwen/Qwen2-Audio-7B-Instruct",
        train=DATA / "avqa" / "train.jsonl",
        test=DATA / "mmau" / "mmau-test-mini.json",
        dtype="bfloat16",
        memory=80,
        # workers decode the next step's clips, and compute their mels, during the current step
        grpo={"bf16": True, "gradient_checkpointing": True, "dataloader_num_workers": 4},
        sft={"bf16": True, "gradient_checkpointing": True, "dataloader_num_workers": 4},
    ),
}


def get(name: str | None = None) -> Scale:
    """Return a scale by name, or the one that AQA_SCALE names; tiny if it is not set.

    >>> get("tiny").name
    'tiny'
    """
    name = name or os.environ.get(VARIABLE) or "tiny"
    if name not in SCALES:
        raise AqaError(f"no scale is named {name!r}; set {VARIABLE} to one of {', '.join(SCALES)}.")
    scale, steps = SCALES[name], os.environ.get(SHORTER, "")
    if not steps:
        return scale
    if not steps.isdecimal() or int(steps) < 1:
        raise AqaError(f"{SHORTER}={steps!r} must be a positive whole number; change or unset it.")
    fewer = {option: int(steps) for option in ("max_steps", "eval_steps", "save_steps")}
    return replace(
        scale,
        grpo=scale.grpo | fewer,
        sft=scale.sft | fewer,
        align=scale.align | fewer | {"projector_steps": int(steps)},
    )

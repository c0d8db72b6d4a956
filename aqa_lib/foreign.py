"""Distrust what a model from elsewhere brings: code that would be fetched, adapters that do not fit, paths to nothing.

`[foreign] -> model`.
"""

import warnings
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig

from . import scale
from .runtime.errors import AqaError

ATTENTIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")  # installed, not fetched
KERNELS = ("attn_implementation", "experts_implementation", "use_kernels", "kernel_config")  # keys that may name others
SAFE = {"trust_remote_code": False}  # explicit: left open, transformers asks whether to run a model's own code


class ModelError(AqaError):
    """A model that cannot be used; its one sentence says why and what to do."""


def refuse_missing(name: str) -> None:
    """Raise ModelError for a folder that does not exist, which transformers would look for on the hub."""
    local = Path(name).is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1 or "\\" in name
    if not local or Path(name).is_dir():
        return
    if name == scale.SCALES["tiny"].model:
        raise ModelError(
            f"{name}: the tiny model is part of the repository and not of the installed package; clone the repository, "
            "or choose another scale (AQA_SCALE)."
        )
    raise ModelError(f"{name}: no such folder; check the path.")


def refuse_code(base: str) -> None:
    """Raise ModelError for a config that names kernels, which transformers would fetch from the hub and run."""
    waiting = [PreTrainedConfig.get_config_dict(base, **SAFE)[0]]
    while waiting:
        for key, value in waiting.pop().items():
            if key.strip("_").startswith(KERNELS):
                for name in value.values() if isinstance(value, dict) else [value]:
                    if name not in ATTENTIONS and (isinstance(name, str) or (name and "kernel" in key)):
                        raise ModelError(f"{base}: its config.json asks for code, {key} {name!r}; remove that line.")
            waiting += [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, dict)]


def with_saved_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """Put a saved adapter on a model; raises ModelError unless every weight of it is present and fits."""
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    try:
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
        largest = max((max(shape) for name, shape in shapes.items() if "lora_" in name), default=0)
        if (rank := PeftConfig.from_pretrained(folder).r) > largest:
            raise ModelError(f"{folder}: adapter_config.json claims rank {rank}, but no saved weight is that large.")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except (OSError, RuntimeError, AttributeError, KeyError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(f"{folder}: its adapter cannot be loaded ({first}); save it again.") from error
    wanted = len(get_peft_model_state_dict(model))
    if len(shapes) != wanted or any("missing adapter keys" in str(warning.message) for warning in told):
        raise ModelError(
            f"{folder}: its adapter's {len(shapes)} weights do not fit the {wanted} of the base, which would answer "
            "without them; use the base that it was trained on, or save it again."
        )
    return model

"""Distrust what a model from elsewhere brings: code that would be fetched, adapters that do not fit, paths to nothing.

`[foreign] -> model`.
"""

import json
import math
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig

from .. import scale
from ..runtime.errors import AqaError, reason
from ..runtime.escape import show

ATTENTIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")  # installed, not fetched
KERNELS = ("attn_implementation", "experts_implementation", "use_kernels", "kernel_config")  # keys that may name others
HUB_ID = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?(?<![.-])", re.ASCII)
JSON = "config generation_config processor_config preprocessor_config tokenizer_config tokenizer special_tokens_map"
JSON = (*JSON.split(), *"added_tokens chat_template adapter_config model.safetensors.index".split())
# Sizes of a processor, far beyond any model's, for which it would compute its filters for minutes.
LARGEST = {"feature_size": 1024, "n_fft": 2**16, "sampling_rate": 768_000, "chunk_length": 3_600}
SAFE = {"trust_remote_code": False}  # explicit: left open, transformers asks whether to run a model's own code


class ModelError(AqaError):
    """A model that cannot be used; its one sentence says why and what to do."""


@contextmanager
def told(name: str | Path, what: str) -> Iterator[None]:
    """Turn whatever a foreign model makes the libraries raise into one ModelError that names it.

    what: the part of it that is being read, as "config.json". Five libraries read its files, and each raises errors of
    its own classes if one is broken: none of it is our fault.
    """
    try:
        yield
    except (ModelError, torch.OutOfMemoryError):
        raise
    except AqaError as error:
        raise ModelError(f"{name}: {error}") from error
    except Exception as error:
        kind = "" if isinstance(error, OSError | ValueError | SafetensorError) else f"{type(error).__name__}: "
        raise ModelError(
            f"{name}: no model could be loaded, because of its {what} ({kind}{reason(error)}); give a hub id such as "
            "Qwen/Qwen2-Audio-7B-Instruct, or a folder that save_pretrained wrote."
        ) from error


def refuse_missing(name: str) -> None:
    """Raise ModelError for a folder that does not exist, which transformers would look for on the hub."""
    if (name and Path(name).is_dir()) or HUB_ID.fullmatch(name):
        return
    if name == scale.SCALES["tiny"].model:
        raise ModelError(
            f"{name}: the tiny model is part of the repository and not of the installed package; clone the repository, "
            "or choose another scale (AQA_SCALE)."
        )
    if name in (scale.SCALES["small"].base, scale.SCALES["small"].model):
        raise ModelError(
            f"{name}: the model of the small scale is not made yet; run `python -m aqa_lib assemble` and then "
            "`python -m aqa_lib align`, or choose another scale (AQA_SCALE)."
        )
    if Path(name).is_file():
        raise ModelError(f"{name}: is a file; give the folder that contains it.")
    raise ModelError(f"{name}: no such folder; check the path.")


def refuse_broken(name: str) -> None:
    """Raise ModelError for a folder with a JSON file that cannot be read, naming the file."""
    for file in (Path(name) / f"{stem}.json" for stem in JSON):
        if not file.exists():
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{file}: cannot be read ({reason(error)}); download or save the model again.") from error
        if not isinstance(found, dict):
            raise ModelError(f"{file}: holds {show(found)}, not an object; download or save the model again.")
        for key, value in _numbers(found):
            if value > LARGEST.get(key, math.inf):
                raise ModelError(f"{file}: {key} {value:g} is more than {LARGEST[key]}; download the model again.")


def _numbers(found: dict) -> Iterator[tuple[str, float]]:
    """Yield the numbers in an object and in those inside it, each with its key."""
    for key, value in found.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value


@contextmanager
def in_time(seconds: float, what: str) -> Iterator[None]:
    """Raise AqaError when what a foreign model brings takes too long; only the main thread, on POSIX, can be told."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number, frame):
        raise AqaError(f"its {what} took more than {seconds:g} s, as an endless one does; use another model's.")

    before = signal.signal(signal.SIGALRM, over)
    other = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *other)  # somebody else's, or none


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


def adapters_base(folder: str) -> str:
    """Return the name of the model that a saved adapter belongs to, as peft recorded it."""
    from peft import PeftConfig

    with told(folder, "adapter_config.json"):
        base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not base or not isinstance(base, str):
        raise ModelError(f"{folder}: adapter_config.json names no base_model_name_or_path; add the base model's name.")
    return base


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
    except ModelError:
        raise
    except Exception as error:  # as in `told`
        raise ModelError(f"{folder}: its adapter cannot be loaded ({reason(error)}); save it again.") from error
    wanted = len(get_peft_model_state_dict(model))
    if len(shapes) != wanted or any("missing adapter keys" in str(warning.message) for warning in told):
        raise ModelError(
            f"{folder}: its adapter's {len(shapes)} weights do not fit the {wanted} of the base, which would answer "
            "without them; use the base that it was trained on, or save it again."
        )
    return model

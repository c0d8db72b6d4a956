"""Distrust what a checkpoint holds: files of another run, of another step, cut, or of the wrong type.

`runtime.checkpoints -> [restoring] -> training.hf_trainer`. A checkpoint's list says that its files are as they were
written. It cannot say that they belong together: a list can be written anew, and a folder copied from another run.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import TrainerState

from ..runtime.checkpoints import NAME, CheckpointError
from ..runtime.errors import AqaError, reason
from ..runtime.escape import show

ADAPTER = "adapter_model.safetensors"
STATE = "trainer_state.json"
KINDS = {"global_step": int, "max_steps": int, "num_input_tokens_seen": int, "epoch": int | float, "log_history": list}
KINDS |= {"best_metric": int | float | None, "best_global_step": int | None, "best_model_checkpoint": str | None}
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW: as large as their weights


@contextmanager
def told(checkpoint: str | Path, file: str) -> Iterator[None]:
    """Turn whatever reading a file of a checkpoint makes the libraries raise into one CheckpointError that names it."""
    try:
        yield
    except (AqaError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of many classes, by what is broken
        kind = "" if type(error) in (ValueError, RuntimeError) else f"{type(error).__name__}: "
        raise wrong(checkpoint, file, f"{kind}{reason(error)}") from error


def wrong(checkpoint: str | Path, file: str, why: str) -> CheckpointError:
    """Return the error for a file that is as its list says and cannot be used."""
    return CheckpointError(f"{checkpoint}: its {file} does not belong there ({why}); resume from another checkpoint.")


def refuse_other_kind(checkpoint: str | Path, model: nn.Module) -> None:
    """Raise CheckpointError for adapters where a whole model is trained, and the reverse."""
    adapters = (Path(checkpoint) / "adapter_config.json").is_file() or (Path(checkpoint) / ADAPTER).is_file()
    if adapters == hasattr(model, "disable_adapter"):
        return
    holds, trains = ("adapters", "the whole model") if adapters else ("a whole model", "adapters (lora_r)")
    raise CheckpointError(
        f"{checkpoint} holds {holds}, and this run trains {trains}: it is another run's checkpoint; move it away, or "
        "train as it was trained."
    )


def state(checkpoint: Path) -> TrainerState:
    """Read how far a run had come; raises CheckpointError where that cannot be right."""
    with told(checkpoint, STATE):
        found = TrainerState.load_from_json(str(checkpoint / STATE))
        for name, kind in KINDS.items():
            value = getattr(found, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise wrong(checkpoint, STATE, f"{name} is {show(value)}")
        if odd := [row for row in found.log_history if not isinstance(row, dict)]:
            raise wrong(checkpoint, STATE, f"log_history holds {show(odd[0])}")
        named = NAME.fullmatch(checkpoint.name)
        if found.global_step < 0 or (named and found.global_step != int(named[1])):
            raise wrong(checkpoint, STATE, f"it is of step {found.global_step}")
    return found


def since_log(checkpoint: Path, file: str) -> dict:
    """Read what was recorded between the last log and the checkpoint."""
    with told(checkpoint, file):
        found = json.loads((checkpoint / file).read_text(encoding="utf-8"))
        means = {str(name): [float(value) for value in values] for name, values in found["means"].items()}
        return {"means": means, "cut": int(found["cut"])}


def refuse_other_weights(checkpoint: str | Path, model: nn.Module, found: dict) -> None:
    """Raise CheckpointError unless a checkpoint's weights have the names and shapes of the model's."""
    ours = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    _refuse_others(checkpoint, "weights", ours, {name: tuple(weight.shape) for name, weight in found.items()})


def refuse_other_adapters(checkpoint: str | Path, model: nn.Module) -> None:
    """Raise CheckpointError unless a checkpoint's adapters have the names and shapes of the model's."""
    from peft import get_peft_model_state_dict

    with told(checkpoint, ADAPTER), safe_open(Path(checkpoint) / ADAPTER, "pt") as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    ours = {name: tuple(weight.shape) for name, weight in get_peft_model_state_dict(model).items()}
    _refuse_others(checkpoint, ADAPTER, ours, theirs)


def _refuse_others(checkpoint: str | Path, file: str, ours: dict, theirs: dict) -> None:
    if odd := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
        shapes = f"{theirs.get(odd[0], 'absent')} there, {ours.get(odd[0], 'absent')} in this run"
        raise wrong(checkpoint, file, f"{odd[0]}: {shapes}; {len(odd)} differ")


def dials(optimizer: torch.optim.Optimizer, schedule) -> dict[str, list]:
    """Return what loading a state replaces and a run decides: rates, decay and the like of each group of weights."""
    groups = {name: [group.get(name) for group in optimizer.param_groups] for name in ("weight_decay", "betas", "eps")}
    return groups | {"learning rate": list(getattr(schedule, "base_lrs", ()))}


def refuse_other_dials(checkpoint: str | Path, file: str, ours: dict[str, list], theirs: dict[str, list]) -> None:
    """Raise CheckpointError where a loaded state has other `dials` than the run."""
    for name, values in ours.items():
        if values != theirs[name]:
            raise wrong(checkpoint, file, f"{name} {show(theirs[name])} there, {show(values)} in this run")


def refuse_other_steps(
    checkpoint: str | Path, files: tuple[str, str], optimizer: torch.optim.Optimizer, schedule, step: int, skips: bool
) -> None:
    """Raise CheckpointError if the state of an optimizer or its schedule is of other weights, or of another step.

    files: the names of both. skips: whether steps may have been left out (float16). Only torch's own are looked at:
    optimizers that keep weights in other forms give their states other shapes, too.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # without accelerate's wrapper
    if type(optimizer).__module__.startswith("torch."):
        for weight, values in optimizer.state.items():
            shapes = [values[name].shape for name in MOMENTS if isinstance(values.get(name), torch.Tensor)]
            if odd := [shape for shape in shapes if shape != weight.shape]:
                raise wrong(checkpoint, files[0], f"a moment of {tuple(odd[0])} for weights of {tuple(weight.shape)}")
            if float(taken := values.get("step", 0)) > step:
                raise wrong(checkpoint, files[0], f"it is of step {float(taken):g}")
    if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):  # others may count evaluations
        at = schedule.last_epoch
        if not isinstance(at, int) or at > step or (at < step and not skips):
            raise wrong(checkpoint, files[1], f"it is of step {show(at)}")

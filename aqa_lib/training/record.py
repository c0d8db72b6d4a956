"""Record how a run is made, in `run.json`, and refuse to resume it in a way that would falsify the record.

`[record] -> training.base`. Curves and models are read long after their commands are forgotten. So the record says what
they depend on and what changed each time the run was resumed, and never claims later settings for earlier steps.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from .. import predictions, scale
from ..runtime import contents, files
from ..runtime.faults import RunError

FILE = "run.json"
GROWS = ("max_steps", "num_train_epochs")  # a run may be made longer
# Options that change how a run is watched, saved or computed, not what it learns. All others must stay as they were.
HARMLESS = ("output_dir", "run_name", "report_to", "disable_tqdm", "project", "debug", "push_to_hub")
HARMLESS += ("load_best_model_at_end",)
HARMLESS += ("local_rank", "memory", "reference", "use_cpu", "deepspeed", "fsdp", "skip_memory_metrics", "tf32")
HARMLESS += ("max_tokens_per_forward", "checkpoint_above", "logits_chunk_size", "audio_cache_gb", "use_cache")
HARMLESS += ("resume_from_checkpoint", "enable_jit_checkpoint", "auto_find_batch_size", "ignore_data_skip")
HARMLESS += ("per_device_train_batch_size", "gradient_accumulation_steps", "dataset_num_proc", "accelerator_config")
HARMLESS += ("do_train", "do_eval", "do_predict", "prediction_loss_only", "batch_eval_metrics", "include_for_metrics")
HARMLESS_BEGINNINGS = ("logging_", "log_", "eval_", "per_device_eval_", "save_", "dataloader_", "hub_", "trackio_")
HARMLESS_BEGINNINGS += ("ddp_", "fsdp_", "gradient_checkpointing", "torch_compile", "torch_empty", "activation_")

logger = logging.getLogger(__name__)


def of(trainer) -> dict:
    """Return how a run is made: everything that its numbers depend on."""
    args, model = trainer.args, trainer.model
    asked = {"train": trainer.train_dataset.questions, "held_out": trainer.eval_dataset or ()}
    options = json.loads(args.to_json_string())  # tokens left out
    return {
        "trainer": type(trainer).__name__,
        "scale": scale.get().name,
        "seed": args.seed,
        "labels": trainer.labels,
        "rewards": getattr(trainer, "reward_names", None),
        "questions": {name: _questions(some) for name, some in asked.items()},
        "questions_per_step": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "base": _base(model),
        "options": options,
        "environment": files.environment()
        | {"device": str(args.device), "dtypes": sorted({str(p.dtype) for p in model.parameters()})},
        "started": files.now(),
    }


def _questions(questions) -> dict:
    rows = [predictions.question_row(0, question) for question in questions]
    order = hashlib.sha256("\n".join(row["id"] for row in rows).encode("utf-8", "replace")).hexdigest()
    return {"n": len(rows), "sha256": files.fingerprint(rows), "order": order}


def _base(model: nn.Module) -> dict:
    """Name the model to train, with a hash of its files, if they are in a folder, and one of what is trained in it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = str(getattr(inner, "name_or_path", "") or "")
    shapes = [f"{name} {tuple(p.shape)} {p.requires_grad}" for name, p in model.named_parameters()]
    learns = hashlib.sha256("\n".join(shapes).encode()).hexdigest()
    return {"name": name, "sha256": contents.digest(name) if name else None, "learns": learns}


def learned(run: str | Path) -> dict:
    """Read from a run's record what it learned (`proof.learned`); raises RunError where it does not say."""
    path = Path(run) / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["learned"]
        found["parts"].items(), found["hearing"]["after"], found["groups"], found["step"]
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); give the folder of a training run.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} does not say what was learned; the run has not ended, or an older release made it."
        ) from error
    return found


def resumed(now: Mapping, checkpoint: Path) -> dict:
    """Continue the record of the run that a checkpoint belongs to; raises RunError if it was made differently."""
    try:
        then = json.loads((checkpoint.parent / FILE).read_text(encoding="utf-8"))
        options = then["options"]
    except (OSError, ValueError, KeyError, TypeError):
        logger.warning("%s has no readable %s: how it was made is unknown.", checkpoint.parent, FILE)
        return dict(now)
    if found := differences(then, now):
        raise RunError(
            f"{checkpoint} was made differently ({'; '.join(found)}); resume it with its own settings, or start a new "
            "run in another output_dir."
        )
    changed = {name: [options.get(name), new] for name, new in now["options"].items() if options.get(name) != new}
    before, after = then.get("environment", {}), now["environment"]
    changed |= {name: [before.get(name), new] for name, new in after.items() if before.get(name) != new}
    history = [*then.get("resumes", []), {"from": str(checkpoint), "at": now["started"], "changed": changed}]
    return dict(now) | {"started": then.get("started"), "resumes": history}


def differences(then: Mapping, now: Mapping) -> list[str]:
    """List the differences that make two records those of different runs, each as "name this, now that".

    What one of them does not know, such as an option of another release, does not count.
    """
    pairs = {name: (then.get(name), now.get(name)) for name in ("trainer", "rewards", "questions_per_step")}
    for part in ("train", "held_out"):
        some = [record.get("questions", {}).get(part, {}) for record in (then, now)]
        if all(record.get("n") for record in some):
            for key, what in (("n", "number"), ("sha256", "content"), ("order", "order")):
                pairs[f"{part} questions' {what}"] = tuple(record.get(key) for record in some)
    bases = [record.get("base", {}) for record in (then, now)]
    key = "sha256" if all(base.get("sha256") for base in bases) else "name"
    pairs["base model"] = tuple(base.get(key) or None for base in bases)
    pairs["trainable weights (train_parts, lora_r, quantization)"] = tuple(base.get("learns") for base in bases)
    old, new = then["options"], now["options"]
    pairs |= {name: (old[name], new[name]) for name in old if name in new and not _harmless(name, old, new)}
    return [
        f"{name} {_short(a)}, now {_short(b)}"
        for name, (a, b) in pairs.items()
        if a != b and ((a is not None and b is not None) or name in old)
    ]


def _harmless(name: str, old: Mapping, new: Mapping) -> bool:
    if name in GROWS:
        steps = old["max_steps"], new["max_steps"]
        if name == "num_train_epochs" and min(steps) > 0:
            return True  # max_steps decides
        return old[name] > 0 and new[name] >= old[name]
    return name in HARMLESS or name.startswith(HARMLESS_BEGINNINGS)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:13]}..." + ('"' if text.startswith('"') else "")

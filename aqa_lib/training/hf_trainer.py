"""Override the private hooks of transformers' Trainer that training here needs, all in one place.

`[hf_trainer] -> training.base -> grpo, sft`. After an upgrade of transformers, trl or accelerate, check this one file;
tests/test_drift.py has a test for each row:

| hook | why |
|---|---|
| `create_accelerator_and_postprocess`, `accelerator.prepare_model` | no DistributedDataParallel: see distributed.py |
| `args._n_gpu` | no DataParallel over the GPUs of one process |
| `args.fsdp_plugin_args`, `ACCELERATE_USE_FSDP` | not accelerate's FSDP: see large/fsdp.py |
| `_move_model_to_device` | under FSDP the model goes to the GPU in parts |
| `_get_output_dir`, `_save_checkpoint` | a checkpoint is whole or absent: see checkpoints.py |
| `save_model`, `_save`, `training_args.bin` | gathers sharded weights; options as JSON and without tokens |
| `_save_optimizer_and_scheduler`, `_load_optimizer_and_scheduler` | gathers sharded states, and shards them again |
| `_load_rng_state` | a file that is broken is named |
| `_load_from_checkpoint`, `_load_best_model` | Qwen2-Audio's names on the hub differ from its modules' |
| `_clip_grad_norm` | torch 2.9 logs one rank's part of a sharded norm |
| `model_accepts_loss_kwargs`, `current_gradient_accumulation_steps` | who divides the loss by the accumulation |
| `floating_point_ops` | its estimate knows neither clips nor shared prompts |
| `DEFAULT_PROGRESS_CALLBACK` | one line per log instead of a dictionary |
| `module.gradient_checkpointing` | recomputes activations of long micro-batches only |
"""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from ..large import fsdp
from ..runtime import checkpoints, faults
from ..runtime.errors import AqaError
from . import restoring

OPTIMIZER = "optimizer.pt"  # in a checkpoint: the optimizer's state, as transformers names it
SCHEDULE = "scheduler.pt"  # in a checkpoint: the learning rate's schedule
SINCE_LOG = "since_log.json"  # in a checkpoint: what was recorded since the last log


def refuse_accelerates_fsdp(args) -> None:
    """Keep accelerate from sharding the model its own way, and transformers from copying it to every GPU."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise AqaError("accelerate's own FSDP does not work with this trainer; drop --use_fsdp and pass --fsdp.")
    if args.fsdp:
        args.fsdp_plugin_args = None
    args._n_gpu = min(args.n_gpu, 1)  # else transformers would wrap the model in DataParallel


def recompute_activations(model: nn.Module, recompute: bool) -> None:
    """Turn activation checkpointing on or off for the next pass, in a model that has it enabled."""
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = recompute


class HookedTrainer(Trainer):
    """A `transformers.Trainer` that leaves the model unwrapped, saves whole checkpoints, and knows our FSDP."""

    _aside: Path | None = None  # where a checkpoint is being written
    _save_total_limit: int | None = None  # checkpoints to keep

    def since_log(self) -> dict:
        """Return what was recorded since the last log, for a checkpoint; all ranks must call it."""
        return {}

    def show_progress_by(self, callback) -> None:
        """Replace transformers' own printing, if it is on, with a callback."""
        if self.pop_callback(PrinterCallback) or self.pop_callback(DEFAULT_PROGRESS_CALLBACK):
            self.add_callback(callback)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not self.args.fsdp:  # else it goes there in parts, when training starts
            super()._move_model_to_device(model, device)

    def _get_output_dir(self, trial) -> str:
        return str(self._aside or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """Save a checkpoint whole or not at all, then prune older ones."""
        run, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        aside, first = run / checkpoints.ASIDE, self.is_world_process_zero()
        faults.refuse_dead_weights(self.model, self.state.global_step)
        try:
            if first:
                shutil.rmtree(aside, ignore_errors=True)
                (aside / name).mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self._aside = aside
            super()._save_checkpoint(model, trial)
            self._aside = None
            since = self.since_log()
            if self.state.best_model_checkpoint == str(aside / name):
                self.state.best_model_checkpoint = str(run / name)
            if first:
                self.state.save_to_json(str(aside / name / "trainer_state.json"))
                (aside / name / SINCE_LOG).write_text(json.dumps(since), encoding="utf-8")
                checkpoints.seal(aside / name)
                checkpoints.put(aside / name, run)
                shutil.rmtree(aside)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise checkpoints.not_saved(run, name, error) from error
        finally:
            self._aside = None
        if first:
            checkpoints.prune(run, self._save_total_limit, self.state.best_model_checkpoint, name)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and the options as JSON: transformers pickles them, with the hub's tokens."""
        if not _internal_call:
            faults.refuse_dead_weights(self.model, self.state.global_step)
        if self.args.fsdp and not self.args.should_save:
            fsdp.full_weights(self.model)  # which rank 0 gathers from all
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / "training_args.bin").unlink(missing_ok=True)
            (folder / "training_args.json").write_text(self.args.to_json_string() + "\n", encoding="utf-8")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.fsdp and self.args.should_save:
            state_dict = fsdp.full_weights(self.model)
        super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.fsdp and not self.args.should_save:
            self.optimizer.state_dict()  # as in save_model
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not checkpoint:
            return
        ours, files = restoring.dials(self.optimizer, self.lr_scheduler), f"{OPTIMIZER} or {SCHEDULE}"
        with restoring.told(checkpoint, files):
            if self.args.fsdp:
                read = partial(torch.load, map_location="cpu", weights_only=True)  # whole, it may not fit on the GPU
                fsdp.load_states(self.optimizer, read(Path(checkpoint) / OPTIMIZER, mmap=True))
                self.lr_scheduler.load_state_dict(read(Path(checkpoint) / SCHEDULE))
            else:
                super()._load_optimizer_and_scheduler(checkpoint)
        found, step = restoring.dials(self.optimizer, self.lr_scheduler), restoring.state(Path(checkpoint)).global_step
        restoring.refuse_other_dials(checkpoint, files, ours, found)
        names = (OPTIMIZER, SCHEDULE)
        restoring.refuse_other_steps(checkpoint, names, self.optimizer, self.lr_scheduler, step, self.args.fp16)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with restoring.told(checkpoint, "rng_state"):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load a checkpoint's weights into the model.

        Qwen2-Audio is saved under the hub's names, which differ from its modules': transformers' Trainer (5.23) finds
        none of them, warns, and continues with the weights it had. `from_pretrained` knows both.
        """
        model = model or self.model
        restoring.refuse_other_kind(resume_from_checkpoint, model)
        if hasattr(model, "disable_adapter"):
            restoring.refuse_other_adapters(resume_from_checkpoint, model)
            with restoring.told(resume_from_checkpoint, restoring.ADAPTER):
                return super()._load_from_checkpoint(resume_from_checkpoint, model)
        options = {"dtype": "auto", "output_loading_info": True}
        with restoring.told(resume_from_checkpoint, "weights or config.json"):
            saved, found = type(model).from_pretrained(resume_from_checkpoint, **options)
        if found["missing_keys"]:
            raise checkpoints.CheckpointError(
                f"{resume_from_checkpoint}: {len(found['missing_keys'])} weights are missing; choose another."
            )
        restoring.refuse_other_weights(resume_from_checkpoint, model, saved.state_dict())
        fsdp.load_weights(model, saved.state_dict())

    def _load_best_model(self) -> None:
        if reason := checkpoints.fault(self.state.best_model_checkpoint):
            raise checkpoints.CheckpointError(
                f"{self.state.best_model_checkpoint}, the best by held-out accuracy, {reason}; load another by hand."
            )
        restoring.refuse_other_kind(self.state.best_model_checkpoint, self.model)
        if hasattr(self.model, "disable_adapter"):
            restoring.refuse_other_adapters(self.state.best_model_checkpoint, self.model)
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return fsdp.full_tensor(super()._clip_grad_norm(model))

    def floating_point_ops(self, inputs) -> int:
        return 0

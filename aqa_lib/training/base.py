"""Train on questions: what GRPO and SFT share, so that their comparison is fair.

`evaluation -> [training] -> grpo, sft`. Both get all of this from here: the same batches for the same seed, the same
optimizer groups, the same held-out questions asked in the same way, the same record of the run.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import TrainerCallback

from .. import evaluation, reward
from ..dataset import Question
from ..large import fsdp, masters
from ..model import context, parts
from ..rollout import RolloutEngine
from ..runtime import checkpoints, distributed, faults, files
from ..runtime.errors import AqaError, reason
from . import proof, record, restoring
from .callbacks import MetricsFile, OneLine, RunningMeans, StopAfterStep
from .checks import check_run
from .data import AudioCache, Examples, QuestionBatches
from .hf_trainer import OPTIMIZER, SINCE_LOG, HookedTrainer
from .refusals import refuse_metric


class QuestionTrainer(HookedTrainer):
    """Train an audio-language model on questions; a subclass says what a step learns from them.

    model, processor: from `model.load`. examples: the questions to train on. eval_dataset: held-out questions, which
    select the best checkpoint. engine: what samples answers (`rollout.RolloutEngine`). shown: the metrics in a log's
    line, and their names there. trainer_options: passed on to transformers' `Trainer`.
    """

    ref_model: nn.Module | None = None  # GRPO's
    reward_names: list[str] | None = None  # GRPO's
    needs_answers = True  # whether a step learns from the questions' right answers
    lines = True  # whether a log is shown as lines; see `show_by`
    model_accepts_loss_kwargs = False  # True if compute_loss averages over the whole step, accumulation included

    def __init__(
        self,
        model: nn.Module,
        processor,
        args,
        examples: Examples,
        eval_dataset: Sequence[Question] | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        engine: RolloutEngine | None = None,
        shown: dict[str, str] | None = None,
        **trainer_options,
    ):
        check_run(model, args, examples.questions, eval_dataset, self.needs_answers)
        refuse_metric(args, self.measured(eval_dataset or ()))
        options = {
            "model": model,
            "args": args,
            "processing_class": processor,
            "train_dataset": examples,
            "eval_dataset": list(eval_dataset) if eval_dataset else None,
            "callbacks": [MetricsFile(), *(callbacks or [])],
        }
        super().__init__(**options | trainer_options)
        self.train_dataset = examples
        self.model_accepts_loss_kwargs = type(self).model_accepts_loss_kwargs  # not what `forward` suggests
        self.show_progress_by(OneLine(bar=not args.disable_tqdm, shown=shown))
        self.audio_cache = AudioCache(model, args.audio_cache_gb)
        self.engine = engine or RolloutEngine(model, processor)
        self.means = RunningMeans()
        self.labels: dict = {}  # what else the run's record should say, such as the names and sha256 of its files
        self._batch: tuple[int, list[dict]] = (-1, [])  # the current step, and its questions so far
        self._start: proof.Start | None = None  # of the run, before its first step
        self._finished = False  # True when a resumed run has already reached max_steps

    def show_by(self, picture: TrainerCallback) -> None:
        """Show the run by a callback, in place of lines."""
        self.remove_callback(OneLine)
        self.add_callback(picture)
        self.lines = False

    # -- a run that survives --------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Train as transformers does, in a run that survives, while no other process trains into the same folder.

        resume_from_checkpoint: True resumes from the last whole checkpoint, or starts from scratch if there is none.
        The first Ctrl-C ends the run after its current step, with a checkpoint and a KeyboardInterrupt that says how to
        resume. Raises RunError, CheckpointError, LockError or AudioError, each with one sentence.
        """
        run = Path(self.args.output_dir)
        with distributed.alone(run / ".lock", str(run)):
            checkpoint = self._checkpoint_to_resume(run, resume_from_checkpoint)
            checkpoints.refuse_other_run(run, checkpoint)
            self._write_record(run, checkpoint)
            if room := context(self.model):
                self.train_dataset.room = room - self.args.max_completion_length
            return self._train(run, checkpoint, *args, **kwargs)

    def _train(self, run: Path, checkpoint: Path | None, *args, **kwargs):
        stop, asks = StopAfterStep(), self.args.eval_on_start
        self._save_total_limit = self.args.save_total_limit
        self.means, self._batch, self._finished = RunningMeans(), (-1, []), False
        if checkpoint:
            self._restore(checkpoint)
            self.args.eval_on_start = False  # done when the run first started
        if checkpoint is None or self._start is None:  # the base's weights: a checkpoint's are loaded later
            with self.accelerator.autocast():  # parts that learn may be in float32, the others in half precision
                self._start = proof.start(self.model, self.processing_class)
        if self.args.fsdp:
            for model in filter(None, (self.model, self.ref_model)):
                dtype = torch.bfloat16 if self.args.bf16 else None
                fsdp.shard(model, self.args.device, dtype, tower=not self.audio_cache.frozen)
        self.add_callback(stop)
        too_large = "weights, gradients and optimizer do not fit together: train adapters (lora_r), or fewer parts"
        try:
            with (
                faults.interruptible(stop.ask),
                faults.memory_advice(lambda: too_large),
                faults.worker_advice("resume from the last checkpoint"),
            ):
                # at the end transformers would delete whatever has its prefix, its own or not
                self.args.save_total_limit = None
                result = super().train(checkpoint and str(checkpoint), *args, **kwargs)
        finally:
            self.remove_callback(stop)
            self.args.eval_on_start, self.args.save_total_limit = asks, self._save_total_limit
        self._write_proof(run)
        if stop.asked and self.state.global_step < self.state.max_steps:
            raise KeyboardInterrupt(
                f"stopped after step {self.state.global_step}, which is saved in {run}; to resume, call "
                "train(resume_from_checkpoint=True), or in a shell run the same command with --resume."
            )
        return result

    def _checkpoint_to_resume(self, run: Path, asked: str | bool | None) -> Path | None:
        if not asked:
            return None
        if asked is not True and (reason := checkpoints.fault(asked)):
            raise checkpoints.CheckpointError(f"{asked} {reason}; choose another.")
        found = checkpoints.last_whole(run) if asked is True else Path(asked)
        if found and not (found / OPTIMIZER).exists():
            raise checkpoints.CheckpointError(
                f"{found} was saved with save_only_model, without the optimizer's state, and cannot be resumed; train "
                "from it as a base (--model), into another output_dir."
            )
        if found and asked is True:
            tqdm.write(f"resuming from {found}")
        return found

    def _restore(self, checkpoint: Path) -> None:
        """Restore what was recorded between the last log and the checkpoint; rank 0 does it for all."""
        restoring.refuse_other_kind(checkpoint, self.model)
        self._finished = 0 < self.args.max_steps <= restoring.state(checkpoint).global_step
        since = restoring.since_log(checkpoint, SINCE_LOG)
        if self.is_world_process_zero():
            self.means.restore(since)

    def since_log(self) -> dict:
        return self.means.gather()

    def _write_record(self, run: Path, checkpoint: Path | None) -> None:
        """Write down in `run.json` how the run is made; raises RunError if `checkpoint` was made differently."""
        refused = None
        if self.is_world_process_zero():
            try:
                made = record.of(self) | {"resumed_from": checkpoint and str(checkpoint)}
                made = record.resumed(made, checkpoint) if checkpoint else made
                files.write_whole(run / record.FILE, json.dumps(made, indent=1) + "\n")
            except faults.RunError as error:
                refused = error
        if refused := distributed.gather(refused)[0]:
            raise refused

    def doubt(self) -> str:
        """Say why the trained model may be useless; "" if nothing says so."""
        return ""

    def _write_proof(self, run: Path) -> None:
        """Write down in `run.json` what was learned, by the weights that the run ends with."""
        best = self.args.load_best_model_at_end and self.state.best_model_checkpoint
        step = self.state.best_global_step if best else self.state.global_step
        model, processor = self.model, self.processing_class
        with self.accelerator.autocast():
            found = proof.learned(model, processor, self._start, self.state.log_history, step, bool(self.args.fsdp))
        if self.is_world_process_zero():
            made = json.loads((run / record.FILE).read_text(encoding="utf-8"))
            files.write_whole(run / record.FILE, json.dumps(made | {"learned": found}, indent=1) + "\n")

    # -- a step ---------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        args = self.args
        batches = QuestionBatches(
            len(self.train_dataset),
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps * args.world_size,
            0 if self._finished else args.num_iterations,  # transformers would take one more step
            args.seed if args.data_seed is None else args.data_seed,
        )
        workers = args.dataloader_num_workers
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.train_dataset.collate,
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            prefetch_factor=args.dataloader_prefetch_factor if workers else None,
            persistent_workers=bool(workers),
            timeout=faults.PATIENCE if workers else 0,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer; a part of the model may have its own learning rate."""
        if self.optimizer is None:
            model = model or self.model
            p, rates = parts(model), {}
            for part, rate in (
                (p.audio_tower, self.args.audio_tower_learning_rate),
                (p.projector, self.args.projector_learning_rate),  # which may be in the tower
            ):
                rates |= dict.fromkeys(map(id, part.parameters()), rate)
            decayed = set(self.get_decay_parameter_names(model))  # not norms and biases
            groups = defaultdict(list)
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    rate = rates.get(id(parameter))
                    rate = self.args.learning_rate if rate is None else rate
                    groups[rate, self.args.weight_decay * (name in decayed)].append(parameter)
            optimizer, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            if self.args.master != "fp32":
                optimizer, kwargs = masters.adamw(self.args.master), {k: kwargs[k] for k in ("lr", "betas", "eps")}
            # initial_lr: flashoptim would set one for all groups, and the schedule would believe it
            self.optimizer = optimizer(
                [
                    {"params": group, "weight_decay": decay, "lr": rate, "initial_lr": rate}
                    for (rate, decay), group in groups.items()
                ],
                **kwargs,
            )
            self.optimizer.register_step_pre_hook(self._check_gradients)
            self.optimizer.register_state_dict_post_hook(fsdp.full_states)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Make the learning rate's schedule; raises AqaError for lr_scheduler_kwargs that it does not take."""
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        except (TypeError, ValueError) as error:
            kind, given = self.args.lr_scheduler_type, self.args.lr_scheduler_kwargs
            raise AqaError(f"lr_scheduler_kwargs {given!r} do not suit {kind}: {reason(error)}.") from error

    def check_loss(self, loss: Tensor, rows: list[dict]) -> None:
        """Keep a batch's loss for the log; stop the run if it is not finite. rows: the batch, in readable form."""
        step = self.state.global_step
        self._batch = (step, [*(self._batch[1] if self._batch[0] == step else ()), *rows])
        faults.refuse(float(loss), "loss", step + 1, self._batch[1], self.args.output_dir)
        self.means.add("loss", float(loss) * self.current_gradient_accumulation_steps)

    def _check_gradients(self, optimizer: torch.optim.Optimizer, *_) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else 0.0
        step, rows = self._batch
        faults.refuse(float(fsdp.full_tensor(norm)), "gradient", step + 1, rows, self.args.output_dir)

    def _fewer_questions(self) -> str:
        """Say how to split a step into smaller batches, for a message about a full GPU."""
        batch, times = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        if batch == 1:
            return self._smaller_question()
        return (
            f"lower per_device_train_batch_size from {batch} to {batch // 2} and raise gradient_accumulation_steps "
            f"from {times} to {times * 2}, with the same result"
        )

    def _smaller_question(self) -> str:
        return "train adapters (lora_r)"

    def _or_recompute(self) -> str:
        """Name the last resort for such a message, unless it is already in use."""
        return "" if self.args.gradient_checkpointing else "; if that is not enough, turn on gradient_checkpointing"

    # -- what is logged and how a checkpoint is ranked --------------------------------------------------------------

    def budget(self) -> dict[str, int]:
        """Count what a run has learned from so far: questions, and tokens in prompts (once each) and answers."""
        args = self.args
        a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        batches = -(-self.state.global_step // args.num_iterations)
        return {"num_questions": batches * a_step, "num_tokens": self.state.num_input_tokens_seen}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding the budget spent so far and the means of what was recorded since the last log."""
        if "loss" in logs:
            since = self.since_log()
            logs = logs | {name: sum(values) / len(values) for name, values in since["means"].items()} | self.budget()
            if since["cut"]:
                logs["clips/cut"] = since["cut"]
            self.means.values.clear()
        # these two count from where the run was last resumed, not from its start
        super().log({k: v for k, v in logs.items() if k not in ("train_loss", "total_flos")}, start_time)

    def measured(self, held_out: Sequence[Question]) -> set[str]:
        """Name what `evaluate` measures, of which `metric_for_best_model` may choose."""
        return {"accuracy", "format", "length"} | {f"accuracy_{q.task}" for q in held_out if q.task}

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Ask the held-out questions, greedily: accuracy, also by task, and the rate of well-formed replies."""
        questions = self.eval_dataset if eval_dataset is None else eval_dataset
        self.engine.sync_weights(self.accelerator.unwrap_model(self.model))
        with self.accelerator.autocast():
            rows = evaluation.predict(
                self.model,
                self.processing_class,
                questions,
                style=self.args.prompt_style,
                batch_size=self.args.per_device_eval_batch_size,
                max_completion_length=self.args.max_completion_length,
                progress=False,
                engine=self.engine,
            )
        well = reward.form_of(self.args.prompt_style)([None] * len(rows), [row["model_output"] for row in rows])
        metrics = {
            "accuracy": _mean(rows, "correct"),
            "format": sum(well) / len(well),
            "length": _mean(rows, "tokens"),
        }
        for task in sorted({row["task"] for row in rows} - {""}):
            metrics[f"accuracy_{task}"] = _mean([row for row in rows if row["task"] == task], "correct")
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _mean(rows: list[dict], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)

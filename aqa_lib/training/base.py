"""Hold what every training here shares: questions in order, rates by part, checkpoints, what ranks and shows them.

`evaluation -> [training] -> trainer, sft`. GRPO and SFT are compared fairly because they take all of this from here:
the same batches for the same seed, the same optimizer groups, the same held-out questions asked in the same way.
"""

import csv
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback

from .. import evaluation, reward, scale
from ..dataset import Question
from ..inputs import Prompts, collate, prepare
from ..large import fsdp, masters, planner
from ..model import encode_audio, half_precision, parts
from ..runtime import checkpoints, distributed, faults, files

SINCE_LOG = "since_log.json"  # in a checkpoint: what was recorded since the last log


class Examples(Dataset):
    """Questions, each with its prompt made on demand (in the loader's workers where there are any)."""

    def __init__(self, questions: Sequence[Question], processor, style: int):
        self.questions, self.processor, self.style = list(questions), processor, style

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int):
        return self.questions[index], prepare(self.processor, self.questions[index], self.style)

    def collate(self, items) -> dict:
        questions, examples = zip(*items, strict=True)
        cut = sum(example.cut for example in examples)
        return {"questions": questions, "prompts": collate(self.processor, examples), "cut": cut}


class QuestionBatches:
    """Batches of indices in an order that depends on seed and epoch alone, each step's batches `repeats` times over.

    A step is `batches_per_step` batches (accumulation times processes); a last step that would be short is left out.
    """

    drop_last = True

    def __init__(self, size: int, batch_size: int, batches_per_step: int = 1, repeats: int = 1, seed: int = 0):
        self.size, self.batch_size, self.batches_per_step = size, batch_size, batches_per_step
        self.repeats, self.seed, self.epoch = repeats, seed, 0
        if size < batch_size * batches_per_step:
            raise ValueError(
                f"{size} questions are fewer than the {batch_size * batches_per_step} of one step; "
                "lower per_device_train_batch_size or gradient_accumulation_steps."
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def sampler(self) -> "QuestionBatches":
        """Where accelerate looks for `set_epoch` in a run of several processes; transformers 5.11 leaves it to that."""
        return self

    def __len__(self) -> int:
        return self.size // (self.batch_size * self.batches_per_step) * self.batches_per_step * self.repeats

    def __iter__(self) -> Iterator[list[int]]:
        seed = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed))
        per_step = self.batch_size * self.batches_per_step
        for step in order[: self.size // per_step * per_step].split(per_step):
            for _ in range(self.repeats):
                yield from (batch.tolist() for batch in step.split(self.batch_size))


def fit_machine(args) -> None:
    """Set in a config, before transformers looks at it, what the machine decides; rank nothing if nothing is asked."""
    # transformers refuses bf16 without a GPU unless told that the CPU is meant
    args.use_cpu = args.use_cpu or not torch.accelerator.is_available()
    if args.bf16 and half_precision() == torch.float16:
        args.bf16, args.fp16 = False, True
    if args.eval_strategy == "no":
        args.eval_on_start = args.load_best_model_at_end = False


def check_run(
    model: nn.Module, args, train_dataset: Sequence[Question], eval_dataset: Sequence[Question] | None
) -> None:
    """Refuse a run that cannot work, and settle how weights that learn are kept."""
    faults.check_writable(args.output_dir)
    if not eval_dataset and args.eval_strategy != "no":
        raise ValueError("no held-out questions rank the checkpoints; give some, or set eval_strategy to no.")
    if len(train_dataset) == 0:
        raise ValueError("no questions to train on.")
    withheld = [q.id for q in (*train_dataset, *(eval_dataset or ())) if not q.answer]
    if withheld:
        raise ValueError(f"{len(withheld)} questions have no answer, {withheld[0]} among them; training needs one.")
    check_fsdp(model, args)
    args._n_gpu = min(args.n_gpu, 1)  # else transformers would wrap the model in DataParallel
    keep_masters(model, args)


def check_fsdp(model: nn.Module, args) -> None:
    """Refuse what a model that is shared out cannot do, and keep accelerate from sharing it out in its own way."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ValueError("accelerate's own FSDP does not fit this training; leave --use_fsdp out, and give --fsdp.")
    if not args.fsdp:
        return
    for refused, sentence in [
        (hasattr(model, "disable_adapter"), "fsdp is for weights that learn; adapters fit one card, leave it out."),
        (args.fp16, "fsdp computes in bfloat16 or float32, not in float16; set bf16, or leave fsdp out."),
        (getattr(args, "reference", "") == "streamed", "fsdp shares the reference out too; leave reference out."),
        (args.fsdp_config.get("cpu_offload"), "fsdp keeps weights on the cards; leave offload out."),
        (args.world_size == 1, "fsdp shares a model out among processes; start several by torchrun."),
    ]:
        if refused:
            raise ValueError(sentence)
    args.fsdp_plugin_args = None


def keep_masters(model: nn.Module, args) -> None:
    """Settle what memory decides, and turn weights of low precision that learn into float32 if they are kept so."""
    low = [p for p in model.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
    if args.master != "auto" and (reason := masters.refusal(args.master, args.device, args.fsdp)):
        raise ValueError(reason)
    planner.settle(planner.Anatomy.of(model), args)
    if args.master != "fp32":
        learn = {p.dtype for p in model.parameters() if p.requires_grad}
        if learn != {torch.bfloat16}:
            names = " and ".join(sorted(map(str, learn)))
            raise ValueError(f"master {args.master} is for bfloat16 weights, not {names}; load them as bfloat16.")
        if not args.optim.startswith("adamw_torch"):
            raise ValueError(f"master {args.master} brings its own AdamW; leave optim out, or set master to fp32.")
    elif low and not (args.bf16 or args.fp16):
        raise ValueError(
            f"weights that learn are {low[0].dtype}, which rounds nearly every small update away; "
            "set bf16 (they are then kept in float32 and computed with in bfloat16), or load them as float32."
        )
    else:
        for parameter in low:
            parameter.data = parameter.data.float()


class Hearing:
    """The audio tokens of clips under an audio tower that does not learn: each clip is encoded once a run.

    gigabytes: of memory for them (2 MB for 10 s at the full size). A clip for which none is left is encoded once a
    batch. Clips are encoded one by one, so that no number depends on the batch that a clip was first met in. Where the
    tower learns, the reference's is constant still, and is not remembered: the report's run, 1000 steps of 16 of
    38,000 clips, meets hardly a clip twice, and 2 MB on a disk, for the next run, take about as long to read as to
    make again (0.7 TFLOP).
    """

    def __init__(self, model: nn.Module, gigabytes: float):
        self.model, self.left, self.kept = model, gigabytes * 1e9, {}
        hears = parts(model).audio_tower, parts(model).projector
        self.frozen = not any(p.requires_grad for module in hears for p in module.parameters())

    @torch.no_grad()
    def __call__(self, questions: Sequence[Question], prompts: Prompts) -> Prompts:
        """Put the clips' audio tokens in place of their mels."""
        if not self.frozen or prompts.input_features is None:
            return prompts
        heard = []
        for row, question in enumerate(questions):
            clip = (question.audio, question.meta.get("start"), question.meta.get("end"))
            tokens = self.kept.get(clip)
            if tokens is None:
                alone = prompts.select([row])
                tokens = encode_audio(self.model, alone.input_features, alone.feature_lengths)
                if self.left >= tokens.nbytes:
                    self.left -= tokens.nbytes
                    self.kept[clip] = tokens.cpu()
            heard.append(tokens.to(prompts.input_ids.device))
        return replace(prompts, input_features=None, audio_embeds=nn.utils.rnn.pad_sequence(heard, batch_first=True))


class QuestionTrainer:
    """What GRPO and SFT runs have in common: the order of questions, rates by part, checkpoints and what ranks them.

    To be put before a `transformers.Trainer` among the bases; `train_dataset` is an `Examples`.
    """

    _aside: Path | None = None  # while a checkpoint is written
    _batch: tuple[int, list[dict]] = (-1, [])  # the current step, and its questions so far
    _limit: int | None = None  # checkpoints to keep
    _finished = False  # whether a run that is gone on with has taken all its steps
    labels: dict = {}  # what else the run's record should say, as the names and sha256 of its files

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Train, while no other process trains into the same folder; see `_train`."""
        run = Path(self.args.output_dir)
        with distributed.alone(run / ".lock", str(run)):
            return self._train(resume_from_checkpoint, *args, **kwargs)

    def _train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Train as transformers does, in a run that survives.

        resume_from_checkpoint: True goes on from the last checkpoint that is whole, and starts where there is none. The
        first Ctrl-C ends the run after its step, with a checkpoint, by a KeyboardInterrupt that says how to go on.
        Raises RunError, CheckpointError or AudioError with one sentence.
        """
        run, stop, asks = self.args.output_dir, _Stop(), self.args.eval_on_start
        self._limit = self.args.save_total_limit
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = checkpoints.last_whole(run)
            if checkpoint:
                tqdm.write(f"going on from {checkpoint}")
        elif checkpoint and (reason := checkpoints.fault(checkpoint)):
            raise checkpoints.CheckpointError(f"{checkpoint} {reason}; take another.")
        checkpoints.refuse_other_run(run, checkpoint)
        self._write_record(Path(run), str(checkpoint) if checkpoint else None)
        self._means.clear()
        self._cut, self._step, self._finished = 0, -1, False
        if checkpoint:
            self._carry_on(Path(checkpoint))
            self.args.eval_on_start = False  # it was asked then
        if self.args.fsdp:
            for model in filter(None, (self.model, getattr(self, "ref_model", None))):
                dtype = torch.bfloat16 if self.args.bf16 else None
                fsdp.shard(model, self.args.device, dtype, tower=not self._hearing.frozen)
        self.add_callback(stop)
        resume = "resume from the last checkpoint"
        too_large = (
            "weights, gradients and optimizer do not fit beside each other: train adapters (lora_r), or fewer parts"
        )
        try:
            with (
                faults.interruptible(stop.ask),
                faults.memory_advice(lambda: too_large),
                faults.worker_advice(resume),
            ):
                self.args.save_total_limit = (
                    None  # transformers would delete at the end what is not its own, by a prefix
                )
                result = super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)
        finally:
            self.remove_callback(stop)
            self.args.eval_on_start, self.args.save_total_limit = asks, self._limit
        if stop.asked and self.state.global_step < self.state.max_steps:
            raise KeyboardInterrupt(
                f"stopped after step {self.state.global_step}, which is saved in {run}; "
                "train(resume_from_checkpoint=True) goes on, in a shell the same command with --resume."
            )
        return result

    def create_accelerator_and_postprocess(self) -> None:
        """Keep accelerate from wrapping the model in DistributedDataParallel; `parallel` says why."""
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not self.args.fsdp:  # else it goes there in parts, when training starts
            super()._move_model_to_device(model, device)

    def _get_output_dir(self, trial) -> str:
        return str(self._aside or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """Save a checkpoint whole or not at all, and prune older ones after that."""
        run, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        aside, first = run / checkpoints.ASIDE, self.is_world_process_zero()
        try:
            if first:
                shutil.rmtree(aside, ignore_errors=True)
                (aside / name).mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self._aside = aside
            super()._save_checkpoint(model, trial)
            self._aside = None
            since = self._since_log()
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
            checkpoints.prune(run, self._limit, self.state.best_model_checkpoint, name)
        self.accelerator.wait_for_everyone()

    def _write_record(self, run: Path, checkpoint: str | None) -> None:
        """Write down how the run is made, in `run.json`: everything that its numbers depend on."""
        if not self.is_world_process_zero():
            return
        asked = {"train": self.train_dataset.questions, "held_out": self.eval_dataset or ()}
        rows = {name: [evaluation.question_row(0, q) for q in questions] for name, questions in asked.items()}
        made = {
            "trainer": type(self).__name__,
            "scale": scale.get().name,
            "seed": self.args.seed,
            "labels": self.labels,
            "rewards": getattr(self, "reward_names", None),
            "questions": {name: {"n": len(some), "sha256": files.fingerprint(some)} for name, some in rows.items()},
            "options": json.loads(self.args.to_json_string()),  # tokens left out
            "environment": files.environment()
            | {"device": str(self.args.device), "dtypes": sorted({str(p.dtype) for p in self.model.parameters()})},
            "started": files.now(),
            "resumed_from": checkpoint,
        }
        files.write_whole(run / "run.json", json.dumps(made, indent=1) + "\n")

    def _since_log(self) -> dict:
        """Bring together what all processes recorded since the last log."""
        means, cut = defaultdict(list), 0
        for theirs, count in distributed.gather((dict(self._means), self._cut)):
            cut += count
            for name, values in theirs.items():
                means[name] += values
        return {"means": means, "cut": cut}

    def _carry_on(self, checkpoint: Path) -> None:
        """Take up what was recorded between the last log and the checkpoint; the first process does, for all."""
        if not self.is_world_process_zero():
            return
        taken = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        self._finished = 0 < self.args.max_steps <= taken
        since = json.loads((checkpoint / SINCE_LOG).read_text(encoding="utf-8"))
        self._cut = since["cut"]
        self._means.update(since["means"])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and the options as JSON: transformers pickles them, tokens for the hub and all."""
        if self.args.fsdp and not self.args.should_save:
            fsdp.full_weights(self.model)  # which the first process brings together from all
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
        if not (checkpoint and self.args.fsdp):
            return super()._load_optimizer_and_scheduler(checkpoint)
        read = partial(torch.load, map_location="cpu", weights_only=True)  # whole, it may not fit the card
        fsdp.load_states(self.optimizer, read(Path(checkpoint) / "optimizer.pt", mmap=True))
        self.lr_scheduler.load_state_dict(read(Path(checkpoint) / "scheduler.pt"))

    def _check(self, loss: Tensor, rows: list[dict]) -> None:
        """Keep a batch's loss for the log; stop the run where it is no number. rows: the batch, for a reader."""
        step = self.state.global_step
        self._batch = (step, [*(self._batch[1] if self._batch[0] == step else ()), *rows])
        faults.refuse(float(loss), "loss", step + 1, self._batch[1], self.args.output_dir)
        self._means["loss"].append(float(loss) * self.current_gradient_accumulation_steps)

    def _check_gradients(self, optimizer: torch.optim.Optimizer, *_) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else 0.0
        step, rows = self._batch
        faults.refuse(float(fsdp.full_tensor(norm)), "gradient", step + 1, rows, self.args.output_dir)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return fsdp.full_tensor(super()._clip_grad_norm(model))  # torch 2.9 would log one process's part

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
        """Make the optimizer, with a learning rate of its own for each part that has one."""
        if self.optimizer is None:
            model = model or self.model
            rates = {
                "audio_tower": self.args.audio_tower_learning_rate,
                "projector": self.args.projector_learning_rate,
            }
            decayed = set(self.get_decay_parameter_names(model))  # not norms and biases
            groups = defaultdict(list)
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    rate = rates.get(next((part for part in rates if part in name), None))
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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load a checkpoint's weights into the model.

        Qwen2-Audio is saved under the hub's names, which differ from its modules': transformers' Trainer (5.23) finds
        none of them, says so in a warning, and goes on with the weights that it had. `from_pretrained` knows both.
        """
        model = model or self.model
        if hasattr(model, "disable_adapter"):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        options = {"dtype": "auto", "output_loading_info": True}
        saved, found = type(model).from_pretrained(resume_from_checkpoint, **options)
        if found["missing_keys"]:
            raise ValueError(
                f"{resume_from_checkpoint}: {len(found['missing_keys'])} weights are missing; take another."
            )
        fsdp.load_weights(model, saved.state_dict())

    def _load_best_model(self) -> None:
        if reason := checkpoints.fault(self.state.best_model_checkpoint):
            raise checkpoints.CheckpointError(
                f"{self.state.best_model_checkpoint}, the best by held-out accuracy, {reason}; load another by hand."
            )
        if hasattr(self.model, "disable_adapter"):
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def budget(self) -> dict[str, int]:
        """Count what a run has learnt from so far: questions, and tokens of prompts (once each) and answers."""
        args = self.args
        a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        batches = -(-self.state.global_step // args.num_iterations)
        return {"num_questions": batches * a_step, "num_tokens": self.state.num_input_tokens_seen}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding the budget spent so far and the means of what was recorded since the last log."""
        if "loss" in logs:
            since = self._since_log()
            logs = logs | {name: sum(values) / len(values) for name, values in since["means"].items()} | self.budget()
            if since["cut"]:
                logs["clips/cut"] = since["cut"]
            self._means.clear()
        # the two count from the last resuming, not from the start
        super().log({k: v for k, v in logs.items() if k not in ("train_loss", "total_flos")}, start_time)

    def floating_point_ops(self, inputs) -> int:
        return 0  # transformers' estimate knows neither the clips nor the shared prompts

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Ask the held-out questions, greedily: accuracy, also by task, and the rate of well-formed replies."""
        questions = self.eval_dataset if eval_dataset is None else eval_dataset
        with self.accelerator.autocast():
            rows = evaluation.predict(
                self.model,
                self.processing_class,
                questions,
                style=self.args.prompt_style,
                batch_size=self.args.per_device_eval_batch_size,
                max_completion_length=self.args.max_completion_length,
                progress=False,
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


def as_row(question: Question) -> dict:
    """Write a question for a reader of the run."""
    return {
        "id": question.id,
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
    }


def _mean(rows: list[dict], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _step(line: bytes) -> int | None:
    """Read the step of a line of `completions.jsonl`; None where the line is damaged."""
    try:
        return int(json.loads(line.decode("utf-8"))["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class MetricsFile(TrainerCallback):
    """Write every logged number to `metrics.csv`, one row a log; rewritten whole, so that a resumed run's is too."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop the answers of steps that are to be taken (again), and lines that a kill or an editor damaged.

        Also find the best checkpoint where it is now: its path as it was saved is another after a move.
        """
        best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if best.is_dir():
            state.best_model_checkpoint = str(best)
        path = Path(args.output_dir) / "completions.jsonl"
        if state.is_world_process_zero and path.is_file():
            lines = path.read_bytes().split(b"\n")[:-1]
            steps = [_step(line) for line in lines]
            if damaged := sum(step is None for step in steps):
                tqdm.write(f"{path}: {damaged} of {len(lines)} lines are damaged, and dropped")
            kept = [
                line.decode()
                for line, step in zip(lines, steps, strict=True)
                if step is not None and step < state.global_step
            ]
            files.write_whole(path, "".join(f"{row}\n" for row in kept))

    def on_log(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        names = dict.fromkeys(name for row in state.log_history for name in row)
        path = Path(args.output_dir) / "metrics.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".tmp"), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["step", *(name for name in names if name != "step")])
            writer.writeheader()
            writer.writerows(state.log_history)
        path.with_suffix(".tmp").replace(path)


class _Stop(TrainerCallback):
    """End a run after the current step, with a checkpoint, once that was asked for."""

    asked = False

    def ask(self) -> None:
        self.asked = True
        tqdm.write("stopping after this step, with a checkpoint; once more stops at once, without.")

    def on_step_end(self, args, state, control, **kwargs):
        asked = any(distributed.gather(self.asked))  # whichever process was told
        if asked and state.global_step % args.num_iterations == 0:  # answers in use are not saved
            control.should_save = control.should_training_stop = True


class OneLine(ProgressCallback):
    """Show a progress bar and, at every log, one line that a person can read."""

    def __init__(self, bar: bool = True):
        super().__init__()
        self.bar = bar

    def on_train_begin(self, args, state, control, **kwargs):
        if self.bar:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar:
            super().on_step_end(args, state, control, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar:
            super().on_train_end(args, state, control, **kwargs)

    SHOWN = {
        "reward": "reward",
        "rewards/accuracy/mean": "accuracy",
        "rewards/format/mean": "format",
        "reward_std": "std",
        "kl": "kl",
        "completions/mean_length": "tokens",
        "eval_accuracy": "held-out accuracy",
        "eval_format": "held-out format",
    }

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            shown = [f"{word} {logs[name]:.3g}" for name, word in self.SHOWN.items() if name in logs]
            if shown:
                tqdm.write(f"step {state.global_step:>4}: {', '.join(shown)}")

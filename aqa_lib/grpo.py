"""Train with GRPO: sample a group of answers to every question, reward them, reinforce the better ones.

`rollout -> reward -> loss -> [grpo] -> evaluation`. A `transformers.Trainer`, so its callbacks, logging, saving,
resuming and accelerate all apply. It differs from the paper's trainer in what a step costs, not in what it computes:
each prompt is run once for its whole group, all questions of a step are answered in one batch, and only then is the
step cut into micro-batches by tokens. Checkpoints are selected on held-out questions, never on the test set.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainingArguments

from . import prompt, reward
from .dataset import Question
from .inputs import Prompts, Rollouts
from .large import reference
from .large.planner import FORWARD
from .logps import completion_logps
from .loss import BASELINES, LEVELS, LOSS_TYPES, SCALES, group_advantages, grpo_loss
from .rollout import RolloutEngine, decode
from .runtime import distributed, faults
from .runtime.errors import AqaError
from .training import dynamic
from .training.base import QuestionTrainer
from .training.checks import fit_machine
from .training.data import Examples, as_row
from .training.hf_trainer import recompute_activations

WHOLE_STEP = ("dapo", "cispo")  # losses that are a mean over all tokens of a step


@dataclass
class GRPOConfig(TrainingArguments):
    """Options of a GRPO run: transformers' `TrainingArguments`, and TRL's names for the rest. Defaults: the paper's.

    Batch sizes count questions: each of `per_device_train_batch_size` questions gets `num_generations` answers, and one
    optimizer step sees `per_device_train_batch_size * gradient_accumulation_steps` questions. The mean of
    "bnpo" is over the tokens of one such batch; if a step is one batch, that is also DAPO's.
    """

    output_dir: str = field(default="runs/grpo", metadata={"help": "Folder for checkpoints, metrics and the model."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Questions a device answers at a time."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Questions a device evaluates at a time."})
    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate, also the language model's."})
    audio_tower_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the audio tower; learning_rate if not given."}
    )
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the projector; learning_rate if not given."}
    )
    master: str = field(
        default="auto",
        metadata={
            "help": "How trained weights are kept: fp32, 24bit, kahan (large/masters.py), or auto, the most exact one "
            "that fits."
        },
    )
    max_steps: int = field(default=1000, metadata={"help": "Optimizer steps; overrides num_train_epochs if positive."})
    num_generations: int = field(default=8, metadata={"help": "Answers to each question (G); at least 2."})
    max_completion_length: int = field(default=256, metadata={"help": "Longest answer in tokens."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature of the answers."})
    top_k: int = field(default=50, metadata={"help": "Sample among the k likeliest tokens; 0 for all."})
    top_p: float = field(default=1.0, metadata={"help": "Sample among the likeliest tokens of this total mass."})
    beta: float = field(default=0.04, metadata={"help": "Weight of the KL to the reference model; 0: no reference."})
    reference: str = field(
        default="auto",
        metadata={
            "help": "Where the reference model is kept: resident on the device, streamed from the host, or auto."
        },
    )
    epsilon: float = field(default=0.2, metadata={"help": "Clip the probability ratio to 1 -+ epsilon."})
    epsilon_high: float | None = field(
        default=None,
        metadata={"help": "Upper clip, where it differs from epsilon (clip-higher: 0.28); cispo's largest ratio."},
    )
    num_iterations: int = field(default=1, metadata={"help": "Optimizer steps on each batch of answers (mu)."})
    loss_type: str = field(default="grpo", metadata={"help": f"One of {', '.join(LOSS_TYPES)}; the paper's is grpo."})
    importance_sampling_level: str = field(
        default="token", metadata={"help": "A probability ratio for every token, or one for the sequence (GSPO)."}
    )
    baseline: str = field(
        default="group",
        metadata={
            "help": "What is subtracted from a reward: the mean of its group, of the group's other answers "
            "(leave_one_out, RLOO's), or of the batch (REINFORCE's)."
        },
    )
    scale_rewards: str = field(
        default="group", metadata={"help": "Divide advantages by the deviation of their group or batch, or by none."}
    )
    dynamic_sampling: int = field(
        default=0,
        metadata={"help": "Replace questions whose answers are all rewarded alike by others, at most so many times."},
    )
    min_entropy: float = field(
        default=0.0,
        metadata={"help": "Stop, with a checkpoint, when the answers' entropy (nats per token) falls below this."},
    )
    mask_truncated_completions: bool = field(
        default=False,
        metadata={"help": "Leave answers that were cut off at max_completion_length out of the loss."},
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One weight for each reward; all 1 if not given."}
    )
    prompt_style: int = field(
        default=2, metadata={"help": "The paper's prompt: 1 (plain), 2 (answer tags) or 3 (think first)."}
    )
    max_tokens_per_forward: int | None = field(
        default=None,
        metadata={
            "help": "Tokens (prompts once, and their answers) in one forward and backward pass; chosen to fit the "
            "memory if not given, 8192 if that is unknown."
        },
    )
    checkpoint_above: int | None = field(
        default=None,
        metadata={
            "help": "With gradient_checkpointing: keep the activations of passes of up to this many tokens; chosen to "
            "fit the memory if not given, 0 if that is unknown."
        },
    )
    memory: float | None = field(
        default=None, metadata={"help": "GB that the run may use on its device; all of a GPU's if not given."}
    )
    audio_cache_gb: float = field(
        default=2.0,
        metadata={"help": "GB to keep clips' audio tokens in, under a frozen audio tower: each is encoded only once."},
    )
    logits_chunk_size: int = field(default=1024, metadata={"help": "Tokens whose logits are held in memory at a time."})
    log_completions: bool = field(
        default=True,
        metadata={"help": "At every log, show one answer, and append its whole group to completions.jsonl."},
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between logs."})
    logging_first_step: bool = field(default=True, metadata={"help": "Log the first step too."})
    eval_strategy: str = field(
        default="steps", metadata={"help": "no, steps or epoch: when to answer the held-out questions."}
    )
    eval_steps: float | None = field(default=100, metadata={"help": "Steps between evaluations."})
    eval_on_start: bool = field(default=True, metadata={"help": "Evaluate the base before the first step."})
    save_strategy: str = field(default="steps", metadata={"help": "no, steps, epoch or best: when to save."})
    save_steps: float = field(default=100, metadata={"help": "Steps between checkpoints."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints to keep, not counting the best one."}
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "End with the best checkpoint on held-out questions."}
    )
    metric_for_best_model: str | None = field(default="accuracy", metadata={"help": "Held-out metric that selects it."})
    greater_is_better: bool | None = field(
        default=True, metadata={"help": "Whether higher values of that metric are better."}
    )
    report_to: None | str | list[str] = field(default="tensorboard", metadata={"help": "none, tensorboard, wandb, ..."})
    remove_unused_columns: bool = False  # questions are records, not columns

    def __post_init__(self):
        fit_machine(self)
        super().__post_init__()
        places = ", ".join(reference.PLACES)
        dials = {"loss_type": LOSS_TYPES, "importance_sampling_level": LEVELS}
        dials |= {"baseline": BASELINES, "scale_rewards": SCALES}
        dials = {name: (getattr(self, name), known) for name, known in dials.items()}
        whole_step = self.loss_type in WHOLE_STEP and self.gradient_accumulation_steps > 1
        all_tokens = f"loss_type {self.loss_type} is a mean over all tokens of a step: set gradient_accumulation_steps "
        cispo_alone = self.loss_type == "cispo" and (self.epsilon_high or 0) < 1
        apart = self.baseline == "batch" and self.scale_rewards == "group"
        in_use = "with num_iterations above 1, save by steps, at a multiple of it: answers in use are not saved."
        saves_between = self.save_strategy != "steps" or self.save_steps % max(self.num_iterations, 1)
        counts = ("max_tokens_per_forward", "logits_chunk_size", "num_iterations", "max_completion_length")
        counts = {name: getattr(self, name) for name in counts}
        for wrong, sentence in [
            *((value is not None and value < 1, f"{name} must be at least 1.") for name, value in counts.items()),
            (self.num_generations < 2, "num_generations must be at least 2: a group of one has no better answer."),
            *((v not in known, f"{k} {v!r} is unknown; choose {', '.join(known)}.") for k, (v, known) in dials.items()),
            (whole_step, all_tokens + "to 1, or take bnpo, whose mean is over the tokens of one batch."),
            (cispo_alone, "loss_type cispo needs epsilon_high, the largest ratio, of at least 1; its authors take 5."),
            (
                self.importance_sampling_level == "sequence" and self.loss_type != "grpo",
                f"importance_sampling_level sequence goes with loss_type grpo: {self.loss_type} sums over tokens.",
            ),
            (apart, "baseline batch needs scale_rewards batch or none: a group that agrees has no deviation."),
            (self.dynamic_sampling < 0, "dynamic_sampling must not be negative."),
            (self.dynamic_sampling and self.world_size > 1, "dynamic_sampling works in one process only; set it to 0."),
            (self.min_entropy < 0, "min_entropy must not be negative."),
            (self.reference not in reference.PLACES, f"reference {self.reference!r} is unknown; choose {places}."),
            (self.temperature <= 0, "temperature must be above 0: greedy answers are all the same."),
            (self.beta < 0, "beta must not be negative: it would reward distance from the reference."),
            (self.epsilon <= 0, "epsilon must be above 0."),
            (not 0 < self.top_p <= 1, "top_p must be above 0 and at most 1."),
            (self.prompt_style not in (1, 2, 3), f"prompt_style {self.prompt_style} is unknown; choose 1, 2 or 3."),
            (self.num_iterations > 1 and self.save_strategy != "no" and saves_between, in_use),
        ]:
            if wrong:
                raise AqaError(sentence)


@dataclass
class Experience:
    """What a batch of questions taught: answers, their advantages, and log-probabilities to compare with."""

    rollouts: Rollouts
    advantages: Tensor  # (B, G)
    loss_mask: Tensor  # (B, G, C)
    records: list[dict]  # one per question, with its answers and their rewards, in readable form
    old_logps: Tensor | None = None  # (B, G, C), if a batch serves more than one step
    ref_logps: Tensor | None = None  # (B, G, C), if beta is not 0

    def select(self, rows: list[int]) -> "Experience":
        """Keep some questions, and drop the padding that none of them needs."""
        rollouts = self.rollouts.select(rows)
        C = rollouts.mask.shape[-1]
        old, ref = (None if logps is None else logps[rows, :, :C] for logps in (self.old_logps, self.ref_logps))
        records = [self.records[row] for row in rows]
        return Experience(rollouts, self.advantages[rows], self.loss_mask[rows, :, :C], records, old, ref)


class GRPOTrainer(QuestionTrainer):
    """Train an audio-language model by group relative policy optimization.

    model, processor: from `model.load`. reward_funcs: functions with TRL's signature, or names for `reward.get`. The
    datasets are lists of `Question`; eval_dataset is held out and selects the best checkpoint. engine: what samples the
    answers, ours if not given. Source: the paper, section 2; DeepSeekMath (arXiv 2402.03300) eq. 3.
    """

    def __init__(
        self,
        model: nn.Module,
        processor,
        reward_funcs: Sequence[str | Callable] = ("accuracy", "format"),
        args: GRPOConfig | None = None,
        train_dataset: Sequence[Question] = (),
        eval_dataset: Sequence[Question] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        engine: RolloutEngine | None = None,
    ):
        args = args or GRPOConfig()
        if args.beta and hasattr(model, "disable_adapter") and _moved(model):
            raise AqaError("trained adapters cannot be their own reference; set beta to 0, or load without 4bit.")
        self.reward_funcs = [reward.get(f) if isinstance(f, str) else f for f in reward_funcs]
        self.reward_names = [getattr(f, "__name__", type(f).__name__) for f in self.reward_funcs]
        self.needs_answers = any(map(reward.needs_answer, self.reward_funcs))
        self.reward_weights = torch.tensor(args.reward_weights or [1.0] * len(self.reward_funcs))
        if len(self.reward_weights) != len(self.reward_funcs):
            raise AqaError(
                f"{len(self.reward_weights)} reward_weights for {len(self.reward_funcs)} rewards; give one for each."
            )
        examples = Examples(train_dataset, processor, args.prompt_style)
        super().__init__(model, processor, args, examples, eval_dataset, callbacks, engine)
        if args.beta and not hasattr(model, "disable_adapter"):  # a LoRA model without its adapter is its own reference
            half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
            self.ref_model = reference.make(model, args.reference, half)
        self._experiences: list[Experience] = []  # of the current step, one per accumulated batch
        self._step, self._index = -1, 0  # the current step, and which of its accumulated batches is in use
        self._sample: dict = {}  # one question of the last step with its answers, for the log

    def train(self, *args, **kwargs):
        """Train; see `QuestionTrainer.train`."""
        self._step = -1  # nothing that an earlier run sampled is reused
        return super().train(*args, **kwargs)

    # -- one step -------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch=None) -> Tensor:
        """Answer a batch of questions, reward the answers, and back-propagate their loss."""
        start = time.perf_counter()
        with faults.memory_advice(self._fewer_questions):
            experience = self._experience(model, inputs)
        model.train()
        with faults.memory_advice(self._fewer_tokens):
            loss = self._backward(model, experience)
        if self.accelerator.sync_gradients:  # the last accumulated batch of the step
            self._refuse_unscored()
            distributed.average_gradients(model.parameters())
        self.check_loss(loss, experience.records)
        self.means.add("step_time", time.perf_counter() - start)
        return loss

    def _refuse_unscored(self) -> None:
        """Raise RewardError if no reward applied to any answer of a step: it would only look like training."""
        rewards = [value for experience in self._experiences for row in experience.records for value in row["rewards"]]
        if all(distributed.gather(all(value is None for value in rewards))):
            raise reward.RewardError(
                f"step {self.state.global_step + 1}: no reward ({', '.join(self.reward_names)}) applied to any of its "
                f"{len(rewards)} answers, all were None, so there is nothing to learn; leave out the questions that no "
                "reward applies to, or add one that does."
            )

    def _experience(self, model: nn.Module, inputs: dict) -> Experience:
        """Return a batch's answers: sampled now, or earlier if num_iterations takes several steps on them."""
        step = self.state.global_step
        self._index = self._index + 1 if step == self._step else 0
        self._step = step
        if self._index == 0 and step % self.args.num_iterations == 0:
            self._experiences = []
            self.engine.sync_weights(self.accelerator.unwrap_model(model))
        if self._index == len(self._experiences):
            with self.accelerator.autocast():
                prompts = self.audio_cache(inputs["questions"], inputs["prompts"].to(self.args.device))
            self._experiences.append(self._gather_experience(model, inputs["questions"], prompts))
            self.means.clips_cut += inputs["cut"]
        return self._experiences[self._index]

    @torch.no_grad()
    def _gather_experience(self, model: nn.Module, questions: Sequence[Question], prompts: Prompts) -> Experience:
        """Sample a group of answers to each question, reward them, and turn the rewards into advantages."""
        args = self.args
        answered = self._answer(questions, prompts)
        for turn in range(1, args.dynamic_sampling + 1):
            answered = self._replace_agreeing(answered, turn)
        rollouts = answered.rollouts
        loss_mask = rollouts.mask & rollouts.ended[..., None] if args.mask_truncated_completions else rollouts.mask
        experience = Experience(rollouts, self._advantages(answered.rewards), loss_mask, self._record(answered))
        if args.num_iterations > 1:
            experience.old_logps = self._logps(model, rollouts)
        if args.beta:
            without_adapter = getattr(self.accelerator.unwrap_model(model), "disable_adapter", nullcontext)
            with without_adapter():
                experience.ref_logps = self._logps(self.ref_model or model, rollouts)
        return experience

    def _answer(self, questions: Sequence[Question], prompts: Prompts, turn: int = 0) -> dynamic.Answered:
        rollouts = self._sample_answers(questions, prompts, turn)
        texts = decode(self.processing_class, rollouts)
        return dynamic.Answered(list(questions), rollouts, texts, self._score(questions, texts, rollouts))

    def _replace_agreeing(self, answered: dynamic.Answered, turn: int) -> dynamic.Answered:
        """Ask other questions in place of those whose answers are all rewarded alike."""
        agree, data, chosen = answered.agree, self.train_dataset, []
        if agree:
            ids = {question.id for question in answered.questions}
            taken = {index for index, question in enumerate(data.questions) if question.id in ids}
            chosen = dynamic.others(len(data), taken, len(agree), self._seed(turn))
        self.means.add("dynamic_sampling/replaced", len(chosen))
        if not chosen:
            return answered
        batch = data.collate([data[index] for index in chosen])
        self.means.clips_cut += batch["cut"]
        with self.accelerator.autocast():
            prompts = self.audio_cache(batch["questions"], batch["prompts"].to(self.args.device))
        others = self._answer(batch["questions"], prompts, turn)
        return answered.replace(agree, others)

    def _advantages(self, rewards: Tensor) -> Tensor:
        """Compare rewards, (B, G), each with its group's, or with the rewards of all ranks."""
        everyone = torch.cat(distributed.gather(rewards.cpu()))
        advantages = group_advantages(everyone, self.args.scale_rewards, self.args.baseline)
        return advantages.split(len(rewards))[distributed.rank_and_world_size()[0]].to(rewards.device)

    def _seed(self, turn: int) -> list[int]:
        rank, world_size = distributed.rank_and_world_size()  # so that ranks together sample what one alone would
        return [self.args.seed, self.state.global_step, self._index * world_size + rank, turn]

    def _sample_answers(self, questions: Sequence[Question], prompts: Prompts, turn: int = 0) -> Rollouts:
        args, start = self.args, time.perf_counter()
        with self.accelerator.autocast():
            rollouts = self.engine.generate(
                prompts,
                num_generations=args.num_generations,
                max_completion_length=args.max_completion_length,
                temperature=args.temperature,
                top_k=args.top_k,
                top_p=args.top_p,
                seed=int(np.random.SeedSequence(self._seed(turn)).generate_state(1)[0]),
                questions=questions,
            )
        self.means.add("rollout_time", time.perf_counter() - start)
        tokens = int(prompts.attention_mask.sum() + rollouts.mask.sum())
        self.state.num_input_tokens_seen += sum(distributed.gather(tokens))
        return rollouts

    def _score(self, questions: Sequence[Question], texts: list[list[str]], rollouts: Rollouts) -> Tensor:
        """Reward every answer, (B, G): the weighted sum of all rewards that apply to it; NaN if none does."""
        G = self.args.num_generations
        repeated = [question for question in questions for _ in range(G)]
        columns = {
            "prompts": [prompt.messages(q, self.args.prompt_style) for q in repeated],
            "completions": [[{"role": "assistant", "content": text}] for group in texts for text in group],
            "completion_ids": [
                ids[mask].tolist()
                for ids, mask in zip(rollouts.completion_ids.flatten(0, 1), rollouts.mask.flatten(0, 1), strict=True)
            ],
            "solution": [prompt.target(q) for q in repeated],  # what r1-aqa and TRL's own rewards call it
        }
        columns |= {f.name: [getattr(q, f.name) for q in repeated] for f in fields(Question) if f.name != "audio"}
        rewards = []
        for function, name in zip(self.reward_funcs, self.reward_names, strict=True):
            rewards.append(torch.tensor(reward.call(function, name, columns)))  # NaN: does not apply
            if (applies := ~rewards[-1].isnan()).any():
                self.means.add(f"rewards/{name}/mean", rewards[-1][applies].mean())
        each = torch.stack(rewards, 1)
        total = (each * self.reward_weights).nansum(1).masked_fill(each.isnan().all(1), torch.nan)
        return total.view(-1, G).to(self.args.device)

    @torch.no_grad()
    def _logps(self, model: nn.Module, rollouts: Rollouts) -> Tensor:
        logps = torch.zeros(rollouts.mask.shape, device=self.args.device)  # (B, G, C)
        batches = self._micro_batches(rollouts, range(len(logps)), FORWARD * self.args.max_tokens_per_forward)
        for (rows, _), _ in distributed.lockstep(model, batches, ([0], 0)):
            with self.accelerator.autocast():
                part, _ = completion_logps(
                    model, rollouts.select(rows), self.args.temperature, self.args.logits_chunk_size
                )
            logps[rows, :, : part.shape[-1]] = part
        return logps

    def _backward(self, model: nn.Module, experience: Experience) -> Tensor:
        """Back-propagate a batch's loss in micro-batches, and return it."""
        args, mask = self.args, experience.loss_mask
        sizes = {"num_completions": mask[..., 0].numel(), "num_tokens": self._num_tokens(mask)}  # of the whole batch
        # If beta is 0, a group without deviation has a loss and a gradient of exactly zero.
        kept = range(len(mask)) if args.beta else experience.advantages.any(1).nonzero().flatten().tolist()
        batches = self._micro_batches(experience.rollouts, kept, args.max_tokens_per_forward, args.checkpoint_above)
        totals = defaultdict(lambda: torch.zeros((), device=args.device))
        for (rows, tokens), counts in distributed.lockstep(model, batches, ([0], args.max_tokens_per_forward)):
            if args.gradient_checkpointing:
                recompute_activations(model, tokens > args.checkpoint_above)
            loss, parts = self._loss(model, experience.select(rows), **sizes)
            loss = loss * counts / self.current_gradient_accumulation_steps
            self.accelerator.backward(loss)
            if counts:
                for name, value in (parts | {"loss": loss.detach()}).items():
                    totals[name] = totals[name] + value
        loss = totals.pop("loss", torch.zeros((), device=args.device))
        run = int(totals.pop("tokens", 0)) or 1  # of the groups that were run: the entropy is their mean
        for name, value in totals.items():
            tokens = {"entropy": run, "clip_ratio": sizes["num_tokens"]}.get(name, 1)  # the KL is a mean already
            self.means.add(name, float(value) / tokens)
        return loss

    def _num_tokens(self, mask: Tensor) -> float:
        """Count a batch's tokens; where the loss is a mean over all ranks' tokens, a rank's mean share of them."""
        ranks = [int(mask.sum())]
        if self.args.loss_type in WHOLE_STEP:
            ranks = distributed.gather(ranks[0])
        return sum(ranks) / len(ranks) or 1

    def _loss(self, model: nn.Module, part: Experience, **sizes: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute a micro-batch's part of the loss and of the metrics. sizes: of the whole batch."""
        args = self.args
        with self.accelerator.autocast():
            logps, entropies = completion_logps(model, part.rollouts, args.temperature, args.logits_chunk_size)
        loss, parts = grpo_loss(
            logps,
            logps.detach() if part.old_logps is None else part.old_logps,
            part.advantages,
            part.loss_mask,
            part.ref_logps,
            beta=args.beta,
            epsilon=args.epsilon,
            epsilon_high=args.epsilon_high,
            loss_type=args.loss_type,
            importance_sampling_level=args.importance_sampling_level,
            max_completion_length=args.max_completion_length,
            **sizes,
        )
        return loss, parts | {"entropy": (entropies * part.loss_mask).sum(), "tokens": part.loss_mask.sum()}

    @staticmethod
    def _micro_batches(
        rollouts: Rollouts, rows: Sequence[int], max_tokens: int, plain_tokens: int = 0
    ) -> Iterator[tuple[list[int], int]]:
        """Yield micro-batches of similar length: their rows, and their tokens with padding.

        A micro-batch holds at most max_tokens, or one row. Rows that fit into plain_tokens, so few that no activations
        need recomputing, are batched up to plain_tokens.
        """
        prompts, answers = rollouts.prompts.attention_mask.sum(1).tolist(), rollouts.mask.sum((1, 2)).tolist()  # (B,)
        plain = min(plain_tokens, max_tokens)
        batch, tokens = [], 0
        for row in sorted(rows, key=lambda row: prompts[row] + answers[row]):
            more = [*batch, row]
            width = max(prompts[i] for i in more) + max(answers[i] for i in more)
            if batch and width * len(more) > (plain if width <= plain else max_tokens):
                yield batch, tokens
                more, width = [row], prompts[row] + answers[row]
            batch, tokens = more, width * len(more)
        if batch:
            yield batch, tokens

    def _smaller_question(self) -> str:
        longest = self.args.max_completion_length
        return f"lower max_completion_length from {longest} to {longest // 2}, or num_generations"

    def _fewer_tokens(self) -> str:
        """Say how to split a step into smaller passes, for a message about a full GPU."""
        tokens, plain, last = self.args.max_tokens_per_forward, self.args.checkpoint_above, self._or_recompute()
        too = f" and checkpoint_above from {plain} to {plain // 2}" if plain and not last else ""
        return f"lower max_tokens_per_forward from {tokens} to {tokens // 2}{too}, with the same result{last}"

    # -- what a reader of the run sees ----------------------------------------------------------------------------

    def _record(self, answered: dynamic.Answered) -> list[dict]:
        """Keep the metrics of a batch of answers, under TRL's names; return the answers in readable form."""
        rollouts, rewards = answered.rollouts, answered.rewards
        lengths, ended = rollouts.mask.sum(-1).float(), rollouts.ended
        deviation = answered.deviation
        values = {
            "reward": rewards.nanmean(),
            "reward_std": deviation.mean(),  # within groups, as in the paper's curves
            "frac_reward_zero_std": (deviation <= dynamic.EQUAL).float().mean(),
            "frac_reward_none": rewards.isnan().float().mean(),
            "completions/mean_length": lengths.mean(),
            "completions/min_length": lengths.min(),
            "completions/max_length": lengths.max(),
            "completions/clipped_ratio": 1 - ended.float().mean(),
            "completions/mean_terminated_length": lengths[ended].mean() if ended.any() else torch.tensor(0.0),
        }
        for name, value in values.items():
            if not value.isnan():  # a batch to which no reward applies has none
                self.means.add(name, value)
        rows = [
            as_row(question) | {"completions": group, "rewards": [None if math.isnan(v) else v for v in values]}
            for question, group, values in zip(answered.questions, answered.texts, rewards.tolist(), strict=True)
        ]
        self._sample = {"step": self.state.global_step} | rows[0]
        return rows

    def doubt(self) -> str:
        """Say why the trained model may be dead, as one that is killed by its learning rate; "" if nothing says so."""
        logged = [row for row in self.state.log_history if "completions/max_length" in row]
        best = self.args.load_best_model_at_end and self.state.best_global_step not in (None, self.state.global_step)
        if best or not logged or not (what := _dead(logged[-1])):
            return ""
        was = max(row["reward"] for row in logged if "reward" in row)
        return (
            f"at the end all answers {what} (reward {logged[-1].get('reward', math.nan):.3g}, at best {was:.3g}): the "
            "model may be dead; evaluate it, or start over with a lower learning_rate"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and show one sampled answer; its whole group goes to `completions.jsonl`."""
        super().log(logs, start_time)
        if (left := self.state.log_history[-1].get("entropy", torch.inf)) < self.args.min_entropy:
            self.control.should_save = self.control.should_training_stop = True
            tqdm.write(f"step {self.state.global_step}: stopped, the answers' entropy {left:.2g} is below min_entropy.")
        if what := _dead(self.state.log_history[-1]):
            tqdm.write(f"step {self.state.global_step}: all answers since the last log {what}; is the model dead?")
        if "loss" in logs and self.args.log_completions and self._sample and self.is_world_process_zero():
            with open(Path(self.args.output_dir) / "completions.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(self._sample, ensure_ascii=False) + "\n")
            if self.lines:
                said = self._sample["completions"][0]
                tqdm.write(f"           asked for {self._sample['answer']!r}, it said {said[:80]!r}")


def _dead(row: dict[str, float]) -> str:
    """Say what a log's answers have in common that are no answers; "" if there are some."""
    if row.get("completions/max_length") == 1.0:  # the end token
        return "are empty"
    endless = row.get("completions/clipped_ratio") == row.get("frac_reward_zero_std") == 1.0
    return "were cut off, and none was better than another" if endless else ""


def _moved(model: nn.Module) -> bool:
    """Return whether a model's adapters change anything: fresh ones are zero."""
    return any(bool(p.any()) for name, p in model.named_parameters() if "lora_B" in name)

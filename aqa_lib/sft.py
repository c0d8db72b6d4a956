"""Train on the right answers: supervised fine-tuning, the baseline that the paper compares GRPO with.

`model, logps -> [sft] -> evaluation`. It is `trl.SFTTrainer` with what a GRPO run has: the same questions in the same
order, the same optimizer and budget, the same held-out choice of the checkpoint. Two things are ours. The collator
keeps the clip in the prompt and labels only the answer. And the loss is computed as GRPO's is
(`logps.completion_logps`, one answer to each prompt), since the model's own forward pads every clip to 30 s.

The paper says little about its baseline: no code, no learning rate, and not the words of prompt 1. Its target is
`<answer>choice</answer>`; everything else here is GRPO's.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

import datasets
import torch
import trl
from torch import Tensor, nn
from transformers import TrainerCallback

from . import prompt
from .architectures import families
from .dataset import Question
from .grpo import GRPOConfig
from .inputs import Prompts, Rollouts
from .logps import completion_logps
from .rollout import RolloutEngine
from .runtime import distributed, faults
from .runtime.errors import AqaError
from .training.base import QuestionTrainer
from .training.callbacks import OneLine
from .training.checks import fit_machine
from .training.data import Examples, as_row

IGNORED = -100  # the label of what is not learned, as everywhere in transformers
LORA_RATE = 10  # adapters learn best at about ten times the rate of full fine-tuning; the paper names neither
TARGETS = {
    "tagged": prompt.target,
    "plain": lambda question: question.answer,
    "reply": lambda question: question.meta["reply"],  # each question's own text
}
LOSS_TYPES = ("nll", "dft")
SHOWN = {"loss": "loss", "entropy": "entropy", "num_questions": "questions"} | {
    key: word for key, word in OneLine.SHOWN.items() if key.startswith("eval")
}


def _as_grpo(name: str):
    """Define an option as GRPO does: same default, same help."""
    option = {f.name: f for f in fields(GRPOConfig)}[name]
    return field(default=option.default, metadata=option.metadata)


@dataclass
class SFTConfig(trl.SFTConfig):
    """Options of an SFT run: TRL's, with GRPO's defaults wherever a fair comparison needs both to be the same.

    One optimizer step sees as many questions as GRPO's: `per_device_train_batch_size * gradient_accumulation_steps`.
    """

    output_dir: str = field(default="runs/sft", metadata={"help": "Folder for checkpoints, metrics and the model."})
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "Questions that a device learns from at a time."}
    )
    learning_rate: float = field(
        default=1e-6, metadata={"help": "Peak learning rate; GRPO's, as the paper names none for SFT."}
    )
    prompt_style: int = field(
        default=1, metadata={"help": "The paper's prompt: 1 (plain), 2 (answer tags) or 3 (think first)."}
    )
    target: str = field(
        default="tagged",
        metadata={
            "help": "What to learn: tagged (<answer>choice</answer>), plain (the choice), or reply (the question's "
            "own `reply`).",
            "choices": [*TARGETS],
        },
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations in the backward pass, to save memory."}
    )
    loss_type: str = field(
        default="nll",
        metadata={"help": "nll, or dft: each token's loss times its own probability (arXiv 2508.05629)."},
    )
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16."})
    per_device_eval_batch_size: int = _as_grpo("per_device_eval_batch_size")
    audio_tower_learning_rate: float | None = _as_grpo("audio_tower_learning_rate")
    projector_learning_rate: float | None = _as_grpo("projector_learning_rate")
    master: str = _as_grpo("master")
    memory: float | None = _as_grpo("memory")
    max_steps: int = _as_grpo("max_steps")
    max_completion_length: int = _as_grpo("max_completion_length")
    audio_cache_gb: float = _as_grpo("audio_cache_gb")
    logits_chunk_size: int = _as_grpo("logits_chunk_size")
    logging_steps: float = _as_grpo("logging_steps")
    logging_first_step: bool = _as_grpo("logging_first_step")
    eval_strategy: str = _as_grpo("eval_strategy")
    eval_steps: float | None = _as_grpo("eval_steps")
    eval_on_start: bool = _as_grpo("eval_on_start")
    save_strategy: str = _as_grpo("save_strategy")
    save_steps: float = _as_grpo("save_steps")
    save_total_limit: int | None = _as_grpo("save_total_limit")
    load_best_model_at_end: bool = _as_grpo("load_best_model_at_end")
    metric_for_best_model: str | None = _as_grpo("metric_for_best_model")
    greater_is_better: bool | None = _as_grpo("greater_is_better")
    report_to: None | str | list[str] = _as_grpo("report_to")
    remove_unused_columns: bool = _as_grpo("remove_unused_columns")
    num_iterations: ClassVar[int] = 1  # steps on each batch: what GRPO's loader asks for

    def __post_init__(self):
        fit_machine(self)
        self.dataset_kwargs = {"skip_prepare_dataset": True}  # questions are encoded with their clips, by the collator
        super().__post_init__()
        for valid, sentence in [
            (self.target in TARGETS, f"target {self.target!r} is unknown; choose {', '.join(TARGETS)}."),
            (self.prompt_style in (1, 2, 3), f"prompt_style {self.prompt_style} is unknown; choose 1, 2 or 3."),
            (self.max_completion_length > 0, "max_completion_length must be at least 1."),
            (self.logits_chunk_size > 0, "logits_chunk_size must be at least 1."),
            (
                self.loss_type in LOSS_TYPES,
                f"loss_type {self.loss_type!r} is not supported with clips; choose {' or '.join(LOSS_TYPES)}.",
            ),
        ]:
            if not valid:
                raise AqaError(sentence)


def ending(processor) -> str:
    """Return what ends a reply, as a text."""
    return processor.tokenizer.decode(families.of_processor(processor).ending_ids(processor))


def labels(processor, replies: Sequence[str]) -> Tensor:
    """Encode replies as labels, (B, 1 + C): each reply and its ending, padded with IGNORED.

    The first column stands for the prompt's last token and is never learned, so that shifted labels, which transformers
    counts, have as many tokens to learn as unshifted ones.
    """
    end = families.of_processor(processor).ending_ids(processor)
    ids = [[*row, *end] for row in processor.tokenizer(list(replies), add_special_tokens=False).input_ids]
    result = torch.full((len(ids), 1 + max(map(len, ids))), IGNORED)  # (B, 1 + C)
    for row, tokens in enumerate(ids):
        result[row, 1 : 1 + len(tokens)] = torch.tensor(tokens)
    return result


class SupervisedExamples(Examples):
    """Questions with their right answers; `collate` returns `{"questions", "prompts", "labels", "cut"}`."""

    def __init__(self, questions: Sequence[Question], processor, style: int, target: str = "tagged"):
        super().__init__(questions, processor, style)
        self.target = TARGETS[target]

    def collate(self, items) -> dict:
        batch = super().collate(items)
        return batch | {"labels": labels(self.processor, [self.target(question) for question in batch["questions"]])}


def answers(prompts: Prompts, labels: Tensor) -> Rollouts:
    """Turn right answers, (B, 1 + C) labels, into the form of sampled ones: one for each prompt, all ended."""
    targets = labels[:, None, 1:]  # (B, 1, C)
    mask = targets != IGNORED
    return Rollouts(prompts, targets.where(mask, 0), mask, mask.any(-1))


class SFTTrainer(QuestionTrainer, trl.SFTTrainer):
    """Train an audio-language model on right answers.

    model, processor: from `model.load`, with `lora=...` for adapters. The datasets are lists of `Question`;
    eval_dataset is held out and selects the best checkpoint by greedy accuracy, as in `GRPOTrainer`.
    """

    model_accepts_loss_kwargs = True  # the loss below is averaged over all tokens of a step

    def __init__(
        self,
        model: nn.Module,
        processor,
        args: SFTConfig | None = None,
        train_dataset: Sequence[Question] = (),
        eval_dataset: Sequence[Question] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        engine: RolloutEngine | None = None,
    ):
        args = args or SFTConfig()
        examples = SupervisedExamples(train_dataset, processor, args.prompt_style, args.target)
        # TRL takes no other class here, and looks only at the first row's columns.
        columns = datasets.Dataset.from_dict({"id": [question.id for question in train_dataset]})
        options = {"data_collator": examples.collate, "train_dataset": columns}
        super().__init__(model, processor, args, examples, eval_dataset, callbacks, engine, SHOWN, **options)
        if hasattr(model, "disable_adapter"):  # TRL rounds a quantized model's adapters to bfloat16; GRPO does not
            for parameter in model.parameters():
                parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
        self._records: list[dict] = []  # the last batch, in readable form

    def training_step(self, *args, **kwargs) -> Tensor:
        """Back-propagate a batch's loss, as transformers does."""
        start = time.perf_counter()
        with faults.memory_advice(lambda: self._fewer_questions() + self._or_recompute()):
            loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            distributed.average_gradients(self.model.parameters())
        self.check_loss(loss, self._records)
        self.means.add("step_time", time.perf_counter() - start)
        return loss

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        """Compute the mean negative log-probability of the answers' tokens, over all tokens of the step."""
        prompts = self.audio_cache(inputs["questions"], inputs["prompts"].to(self.args.device))
        targets = answers(prompts, inputs["labels"].to(self.args.device))
        logps, entropies = completion_logps(model, targets, chunk_size=self.args.logits_chunk_size)  # (B, 1, C)
        tokens = targets.mask.sum()
        self.means.add("entropy", entropies.sum() / tokens)
        self.means.clips_cut += inputs["cut"]
        self._records = [as_row(question) for question in inputs["questions"]]
        self.state.num_input_tokens_seen += sum(distributed.gather(int(prompts.attention_mask.sum() + tokens)))
        if num_items_in_batch is not None:  # of all ranks, whose gradients are averaged
            tokens = num_items_in_batch / distributed.rank_and_world_size()[1]
        weights = logps.detach().exp() if self.args.loss_type == "dft" else 1.0
        loss = -(weights * logps).sum() / tokens
        return (loss, {"logps": logps}) if return_outputs else loss

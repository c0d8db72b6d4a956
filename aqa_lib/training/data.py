"""Feed questions to a training run: their prompts, their order, and the audio tokens that need no second pass.

`inputs, model -> [data] -> training.base`. The order depends only on the seed, so GRPO and SFT see the same questions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..dataset import Question
from ..inputs import Prompts, collate, prepare, refuse_long
from ..model import encode_audio, parts
from ..runtime.errors import AqaError


class Examples(Dataset):
    """Questions, each with its prompt made on demand (in the DataLoader's workers, if it has any).

    room: the most tokens that a prompt may have; any number if None.
    """

    room: int | None = None

    def __init__(self, questions: Sequence[Question], processor, style: int):
        self.questions, self.processor, self.style = list(questions), processor, style

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int):
        example = prepare(self.processor, self.questions[index], self.style)
        refuse_long(example, self.questions[index], self.room)
        return self.questions[index], example

    def collate(self, items) -> dict:
        """Batch items: {"questions", "prompts", "cut"}; "cut" counts the clips that are longer than the model hears."""
        questions, examples = zip(*items, strict=True)
        cut = sum(example.cut for example in examples)
        return {"questions": questions, "prompts": collate(self.processor, examples), "cut": cut}


class QuestionBatches:
    """Batches of indices in an order that depends only on seed and epoch, each step's batches `repeats` times over.

    A step is `batches_per_step` batches (accumulation times processes); an incomplete last step is left out.
    """

    drop_last = True

    def __init__(self, size: int, batch_size: int, batches_per_step: int = 1, repeats: int = 1, seed: int = 0):
        self.size, self.batch_size, self.batches_per_step = size, batch_size, batches_per_step
        self.repeats, self.seed, self.epoch = repeats, seed, 0
        if size < batch_size * batches_per_step:
            raise AqaError(
                f"{size} questions are fewer than the {batch_size * batches_per_step} that one step takes; "
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


class AudioCache:
    """The audio tokens of clips under a frozen audio tower: each clip is encoded once per run.

    gigabytes: of memory for them (2 MB for 10 s at full size). Once it is full, a new clip is encoded in every batch.
    Clips are encoded one by one, so that no number depends on the batch in which a clip first came up. If the tower is
    trained, the reference's tokens are still constant, but are not cached: the paper's run, 1000 steps of 16 of 38,000
    clips, hardly ever meets a clip twice, and reading 2 MB from disk in the next run takes about as long as computing
    them again (0.7 TFLOP).
    """

    def __init__(self, model: nn.Module, gigabytes: float):
        self.model, self.free_bytes, self.kept = model, gigabytes * 1e9, {}
        hears = parts(model).audio_tower, parts(model).projector
        self.frozen = not any(p.requires_grad for module in hears for p in module.parameters())

    @staticmethod
    def key(question: Question) -> tuple:
        """Name the clips, or the part of one, that a question is about."""
        return question.clips, question.meta.get("start"), question.meta.get("end")

    def encode(self, alone: Prompts) -> Tensor:
        """Compute what is kept of one question's clips, here their audio tokens, one after the other, (N, H)."""
        return encode_audio(self.model, alone.input_features, alone.feature_lengths)

    def tokens(self, kept: list[Tensor]) -> list[Tensor]:
        """Turn what is kept of some clips into their audio tokens."""
        return kept

    def __call__(self, questions: Sequence[Question], prompts: Prompts) -> Prompts:
        """Replace the clips' mels with their audio tokens."""
        if not self.frozen or prompts.input_features is None:
            return prompts
        embeds = []
        for row, question in enumerate(questions):
            clip = self.key(question)
            tokens = self.kept.get(clip)
            if tokens is None:
                with torch.no_grad():
                    tokens = self.encode(prompts.select([row]))
                if self.free_bytes >= tokens.nbytes:
                    self.free_bytes -= tokens.nbytes
                    self.kept[clip] = tokens.cpu()
            embeds.append(tokens.to(prompts.input_ids.device))
        embeds = self.tokens(embeds)
        return replace(
            prompts,
            input_features=None,
            feature_lengths=None,
            clips=None,
            audio_embeds=nn.utils.rnn.pad_sequence(embeds, batch_first=True),
            audio_lengths=torch.tensor([len(tokens) for tokens in embeds], device=prompts.input_ids.device),
        )


def as_row(question: Question) -> dict:
    """Return a question in readable form, for the files of a run."""
    return {
        "id": question.id,
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
    }

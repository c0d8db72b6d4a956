"""Turn questions into the tensors that travel: prompts with their mels, and the answers sampled for them.

`families, prompt -> [inputs] -> model -> rollout -> reward -> loss`. Everything here is data and how it is batched;
nothing runs a model. One letter means one dimension, here and in every module that follows:

    B  questions (prompts) in a batch       P  prompt tokens, padded on the left
    G  answers to each question             C  completion tokens, padded on the right
    K  answer tokens packed into one row    T  tokens in a row, P + K
    V  vocabulary                           H  width of the language model
    A  clips in a batch                     N  audio tokens of a clip, one every 40 ms
    S  samples of a clip, 16,000 a second   M  mel bins, F  mel frames, 100 a second
    R  prompts still being decoded          L  answers still being decoded in each of their rows
    D  width of an attention head
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from . import audio, prompt
from .architectures import families
from .audio import AudioError, Clip
from .dataset import Question
from .runtime.errors import AqaError

HEARD = ("heard", "silent", "none")  # what the model gets of a clip; the last two are controls


class InputError(AqaError):
    """A prompt that cannot be made; the message says why and what to do."""


class PromptError(AudioError):
    """A question that leaves the model no room for an answer; skipped wherever clips that cannot be used are."""


@dataclass(frozen=True)
class Example:
    """One prompt before batching.

    ids: token ids with the audio tokens in place. mel: (M, F + 2), or None without a clip. frames: F. notes: what was
    done to the clips. more: (mel, frames) of further clips.
    """

    ids: list[int]
    mel: Tensor | None
    frames: int = 0
    notes: tuple[str, ...] = ()
    more: tuple[tuple[Tensor, int], ...] = ()

    @property
    def clips(self) -> tuple[tuple[Tensor, int], ...]:
        """(mel, frames) of every clip, in reading order."""
        return () if self.mel is None else ((self.mel, self.frames), *self.more)

    @property
    def cut(self) -> bool:
        """Whether a clip was longer than the model hears."""
        return any(note.startswith("cut ") for note in self.notes)


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, padded on the left.

    input_ids, attention_mask: (B, P). input_features: (A, M, F) mels of the clips in reading order, and
    feature_lengths: (A,) their valid frames; None in a batch without audio. audio_embeds: (A, N, H), the clips' audio
    tokens padded on the right, and audio_lengths: (A,) how many are valid. If the clips were encoded beforehand, these
    two stand in for the mels, and all clips of a prompt count as one. clips: (B,) how many clips each prompt has; None
    for one each.
    """

    input_ids: Tensor
    attention_mask: Tensor
    input_features: Tensor | None = None
    feature_lengths: Tensor | None = None
    audio_embeds: Tensor | None = None
    audio_lengths: Tensor | None = None
    clips: Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device, **kwargs) -> "Prompts":
        return self._each(lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self) -> "Prompts":
        """Put the batch where a GPU reads it fastest; the DataLoader calls this."""
        return self._each(Tensor.pin_memory)

    def _each(self, function) -> "Prompts":
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return Prompts(**{name: None if value is None else function(value) for name, value in tensors.items()})

    def select(self, rows: Sequence[int]) -> "Prompts":
        """Keep some rows with their clips, and drop the padding that none of them needs."""
        rows = torch.as_tensor(rows, device=self.input_ids.device)
        mask = self.attention_mask[rows]
        width = int(mask.sum(1).max())
        kept = Prompts(self.input_ids[rows][:, -width:], mask[:, -width:])
        if self.audio_embeds is not None:
            lengths = self.audio_lengths[rows]
            return replace(kept, audio_embeds=self.audio_embeds[rows, : int(lengths.max())], audio_lengths=lengths)
        if self.input_features is not None:
            clips = rows if self.clips is None else self._clips_of(rows)
            if not len(clips):
                return kept
            lengths = self.feature_lengths[clips]
            frames = min(int(lengths.max()) + 2, self.input_features.shape[-1])
            counts = None if self.clips is None else _counted(self.clips[rows])
            mels = self.input_features[clips][..., :frames]
            return replace(kept, input_features=mels, feature_lengths=lengths, clips=counts)
        return kept

    def _clips_of(self, rows: Tensor) -> Tensor:
        """Number the clips of some prompts, in reading order."""
        ends = self.clips.cumsum(0)
        numbers = [torch.arange(int(ends[row] - self.clips[row]), int(ends[row])) for row in rows.tolist()]
        return torch.cat(numbers).to(rows.device)


@dataclass(frozen=True)
class Rollouts:
    """G answers to each of B prompts.

    completion_ids: (B, G, C) token ids, padded on the right. mask: (B, G, C) bool, true up to and including the end
    token. ended: (B, G) bool, false if the answer was cut off at the maximum length.
    """

    prompts: Prompts
    completion_ids: Tensor
    mask: Tensor
    ended: Tensor

    def select(self, rows: Sequence[int]) -> "Rollouts":
        """Keep the groups of some prompts, and drop the padding that none of them needs."""
        index = torch.as_tensor(rows, device=self.mask.device)
        width = max(int(self.mask[index].sum(-1).max()), 1)
        ids, mask = self.completion_ids[index, :, :width], self.mask[index, :, :width]
        return Rollouts(self.prompts.select(rows), ids, mask, self.ended[index])


def refuse_long(example: Example, question: Question, room: int | None) -> None:
    """Raise PromptError if a prompt leaves no room for its answer. room: the most tokens it may have, None for any."""
    if room is not None and len(example.ids) > room:
        raise PromptError(
            f"{question.id}: its prompt has {len(example.ids)} tokens, and the model's context leaves room for {room}; "
            "shorten the question, or lower max_completion_length."
        )


def max_seconds(processor) -> float:
    """Return the length of the longest clip that a model hears, in seconds."""
    return families.of_processor(processor).max_seconds(processor)


def prepare(processor, question: Question, style: int = 2, heard: str = "heard", wording: int = 0) -> Example:
    """Load a question's clips and make its prompt.

    style: prompt 1, 2 or 3. heard: "heard", or the controls "silent" (zeros in place of the clip) and "none" (text
    only). wording: of the instruction, as in `prompt.text`. Raises AudioError if a clip cannot be used, or there are
    several and the model takes one.
    """
    if heard not in HEARD:
        raise InputError(f"heard={heard!r} is unknown; choose {', '.join(HEARD)}.")
    messages = prompt.messages(question, style, wording)
    if heard == "none":
        messages[-1]["content"] = [part for part in messages[-1]["content"] if part["type"] == "text"]
        return encode(processor, messages, None)
    if question.more and not families.of_processor(processor).several:
        raise PromptError(
            f"{question.id}: it is about {len(question.clips)} clips, and this model takes one in a prompt; leave it "
            "out."
        )
    clips = [
        audio.load(
            source,
            question.meta.get("start"),
            question.meta.get("end"),
            name=f"{question.id} ({source})" if isinstance(source, Path) else question.id,
            max_seconds=max_seconds(processor),
        )
        for source in question.clips or (None,)
    ]
    return encode(processor, messages, *(audio.silence(clip) if heard == "silent" else clip for clip in clips))


def encode(processor, messages: list[dict], clip: Clip | None, *more: Clip) -> Example:
    """Render chat messages as token ids, with as many audio tokens as the model makes of each clip, in their order."""
    family, token = families.of_processor(processor), processor.audio_token_id
    ids, clips = family.prompt_ids(processor, messages), [] if clip is None else [clip, *more]
    heard = [family.mel(processor, each.wave) for each in clips]
    if clips:
        count, name = ids.count(token), processor.audio_token
        if not count:
            raise InputError(f"the chat template has no place for a clip ({name}); use the one saved with the model.")
        if count != len(clips):
            times = "once" if len(clips) == 1 else f"{len(clips)} times"
            raise InputError(f"the prompt contains {name} {count} times instead of {times}; remove it from the text.")
        counts = iter([family.num_audio_tokens(frames) for _, frames in heard])
        ids = [one for id in ids for one in ([id] * next(counts) if id == token else [id])]
    mel, frames = heard[0] if heard else (None, 0)
    notes = tuple(note for each in clips for note in each.notes)
    return Example(ids, mel, frames, notes, tuple(heard[1:]))


def collate(processor, examples: Sequence[Example]) -> Prompts:
    """Batch examples: ids padded on the left, mels on the right."""
    width = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), width), processor.tokenizer.pad_token_id)  # (B, P)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        ids[row, width - len(example.ids) :] = torch.tensor(example.ids)
        mask[row, width - len(example.ids) :] = 1
    heard = [clip for example in examples for clip in example.clips]
    if not heard:
        return Prompts(ids, mask)
    longest = max(mel.shape[1] for mel, _ in heard)
    mels = torch.stack([nn.functional.pad(mel, (0, longest - mel.shape[1])) for mel, _ in heard])
    clips = _counted(torch.tensor([len(example.clips) for example in examples]))
    return Prompts(ids, mask, mels, torch.tensor([frames for _, frames in heard]), clips=clips)


def _counted(clips: Tensor) -> Tensor | None:
    """Return how many clips each prompt has, (B,), or None for one each."""
    return None if bool((clips == 1).all()) else clips


def positions(attention_mask: Tensor) -> Tensor:
    """Count each token's position among the real ones, (B, P)."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)

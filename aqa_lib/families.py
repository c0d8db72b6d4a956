"""Adapt one family of audio models each: everything that differs between them, and nothing else.

`audio -> [families] -> inputs -> model`. To add a model of transformers, write a class with the methods of
`WhisperEncoder` (or inherit those that fit), and put it into FAMILIES; tests/test_other_model.py shows how to prove
it. Three modules besides build Qwen2-Audio on purpose: `large.planner` (its published sizes, so that planning needs no
download), `tiny.pretrain` and the benchmarks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from . import audio
from .runtime.errors import AqaError


class FamilyError(AqaError):
    """A model or a processor for which there is no family; the message says what to do."""


@dataclass(frozen=True)
class Parts:
    """The surface through which this package reaches a model."""

    audio_tower: nn.Module
    projector: nn.Module
    language_model: nn.Module
    head: nn.Module
    audio_token_id: int


class WhisperEncoder:
    """What models around an encoder like Whisper's share: its mel of 100 frames a second, an audio token for 40 ms.

    model_type: as in a config. processor: the name of its processor's class. lora_targets: where adapters go.
    """

    model_type: str
    processor: str
    lora_targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

    def parts(self, model: nn.Module) -> Parts:
        """Name the parts of a model that has no LoRA wrapper."""
        body = model.model
        token = model.config.audio_token_id
        return Parts(body.audio_tower, body.multi_modal_projector, body.language_model, model.lm_head, token)

    def constants(self, model: nn.Module) -> list[nn.Module]:
        """List what is never trained: Whisper's sinusoids."""
        return [self.parts(model).audio_tower.embed_positions]

    def max_seconds(self, processor) -> float:
        """Return the longest clip that the model hears, in seconds."""
        return float(processor.feature_extractor.chunk_length)

    def mel(self, processor, wave: np.ndarray) -> tuple[Tensor, int]:
        """Compute a clip's log-mel spectrogram, (M, F + 2), and its valid frames F."""
        extractor = processor.feature_extractor
        return audio.log_mel(wave, extractor.feature_size, extractor.chunk_length), audio.num_frames(len(wave))

    def num_audio_tokens(self, frames: int) -> int:
        """Count the audio tokens N of a clip of F frames."""
        return audio.num_audio_tokens(frames)

    def encode_audio(self, model: nn.Module, features: Tensor, lengths: Tensor) -> Tensor:
        """Run the audio tower and the projector on clips, as the model's own forward does.

        features: (A, M, F + 2), lengths: (A,) valid frames. Returns the audio tokens of all clips, one clip after the
        other, (sum of N, H). Here: padded to the longest clip that the model knows, with a mask.
        """
        longest = 2 * model.model.audio_tower.config.max_source_positions  # frames
        features = nn.functional.pad(features[..., :longest], (0, max(longest - features.shape[-1], 0)))
        mask = torch.arange(longest, device=lengths.device) < lengths[:, None]  # (A, longest)
        return model.get_audio_features(features.to(model.dtype), mask).pooler_output


class AudioFlamingo3(WhisperEncoder):
    """NVIDIA's Audio Flamingo 3."""

    model_type = "audioflamingo3"
    processor = "AudioFlamingo3Processor"


class Qwen2Audio(WhisperEncoder):
    """Qwen2-Audio, whose tower runs on the clips' own length instead of on 30 s.

    That gives the same numbers, since padding is masked, for a third of the work on a 10 s clip.
    """

    model_type = "qwen2_audio"
    processor = "Qwen2AudioProcessor"

    def encode_audio(self, model: nn.Module, features: Tensor, lengths: Tensor) -> Tensor:
        p = self.parts(model)
        tower = p.audio_tower
        counts = audio.num_positions(lengths)  # (A,)
        width = int(counts.max())
        hidden = nn.functional.gelu(tower.conv1(features.to(tower.conv1.weight.dtype)))
        hidden = nn.functional.gelu(tower.conv2(hidden))[..., :width].transpose(1, 2)  # (A, width, tower's H)
        hidden = hidden + tower.embed_positions.weight[:width]
        hidden = nn.functional.dropout(hidden, p=tower.dropout, training=tower.training)
        mask = None
        if int(counts.min()) < width:  # shorter clips must not see their padding
            mask = (torch.arange(width, device=counts.device) < counts[:, None])[:, None, None]  # (A, 1, 1, width)
        for layer in tower.layers:
            hidden = layer(hidden, mask)
        hidden = tower.layer_norm(tower.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2))  # (A, width // 2, ...)
        kept = torch.arange(hidden.shape[1], device=counts.device) < (counts // 2)[:, None]
        return p.projector(hidden[kept])


FAMILIES = (Qwen2Audio(), AudioFlamingo3())


def named(model_type: str) -> WhisperEncoder:
    """Find a family by its config's model type; raises FamilyError where there is none."""
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise FamilyError(
        f"a {model_type} model is none of the audio models known here ({known}); to add it, see aqa_lib/families.py."
    )


def of_processor(processor) -> WhisperEncoder:
    """Find a processor's family; raises FamilyError where there is none."""
    name = type(processor).__name__
    for family in FAMILIES:
        if family.processor == name:
            return family
    raise FamilyError(f"a {name} belongs to no audio model known here; to add one, see aqa_lib/families.py.")

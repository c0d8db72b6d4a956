"""One adapter class for each family of audio models: everything that differs between them, and nothing else.

`audio -> [families] -> inputs -> model`. To add a model of transformers, write a class with the methods of
`WhisperEncoder` (or inherit those that fit), and put it into FAMILIES; tests/architectures/test_families.py shows how
to prove it. Three other places build Qwen2-Audio on purpose: `large.planner` (its published sizes, so that planning
needs no download), `tiny.pretrain` and the benchmarks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_PRETRAINING_MAPPING,
    AutoProcessor,
    ProcessorMixin,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from .. import audio
from ..runtime.errors import AqaError


class FamilyError(AqaError):
    """A model or a processor for which there is no family; the message says what to do."""


@dataclass(frozen=True)
class Parts:
    """The parts through which this package reaches a model."""

    audio_tower: nn.Module
    projector: nn.Module
    language_model: nn.Module
    head: nn.Module
    audio_token_id: int


class WhisperEncoder:
    """What models with an encoder like Whisper's share: a mel of 100 frames a second, an audio token every 40 ms.

    model_type: as in a config. also: model types of larger models that hold this one. processor: the name of its
    processor's class. positions: of the encoder, that become one audio token. lora_targets: where adapters go. several:
    whether a prompt may hold several clips.
    """

    model_type: str
    also: tuple[str, ...] = ()
    processor: str
    positions = 2
    several = False
    lora_targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

    def own_config(self, config):
        """Take the model's own config out of what config.json holds."""
        return config

    def model_class(self, config) -> type[nn.Module]:
        """Choose the class of transformers that `own_config` is for; only the second list has Audio Flamingo 3."""
        lists = (MODEL_FOR_MULTIMODAL_LM_MAPPING, MODEL_FOR_PRETRAINING_MAPPING)
        return next(known[type(config)] for known in lists if type(config) in known)

    def load_processor(self, name: str, **options):
        """Load the processor that was saved with a model."""
        return AutoProcessor.from_pretrained(name, **options)

    def takes(self, processor) -> bool:
        """Return whether a processor belongs to this family."""
        return self.processor in (cls.__name__ for cls in type(processor).__mro__)

    def prompt_ids(self, processor, messages: list[dict]) -> list[int]:
        """Render chat messages up to where the reply begins, as token ids with one audio token for each clip."""
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return processor.tokenizer(text, add_special_tokens=False).input_ids

    def ending_ids(self, processor) -> list[int]:
        """Return what the chat template puts after a reply to end it: what the model must learn to produce."""
        turns = [{"role": role, "content": [{"type": "text", "text": "§"}]} for role in ("user", "assistant")]
        ending = processor.apply_chat_template(turns, tokenize=False).rpartition("§")[2].strip()
        return processor.tokenizer(ending, add_special_tokens=False).input_ids

    def parts(self, model: nn.Module) -> Parts:
        """Return the parts of a model that has no LoRA wrapper."""
        body = model.model
        token = model.config.audio_token_id
        return Parts(body.audio_tower, body.multi_modal_projector, body.language_model, model.lm_head, token)

    def constants(self, model: nn.Module) -> list[nn.Module]:
        """List what is never trained although it is in a part: Whisper's sinusoids."""
        return [self.parts(model).audio_tower.embed_positions]

    def max_seconds(self, processor) -> float:
        """Return the length of the longest clip that the model hears, in seconds."""
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
        other, (sum of N, H). Here they are padded to the longest clip that the model knows, with a mask.
        """
        longest = 2 * model.model.audio_tower.config.max_source_positions  # frames
        features = nn.functional.pad(features[..., :longest], (0, max(longest - features.shape[-1], 0)))
        mask = torch.arange(longest, device=lengths.device) < lengths[:, None]  # (A, longest)
        return model.get_audio_features(features.to(model.dtype), mask).pooler_output


class AudioFlamingo3(WhisperEncoder):
    """NVIDIA's Audio Flamingo 3, whose processor takes one clip for each prompt."""

    model_type = "audioflamingo3"
    processor = "AudioFlamingo3Processor"


class Qwen2Audio(WhisperEncoder):
    """Qwen2-Audio, whose tower runs here on the clips' own length instead of 30 s.

    That gives the same numbers, since padding is masked, for a third of the work on a 10 s clip.
    """

    model_type = "qwen2_audio"
    processor = "Qwen2AudioProcessor"
    several = True

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


class ThinkerProcessor(Qwen2_5OmniProcessor):
    """Qwen2.5-Omni's processor without its eyes, which would need torchvision to see nothing here."""

    def __init__(self, feature_extractor=None, tokenizer=None, chat_template=None):
        ProcessorMixin.__init__(self, feature_extractor, tokenizer, chat_template=chat_template)
        for name in ("audio_token", "audio_bos_token", "audio_eos_token"):
            setattr(self, name, getattr(tokenizer, name, None))
        self.audio_token_id = tokenizer.convert_tokens_to_ids(self.audio_token) if self.audio_token else None


class Qwen2_5Omni(WhisperEncoder):
    """Qwen2.5-Omni's thinker, which hears and reads; its eyes are left as they are, its talker is not loaded.

    Its encoder takes chunks of 2 s, none of which sees another, so a clip may be as long as the mel (300 s as
    published). Without pictures, a token's three position ids are the same: its place among the real tokens.
    """

    model_type = "qwen2_5_omni_thinker"
    also = ("qwen2_5_omni",)
    processor = "Qwen2_5OmniProcessor"
    several = True

    def own_config(self, config):
        return getattr(config, "thinker_config", config)

    def model_class(self, config) -> type[nn.Module]:
        return Qwen2_5OmniThinkerForConditionalGeneration

    def load_processor(self, name: str, **options):
        return ThinkerProcessor.from_pretrained(name, **options)

    def parts(self, model: nn.Module) -> Parts:
        body = model.model
        if not hasattr(body, "audio_tower"):
            raise FamilyError("this release of transformers builds Qwen2.5-Omni differently; install a newer one.")
        tower = body.audio_tower
        return Parts(tower, tower.proj, body.language_model, model.lm_head, model.config.audio_token_id)

    def constants(self, model: nn.Module) -> list[nn.Module]:
        return [self.parts(model).audio_tower.audio_bos_eos_token]  # which nothing reads

    def encode_audio(self, model: nn.Module, features: Tensor, lengths: Tensor) -> Tensor:
        """Run the tower and its projection on the valid frames only."""
        mask = torch.arange(features.shape[-1], device=lengths.device) < lengths[:, None]  # (A, F)
        return model.get_audio_features(features.to(model.dtype), mask).last_hidden_state


class Voxtral(WhisperEncoder):
    """Mistral's Voxtral, which hears a clip as one piece of 30 s after the other, the last filled up with silence.

    Nothing is masked: the silence is heard as well, and gives audio tokens, 12.5 a second. Its tokenizer takes no
    special token from a text, so a prompt is put together from ids; tests/architectures/test_families.py compares
    with its own.
    """

    model_type = "voxtral"
    processor = "VoxtralProcessor"
    positions = 4
    several = True
    longest = 2400.0  # seconds that its card names, which are 30,000 tokens

    def prompt_ids(self, processor, messages: list[dict]) -> list[int]:
        tokenizer = processor.tokenizer
        ids = tokenizer.convert_tokens_to_ids(["<s>", "[INST]"])
        for part in (part for message in messages for part in message["content"]):
            if part["type"] == "audio":
                ids += tokenizer.convert_tokens_to_ids(["[BEGIN_AUDIO]", processor.audio_token])
            else:
                ids += tokenizer.encode(part["text"], add_special_tokens=False)
        return [*ids, tokenizer.convert_tokens_to_ids("[/INST]")]

    def ending_ids(self, processor) -> list[int]:
        return [processor.tokenizer.eos_token_id]

    def max_seconds(self, processor) -> float:
        return self.longest

    def mel(self, processor, wave: np.ndarray) -> tuple[Tensor, int]:
        """Compute the mel of whole pieces, (M, F), silence included; all F frames are valid."""
        extractor = processor.feature_extractor
        seconds = -(-len(wave) // extractor.n_samples) * extractor.chunk_length
        wave = np.pad(wave, (0, seconds * audio.SAMPLE_RATE - len(wave)))
        mel = audio.log_mel(wave, extractor.feature_size, seconds)
        return mel, mel.shape[1]

    def num_audio_tokens(self, frames: int) -> int:
        return frames // (2 * self.positions)

    def encode_audio(self, model: nn.Module, features: Tensor, lengths: Tensor) -> Tensor:
        """Run the tower and the projector on every piece of every clip."""
        piece = 2 * model.model.audio_tower.config.max_source_positions  # frames
        clips = zip(features, lengths.tolist(), strict=True)
        pieces = torch.cat([clip[:, :frames].unflatten(1, (-1, piece)).transpose(0, 1) for clip, frames in clips])
        return model.get_audio_features(pieces.to(model.dtype)).pooler_output


FAMILIES = (Qwen2Audio(), AudioFlamingo3(), Qwen2_5Omni(), Voxtral())


def named(model_type: str) -> WhisperEncoder:
    """Find a family by its config's model type; raises FamilyError if there is none."""
    for family in FAMILIES:
        if model_type in (family.model_type, *family.also):
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise FamilyError(
        f"a {model_type} model is not one of the audio models known here ({known}); "
        "to add it, see aqa_lib/architectures/families.py."
    )


def of_processor(processor) -> WhisperEncoder:
    """Find a processor's family; raises FamilyError if there is none."""
    for family in FAMILIES:
        if family.takes(processor):
            return family
    raise FamilyError(
        f"a {type(processor).__name__} is not the processor of a known audio model; "
        "see aqa_lib/architectures/families.py to add it."
    )

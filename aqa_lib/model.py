"""Load Qwen2-Audio at any scale, and reach the four parts that training needs.

`dataset -> prompt -> [model] -> rollout -> loss`. This module alone knows transformers' Qwen2-Audio: everything to
its right sees `parts` (audio tower, projector, language model, head) and `embed`. It deviates from transformers in
one way: the audio tower runs on the clips' own length instead of on 30 s, which gives the same numbers (padding is
masked in Qwen2-Audio) for a third of the work on a 10 s clip.

Another audio model of transformers needs its parts named in `parts`, the call of its own encoder in `encode_audio`,
and Whisper's mels and one audio token for 40 ms, as Audio Flamingo 3 has (tests/test_other_model.py trains one).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoModelForMultimodalLM,
    AutoModelForPreTraining,
    AutoProcessor,
    BitsAndBytesConfig,
)
from transformers.utils import logging

from . import attention, audio, prompt
from .audio import Clip
from .dataset import Question
from .inputs import Prompts, collate, encode, positions
from .runtime.errors import AqaError

PARTS = ("audio_tower", "projector", "language_model")
TIES_THE_HEAD = ("5.10.0", "5.10.1", "5.10.2", "5.10.3")  # transformers releases that tie Qwen2-Audio's head
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

logger = logging.get_logger(__name__)
# peft (0.19) asks by the old name, transformers (5.23) tells the user
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


class ModelError(AqaError):
    """A model that cannot be used; its one sentence says why and what to do."""


@dataclass(frozen=True)
class Parts:
    """The surface through which this package reaches a model."""

    audio_tower: nn.Module
    projector: nn.Module
    language_model: nn.Module
    head: nn.Module
    audio_token_id: int


def parts(model: nn.Module) -> Parts:
    """Name the parts of a model, looking through a LoRA wrapper."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = model.model
    return Parts(
        body.audio_tower,
        body.multi_modal_projector,
        body.language_model,
        model.lm_head,
        model.config.audio_token_id,
    )


def load(
    name_or_path: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    train: Sequence[str] = PARTS,
    lora: dict | None = None,
    quantization: str | None = None,
    check: bool = True,
):
    """Load `(model, processor)` from a hub id or a folder, with every trap of the class looked for.

    dtype: of the weights ("auto": as saved). train: which of `PARTS` learn; the rest is frozen. lora: arguments of
    `peft.LoraConfig` (rank 8 on the language model's linear layers where not said otherwise), which freezes all
    else. quantization: "4bit" (needs bitsandbytes; trained so on a CPU, at a tiny size, and not yet on a GPU). Raises
    ModelError if the folder is none, the class is not an audio model or lacks weights, the head is tied, a special
    token is missing, or the model is deaf.
    """
    if (release := version("transformers")) in TIES_THE_HEAD:
        raise ModelError(
            f"transformers {release} ties Qwen2-Audio's head to its embeddings by mistake; "
            "install another release (pip install 'transformers>=5.11')."
        )
    unknown = set(train) - set(PARTS)
    if unknown:
        raise ModelError(f"no part named {', '.join(sorted(unknown))} to train; choose from {', '.join(PARTS)}.")
    if quantization not in (None, "4bit"):
        raise ModelError(f"quantization {quantization!r} is unknown; choose '4bit' or leave it out.")
    if quantization and find_spec("bitsandbytes") is None:
        raise ModelError("quantization 4bit needs bitsandbytes; pip install bitsandbytes, or leave quantization out.")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options = {"dtype": dtype, "attn_implementation": "sdpa"}
    if quantization:
        half = half_precision()
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=half,
            bnb_4bit_use_double_quant=True,
        )
        options |= {"device_map": {"": device}, "dtype": half}
    adapter = Path(name_or_path) / "adapter_config.json"  # a folder that LoRA training saved
    try:
        if adapter.is_file():
            from peft import PeftConfig

            base = PeftConfig.from_pretrained(str(name_or_path)).base_model_name_or_path
        else:
            base = str(name_or_path)
        # said aloud: left open, transformers asks at the keyboard whether to run a model's own code
        safe = {"trust_remote_code": False}
        config = AutoConfig.from_pretrained(base, **safe)
        processor = AutoProcessor.from_pretrained(str(name_or_path) if adapter.is_file() else base, **safe)
        model, found = auto_class(config).from_pretrained(base, output_loading_info=True, **safe, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(
            f"{name_or_path}: no model could be loaded ({first}); give a hub id such as Qwen/Qwen2-Audio-7B-Instruct "
            "or a folder that save_pretrained wrote."
        ) from error
    if not hasattr(processor, "audio_token") or not hasattr(getattr(model, "model", None), "audio_tower"):
        raise ModelError(f"{name_or_path}: a {config.model_type} model, which hears nothing; give an audio model.")
    if lost := sorted(found["missing_keys"]):
        raise ModelError(
            f"{name_or_path}: {len(lost)} weights are missing, {lost[0]} among them, and would be random; "
            "download or save the model again."
        )
    if not quantization:
        model.to(device)
    elif device.type == "cpu":
        for module in model.modules():
            # else bitsandbytes repacks the weights where it can, and no gradient passes them after an evaluation
            module.support_avx512bf16_for_cpu = False
    if adapter.is_file():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(name_or_path), is_trainable=True)
        if not quantization:
            model = model.merge_and_unload()
    processor.tokenizer.padding_side = "left"
    if check:
        check_model(model, processor)
    if hasattr(model, "disable_adapter"):  # the adapters of a 4-bit model go on learning
        return model, processor
    if lora is None:
        choose_trainable(model, train)
        return model, processor
    from peft import LoraConfig, get_peft_model

    options = {"r": 8, "target_modules": LORA_TARGETS, "task_type": "CAUSAL_LM"} | lora
    return get_peft_model(model, LoraConfig(**{"lora_alpha": 2 * options["r"]} | options)), processor


def auto_class(config):
    """Choose the class of transformers that makes a config's model; Audio Flamingo 3 is in the second list alone."""
    return AutoModelForMultimodalLM if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING else AutoModelForPreTraining


def half_precision() -> torch.dtype:
    """Name the half precision to compute in: bfloat16, or float16 on GPUs that can only emulate it (a T4)."""
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def choose_trainable(model: nn.Module, train: Sequence[str]) -> None:
    """Let only the named `PARTS` learn; the head learns with the language model."""
    p = parts(model)
    for part, modules in {
        "audio_tower": [p.audio_tower],
        "projector": [p.projector],
        "language_model": [p.language_model, p.head],
    }.items():
        for module in modules:
            module.requires_grad_(part in train)
    if hasattr(p.audio_tower, "embed_positions"):
        p.audio_tower.embed_positions.requires_grad_(False)  # sinusoids, constant in Whisper too


def check_model(model: nn.Module, processor) -> None:
    """Raise ModelError unless the head is untied, the audio tokens exist and the model hears."""
    p, tokenizer = parts(model), processor.tokenizer
    name = getattr(model.config, "_name_or_path", "") or "the model"
    embedding = p.language_model.get_input_embeddings().weight
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False) and p.head.weight is embedding:
        raise ModelError(f"{name}: its head was tied to its embeddings on loading; use another transformers release.")
    around = (getattr(processor, name, None) for name in ("audio_bos_token", "audio_eos_token"))  # not in every model
    for token in filter(None, (processor.audio_token, *around)):
        ids = tokenizer(token, add_special_tokens=False).input_ids
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise ModelError(
                f"{name}: its tokenizer does not know {token!r}; use the tokenizer that was saved with the model."
            )
    if tokenizer.convert_tokens_to_ids(processor.audio_token) != p.audio_token_id:
        raise ModelError(f"{name}: model and tokenizer disagree on the id of {processor.audio_token!r}; reload both.")
    if len(tokenizer) > embedding.shape[0]:
        raise ModelError(f"{name}: {len(tokenizer)} tokens but {embedding.shape[0]} embeddings; reload both.")
    if difference := hearing(model, processor):
        logger.info("%s hears: a clip moves its logits by %.3g", name, difference)
    else:
        raise ModelError(f"{name} is deaf: its logits are the same with and without the clip; check the versions.")


@torch.no_grad()
def hearing(model: nn.Module, processor) -> float:
    """Measure how far a second of noise moves the next token's logits from those for silence; 0 means deaf."""
    noise = np.random.default_rng(0).standard_normal(audio.SAMPLE_RATE).astype(np.float32) / 10
    text = prompt.messages(Question("check", None, "What is the sound?", ("a", "b"), "a"), style=2)
    examples = [encode(processor, text, Clip(wave)) for wave in (noise, 0 * noise)]
    prompts = collate(processor, examples).to(model.device)
    hidden = backbone(model, embed(model, prompts), prompts.attention_mask, positions(prompts.attention_mask))
    logits = parts(model).head(hidden[:, -1]).float()
    return float((logits[0] - logits[1]).abs().max())


def encode_audio(model: nn.Module, features: Tensor, lengths: Tensor) -> Tensor:
    """Run the audio tower and the projector on clips of any length.

    features: (A, M, F) with F at least each clip's frames + 2 (or the model's longest); lengths: (A,) valid frames.
    Returns (N, H): the audio tokens of all clips, one after the other. Equal to transformers' padded and masked run.
    """
    p = parts(model)
    tower = p.audio_tower
    if tower.config.model_type != "qwen2_audio_encoder":
        return _encode_padded(model, features, lengths)
    counts = audio.num_positions(lengths)  # (A,)
    width = int(counts.max())
    hidden = nn.functional.gelu(tower.conv1(features.to(tower.conv1.weight.dtype)))
    hidden = nn.functional.gelu(tower.conv2(hidden))[..., :width].transpose(1, 2)  # (A, width, D)
    hidden = hidden + tower.embed_positions.weight[:width]
    hidden = nn.functional.dropout(hidden, p=tower.dropout, training=tower.training)
    mask = None
    if int(counts.min()) < width:  # shorter clips must not see their padding
        mask = (torch.arange(width, device=counts.device) < counts[:, None])[:, None, None]  # (A, 1, 1, width)
    for layer in tower.layers:
        hidden = layer(hidden, mask)
    hidden = tower.layer_norm(tower.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2))  # (A, width // 2, D)
    kept = torch.arange(hidden.shape[1], device=counts.device) < (counts // 2)[:, None]
    return p.projector(hidden[kept])


def _encode_padded(model: nn.Module, features: Tensor, lengths: Tensor) -> Tensor:
    """Let another model encode clips in its own way: at the longest length that it knows, with a mask."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    longest = 2 * model.model.audio_tower.config.max_source_positions  # frames
    features = nn.functional.pad(features[..., :longest], (0, max(longest - features.shape[-1], 0)))
    mask = torch.arange(longest, device=lengths.device) < lengths[:, None]  # (A, longest)
    return model.get_audio_features(features.to(model.dtype), mask).pooler_output


def embed(model: nn.Module, prompts: Prompts) -> Tensor:
    """Embed prompts, (B, P, H), each clip's audio tokens in the places that hold them."""
    p = parts(model)
    embeds = p.language_model.get_input_embeddings()(prompts.input_ids)
    if prompts.feature_lengths is None:
        return embeds
    if prompts.audio_embeds is None:
        heard = encode_audio(model, prompts.input_features, prompts.feature_lengths)
    else:
        tokens = torch.arange(prompts.audio_embeds.shape[1], device=embeds.device)
        heard = prompts.audio_embeds[tokens < audio.num_audio_tokens(prompts.feature_lengths)[:, None]]
    places = prompts.input_ids == p.audio_token_id
    if int(places.sum()) != len(heard):
        raise ModelError(f"{int(places.sum())} places for {len(heard)} audio tokens; make prompts with inputs.prepare.")
    return embeds.masked_scatter(places[..., None], heard.to(embeds.dtype))


def backbone(model: nn.Module, embeds: Tensor, sees: Tensor | attention.Answers, position_ids: Tensor, cache=None):
    """Run the language model without its head: (B, T, H) to (B, T, H).

    sees: (B, T) of real tokens, or (B, 1, T, keys) bool saying who sees whom, or where answers stand in rows that they
    share. cache: filled as it goes.
    """
    lm = parts(model).language_model
    if isinstance(sees, attention.Answers):
        lm.config._attn_implementation = attention.NAME
        sees = {"attention_mask": sees.prompt_mask, "answers": sees}
    else:
        sees = {"attention_mask": sees}
    return lm(
        inputs_embeds=embeds,
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=cache is not None,
        **sees,
    ).last_hidden_state

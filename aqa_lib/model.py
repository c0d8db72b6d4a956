"""Load an audio model at any scale, check it, and reach the parts that training needs.

`inputs -> [model] -> rollout -> logps -> loss`. Everything to its right sees `parts` (audio tower, projector, language
model, head), `embed` and `backbone`; what differs between Qwen2-Audio and other audio models is in `families`. It
deviates from transformers in one way: clips are encoded apart from the text, and applying the head is up to the caller.
"""

import json
import math
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, BitsAndBytesConfig
from transformers.utils import logging

from . import attention, audio, prompt
from .architectures import families
from .architectures.families import Parts
from .architectures.foreign import (
    SAFE,
    ModelError,
    adapters_base,
    in_time,
    refuse_broken,
    refuse_code,
    refuse_missing,
    told,
    with_saved_adapter,
)
from .audio import Clip
from .dataset import Question
from .inputs import Prompts, collate, encode, positions
from .runtime import faults
from .runtime.escape import show

PARTS = ("audio_tower", "projector", "language_model")
DTYPES = ("auto", "float32", "bfloat16", "float16")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
PATIENCE = 60.0  # seconds that rendering and encoding one short question may take
TIES_THE_HEAD = ("5.10.0", "5.10.1", "5.10.2", "5.10.3")  # transformers releases that tie Qwen2-Audio's head

logger = logging.get_logger(__name__)
# peft (0.19) uses the old name, and transformers (5.23) warns the user about it
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a model without its LoRA wrapper, if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def parts(model: nn.Module) -> Parts:
    """Return the parts of a model, looking through a LoRA wrapper."""
    model = unwrapped(model)
    return families.named(model.config.model_type).parts(model)


# -- loading -----------------------------------------------------------------------------------------------------------


def load(
    name_or_path: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    train: Sequence[str] = PARTS,
    lora: dict | None = None,
    quantization: str | None = None,
    check: bool = True,
):
    """Load `(model, processor)` from a hub id or a folder, and check it for this class's known pitfalls.

    dtype: of the weights ("auto": as saved). train: which of `PARTS` to train; the rest is frozen. lora: arguments of
    `peft.LoraConfig` (rank 8 on the language model's linear layers by default), which freezes everything else.
    quantization: "4bit" (needs bitsandbytes; tried in training on a CPU, at a tiny size, but not yet on a GPU). Raises
    ModelError if there is no such folder, the class is not an audio model, weights are missing, the head is tied, a
    special token is missing, or the model is deaf.
    """
    refuse_arguments(dtype, train, quantization)
    refuse_missing(name := str(name_or_path))
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model, processor = _whole(name, dtype, device, quantization)
    if check:
        with told(name, "config, tokenizer or chat template"):
            check_model(model, processor)
    if hasattr(model, "disable_adapter"):  # the adapters of a 4-bit model continue to train
        return model, processor
    if lora is None:
        choose_trainable(model, train)
        return model, processor
    return add_adapters(model, **lora), processor


def refuse_arguments(dtype, train: Sequence[str], quantization: str | None = None) -> None:
    """Raise ModelError for arguments of `load` that cannot be honoured."""
    if (release := version("transformers")) in TIES_THE_HEAD:
        raise ModelError(
            f"transformers {release} ties Qwen2-Audio's head to its embeddings by mistake; "
            "install another release (pip install 'transformers>=5.11')."
        )
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; choose from {', '.join(DTYPES)}.")
    if unknown := set(train) - set(PARTS):
        raise ModelError(f"no part is named {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}.")
    if quantization not in (None, "4bit"):
        raise ModelError(f"quantization {quantization!r} is unknown; choose '4bit' or leave it out.")
    if quantization and find_spec("bitsandbytes") is None:
        raise ModelError("quantization 4bit needs bitsandbytes; pip install bitsandbytes, or leave quantization out.")


def _whole(name: str, dtype, device: torch.device, quantization: str | None):
    """Read a model onto its device, with the adapter that its folder holds, if it holds one."""
    saved_adapter = (Path(name) / "adapter_config.json").is_file()  # a folder that LoRA training saved
    model, processor = _read(name, saved_adapter, dtype, device, quantization)
    with told(name, "class"):
        use_own_attention(model)
    if not quantization:
        model.to(device)
    elif device.type == "cpu":
        for module in model.modules():
            # else bitsandbytes repacks 4-bit weights for AVX-512 at the first evaluation, and gradients stop there
            module.support_avx512bf16_for_cpu = False
    if saved_adapter:
        model = with_saved_adapter(model, Path(name))
        if not quantization:
            model = model.merge_and_unload()
    processor.tokenizer.padding_side = "left"
    return model, processor


def _read(name: str, saved_adapter: bool, dtype, device: torch.device, quantization: str | None):
    """Read a base model and its processor from the hub or from disk; raises ModelError if that fails."""
    # shapes that do not match are reported below; transformers would refer to a table that it has logged
    options = {"dtype": dtype, "attn_implementation": "sdpa", "ignore_mismatched_sizes": True}
    if quantization:
        half = half_precision()
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=half,
            bnb_4bit_use_double_quant=True,
        )
        options |= {"device_map": {"": device}, "dtype": half}
    refuse_broken(name)
    base = adapters_base(name) if saved_adapter else name
    refuse_missing(base)
    refuse_broken(base)
    with told(name, "config.json"):
        refuse_code(base)
        config = AutoConfig.from_pretrained(base, **SAFE)
        family = families.named(config.model_type)
    own = saved_adapter and any((Path(name) / file).is_file() for file in PROCESSOR_FILES)  # peft alone saves none
    with told(name, "processor's and tokenizer's files"):
        processor = family.load_processor(name if own else base, **SAFE)
    with told(name, "config.json or weights"):
        cls = family.model_class(family.own_config(config))
        model, found = cls.from_pretrained(base, output_loading_info=True, **SAFE, **options)
    if not family.takes(processor):
        raise ModelError(f"{name}: has a {type(processor).__name__} instead of a {family.processor}; save both again.")
    if other := sorted(found["mismatched_keys"], key=str):
        key, *shapes = other[0] if isinstance(other[0], tuple) else (other[0],)
        sizes = f" ({tuple(shapes[0])} saved, {tuple(shapes[1])} in its config.json)" if len(shapes) == 2 else ""
        raise ModelError(
            f"{name}: {len(other)} weights have other shapes than its config.json says, {key} among them{sizes}; "
            "download or save the model again."
        )
    if lost := sorted(found["missing_keys"]):
        raise ModelError(
            f"{name}: {len(lost)} weights are missing, {lost[0]} among them, and would be random; "
            "download or save the model again."
        )
    return model, processor


def half_precision() -> torch.dtype:
    """Return the half precision to compute in: bfloat16, or float16 on GPUs that can only emulate it (a T4)."""
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def use_own_attention(model: nn.Module) -> None:
    """Let a language model attend from one answer at a time when asked to (`attention`); else nothing changes."""
    parts(model).language_model.set_attn_implementation(attention.NAME)


def choose_trainable(model: nn.Module, train: Sequence[str]) -> None:
    """Train only the named `PARTS`; the head is trained with the language model.

    Nothing else is: a model may have eyes as well.
    """
    p = parts(model)
    model.requires_grad_(False)
    for part, modules in {
        "audio_tower": [p.audio_tower],
        "projector": [p.projector],
        "language_model": [p.language_model, p.head],
    }.items():
        for module in modules:
            module.requires_grad_(part in train)
    for module in families.named(model.config.model_type).constants(model):
        module.requires_grad_(False)


def add_adapters(model: nn.Module, **lora) -> nn.Module:
    """Freeze a model, and wrap it in adapters to train. lora: arguments of `peft.LoraConfig`."""
    from peft import LoraConfig, get_peft_model

    targets = families.named(model.config.model_type).lora_targets
    options = {"r": 8, "target_modules": targets, "task_type": "CAUSAL_LM"} | lora
    if not 0 < options["r"] <= (width := model.config.get_text_config().hidden_size):
        raise ModelError(f"adapters of rank {options['r']}: give a rank from 1 to the model's width, {width}.")
    return get_peft_model(model, LoraConfig(**{"lora_alpha": 2 * options["r"]} | options))


def save(model: nn.Module, processor, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Save a model, whose weights become `dtype`, and its processor as a folder for `from_pretrained`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"  # generation pads on the left; saving forgets it
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"padding_side": "left"}, indent=2))


# -- checking ----------------------------------------------------------------------------------------------------------


def check_model(model: nn.Module, processor) -> None:
    """Raise ModelError unless the head is untied, the audio tokens exist and the model hears."""
    p, tokenizer = parts(model), processor.tokenizer
    name = getattr(model.config, "_name_or_path", "") or "the model"
    embedding = p.language_model.get_input_embeddings().weight
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False) and p.head.weight is embedding:
        raise ModelError(f"{name}: its head was tied to its embeddings on loading; use another transformers release.")
    around = (getattr(processor, name, None) for name in ("audio_bos_token", "audio_eos_token"))  # not in every model
    for token in filter(None, (processor.audio_token, *around)):
        if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
            raise ModelError(
                f"{name}: its tokenizer does not know {token!r}; use the tokenizer that was saved with the model."
            )
    if tokenizer.convert_tokens_to_ids(processor.audio_token) != p.audio_token_id:
        raise ModelError(f"{name}: model and tokenizer disagree on the id of {processor.audio_token!r}; reload both.")
    ends = model.generation_config.eos_token_id
    if not all(type(token) is int for token in (ends if isinstance(ends, list) else [ends or 0])):
        raise ModelError(f"{name}: its generation_config.json says eos_token_id {show(ends)}; give a token's number.")
    if len(tokenizer) > embedding.shape[0]:
        raise ModelError(f"{name}: {len(tokenizer)} tokens but {embedding.shape[0]} embeddings; reload both.")
    if weight := faults.not_finite(model):
        raise ModelError(f"{name}: its weights are NaN or infinite ({weight} first); use an earlier checkpoint.")
    difference = hearing(model, processor)
    if not math.isfinite(difference):
        raise ModelError(f"{name}: its logits are NaN or infinite; load it in another dtype, or use another model.")
    if difference:
        logger.info("%s hears: a clip moves its logits by %.3g", name, difference)
    else:
        raise ModelError(f"{name} is deaf: its logits are the same with and without the clip; check the versions.")


@torch.no_grad()
def hearing(model: nn.Module, processor) -> float:
    """Measure how far a second of noise moves the next token's logits from those for silence; 0 means deaf."""
    noise = np.random.default_rng(0).standard_normal(audio.SAMPLE_RATE).astype(np.float32) / 10
    text = prompt.messages(Question("check", None, "What is the sound?", ("a", "b"), "a"), style=2)
    with in_time(PATIENCE, "chat template or processor"):
        examples = [encode(processor, text, Clip(wave)) for wave in (noise, 0 * noise)]
    prompts = collate(processor, examples).to(model.device)
    hidden = backbone(model, embed(model, prompts), prompts.attention_mask, positions(prompts.attention_mask))
    logits = parts(model).head(hidden[:, -1]).float()
    return float((logits[0] - logits[1]).abs().max())


# -- running -----------------------------------------------------------------------------------------------------------


def encode_audio(model: nn.Module, features: Tensor, lengths: Tensor) -> Tensor:
    """Run the audio tower and the projector on clips of any length.

    features: (A, M, F) with F at least each clip's frames + 2 (or the model's longest); lengths: (A,) valid frames.
    Returns the audio tokens of all clips, one clip after the other, (sum of N, H): those of the model's own forward.
    """
    model = unwrapped(model)
    return families.named(model.config.model_type).encode_audio(model, features, lengths)


def context(model: nn.Module) -> int | None:
    """Return how many tokens of prompt and answer together a model has positions for; None if it does not say."""
    config = getattr(unwrapped(model), "config", None)
    return config and getattr(config.get_text_config(), "max_position_embeddings", None)


def embed(model: nn.Module, prompts: Prompts) -> Tensor:
    """Embed prompts, (B, P, H), with each clip's audio tokens in the positions that stand for them."""
    p = parts(model)
    embeds = p.language_model.get_input_embeddings()(prompts.input_ids)
    if prompts.audio_embeds is not None:
        tokens = torch.arange(prompts.audio_embeds.shape[1], device=embeds.device)
        heard = prompts.audio_embeds[tokens < prompts.audio_lengths[:, None]]  # (sum of N, H)
    elif prompts.input_features is not None:
        heard = encode_audio(model, prompts.input_features, prompts.feature_lengths)
    else:
        return embeds
    placeholders = prompts.input_ids == p.audio_token_id
    if (count := int(placeholders.sum())) != len(heard):
        raise ModelError(f"{count} positions for {len(heard)} audio tokens; make prompts with inputs.prepare.")
    return embeds.masked_scatter(placeholders[..., None], heard.to(embeds.dtype))


def backbone(
    model: nn.Module, embeds: Tensor, mask: Tensor | attention.SeparateAnswers, position_ids: Tensor, cache=None
):
    """Run the language model without its head: (B, T, H) to (B, T, H).

    mask: (B, T) of real tokens, or (B, 1, T, keys) bool saying which keys each token sees, or where in their row the
    answers are, so that each is attended from separately. cache: filled along the way.
    """
    lm = parts(model).language_model
    options = {"attention_mask": mask}
    if isinstance(mask, attention.SeparateAnswers):
        if lm.config._attn_implementation != attention.NAME:
            raise ModelError("this model cannot attend from one answer at a time; load it with model.load.")
        options = {"attention_mask": mask.prompt_mask, "answers": mask}
    return lm(
        inputs_embeds=embeds,
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=cache is not None,
        **options,
    ).last_hidden_state

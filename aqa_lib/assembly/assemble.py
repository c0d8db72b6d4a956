"""Join a Whisper encoder and a causal language model into one model of Qwen2-Audio's class, with its own processor.

`model -> [assemble] -> align`. The encoder and the language model keep their weights, so each still computes what it
did; new are the projector between them, which is untrained, and the embeddings of three audio tokens. Qwen2-Audio was
made in this way from Whisper large-v3 and Qwen-7B. The result is an ordinary folder for `from_pretrained`.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
    WhisperModel,
)

from ..architectures.foreign import SAFE, ModelError, refuse_code, refuse_missing
from ..model import check_model, use_own_attention

AUDIO_TOKENS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
CHATML = ("<|im_start|>", "<|im_end|>")  # the chat format of Qwen2-Audio's own template
MULTIPLE = 64  # the vocabulary is padded to a multiple of this
ENCODER = (  # of a Whisper config, what Qwen2-Audio's encoder has too
    *("num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
    *("max_source_positions", "scale_embedding", "activation_function"),
)
# Before a language model's own chat template: a turn's clips and texts become the one text that it expects.
FLATTEN = (
    "{%- set clips = namespace(count=0, turns=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set clips.turns = clips.turns + [message] -%}{%- else -%}"
    "{%- set turn = namespace(text='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'audio' -%}{%- set clips.count = clips.count + 1 -%}"
    "{%- set turn.text = turn.text ~ 'Audio ' ~ clips.count ~ ': <|audio_bos|><|AUDIO|><|audio_eos|>\\n' -%}"
    "{%- elif 'text' in part -%}{%- set turn.text = turn.text ~ part['text'] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set clips.turns = clips.turns + [{'role': message['role'], 'content': turn.text}] -%}"
    "{%- endif -%}{%- endfor -%}{%- set messages = clips.turns -%}"
)
PLAIN = (  # for a language model that was never taught to chat
    "{%- for message in messages -%}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}{{ '\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}Assistant:{%- endif -%}"
)
TOLERANCE = 1e-3  # of logits, relative to the largest


def assemble(encoder: str | Path, language_model: str | Path, seed: int = 0):
    """Join two models, by hub id or folder, and return `(model, processor)`; the weights are float32.

    encoder: a Whisper model, of which only the encoder is taken. language_model: a causal language model; a GGUF file
    is read too (which needs the package gguf). seed: of the projector and the new embeddings. Raises ModelError where
    one of them cannot be loaded, or computes something that Qwen2-Audio's class does not.
    """
    tower = _load(WhisperModel, encoder, "a Whisper model such as openai/whisper-tiny.en", "whisper").encoder
    lm = _load(AutoModelForCausalLM, language_model, "a causal language model such as Qwen/Qwen2.5-0.5B-Instruct")
    processor = build_processor(tower.config, _tokenizer(language_model))
    torch.manual_seed(seed)
    model = Qwen2AudioForConditionalGeneration(_config(tower.config, lm, processor)).float().eval()
    use_own_attention(model)
    body = model.model
    body.audio_tower.load_state_dict(tower.state_dict(), strict=True)
    _take_language_model(model, lm, str(language_model))
    refuse_other_logits(model, lm, str(language_model))
    ends, pad = _end_ids(lm, processor), processor.tokenizer.pad_token_id
    model.generation_config.update(do_sample=False, eos_token_id=ends, pad_token_id=pad)
    check_model(model, processor)
    return model, processor


def build_processor(encoder, tokenizer) -> Qwen2AudioProcessor:
    """Give a language model's tokenizer the audio tokens and a chat template with clips, and join the encoder's mel.

    encoder: the Whisper config. Where the tokenizer knows ChatML the template is Qwen2-Audio's; else it is the
    tokenizer's own, after clips have been put into words; and a plain one where there is none.
    """
    known = tokenizer.get_vocab()
    chatml = all(token in known for token in CHATML)
    template = None if chatml else FLATTEN + (tokenizer.chat_template or PLAIN)
    if chatml:
        tokenizer.eos_token = CHATML[1]
    if tokenizer.eos_token is None:
        raise ModelError("the language model's tokenizer has no end token; choose another language model.")
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        tokenizer.pad_token = next((t for t in ("<|endoftext|>", "<pad>", "<unk>") if t in known), tokenizer.eos_token)
    tokenizer.add_special_tokens({"additional_special_tokens": list(AUDIO_TOKENS)}, False)
    tokenizer.padding_side = "left"
    longest = encoder.max_source_positions // 50  # seconds: 50 positions each
    extractor = WhisperFeatureExtractor(feature_size=encoder.num_mel_bins, chunk_length=longest)
    return Qwen2AudioProcessor(extractor, tokenizer, chat_template=template)


def _load(kind, name: str | Path, wanted: str, model_type: str | None = None) -> nn.Module:
    """Load a part in float32; raise ModelError where that cannot be done."""
    refuse_missing(str(Path(name).parent if _gguf(name) else name))
    source, options = _source(name)
    try:
        if not options:
            refuse_code(source)
            found = AutoConfig.from_pretrained(source, **SAFE).model_type
            if model_type and found != model_type:
                raise ModelError(f"{name} is a {found} model; give {wanted}.")
        model, lost = kind.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, **({} if options else SAFE), **options
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        if isinstance(error, ModelError):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(f"{name}: cannot be loaded ({first}); give {wanted}.") from error
    if missing := sorted(lost["missing_keys"]):
        raise ModelError(f"{name}: {len(missing)} weights are missing, {missing[0]} among them; download it again.")
    return model.eval()


def _tokenizer(name: str | Path):
    source, options = _source(name)
    try:
        return AutoTokenizer.from_pretrained(source, **SAFE, **(options | {"add_bos_token": False} if options else {}))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{name}: has no tokenizer; save it into the folder of the language model.") from error


def _gguf(name: str | Path) -> bool:
    return Path(name).suffix == ".gguf"


def _source(name: str | Path) -> tuple[str, dict]:
    """Say where transformers finds a part, and with which options."""
    return (str(Path(name).parent), {"gguf_file": Path(name).name}) if _gguf(name) else (str(name), {})


def _config(encoder, lm: nn.Module, processor) -> Qwen2AudioConfig:
    tokenizer = processor.tokenizer
    text = lm.config.get_text_config().to_dict()
    padded = -(-len(tokenizer) // MULTIPLE) * MULTIPLE
    text |= {
        "vocab_size": max(text["vocab_size"], padded),
        "tie_word_embeddings": False,  # the class has a head of its own
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return Qwen2AudioConfig(
        audio_config={name: getattr(encoder, name) for name in ENCODER} | {"model_type": "qwen2_audio_encoder"},
        text_config=text,
        audio_token_index=processor.audio_token_id,
    )


@torch.no_grad()
def _take_language_model(model: nn.Module, lm: nn.Module, called: str) -> None:
    """Copy a language model's weights; embeddings of tokens that it does not have stay random."""
    table = lm.get_input_embeddings().weight
    known, rows = len(table), model.model.language_model.get_input_embeddings()
    state = lm.base_model.state_dict()
    own = model.model.language_model.state_dict()
    spread = getattr(lm.config.get_text_config(), "initializer_range", None) or 0.02
    for name, weight in own.items():
        if weight is rows.weight or weight.data_ptr() == rows.weight.data_ptr():
            continue
        if name not in state or state[name].shape != weight.shape:
            raise ModelError(f"{called}: has no {name} of shape {tuple(weight.shape)}; choose another language model.")
        weight.copy_(state[name])
    for target, source in ((rows.weight, table), (model.lm_head.weight, lm.get_output_embeddings().weight)):
        target.normal_(0, spread)
        target[:known] = source[:known]


@torch.no_grad()
def refuse_other_logits(model: nn.Module, lm: nn.Module, name: str) -> None:
    """Raise ModelError unless an assembled model computes, on text, the logits of its language model.

    Some models scale their logits or cut them off behind the head, which Qwen2-Audio's class does not.
    """
    known = len(lm.get_input_embeddings().weight)
    ids = torch.randint(known, (1, 16), generator=torch.Generator().manual_seed(0))
    theirs = lm(input_ids=ids).logits
    difference = (model(input_ids=ids).logits[..., :known] - theirs[..., :known]).abs().max()
    if not difference <= TOLERANCE * theirs.abs().max():
        raise ModelError(
            f"{name}: Qwen2-Audio's class would compute other logits from its weights (by {difference:.3g}); "
            "choose a model of another architecture, such as Qwen2 or Llama."
        )


def _end_ids(lm: nn.Module, processor) -> list[int]:
    """List what ends a reply: the tokenizer's end, those of the language model, and padding."""
    theirs = lm.generation_config.eos_token_id if lm.generation_config else None
    theirs = [theirs] if isinstance(theirs, int) else theirs or []
    return list(dict.fromkeys([processor.tokenizer.eos_token_id, *theirs, processor.tokenizer.pad_token_id]))

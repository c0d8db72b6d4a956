"""Small random models of transformers' own classes, one a family, which speak with the tiny world's tokenizer.

Each is `(model, processor, processed)`: `processed(texts, waves)` is what transformers itself makes of prompts (as
`render` gives them) and clips, for that model's own forward. None needs a download.
"""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    PreTrainedTokenizerFast,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    VoxtralProcessor,
    WhisperFeatureExtractor,
)

from aqa_lib import prompt
from aqa_lib.architectures.families import ThinkerProcessor

OMNI_TEMPLATE = (  # Qwen2.5-Omni's form: no "Audio 1:" before a clip, its system prompt where none is given
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text_sizes(tokenizer) -> dict:
    """Give a language model's sizes; sharper than at initialisation, so that greedy answers differ."""
    return dict(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, initializer_range=0.2, max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def tokenizer_with(processor, **tokens):
    """Take the tiny world's tokenizer, with names for the tokens that a family looks for."""
    old = processor.tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=old.backend_tokenizer, eos_token=old.eos_token, pad_token=old.pad_token, padding_side="left",
        extra_special_tokens=tokens,
    )  # fmt: skip


def audio_flamingo_3(tiny):
    """An encoder of 3 s behind a mask, and a projector."""
    config = AudioFlamingo3Config(
        audio_config=dict(
            model_type="audioflamingo3_encoder", num_mel_bins=64, hidden_size=32, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=64, max_source_positions=150,
        ),
        text_config=dict(model_type="qwen2") | text_sizes(tiny.tokenizer),
        audio_token_id=tiny.audio_token_id,
    )  # fmt: skip
    processor = AudioFlamingo3Processor(
        tiny.feature_extractor, tiny.tokenizer, tiny.chat_template, audio_token=tiny.audio_token
    )

    def processed(texts, waves):
        return processor(text=texts, audio=waves, sampling_rate=16_000)

    return AudioFlamingo3ForConditionalGeneration(config), processor, processed


def qwen2_5_omni(tiny):
    """An encoder in chunks of 20 frames, positions in three parts, and eyes."""
    tokenizer = tokenizer_with(
        tiny, audio_token="<|AUDIO|>", audio_bos_token="<|audio_bos|>", audio_eos_token="<|audio_eos|>"
    )
    config = Qwen2_5OmniThinkerConfig(
        audio_config=dict(
            num_mel_bins=64, d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64,
            max_source_positions=150, n_window=10, output_dim=48,
        ),
        vision_config=dict(
            depth=1, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=48, patch_size=2,
            fullatt_block_indexes=[0],
        ),
        text_config=dict(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]})
        | text_sizes(tokenizer),
        audio_token_index=tiny.audio_token_id,
        # which no prompt holds
        image_token_index=len(tokenizer) + 1, video_token_index=len(tokenizer) + 2,
        vision_start_token_id=len(tokenizer) + 3,
    )  # fmt: skip
    processor = ThinkerProcessor(tiny.feature_extractor, tokenizer, OMNI_TEMPLATE)

    def processed(texts, waves):
        return processor(text=texts, audio=waves, sampling_rate=16_000, padding=True, return_tensors="pt")

    return Qwen2_5OmniThinkerForConditionalGeneration(config), processor, processed


def voxtral(tiny):
    """An encoder of 2 s at a time, a tokenizer of bytes behind Mistral's special tokens, and no chat template."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"[{n}]" for n in range(5, 24)), "[AUDIO]"]
    special += ["[BEGIN_AUDIO]", "<pad>"]  # [AUDIO] is the 24th: VoxtralProcessor says so
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate([*special, *letters])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        padding_side="left",
    )  # fmt: skip
    config = VoxtralConfig(
        audio_config=dict(
            model_type="voxtral_encoder", num_mel_bins=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=128, max_source_positions=100,
        ),
        text_config=dict(model_type="llama", head_dim=12, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
        | text_sizes(fast),
        audio_token_id=24,
    )  # fmt: skip
    processor = VoxtralProcessor(WhisperFeatureExtractor(feature_size=64, chunk_length=2), fast)
    options = VoxtralProcessor.audio_kwargs | {"pad_to_multiple_of": 32_000, "max_source_positions": 200}

    def processed(texts, waves):
        for row, wave in enumerate(waves):
            texts[row] = texts[row].replace("[AUDIO]", 25 * -(-len(wave) // 32_000) * "[AUDIO]")
        ids = fast(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        features = processor._retrieve_input_features(waves, **options)
        return {"input_ids": ids.input_ids, "attention_mask": ids.attention_mask, "input_features": features}

    return VoxtralForConditionalGeneration(config), processor, processed


def render(processor, question) -> str:
    """Render a question's prompt as transformers' own processor takes it."""
    if isinstance(processor, VoxtralProcessor):
        return f"<s>[INST][BEGIN_AUDIO][AUDIO]{prompt.text(question, 2)}[/INST]"
    messages = prompt.messages(question, 2)
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


ZOO = {"audioflamingo3": audio_flamingo_3, "qwen2_5_omni_thinker": qwen2_5_omni, "voxtral": voxtral}


def build(name: str, tiny, seed: int = 0):
    """Build one of the zoo. tiny: the tiny world's processor."""
    torch.manual_seed(seed)
    model, processor, processed = ZOO[name](tiny)
    tokenizer = processor.tokenizer
    model.generation_config.update(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model.float().eval(), processor, processed

"""Join tiny random parts, and compare with what each part computes alone."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as kinds
from torch import nn
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    WhisperConfig,
    WhisperModel,
)

from aqa_lib import inputs, model, prompt, sft
from aqa_lib.architectures.foreign import ModelError
from aqa_lib.assembly import assemble
from aqa_lib.audio import Clip
from aqa_lib.rollout import end_ids

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 259, "max_position_embeddings": 512}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=259, n_positions=512)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0)),
}
OWN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<end>{% endfor %}"
OWN += "{% if add_generation_prompt %}[me]{% endif %}"


def tokenizer(special, template=None, **options):
    bare = Tokenizer(kinds.BPE())
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=bare, **options)
    fast.chat_template = template
    return fast


def chatml():
    return tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>", pad_token="<|im_end|>")


@pytest.fixture
def whisper(tmp_path):
    torch.manual_seed(1)
    config = WhisperConfig(
        d_model=24, encoder_layers=2, encoder_attention_heads=3, encoder_ffn_dim=40, num_mel_bins=80,
        max_source_positions=150, decoder_layers=1, decoder_attention_heads=3, decoder_ffn_dim=8, vocab_size=60,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    made = WhisperModel(config).eval()
    made.save_pretrained(tmp_path / "whisper")
    return tmp_path / "whisper", made


@pytest.fixture
def language_model(tmp_path):
    def make(kind="llama", words=None):
        torch.manual_seed(2)
        made = MODELS[kind]().eval()
        made.save_pretrained(tmp_path / kind)
        (words or chatml()).save_pretrained(tmp_path / kind)
        return tmp_path / kind, made

    return make


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_on_text_it_is_the_language_model(whisper, language_model, kind):
    folder, lm = language_model(kind)
    joined, processor = assemble.assemble(whisper[0], folder)
    ids = torch.tensor([processor.tokenizer("What is the sound?").input_ids])
    with torch.no_grad():
        assert_close(joined(input_ids=ids).logits[..., :259], lm(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
    assert len(joined.lm_head.weight) == 320 and len(processor.tokenizer) == 262


def test_on_sound_it_is_whispers_encoder_two_positions_averaged(whisper, language_model):
    joined, _ = assemble.assemble(whisper[0], language_model()[0])
    mel = torch.randn(1, 80, 300, generator=torch.Generator().manual_seed(0))
    seen = []
    watch = whisper[1].encoder.layer_norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        whisper[1].encoder(mel)
        pooled = whisper[1].encoder.layer_norm(nn.functional.avg_pool1d(seen[0].transpose(1, 2), 2).transpose(1, 2))
        watch.remove()
        heard = model.encode_audio(joined, mel, torch.tensor([300]))
        assert_close(heard, joined.model.multi_modal_projector(pooled[0]), atol=1e-5, rtol=1e-4)


def test_the_folder_is_an_ordinary_one(whisper, language_model, tmp_path):
    """transformers loads it, and its own processor and forward give the tokens and logits that ours do."""
    joined, processor = assemble.assemble(whisper[0], language_model()[0])
    expected = {name: weight.clone() for name, weight in joined.state_dict().items()}
    model.save(joined, processor, tmp_path / "out", torch.float32)
    again, found = Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_close(dict(again.state_dict()), expected)
    theirs = Qwen2AudioProcessor.from_pretrained(tmp_path / "out")
    assert theirs.tokenizer.padding_side == "left"
    ours, processor = model.load(tmp_path / "out", "float32")
    wave = np.random.default_rng(0).standard_normal(20_000).astype(np.float32) / 5
    turns = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What is it?"}]}]
    example = inputs.encode(processor, turns, Clip(wave))
    text = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    batch = theirs(text=text, audio=[wave], sampling_rate=16_000, return_tensors="pt")
    assert batch["input_ids"][0].tolist() == example.ids
    prompts = inputs.collate(processor, [example])
    with torch.no_grad():
        mask = prompts.attention_mask
        hidden = model.backbone(ours, model.embed(ours, prompts), mask, inputs.positions(mask))
        assert_close(ours.lm_head(hidden), again.eval()(**batch).logits, atol=1e-4, rtol=1e-3)


def test_new_tokens_are_random_and_all_others_kept(whisper, language_model):
    folder, lm = language_model("qwen2")
    (first, processor), (again, _), (other, _) = (assemble.assemble(whisper[0], folder, seed) for seed in (0, 0, 1))
    table = first.get_input_embeddings().weight
    assert_close(table[:259], lm.get_input_embeddings().weight)
    assert_close(first.lm_head.weight[:259], lm.lm_head.weight)
    assert_close(table, again.get_input_embeddings().weight)
    ids = processor.tokenizer.convert_tokens_to_ids(list(assemble.AUDIO_TOKENS))
    assert table[ids].std() > 0 and not torch.equal(table[259:], other.get_input_embeddings().weight[259:])


def test_a_vocabulary_with_room_for_the_new_tokens_does_not_grow(whisper, language_model, monkeypatch):
    monkeypatch.setitem(SIZES, "vocab_size", 331)
    joined, processor = assemble.assemble(whisper[0], language_model()[0])
    assert len(joined.lm_head.weight) == 331 and processor.audio_token_id == 259


def test_chatml_is_asked_as_qwen2_audio_is(whisper):
    processor = assemble.build_processor(whisper[1].config, chatml())
    assert processor.chat_template == processor.default_chat_template
    assert processor.tokenizer.pad_token == "<|endoftext|>"  # an end token that pads would never be learned
    assert sft.ending(processor) == processor.tokenizer.eos_token == "<|im_end|>"
    assert processor.feature_extractor.chunk_length == 3


def test_another_chat_format_is_kept_with_clips_in_words(whisper):
    words = tokenizer(["<pad>", "<end>"], OWN, eos_token="<end>", pad_token="<pad>")
    processor = assemble.build_processor(whisper[1].config, words)
    turns = [
        {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "Rain."},
        {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "And here?"}]},
    ]
    assert processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "[user] Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\nWhat?<end>[assistant] Rain.<end>"
        "[user] Audio 2: <|audio_bos|><|AUDIO|><|audio_eos|>\nAnd here?<end>[me]"
    )
    assert sft.ending(processor) == "<end>"


def test_a_model_that_cannot_chat_gets_a_plain_template(whisper):
    processor = assemble.build_processor(whisper[1].config, tokenizer(["<unk>", "</s>"], eos_token="</s>"))
    asked = processor.apply_chat_template(prompt.messages(QUESTION, 2), tokenize=False, add_generation_prompt=True)
    assert asked.startswith("User: Audio 1: <|audio_bos|>") and asked.endswith("\nAssistant:")
    assert (sft.ending(processor), processor.tokenizer.pad_token) == ("</s>", "<unk>")


QUESTION = inputs.Question("1", None, "What barks?", ("a dog", "a cat"), "a dog")


def test_replies_end_where_either_model_ends_them(whisper, language_model):
    folder, lm = language_model()
    lm.generation_config.eos_token_id = [5, 7]
    lm.save_pretrained(folder)
    joined, processor = assemble.assemble(whisper[0], folder)
    words = processor.tokenizer
    assert end_ids(joined, processor) == [words.eos_token_id, 5, 7, words.pad_token_id]


def test_parts_that_do_not_fit_are_refused(whisper, language_model, tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        assemble.assemble(tmp_path / "nowhere", language_model()[0])
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="is a bert model; give a Whisper model"):
        assemble.assemble(tmp_path / "bert", language_model()[0])
    with pytest.raises(ModelError, match="would compute other logits"):  # Granite divides them behind its head
        assemble.assemble(whisper[0], language_model("granite")[0])
    with pytest.raises(ModelError, match="whisper: has no encoder.conv1.weight .*; choose another language model"):
        assemble.assemble(whisper[0], whisper[0])
    (tmp_path / "gpt2").mkdir()
    with pytest.raises(ModelError, match="gpt2: cannot be loaded .*; give a causal language model such as"):
        assemble.assemble(whisper[0], tmp_path / "gpt2")
    with pytest.raises(ModelError, match="no end token"):
        assemble.build_processor(whisper[1].config, tokenizer(["<pad>"]))

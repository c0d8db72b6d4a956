"""Another audio model of transformers, a tiny random Audio Flamingo 3, is loaded and trained like Qwen2-Audio."""

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
)

from aqa_lib import audio, families, inputs, prompt
from aqa_lib import model as models
from aqa_lib.grpo import GRPOTrainer
from aqa_lib.large import planner
from aqa_lib.tests.helpers import config, length_reward


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processor):
    """A random Audio Flamingo 3 that hears 3 s, with the tiny world's tokenizer."""
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    config = AudioFlamingo3Config(
        audio_config=dict(
            model_type="audioflamingo3_encoder", num_mel_bins=64, hidden_size=32, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=64, max_source_positions=150,
        ),
        text_config=dict(
            model_type="qwen2", vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, initializer_range=0.2,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        ),
        audio_token_id=processor.audio_token_id,
    )  # fmt: skip
    model = AudioFlamingo3ForConditionalGeneration(config).float()
    path = tmp_path_factory.mktemp("other") / "model"
    model.save_pretrained(path)
    other = AudioFlamingo3Processor(
        processor.feature_extractor, tokenizer, processor.chat_template, audio_token=processor.audio_token
    )
    other.save_pretrained(path)
    return path


def test_its_own_forward_gives_the_same_logits(folder, questions, clips):
    model, processor = models.load(folder)
    prompts = inputs.collate(processor, [inputs.prepare(processor, question) for question in questions])
    texts = [
        processor.apply_chat_template(prompt.messages(q, 2), tokenize=False, add_generation_prompt=True)
        for q in questions
    ]
    processed = processor(text=texts, audio=[clip.wave for clip in clips], sampling_rate=16_000)
    assert torch.equal(processed["input_ids"], prompts.input_ids)
    places = inputs.positions(prompts.attention_mask)
    with torch.no_grad():
        hidden = models.backbone(model, models.embed(model, prompts), prompts.attention_mask, places)
        theirs = model(**processed, position_ids=places).logits
    real = prompts.attention_mask.bool()
    assert_close(model.lm_head(hidden)[real], theirs[real], atol=1e-4, rtol=1e-4)


def test_it_trains(folder, questions, tmp_path):
    """Two steps by the trainer as it is: sampling, a streamed reference, checkpointing, and a checkpoint that loads."""
    model, processor = models.load(folder)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    args = config(
        tmp_path, max_steps=2, beta=0.04, reference="streamed", gradient_checkpointing=True, max_tokens_per_forward=200
    )
    trainer = GRPOTrainer(model, processor, [length_reward], args, questions)
    trainer.train()
    kl = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-5) and kl[1] > 0
    for part in ("audio_tower.layers", "multi_modal_projector", "language_model.layers", "lm_head"):
        moved = [name for name, p in model.named_parameters() if part in name and not torch.equal(p, start[name])]
        assert moved, part
    trainer.save_model()
    again, _ = models.load(tmp_path)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert planner.ModelSizes.of(model).audio_tokens == 75


def test_a_family_is_found_by_its_name_and_a_stranger_is_named(folder, processor):
    model, other = models.load(folder)
    for found in (families.of_processor(other), families.named(model.config.model_type)):
        assert type(found) is families.AudioFlamingo3
    assert type(families.of_processor(processor)) is families.Qwen2Audio
    with pytest.raises(
        families.FamilyError, match=r"whisper model is none .*\(qwen2_audio, audioflamingo3\).*families"
    ):
        families.named("whisper")
    with pytest.raises(families.FamilyError, match="object belongs to no audio model"):
        families.of_processor(object())


def test_a_new_family_needs_nothing_but_its_class(folder, questions, monkeypatch, tmp_path):
    """One that hears half as many tokens, every other: prompts, sampling, training and the cache take it as it is."""

    class Half(families.AudioFlamingo3):
        def num_audio_tokens(self, frames):
            return -(-super().num_audio_tokens(frames) // 2)

        def encode_audio(self, model, features, lengths):
            counts = [audio.num_audio_tokens(int(frames)) for frames in lengths]
            clips = super().encode_audio(model, features, lengths).split(counts)
            return torch.cat([tokens[::2] for tokens in clips])

    monkeypatch.setattr(families, "FAMILIES", (Half(),))
    for train in (models.PARTS, ("language_model",)):  # the second with audio tokens from the cache
        model, processor = models.load(folder, train=train)
        args = config(tmp_path / train[0], max_steps=1, beta=0.0)
        trainer = GRPOTrainer(model, processor, [length_reward], args, questions)
        trainer.train()
        assert trainer.audio_cache.frozen == bool(trainer.audio_cache.kept) == (train == ("language_model",))
    ids = inputs.prepare(processor, questions[3]).ids
    assert ids.count(processor.audio_token_id) == 38  # 3 s

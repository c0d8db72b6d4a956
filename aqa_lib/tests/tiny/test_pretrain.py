"""The committed tiny model is what its docstring says; nothing is trained here for more than two steps."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

from aqa_lib import audio, inputs, model, prompt
from aqa_lib.tiny import pretrain, smalltalk, sounds, synth

FOLDER = Path(__file__).resolve().parents[3] / "data" / "tiny" / "model"


@pytest.fixture(scope="module")
def tiny():
    return model.load(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def numbers(tiny):
    return pretrain.measure(*tiny, count=99)


def test_folder_is_small_and_plain():
    assert sum(p.stat().st_size for p in FOLDER.parent.rglob("*") if p.is_file()) <= 5 * 2**20
    loaded = Qwen2AudioForConditionalGeneration.from_pretrained(FOLDER)
    processor = Qwen2AudioProcessor.from_pretrained(FOLDER)
    assert 1e6 <= sum(p.numel() for p in loaded.parameters()) <= 3e6
    assert loaded.lm_head.weight is not loaded.get_input_embeddings().weight
    assert processor.tokenizer.padding_side == "left"
    ends = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert loaded.generation_config.eos_token_id == ends


def test_transformers_own_path_gives_our_logits(tiny):
    policy, processor = tiny
    examples, texts, waves = [], [], []
    for index in range(3):
        wave, question = synth.example("test", index)
        messages = prompt.messages(question, 2)
        waves.append(wave)
        texts.append(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        examples.append(inputs.encode(processor, messages, audio.Clip(wave)))
    ours = inputs.collate(processor, examples)
    theirs = processor(text=texts, audio=waves, sampling_rate=16_000, return_tensors="pt", padding=True)
    assert torch.equal(ours.input_ids, theirs.input_ids)
    with torch.no_grad():
        place = inputs.positions(ours.attention_mask)
        hidden = model.backbone(policy, model.embed(policy, ours), ours.attention_mask, place)
        logits = policy(**theirs, position_ids=place).logits[:, -1]
    assert torch.allclose(model.parts(policy).head(hidden[:, -1]), logits, atol=1e-3)


def test_tokenizer_reads_any_text_and_keeps_tags_whole(tiny):
    tokenizer = tiny[1].tokenizer
    for text in (
        "<think>There is barking.</think><answer>a dog</answer>",
        "Ünïcode 🎵 \n 'quotes'",
        "['a', \"b\"]",
    ):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
    assert len(tokenizer("<answer>a dog</answer>").input_ids) == 4
    longest = max((value for fact in synth.FACTS.values() for value in fact.values), key=len)
    assert len(tokenizer(f"<answer>{longest}</answer>").input_ids) <= 8
    # tags must survive the decoding of replies, where special tokens are left out
    assert tokenizer.decode(tokenizer("<answer>a</answer><|im_end|>").input_ids, skip_special_tokens=True) == (
        "<answer>a</answer>"
    )


def test_own_words_are_never_a_choice():
    values = {value for fact in synth.FACTS.values() for value in fact.values}
    assert set(smalltalk.OWN_WORDS) == values
    for value, own in smalltalk.OWN_WORDS.items():
        assert not set(re.findall(r"\w+", value)) <= set(own.split()), value


def test_dialogues_mix_as_documented():
    rng = np.random.default_rng(0)
    known = [sounds.clip(task, rng)[1] for task in synth.TASKS for _ in range(10)]
    pairs = [smalltalk.dialogue(known[i % 30], rng) for i in range(3000)]
    second = [
        reply for asked, reply in pairs if asked.endswith("answer in <answer> </answer>.") and "<think>" not in asked
    ]
    tagged = np.mean([reply.startswith("<answer>") for reply in second])
    assert 0.05 < tagged < 0.13
    third = [reply for asked, reply in pairs if "<think>" in asked]
    assert 0.05 < np.mean([reply.startswith("<think>") for reply in third]) < 0.15


def test_base_leaves_room_and_is_better_than_guessing(numbers):
    assert 32 <= numbers["accuracy"] <= 65  # 99 questions: within 10 points of the documented 42
    assert min(numbers[task] for task in synth.TASKS) > 25
    assert numbers["any of 8"] > numbers["accuracy"] + 15


def test_base_hears(numbers):
    assert numbers["silent"] <= 35


def test_base_seldom_uses_tags_but_can(numbers):
    assert numbers["greedy format"] < 20
    assert 2 < numbers["sampled format"] < 20
    assert 2 < numbers["sampled think format"] < 20


def test_training_runs_and_repeats_itself():
    weights = []
    for _ in range(2):
        processor = pretrain.build_processor()
        policy = pretrain.build_model(processor)
        pretrain.learn_to_hear(policy, processor, 1, batch=6)
        pretrain.learn_to_talk(policy, processor, 2, batch=3)
        weights.append({name: tensor.clone() for name, tensor in policy.state_dict().items()})
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())

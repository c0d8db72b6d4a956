"""Every family's random model is loaded, answers and is trained as transformers' own classes would have it."""

import json
from base64 import b64encode
from io import BytesIO

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import MistralCommonBackend, Qwen2_5OmniConfig, VoxtralProcessor, WhisperFeatureExtractor

from aqa_lib import attention, audio, inputs, prompt
from aqa_lib import model as models
from aqa_lib.__main__ import main
from aqa_lib.architectures import families
from aqa_lib.dataset import Question
from aqa_lib.grpo import GRPOTrainer
from aqa_lib.large import planner
from aqa_lib.logps import completion_logps
from aqa_lib.rollout import end_ids, sample
from aqa_lib.sft import SFTConfig, SFTTrainer
from aqa_lib.tests import zoo
from aqa_lib.tests.helpers import SHORT, config, length_reward


@pytest.fixture(scope="module", params=zoo.ZOO)
def family(request):
    return families.named(request.param)


@pytest.fixture(scope="module")
def built(family, processor):
    return zoo.build(family.model_type, processor)


@pytest.fixture(scope="module")
def folder(built, tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo") / "model"
    for part in built[:2]:
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def asked(built, questions, clips):
    """Ours and transformers' own inputs for four questions on clips of different lengths."""
    _, processor, processed = built
    ours = inputs.collate(processor, [inputs.prepare(processor, question) for question in questions])
    return ours, processed([zoo.render(processor, q) for q in questions], [clip.wave for clip in clips])


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def logits(model, prompts):
    mask, places = prompts.attention_mask, inputs.positions(prompts.attention_mask)
    with torch.no_grad():
        return models.parts(model).head(models.backbone(model, models.embed(model, prompts), mask, places))


def test_its_own_forward_gives_the_same_logits(folder, asked):
    prompts, processed = asked
    assert torch.equal(processed["input_ids"], prompts.input_ids)
    model, _ = models.load(folder)
    with torch.no_grad():
        theirs = model(**processed).logits
    real = prompts.attention_mask.bool()
    ours, theirs = logits(model, prompts)[real], theirs[real]
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_greedy_answers_equal_generate_on_a_ragged_batch(folder, asked):
    prompts, processed = asked
    model, processor = models.load(folder)
    free = model.generate(**processed, max_new_tokens=12)[:, prompts.input_ids.shape[1] :]
    model.generation_config.eos_token_id = [int(free[0, 3]), int(free[2, 7])]  # so that answers end at some place
    theirs = model.generate(**processed, max_new_tokens=12)[:, prompts.input_ids.shape[1] :].tolist()
    ours = sample(model, processor, prompts, 2, 12, temperature=0)
    ends = end_ids(model, processor)
    cut = [row[: next((i for i, token in enumerate(row) if token in ends), len(row) - 1) + 1] for row in theirs]
    assert len({len(row) for row in cut}) > 1
    for row, ids, mask in zip(cut, ours.completion_ids, ours.mask, strict=True):
        assert [answer[m].tolist() for answer, m in zip(ids, mask, strict=True)] == [row] * 2


@pytest.mark.parametrize(("G", "C"), [(2, 5), (24, 60)])  # in one row with a mask; attended from one by one
def test_log_probabilities_equal_its_own_forward(folder, asked, G, C):
    prompts, processed = asked
    model, _ = models.load(folder)
    lengths = torch.randint(2, C + 1, (4, G), generator=torch.Generator().manual_seed(0))
    ids = torch.randint(30, 280, (4, G, C), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(C) < lengths[..., None]
    assert attention.pays(prompts.input_ids.shape[1], G, C - 1, int((lengths - 1).sum(1).max())) == (C == 60)
    with torch.no_grad():
        ours, _ = completion_logps(model, inputs.Rollouts(prompts, ids, mask, mask.any(-1)))
        for g in range(G):
            whole = processed | {
                "input_ids": torch.cat([processed["input_ids"], ids[:, g]], 1),
                "attention_mask": torch.cat([prompts.attention_mask, mask[:, g].long()], 1),
            }
            theirs = model(**whole).logits[:, -C - 1 : -1].log_softmax(-1).gather(2, ids[:, g, :, None])[..., 0]
            assert_close(ours[:, g][mask[:, g]], theirs[mask[:, g]], atol=2e-4, rtol=1e-5)


def test_a_deaf_one_is_refused(folder):
    model, processor = models.load(folder)
    with torch.no_grad():
        for weight in models.parts(model).projector.parameters():
            weight.zero_()
    with pytest.raises(models.ModelError, match="deaf"):
        models.check_model(model, processor)


def test_a_clip_that_is_too_long_is_cut_with_a_message(built, caplog, monkeypatch):
    _, processor, _ = built
    monkeypatch.setattr(families.Voxtral, "longest", 4.0)  # instead of 40 minutes
    seconds = inputs.max_seconds(processor)
    wave = torch.randn(int((seconds + 1) * 16_000), generator=torch.Generator().manual_seed(0)).numpy() / 5
    clip = audio.load((wave, 16_000), name="long.wav", max_seconds=seconds)
    assert f"long.wav: cut from {seconds + 1:.2f} s to {seconds:g} s, the longest that the model hears" in caplog.text
    example = inputs.encode(processor, prompt.messages(Question("q", None, "What?", ("a", "b"), "a"), 2), clip)
    assert example.cut
    count = families.of_processor(processor).num_audio_tokens(example.frames)
    assert example.ids.count(processor.audio_token_id) == count


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_it_learns_from_rewards(folder, questions, tmp_path, beta):
    """Two steps by the trainer as it is: sampling, a streamed reference, checkpointing, and a checkpoint that loads."""
    model, processor = models.load(folder)
    start = weights(model)
    options = {"reference": "streamed", "gradient_checkpointing": True, "max_tokens_per_forward": 200}
    trainer = GRPOTrainer(
        model, processor, [length_reward], config(tmp_path, beta=beta, **options if beta else {}), questions
    )
    trainer.train()
    kl = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert not beta or (kl[0] == pytest.approx(0, abs=1e-5) and kl[1] > 0)
    assert_all_parts_learned(model, start)
    trainer.save_model()
    again, _ = models.load(tmp_path)
    assert all(torch.equal(weight, weights(model)[name]) for name, weight in weights(again).items())


def test_it_learns_from_answers(folder, questions, tmp_path):
    model, processor = models.load(folder)
    start = weights(model)
    trainer = SFTTrainer(model, processor, SFTConfig(str(tmp_path), **SHORT), questions)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[1] < losses[0]
    assert_all_parts_learned(model, start)


def assert_all_parts_learned(model, start):
    """Every part moved and nothing else did."""
    p = models.parts(model)
    names = {id(weight): name for name, weight in model.named_parameters()}
    for part in (p.audio_tower, p.projector, p.language_model, p.head):
        moved = [not torch.equal(weight, start[names[id(weight)]]) for weight in part.parameters()]
        assert sum(moved) > len(moved) / 2
    for name, weight in model.named_parameters():
        assert weight.requires_grad or torch.equal(weight, start[name])


def test_the_projector_has_a_learning_rate_of_its_own(folder, questions, tmp_path):
    model, processor = models.load(folder)
    start, p = weights(model), models.parts(model)
    args = config(tmp_path, beta=0.0, max_steps=1, projector_learning_rate=0.0)
    GRPOTrainer(model, processor, [length_reward], args, questions).train()
    held = {id(weight) for weight in p.projector.parameters()}
    for name, weight in model.named_parameters():
        assert id(weight) not in held or torch.equal(weight, start[name])
    assert not torch.equal(p.audio_tower.conv1.weight, next(w for n, w in start.items() if "tower.conv1.weight" in n))


def test_adapters_are_trained_and_loaded_again(folder, asked, questions, tmp_path):
    model, processor = models.load(folder, lora={"r": 2})
    training = [name for name, p in model.named_parameters() if p.requires_grad]
    assert training and all("lora_" in name and "language_model" in name for name in training)
    trainer = GRPOTrainer(model, processor, [length_reward], config(tmp_path, beta=0.04), questions)
    trainer.train()
    trainer.save_model()
    again, _ = models.load(tmp_path)
    assert_close(logits(again, asked[0]), logits(model, asked[0]), atol=1e-4, rtol=1e-4)


def test_a_plan_counts_its_parts(family, folder):
    model, _ = models.load(folder)
    sizes = planner.ModelSizes.of(model)
    assert sum(sizes.learn) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert planner.ModelSizes.of(planner.skeleton(str(folder), models.PARTS, dtype="float32")) == sizes


@pytest.mark.parametrize(
    ("name", "learn", "tokens"),
    [
        ("Qwen/Qwen2.5-Omni-3B", "4.035", 780),
        ("Qwen/Qwen2.5-Omni-7B", "8.255", 780),
        ("mistralai/Voxtral-Mini-3B-2507", "4.674", 405),  # its card: 4.7 B
    ],
)
def test_plan_knows_the_published_sizes(name, learn, tokens, capsys, monkeypatch):
    monkeypatch.setenv("AQA_SCALE", "full")
    main(["plan", "--scale", "full", "--model", name])
    told = capsys.readouterr().out
    assert f"{learn} B weights are trained" in told and f"{tokens} tokens" in told


def test_a_family_is_found_by_its_name_and_a_stranger_is_named(family, built, processor):
    assert families.of_processor(built[1]) is family
    assert type(families.of_processor(processor)) is families.Qwen2Audio
    with pytest.raises(
        families.FamilyError, match=r"whisper model is not one .*\(qwen2_audio, audioflamingo3, .*families"
    ):
        families.named("whisper")
    with pytest.raises(families.FamilyError, match="object is not the processor of a known"):
        families.of_processor(object())


# -- one family alone --------------------------------------------------------------------------------------------------


def test_the_thinker_is_taken_out_of_the_whole_omni_model(processor, tmp_path):
    """Weights named as on the hub, with a talker's among them and the thinker's config inside the whole's."""
    model, ears, _ = zoo.build("qwen2_5_omni_thinker", processor)
    for part in (model, ears):
        part.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    named = {f"thinker.{name.removeprefix('thinker.')}": weight for name, weight in saved.items()}
    renamed = {
        name.replace("model.language_model", "model").replace("model.audio", "audio").replace("model.visual", "visual"):
        weight for name, weight in named.items()
    }  # fmt: skip
    assert {"thinker.model.norm.weight", "thinker.audio_tower.proj.weight", "thinker.lm_head.weight"} <= set(renamed)
    save_file(renamed | {"talker.x": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    whole = Qwen2_5OmniConfig(thinker_config=model.config.to_dict()).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(whole))
    loaded, _ = models.load(tmp_path)
    assert all(torch.equal(weight, weights(model)[name]) for name, weight in weights(loaded).items())
    assert not any(p.requires_grad for p in loaded.model.visual.parameters())


def test_voxtrals_prompt_and_mel_are_those_of_mistrals_own_tokenizer(tmp_path):
    pytest.importorskip("mistral_common", reason="Voxtral's own tokenizer: pip install mistral-common")
    special = (
        "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] "
        "[TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] "
        "[TOOL_CONTENT] <20> <21> <22> <23> [AUDIO] [BEGIN_AUDIO] <26> <27> [TRANSCRIBE]"
    ).split()
    sizes = {
        "num_vocab_tokens": 256,
        "default_vocab_size": 256 + len(special),
        "default_num_special_tokens": len(special),
    }
    hears = {"num_mel_bins": 64, "hop_length": 160, "window_size": 400}
    tekken = {
        "config": sizes | {"pattern": r"\S+|\s+", "version": "v7"},
        "vocab": [{"rank": n, "token_bytes": b64encode(bytes([n])).decode(), "token_str": chr(n)} for n in range(256)],
        "special_tokens": [{"rank": n, "token_str": token, "is_control": True} for n, token in enumerate(special)],
        "audio": {"sampling_rate": 16_000, "frame_rate": 12.5, "audio_encoding_config": hears, "chunk_length_s": 30.0},
    }
    (tmp_path / "tekken.json").write_text(json.dumps(tekken))
    extractor = WhisperFeatureExtractor(feature_size=64)
    processor = VoxtralProcessor(extractor, MistralCommonBackend(tmp_path / "tekken.json"))
    question = Question("q", None, "What barks, [AUDIO] or </s>?", ("a dog", "a cat"), "a dog")
    for samples in (5_000, 480_000, 500_000):
        wave = torch.randn(samples, generator=torch.Generator().manual_seed(0)).numpy() / 9
        soundfile.write(file := BytesIO(), wave, 16_000, format="WAV", subtype="FLOAT")
        turns = prompt.messages(question, 2)
        ours = inputs.encode(processor, turns, audio.Clip(wave))
        turns[0]["content"][0] |= {"base64": b64encode(file.getvalue()).decode()}
        theirs = processor.apply_chat_template(turns, tokenize=True, return_dict=True)
        assert ours.ids == theirs["input_ids"][0].tolist()
        assert_close(ours.mel.unflatten(1, (-1, 3_000)).transpose(0, 1), theirs["input_features"], atol=1e-5, rtol=0)


def test_a_new_family_needs_nothing_but_its_class(processor, questions, monkeypatch, tmp_path):
    """One that hears half as many tokens, every other: prompts, sampling, training and the cache take it as it is."""

    class Half(families.AudioFlamingo3):
        def num_audio_tokens(self, frames):
            return -(-super().num_audio_tokens(frames) // 2)

        def encode_audio(self, model, features, lengths):
            counts = [audio.num_audio_tokens(int(frames)) for frames in lengths]
            clips = super().encode_audio(model, features, lengths).split(counts)
            return torch.cat([tokens[::2] for tokens in clips])

    for part in zoo.build("audioflamingo3", processor)[:2]:
        part.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(families, "FAMILIES", (Half(),))
    for train in (models.PARTS, ("language_model",)):  # the second with audio tokens from the cache
        model, other = models.load(tmp_path / "model", train=train)
        args = config(tmp_path / train[0], max_steps=1, beta=0.0)
        trainer = GRPOTrainer(model, other, [length_reward], args, questions)
        trainer.train()
        assert trainer.audio_cache.frozen == bool(trainer.audio_cache.kept) == (train == ("language_model",))
    ids = inputs.prepare(other, questions[3]).ids
    assert ids.count(other.audio_token_id) == 38  # 3 s

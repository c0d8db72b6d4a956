import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, Qwen2ForCausalLM

from aqa_lib import audio, inputs, prompt
from aqa_lib import model as models
from aqa_lib.model import ModelError


@pytest.fixture(scope="module")
def processed(processor, questions, clips):
    """What transformers' own processor makes of the same questions."""
    texts = [
        processor.apply_chat_template(prompt.messages(q, 2), tokenize=False, add_generation_prompt=True)
        for q in questions
    ]
    waves = [clip.wave for clip in clips]
    return processor(text=texts, audio=waves, sampling_rate=16_000, return_tensors="pt", padding=True)


@pytest.fixture
def folder(tmp_path, model, processor):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_prompts_equal_the_processors(prompts, processed):
    assert torch.equal(prompts.input_ids, processed.input_ids)
    assert torch.equal(prompts.attention_mask, processed.attention_mask)
    assert prompts.feature_lengths.tolist() == processed.feature_attention_mask.sum(1).tolist()


OLDER = {  # how older transformers' templates find a clip in a turn; written for this test
    "a key of the part": "'audio' in part or 'audio_url' in part",
    "the part's type": "part['type'] == 'audio'",
    "the turn's type": "'audio_url' in part or turn['type'] == 'audio'",
}


@pytest.mark.parametrize("finds", OLDER)
def test_folders_of_older_transformers_hear(folder, processor, questions, finds):
    """Their template lies in chat_template.json, and must render what today's does."""
    (folder / "chat_template.jinja").unlink()
    template = (
        "{% for turn in messages %}{% if loop.first and turn['role'] != 'system' %}<|im_start|>system\n"
        "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ turn['role'] }}\n"
        "{% for part in turn['content'] %}{% if " + OLDER[finds] + " %}"
        "Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    _, older = models.load(folder)
    assert inputs.prepare(older, questions[0]).ids == inputs.prepare(processor, questions[0]).ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_equal_transformers_padded_run(model, prompts, processed, dtype):
    model.to(dtype)
    places = inputs.positions(prompts.attention_mask)
    with torch.no_grad():
        hidden = models.backbone(model, models.embed(model, prompts), prompts.attention_mask, places)
        ours = model.lm_head(hidden)
        theirs = model(**processed, position_ids=places).logits
    real = prompts.attention_mask.bool()
    error = (ours - theirs)[real].norm() / theirs[real].norm()
    assert error < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("samples", [*range(961, 961 + 160 * 9, 160), 47_360, 47_521, 47_841, 48_000])
def test_audio_tower_equals_transformers_on_every_parity_of_length(model, processor, samples):
    wave = torch.randn(samples, generator=torch.Generator().manual_seed(samples)).numpy()
    extractor = processor.feature_extractor
    mel = audio.log_mel(wave, extractor.feature_size, extractor.chunk_length)
    frames = audio.num_frames(samples)
    kwargs = {"sampling_rate": 16_000, "return_attention_mask": True, "padding": "max_length", "return_tensors": "pt"}
    padded = extractor(wave, **kwargs)
    tower = model.model.audio_tower
    positions = audio.num_positions(frames)
    mask = (torch.arange(150) < positions)[None, None, None].expand(1, 1, 150, 150)
    with torch.no_grad():
        ours = models.encode_audio(model, mel[None], torch.tensor([frames]))
        theirs = tower(padded.input_features, attention_mask=mask).last_hidden_state
        theirs = model.model.multi_modal_projector(theirs)[0, : audio.num_audio_tokens(frames)]
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.fixture(scope="module")
def full_length():
    """An encoder of little width that hears 30 s, as the real one, and which of its lengths are tried."""
    config = Qwen2AudioConfig(
        audio_config={
            "num_mel_bins": 8, "d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
        },
        text_config={
            "model_type": "qwen2", "vocab_size": 64, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2,
        },
        audio_token_index=63,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(config).eval()
    some = torch.randperm(2_900, generator=torch.Generator().manual_seed(0))[:24].add(40).tolist()
    return model, [*range(3, 20), *some, *range(2_993, 3_001)]


def padded_and_masked(model, features, frames):
    """What transformers does: every clip as 3,000 frames, with a mask over the encoder's positions."""
    counts = audio.num_positions(frames)
    mask = (torch.arange(1_500) < counts[:, None])[:, None, None].expand(-1, 1, 1_500, -1)
    hidden = model.model.audio_tower(features, attention_mask=mask).last_hidden_state
    tokens = torch.arange(hidden.shape[1]) < (counts // 2)[:, None]
    return model.model.multi_modal_projector(hidden)[tokens]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@torch.no_grad()
def test_every_awkward_length_up_to_30_s_equals_transformers(full_length, dtype, tolerance):
    """One clip at a time, then all in one ragged batch."""
    model, lengths = full_length
    model.to(dtype)
    lengths = torch.tensor(lengths if dtype == torch.float32 else lengths[::6])
    features = torch.randn(len(lengths), 8, 3_000, generator=torch.Generator().manual_seed(1)).to(dtype)
    theirs = padded_and_masked(model, features, lengths)
    ragged = models.encode_audio(model, features[..., : int(lengths.max()) + 2], lengths)
    alone = [
        models.encode_audio(model, clip[None, :, : min(int(frames) + 2, 3_000)], frames[None])
        for clip, frames in zip(features, lengths, strict=True)
    ]
    assert len(theirs) == sum(audio.num_audio_tokens(int(frames)) for frames in lengths)
    for ours in (ragged, torch.cat(alone)):
        assert ((ours - theirs).float().norm() / theirs.float().norm()) < tolerance


def test_a_batch_of_clips_equals_the_clips_alone(model, processor, prompts):
    with torch.no_grad():
        together = models.encode_audio(model, prompts.input_features, prompts.feature_lengths)
        alone = []
        for mel, frames in zip(prompts.input_features, prompts.feature_lengths, strict=True):
            alone.append(models.encode_audio(model, mel[None, :, : min(frames + 2, 300)], frames[None]))
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_select_drops_padding_and_changes_nothing(model, prompts):
    with torch.no_grad():
        whole = models.embed(model, prompts)
        some = prompts.select([1, 0])
        part = models.embed(model, some)
    assert some.input_ids.shape[1] == prompts.attention_mask[:2].sum(1).max()
    for row, source in ((0, 1), (1, 0)):
        kept = some.attention_mask[row].bool()
        assert torch.allclose(part[row][kept], whole[source][prompts.attention_mask[source].bool()], atol=1e-5)


def test_a_folder_loads_and_hears(folder):
    model, processor = models.load(folder)
    assert model.dtype == torch.float32 and models.hearing(model, processor) > 0
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"model.audio_tower.embed_positions.weight"}


def test_only_the_chosen_parts_train(folder):
    model, _ = models.load(folder, train=["projector"])
    training = {name for name, p in model.named_parameters() if p.requires_grad}
    assert training == {"model.multi_modal_projector.linear.weight", "model.multi_modal_projector.linear.bias"}


def test_lora_trains_adapters_alone_and_is_loaded_again(folder, tmp_path, prompts):
    model, processor = models.load(folder, lora={"r": 2})
    training = [name for name, p in model.named_parameters() if p.requires_grad]
    assert training and all("lora_" in name and "language_model" in name for name in training)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        expected = models.embed(model, prompts), model.get_base_model().model.language_model
    model.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    again, _ = models.load(tmp_path / "adapter")
    mask, places = prompts.attention_mask, inputs.positions(prompts.attention_mask)
    with torch.no_grad():
        ours, theirs = (models.backbone(m, expected[0], mask, places) for m in (model, again))
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not hasattr(again, "disable_adapter")  # merged: it may be trained on, and be its own reference


def test_a_deaf_model_is_refused(model, processor):
    with torch.no_grad():
        model.model.multi_modal_projector.linear.weight.zero_()
    with pytest.raises(ModelError, match="deaf"):
        models.check_model(model, processor)


def test_a_tied_head_is_refused(model, processor):
    model.lm_head.weight = model.get_input_embeddings().weight
    with pytest.raises(ModelError, match="tied"):
        models.check_model(model, processor)


def test_a_foreign_tokenizer_is_refused(model, processor):
    model.config.audio_token_index += 1
    with pytest.raises(ModelError, match="disagree"):
        models.check_model(model, processor)

    other = copy.deepcopy(processor)
    other.audio_token = "<|sound|>"
    with pytest.raises(ModelError, match=r"does not know '<\|sound\|>'"):
        models.check_model(model, other)
    other.tokenizer.add_tokens([f"<{n}>" for n in range(len(model.get_input_embeddings().weight))])
    other.audio_token, model.config.audio_token_index = processor.audio_token, processor.audio_token_id
    with pytest.raises(ModelError, match=r"\d+ tokens but \d+ embeddings"):
        models.check_model(model, other)


def test_known_bad_transformers_are_refused(monkeypatch, folder):
    monkeypatch.setattr(models, "version", lambda package: "5.10.2")
    with pytest.raises(ModelError, match="5.10.2 ties"):
        models.load(folder)


def test_mistakes_are_told_in_one_sentence(folder, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="no part is named ear"):
        models.load(folder, train=["ear"])
    with pytest.raises(ModelError, match="quantization '2bit' is unknown"):
        models.load(folder, quantization="2bit")
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="4bit needs bitsandbytes; pip install bitsandbytes"):
        models.load(folder, quantization="4bit")
    for name in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ModelError, match="no model could be loaded|no such folder") as error:
            models.load(name)
        assert "\n" not in str(error.value)


def test_a_text_model_is_refused(model, processor, tmp_path):
    Qwen2ForCausalLM(model.config.text_config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a qwen2 model is not one of the audio models known here"):
        models.load(tmp_path)


def test_lost_weights_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["multi_modal_projector.linear.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing, \S*projector.linear.weight among them"):
        models.load(folder)


@pytest.fixture
def adapted(model, processor, tmp_path):
    """A folder of a base and one of an adapter that was trained on it."""
    from aqa_lib.model import add_adapters

    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    tuned = add_adapters(models.load(tmp_path / "base", check=False)[0], r=4)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.01)
    tuned.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("damage", ["one key", "half", "renamed", "other size", "truncated"])
def test_an_adapter_that_does_not_fit_is_refused(adapted, damage):
    """Else the base answers under the adapter's name: peft only warns."""
    models.load(adapted)
    file = adapted / "adapter_model.safetensors"
    weights = load_file(file)
    names = sorted(weights)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        weights = {
            "one key": {names[0]: weights[names[0]]},
            "half": {name: weights[name] for name in names[::2]},
            "renamed": {name.replace("q_proj", "other"): weight for name, weight in weights.items()},
            "other size": {name: weight[:2].contiguous() for name, weight in weights.items()},
        }[damage]
        save_file(weights, file, {"format": "pt"})
    with pytest.raises(
        models.ModelError, match=r"its adapter('s \d+ weights do not fit|.* cannot be loaded)|claims rank"
    ):
        models.load(adapted)


def test_an_adapter_of_a_huge_rank_takes_no_memory(adapted):
    config = json.loads((adapted / "adapter_config.json").read_text())
    (adapted / "adapter_config.json").write_text(json.dumps(config | {"r": 2_000_000_000}))
    with pytest.raises(models.ModelError, match="claims rank 2000000000, but no saved weight is that large"):
        models.load(adapted)


@pytest.mark.parametrize("value", ["kernels-community/flash-attn3", {"": "attacker/kernel@main"}, "a/b:c"])
@pytest.mark.parametrize("place", [(), ("text_config",), ("audio_config",)])
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
def test_a_config_that_asks_for_code_is_refused_before_anything_is_fetched(
    model, processor, tmp_path, monkeypatch, place, key, value
):
    processor.save_pretrained(tmp_path)
    config = model.config.to_dict()
    part = config
    for name in place:
        part = part[name]
    part[key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("it was fetched"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: pytest.fail("it was fetched"))
    with pytest.raises(models.ModelError, match=rf"its config.json asks for code, {key} .*; remove that line"):
        models.load(tmp_path)


def test_a_folder_that_is_not_there_is_said_to_be_so(tmp_path):
    with pytest.raises(models.ModelError, match="nowhere: no such folder; check the path"):
        models.load(tmp_path / "nowhere")

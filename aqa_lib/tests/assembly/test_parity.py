"""`assemble` gives the model that another program, written earlier and apart from it, makes of the same parts.

The program is `../shared/real_model/build.py`, next to the repository where it was developed. It fetches pretrained
parts; here it gets random ones of the same form, Whisper tiny.en's at full size and a small Llama.
"""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperConfig,
    WhisperModel,
)

from aqa_lib import model, scale
from aqa_lib.assembly import assemble
from aqa_lib.tests.assembly.test_assemble import chatml

BUILD = scale.ROOT.parent / "shared" / "real_model" / "build.py"
D, FFN, LAYERS = 384, 1536, 4  # of Whisper tiny.en's encoder


@pytest.fixture
def build():
    if not BUILD.is_file():
        pytest.skip(f"{BUILD} is not there: it lies next to the repository only where this was developed")
    spec = importlib.util.spec_from_file_location("build", BUILD)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arrays() -> dict[str, np.ndarray]:
    """Draw the arrays of an encoder, under CTranslate2's names."""
    rng = np.random.default_rng(0)
    shapes = {"position_encodings/encodings": (1500, D), "conv1/weight": (D, 80, 3), "conv2/weight": (D, D, 3)}
    shapes |= {name: (D,) for name in ("layer_norm/gamma", "layer_norm/beta", "conv1/bias", "conv2/bias")}
    for layer in range(LAYERS):
        for name, (rows, columns) in {
            "self_attention/linear_0": (3 * D, D), "self_attention/linear_1": (D, D),
            "ffn/linear_0": (FFN, D), "ffn/linear_1": (D, FFN),
        }.items():  # fmt: skip
            shapes |= {f"layer_{layer}/{name}/weight": (rows, columns), f"layer_{layer}/{name}/bias": (rows,)}
        for name in ("self_attention", "ffn"):
            shapes |= {f"layer_{layer}/{name}/layer_norm/{part}": (D,) for part in ("gamma", "beta")}
    return {f"encoder/{name}": rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}


def test_the_same_parts_give_the_same_prompts_and_the_same_logits(build, tmp_path, monkeypatch):
    torch.manual_seed(3)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 64, "vocab_size": 259, "max_position_embeddings": 1024, "tie_word_embeddings": True}
    lm = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 100000.0})).eval()
    lm.save_pretrained(tmp_path / "lm")
    chatml().save_pretrained(tmp_path / "lm")
    encoder = arrays()
    unused = {"decoder_layers": 1, "decoder_attention_heads": 1, "decoder_ffn_dim": 8, "vocab_size": 60}
    unused |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    sizes = {"d_model": D, "encoder_ffn_dim": FFN, "encoder_layers": LAYERS, "encoder_attention_heads": 6}
    whisper = WhisperModel(WhisperConfig(**sizes, num_mel_bins=80, max_source_positions=1500, **unused))
    whisper.encoder.load_state_dict(build.encoder_state(encoder), strict=True)
    whisper.save_pretrained(tmp_path / "whisper")

    part = SimpleNamespace(from_pretrained=lambda *names, **options: lm)
    words = SimpleNamespace(from_pretrained=lambda *names, **options: AutoTokenizer.from_pretrained(tmp_path / "lm"))
    stand_ins = {"AutoModelForCausalLM": part, "AutoTokenizer": words, "read_ctranslate2": lambda path: encoder}
    stand_ins |= {"fetch_wheel": lambda *asked: None, "extract": lambda *asked: tmp_path / "lm" / "part"}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(build, name, stand_in)
    build.build(tmp_path / "theirs", None)
    model.save(*assemble.assemble(tmp_path / "whisper", tmp_path / "lm"), tmp_path / "ours", torch.bfloat16)

    theirs, ours = (
        Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
        for name in ("theirs", "ours")
    )
    asked, known = [], lm.config.vocab_size
    with torch.no_grad():  # both draw these at random
        ours.model.multi_modal_projector.load_state_dict(theirs.model.multi_modal_projector.state_dict())
        for mine, other in zip(
            (ours.get_input_embeddings(), ours.lm_head), (theirs.get_input_embeddings(), theirs.lm_head), strict=True
        ):
            mine.weight[known:] = other.weight[known:]
    wave = np.random.default_rng(1).normal(0, 0.1, 30_000).astype(np.float32)
    turn = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What barks?"}]}]
    for name in ("theirs", "ours"):
        processor = Qwen2AudioProcessor.from_pretrained(tmp_path / name)
        text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        asked.append((text, processor(text=text, audio=[wave], sampling_rate=16_000, return_tensors="pt")))
    assert asked[0][0] == asked[1][0]
    for name in asked[0][1]:
        assert torch.equal(asked[0][1][name], asked[1][1][name]), name
    with torch.no_grad():
        assert torch.equal(theirs(**asked[0][1]).logits, ours(**asked[1][1]).logits)

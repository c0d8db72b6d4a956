"""Take the tiny base apart, to stand in for the parts that others find on a hub, and make clips with facts.

`model, sounds -> [parts] -> course.joining`. The encoder goes into the folder of a Whisper model, the language model
into one of Qwen2's class. Both keep what they learned; the projector that joined them is thrown away, so that it has to
be learned again. The clips are the tiny world's, of the splits that `study --real` asks for.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import soundfile
from transformers import Qwen2ForCausalLM, WhisperConfig, WhisperModel

from .. import model, scale
from ..audio import SAMPLE_RATE
from ..runtime import files, locks
from . import sounds

SPLITS = {"align": 60, "held_out": 20, "questions": 64, "test": 40}  # clips of each task
ASKED = "questions"  # of this split, sounds alone
FACTS = {"sound": ("source",), "music": ("instrument", "tempo"), "speech": ("vowel",)}
ENCODER, LANGUAGE_MODEL, CLIPS = "encoder", "language_model", "facts.jsonl"
UNUSED = {"decoder_layers": 1, "decoder_attention_heads": 1, "decoder_ffn_dim": 8, "vocab_size": 8}  # of Whisper
UNUSED |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def write(folder: str | Path) -> Path:
    """Write both parts and the clips into a folder, once; return it."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locks.hold(locks.beside(folder), str(folder), wait=math.inf):
        if not folder.is_dir():
            draft = folder.with_name(f".{folder.name}")
            shutil.rmtree(draft, ignore_errors=True)
            take_apart(scale.SCALES["tiny"].model, draft)
            write_clips(draft)
            draft.replace(folder)
    return folder


def take_apart(name: str, folder: Path) -> None:
    """Save the encoder and the language model of an audio-language model into folders of their own."""
    whole, processor = model.load(name, "float32", train=())
    parts, heard = model.parts(whole), whole.config.audio_config
    sizes = ("num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
    sizes = {key: getattr(heard, key) for key in (*sizes, "max_source_positions")}
    whisper = WhisperModel(WhisperConfig(**sizes, **UNUSED))
    whisper.encoder.load_state_dict(parts.audio_tower.state_dict())
    whisper.save_pretrained(folder / ENCODER)
    talks = Qwen2ForCausalLM(whole.config.text_config)
    talks.model.load_state_dict(parts.language_model.state_dict())
    talks.lm_head.load_state_dict(whole.lm_head.state_dict())
    talks.save_pretrained(folder / LANGUAGE_MODEL)
    processor.tokenizer.save_pretrained(folder / LANGUAGE_MODEL)


def write_clips(folder: Path) -> None:
    """Write the clips and `facts.jsonl`; the same bytes every time, and no two splits share a seed."""
    rows = []
    for number, (split, count) in enumerate(SPLITS.items()):
        for task in FACTS if split != ASKED else ("sound",):
            for index in range(count):
                wave, facts = _clip(task, np.random.default_rng([number, index, [*FACTS].index(task), 14]))
                name = f"{split}-{task}-{index}"
                file = folder / "audio" / f"{name}.wav"
                file.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(file, wave, SAMPLE_RATE)
                known = {fact: facts[fact] for fact in FACTS[task]}
                row = {"id": name, "audio": f"audio/{file.name}", "task": task, "split": split, "facts": known}
                rows.append(json.dumps(row) + "\n")
    files.write_whole(folder / CLIPS, "".join(rows))


def _clip(task: str, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, str]]:
    """Draw clips until one has the facts that are asked for; some sounds have a first and a last source instead."""
    wave, facts = sounds.clip(task, rng)
    return (wave, facts) if set(FACTS[task]) <= set(facts) else _clip(task, rng)

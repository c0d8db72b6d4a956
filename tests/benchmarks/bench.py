"""Measure what a step costs, and against what: `python tests/benchmarks/bench.py [step|flops|audio|gpu] [--json]`.

`step` times our step next to the paper's way (`baseline`) and to TRL's trainer; `flops` counts the operations of one
group at the true size of Qwen2-Audio-7B, without a GPU and without its weights; `audio` times the encoder and the mel
on a clip's own length next to the padded ones, after checking that both give the same numbers; `gpu` is in `gpu.py`.
Models are random: time does not depend on what they know. Seconds are the processor's, which other processes disturb
less than the clock's; with one thread (`OMP_NUM_THREADS=1`) they are the same on a quiet machine. Nothing here decides
whether a test passes; the figures are kept, with machine and commit, next to this file.
"""

import copy
import io
import json
import os
import platform
import re
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import baseline
import numpy as np
import soundfile
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
    WhisperFeatureExtractor,
)

from aqa_lib import audio
from aqa_lib.dataset import Question
from aqa_lib.grpo import GRPOConfig, GRPOTrainer
from aqa_lib.inputs import Example, Prompts, Rollouts, collate
from aqa_lib.logps import completion_logps
from aqa_lib.model import encode_audio, parts, use_own_attention
from aqa_lib.runtime import files
from aqa_lib.tiny import pretrain
from aqa_lib.training.data import Examples

SHAPES = ((280, 12), (780, 12), (280, 64), (280, 256))  # tokens of a prompt (250 or 750 of them audio) and an answer
TEXT = 30  # tokens of a prompt that are not audio
G = 8  # answers to a question
GOALS = {(280, 12): 15.5, (780, 12): 36.0, (280, 256): 100.0}  # TFLOP of a group

# mel bins, then width, layers, heads of the audio tower and of the language model, its inner width, its vocabulary
SIZES = {
    "full": (128, 1280, 32, 20, 4096, 32, 32, 11008, 156032),  # Qwen2-Audio-7B: 8,397,094,912 parameters
    "small": (128, 128, 2, 4, 256, 4, 4, 688, 1280),  # its proportions at 4 M, for one thread
    "tiny": (128, 32, 1, 2, 32, 1, 2, 64, 1280),  # for tests
    "hear": (128, 512, 6, 8, 64, 1, 2, 64, 1280),  # the audio tower of Whisper base
}


def config(size: str, layers: int | None = None) -> Qwen2AudioConfig:
    """Describe a model of Qwen2-Audio's class, with `layers` of each kind or the size's own."""
    mel, width, depth, heads, hidden, lm_depth, lm_heads, inner, vocabulary = SIZES[size]
    depth, lm_depth = layers or depth, layers or lm_depth
    made = Qwen2AudioConfig(
        audio_config=dict(
            model_type="qwen2_audio_encoder", num_mel_bins=mel, d_model=width, encoder_layers=depth,
            encoder_attention_heads=heads, encoder_ffn_dim=4 * width, max_source_positions=1500,
        ),
        text_config=dict(
            model_type="qwen2", vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner,
            num_hidden_layers=lm_depth, num_attention_heads=lm_heads, num_key_value_heads=lm_heads, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, max_position_embeddings=8192,
            tie_word_embeddings=False, pad_token_id=0,
        ),
        audio_token_index=pretrain.SPECIAL.index("<|AUDIO|>"),
    )  # fmt: skip
    made._attn_implementation = "sdpa"
    return made


def build(size: str, device="cpu", dtype=torch.float32, layers: int | None = None) -> nn.Module:
    """Make a model with random weights whose answers never end by themselves."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen2AudioForConditionalGeneration(config(size, layers))
    finally:
        torch.set_default_dtype(before)
    use_own_attention(model)
    model.generation_config.update(eos_token_id=model.config.text_config.vocab_size, pad_token_id=0)
    return model


def build_processor(size: str):
    """Make a processor with a small tokenizer and a 30 s feature extractor."""
    processor = pretrain.build_processor()
    processor.tokenizer.eos_token = None  # else a trainer would make the model end at it
    processor.feature_extractor = WhisperFeatureExtractor(feature_size=SIZES[size][0], chunk_length=30)
    return processor


def noise(seconds: float) -> np.ndarray:
    """Make a clip that no step can find easy."""
    return np.random.default_rng(0).standard_normal(int(seconds * audio.SAMPLE_RATE)).astype(np.float32) / 10


def example(model: nn.Module, processor, prompt_tokens: int, heard: bool = True) -> Example:
    """Make a prompt of so many tokens, all but `TEXT` of them a clip's; or all of them text."""
    rng = np.random.default_rng(prompt_tokens)
    ids = rng.integers(len(pretrain.SPECIAL), len(processor.tokenizer) - len(pretrain.TAGS), prompt_tokens).tolist()
    if not heard:
        return Example(ids, None)
    tokens = prompt_tokens - TEXT
    wave = noise(tokens / 25)  # 40 ms a token
    ids[5 : 5 + tokens] = [parts(model).audio_token_id] * tokens
    mel = audio.log_mel(wave, processor.feature_extractor.feature_size)
    return Example(ids, mel, audio.num_frames(len(wave)))


class Same(Examples):
    """The same prompt for every question."""

    def __init__(self, questions, processor, example: Example):
        super().__init__(questions, processor, 2)
        self.example = example

    def __getitem__(self, index: int):
        return self.questions[index], self.example


# -- step -------------------------------------------------------------------------------------------------------------


class Watch(TrainerCallback):
    """Time the last step of a trainer: sampling, rewards, both passes and the optimizer."""

    def on_step_begin(self, *args, **kwargs):
        self.start = time.process_time()

    def on_step_end(self, *args, **kwargs):
        self.seconds = time.process_time() - self.start


def every_other(completions, **columns) -> list[float]:
    """Reward every other answer, so that each group has something to learn from."""
    return [float(index % 2) for index in range(len(completions))]


def quiet(folder: str) -> dict:
    """Options of a run of one step that writes nothing, alike for both trainers."""
    return {
        "output_dir": folder, "max_steps": 1, "num_generations": G, "beta": 0.04, "temperature": 1.0, "top_k": 50,
        "learning_rate": 1e-6, "lr_scheduler_type": "constant", "bf16": False, "gradient_checkpointing": False,
        "eval_strategy": "no", "save_strategy": "no", "logging_strategy": "no", "logging_first_step": False,
        "report_to": "none",
        "disable_tqdm": True, "log_completions": False, "use_cpu": True, "remove_unused_columns": False,
    }  # fmt: skip


def our_trainer(model, processor, example: Example, completion_length: int, questions: int = 1, **options):
    """Set up our trainer on copies of one prompt."""
    batch = {"per_device_train_batch_size": questions, "max_completion_length": completion_length}
    args = GRPOConfig(**batch | options)
    asked = [Question(f"q{i}", None, "?", ("a", "b"), "a") for i in range(questions)]
    trainer = GRPOTrainer(model, processor, [every_other], args, asked)
    trainer.train_dataset = Same(asked, processor, example)
    return trainer


def our_step(folder: str, size: str, shape: tuple[int, int], heard: bool = True) -> Callable[[], float]:
    """Make a function that takes one of our steps and returns its seconds."""
    model, processor = build(size), build_processor(size)
    trainer = our_trainer(model, processor, example(model, processor, shape[0], heard), shape[1], **quiet(folder))
    return _timed(trainer)


def report_step(size: str, shape: tuple[int, int]) -> Callable[[], float]:
    """The same for a step taken as the paper does."""
    model, processor = build(size), build_processor(size)
    reference = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0)
    prompts = collate(processor, [example(model, processor, shape[0])])
    rewards = torch.tensor([every_other(range(G))])

    def take() -> float:
        start = time.process_time()
        baseline.step(model, reference, optimizer, prompts, lambda _: rewards, G, shape[1])
        return time.process_time() - start

    return take


def trl_step(folder: str, size: str, shape: tuple[int, int]) -> Callable[[], float]:
    """The same for TRL's trainer, on a text model that is our language model in size, and a prompt as long."""
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers

    lm = config(size).text_config
    words = {f"w{index}": index for index in range(lm.vocab_size)}
    words = Tokenizer(models.WordLevel(words, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w0", padding_side="left")
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**lm.to_dict())).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prompt = " ".join(f"w{2 + index % 1000}" for index in range(shape[0]))
    args = trl.GRPOConfig(
        per_device_train_batch_size=G, max_completion_length=shape[1], loss_type="grpo",
        generation_kwargs={"min_new_tokens": shape[1]}, **quiet(folder),
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": prompt}] * 64)
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)  # a path, for the reference is loaded from it
    return _timed(trl.GRPOTrainer(model, every_other, args, train_dataset=data, processing_class=tokenizer))


def _timed(trainer) -> Callable[[], float]:
    watch = Watch()
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)

    def take() -> float:
        trainer.train()
        return watch.seconds

    return take


def bench_step(size: str = "small", shapes: Sequence[tuple[int, int]] = SHAPES, rounds: int = 3) -> list[dict]:
    """Time one step (1 question, 8 answers) with four implementations, interleaved: background load hits all alike."""
    rows = []
    for shape in shapes:
        P, C = shape
        with tempfile.TemporaryDirectory() as folder:
            steps = {
                "ours": our_step(folder, size, shape),
                "report": report_step(size, shape),
                "ours, text": our_step(folder, size, shape, heard=False),
                "trl, text": trl_step(f"{folder}/trl", size, shape),
            }
            taken = [{name: take() for name, take in steps.items()} for _ in range(rounds)]
        seconds = {name: [row[name] for row in taken] for name in steps}
        rows.append(
            {
                "prompt": P,
                "answer": C,
                "tokens": G * (P + C) / (P + G * (C - 1)),  # rows of the paper's form over ours
                "median_s": {name: median(values) for name, values in seconds.items()},
                "min_s": {name: min(values) for name, values in seconds.items()},
            }
        )
    return rows


# -- flops ------------------------------------------------------------------------------------------------------------


class OnMeta(TorchDispatchMode):
    """Let real index tensors meet meta tensors, which have a shape and no values: the result is meta."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(isinstance(x, torch.Tensor) and x.is_meta for x in tree_leaves((args, kwargs))):
            if func is torch.ops.aten.index.Tensor:  # how many are kept must be known before the values are gone
                indices = [x.nonzero().unbind(1) if x is not None and x.dtype == torch.bool else (x,) for x in args[1]]
                args = (args[0], [x for some in indices for x in some])
            args, kwargs = tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, (args, kwargs))
        return func(*args, **kwargs)


def group(model: nn.Module, shape: tuple[int, int], answers: int = G) -> Rollouts:
    """Make one question's answers in shape alone: real token ids, a mel without values."""
    P, C = shape
    ids = torch.zeros(1, P, dtype=torch.long)
    ids[:, : P - TEXT] = parts(model).audio_token_id
    frames = 4 * (P - TEXT)
    mel = torch.empty(1, model.config.audio_config.num_mel_bins, min(frames + 2, 3000), device="meta")
    said = torch.zeros(1, answers, C, dtype=torch.long)
    prompts = Prompts(ids, torch.ones_like(ids), mel, torch.tensor([frames]))
    return Rollouts(prompts, said, said == 0, torch.ones(1, answers, dtype=torch.bool))


def tflop(size: str, shape: tuple[int, int]) -> tuple[float, float]:
    """Count one group's forward and backward, in 10**12 operations: (audio tower and projector, language model).

    Counted on meta tensors, with one layer of each kind and with two; layers are alike, so all cost as the second.
    The head sees all positions at once: where it sees fewer at a time, it runs once more, to save memory.
    """
    found = []
    for layers in (1, 2):
        model = build(size, "meta", torch.bfloat16, layers)
        answers = group(model, shape)
        heard = _count(encode_audio, model, answers.prompts.input_features, answers.prompts.feature_lengths)
        whole = _count(lambda *args: completion_logps(*args)[0], model, answers, 1.0, G * shape[1])
        found.append((heard, whole - heard))
    depths = (SIZES[size][2], SIZES[size][5])
    return tuple(one + (n - 1) * (two - one) for one, two, n in zip(*found, depths, strict=True))


def _count(forward: Callable[..., torch.Tensor], *args) -> float:
    with FlopCounterMode(display=False) as counter, OnMeta():
        forward(*args).sum().backward()
    return counter.get_total_flops() / 1e12


def bench_flops(size: str = "full", shapes: Sequence[tuple[int, int]] = SHAPES) -> list[dict]:
    """Count the TFLOP of one group, forward and backward: of the audio tower, which may be frozen, and of the rest."""
    rows = [dict(zip(("prompt", "answer"), shape, strict=True)) for shape in shapes]
    for row, shape in zip(rows, shapes, strict=True):
        row["audio_tower"], row["language_model"] = tflop(size, shape)
    return rows


# -- audio ------------------------------------------------------------------------------------------------------------


def bench_audio(size: str = "hear", seconds: float = 10.0, rounds: int = 15) -> list[dict]:
    """Time encoder and mel on a clip's own length beside the padded ones, and checking a clip as `prepare` does."""
    model, processor = build(size).eval(), build_processor(size)
    extractor, tower, wave = processor.feature_extractor, parts(model).audio_tower, noise(seconds)
    frames = audio.num_frames(len(wave))
    options = {"sampling_rate": audio.SAMPLE_RATE, "padding": "max_length", "return_tensors": "pt"}
    padded = extractor(wave, **options).input_features
    positions = audio.num_positions(frames)
    mask = (torch.arange(1500) < positions)[None, None, None].expand(1, 1, 1500, 1500)

    def theirs():
        hidden = tower(padded, attention_mask=mask).last_hidden_state
        return parts(model).projector(hidden)[0, : audio.num_audio_tokens(frames)]

    mel = audio.log_mel(wave, extractor.feature_size)
    pairs = {
        "encoder": (lambda: encode_audio(model, mel[None], torch.tensor([frames])), theirs),
        "mel": (
            lambda: audio.log_mel(wave, extractor.feature_size)[:, :frames],
            lambda: extractor(wave, **options).input_features[0, :, :frames],
        ),
    }
    rows = []
    for name, (ours, theirs) in pairs.items():
        with torch.no_grad():
            difference = float((ours() - theirs()).abs().max())
            taken = [(_seconds(ours), _seconds(theirs)) for _ in range(rounds)]
        mine, other = zip(*taken, strict=True)
        rows.append(
            {
                "what": name,
                "largest_difference": difference,
                "ours_s": {"median": median(mine), "min": min(mine)},
                "padded_s": {"median": median(other), "min": min(other)},
            }
        )
    return rows + [_clips(name, rate, form, seconds, rounds) for name, rate, form in FILES]


FILES = (("load, 44.1 kHz stereo WAV", 44_100, "WAV"), ("load, 16 kHz mono FLAC", 16_000, "FLAC"))


def _clips(name: str, rate: int, form: str, seconds: float, rounds: int) -> dict:
    """Time what `prepare` and the loader do with a file: decode, mix, resample, check."""
    wave = np.cumsum(np.random.default_rng(0).standard_normal((int(rate * seconds), 2 if form == "WAV" else 1)), 0)
    file = io.BytesIO()
    soundfile.write(file, wave / np.abs(wave).max() / 1.1, rate, format=form)
    audio.load(file.getvalue())
    taken = [_seconds(lambda: audio.load(file.getvalue())) for _ in range(rounds)]
    return {"what": name, "ours_s": {"median": median(taken), "min": min(taken)}, "clips_per_s": 1 / median(taken)}


def _seconds(function: Callable) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


# -- the command ------------------------------------------------------------------------------------------------------


def machine() -> dict:
    """Describe what runs this, without its name: processor, cores, load, threads, GPU."""
    processor = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        processor = found[1] if found else processor
    except OSError:
        pass
    return {
        "cpu": processor,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,  # above 0: others ran beside it
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def markdown(kind: str, rows: list[dict]) -> str:
    """Write figures as a table."""
    if kind == "step":
        lines = ["| prompt, answer tokens | ours, s | as the paper, s | ratio | text: ours, TRL, s | ratio | tokens |"]
        for row in rows:
            times = [f"{row['median_s'][name]:.2f} ({row['min_s'][name]:.2f})" for name in row["median_s"]]
            ours, report, text, trl = row["median_s"].values()
            lines.append(
                f"| {row['prompt']}, {row['answer']} | {times[0]} | {times[1]} | {report / ours:.1f} "
                f"| {times[2]}, {times[3]} | {trl / text:.1f} | {row['tokens']:.1f} |"
            )
    elif kind == "flops":
        lines = ["| prompt, answer tokens | language model, TFLOP | audio tower, TFLOP | goal |"]
        for row in rows:
            goal = GOALS.get((row["prompt"], row["answer"]), "")
            figures = f"{row['language_model']:.1f} | {row['audio_tower']:.1f}"
            lines.append(f"| {row['prompt']}, {row['answer']} | {figures} | {goal} |")
    else:
        lines = ["| what | ours, ms | padded to 30 s, ms | ratio | largest difference |"]
        for row in rows:
            cells = [row["what"], f"{1e3 * row['ours_s']['median']:.1f}", "", "", ""]
            if other := row.get("padded_s"):
                cells[2:4] = f"{1e3 * other['median']:.1f}", f"{other['median'] / row['ours_s']['median']:.1f}"
                cells[4] = f"{row['largest_difference']:.1g}"
            lines.append(f"| {' | '.join(cells)} |")
    lines.insert(1, "|" + "---|" * (lines[0].count("|") - 1))
    return "\n".join(lines)


BENCHES = {"step": bench_step, "flops": bench_flops, "audio": bench_audio}


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a table or JSON."""
    import gpu

    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", nargs="?", choices=[*BENCHES, "gpu"], default="step", help="what to measure")
    parser.add_argument("--size", choices=list(SIZES), help="of the model; each kind has its own if not given")
    parser.add_argument("--json", action="store_true", help="print JSON, with machine, versions and commit")
    args = parser.parse_args(arguments)
    size = {"size": args.size} if args.size else {}
    rows = (BENCHES | {"gpu": gpu.bench_gpu})[args.kind](**size)
    if args.json:
        record = {"kind": args.kind, "machine": machine(), "environment": files.environment(), "rows": rows}
        print(json.dumps(record, indent=1))
    else:
        print(gpu.markdown(rows) if args.kind == "gpu" else markdown(args.kind, rows))


if __name__ == "__main__":
    main()

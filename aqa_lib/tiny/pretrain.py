"""Train the tiny scale's base model from scratch: `python -m aqa_lib.tiny.pretrain --out data/tiny/model`.

Only tests import this module, and a user never needs it: its result is in the repository. The paper starts from
Qwen2-Audio-7B-Instruct; this makes a model of the same class with 1.2 M parameters, in three stages, on clips of the
pretraining split, which shares none with the others:

1. Hear (800 steps of 48 clips): the audio tower and the projector learn to name every fact of a clip.
2. Talk (2,200 steps of 12 clips, 4 dialogues each): the whole model learns captions and remarks in its own words, then
   also to pick one of several choices, all as written in `smalltalk.py`. Asked for what only a picture shows, it
   guesses.
3. Chat (150 steps): the same, more talkative, with more tags.

Why that leaves room for GRPO, honestly: the base was taught to answer some questions, those that ask what one *hears*
or what something *does*, with a remark instead of a choice ("It sounds like ticking." for "a clock"), more often than
not. Such a reply is wrong by every rule. Real instruct models have this habit, but here it was put in on purpose, and
most of what GRPO brings out is knowledge that the base already has: before the third stage it answers 85 % right. So
this base knows more than it says. Nothing steers GRPO itself: it finds choices and tags by sampling, in replies that
the base gives now and then.

What it scores is in `measured.json` next to its weights, written by this command: greedy and sampled accuracy, accuracy
on silence and of the likeliest choice, and how many replies have the tags that prompts 2 and 3 ask for. Run twice with
OMP_NUM_THREADS=1 on one machine, it produced the same bytes.
"""

import argparse
import io
import json
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from .. import audio, evaluation, prompt, reward
from ..dataset import Question
from ..inputs import Example, Prompts, collate, encode
from ..logps import shared_row
from ..model import backbone, embed, encode_audio, parts, save, use_own_attention
from ..rollout import decode, sample
from ..runtime import files
from . import sounds, synth
from .smalltalk import dialogue

HEAR_STEPS, TALK_STEPS, CHAT_STEPS = 800, 2200, 150
CLIPS_TO_HEAR, CLIPS_TO_TALK = 40_000, 30_000  # pretraining clips set aside for each stage
CHOICES = 0.7  # share of dialogues with choices, once captions are learned
WIDEST = 512  # wider matrices are token tables, not layers
MEASURED = "measured.json"  # what the finished base scores
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
TAGS = ("<answer>", "</answer>", "<think>", "</think>")
FIRST = {}  # the index of a fact's first value among all values
for _fact, _about in synth.FACTS.items():
    FIRST[_fact] = sum(len(synth.FACTS[name].values) for name in FIRST)


def build_processor() -> Qwen2AudioProcessor:
    """Train a byte-level tokenizer on what is said in this world, and pair it with a short feature extractor."""
    rng = np.random.default_rng(0)
    texts = ["You are a helpful assistant. system user assistant Audio 1:"] * 100
    for _ in range(2000):
        facts = {name: str(rng.choice(row.values)) for name, row in synth.FACTS.items()} | {"noise": "9 dB"}
        texts += dialogue(facts, rng)
    for tag in TAGS:
        texts = [text.replace(tag, " ") for text in texts]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=sorted(alphabet), special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        additional_special_tokens=[SPECIAL[1], *SPECIAL[3:]],
    )  # fmt: skip
    fast.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=64, chunk_length=3), fast)


def build_model(processor, seed: int = 0) -> Qwen2AudioForConditionalGeneration:
    """Make an untrained model of Qwen2-Audio's class, with Whisper's sinusoids in the audio tower."""
    tokenizer = processor.tokenizer
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = Qwen2AudioConfig(
        audio_config=dict(
            model_type="qwen2_audio_encoder", num_mel_bins=64, d_model=96, encoder_layers=3,
            encoder_attention_heads=4, encoder_ffn_dim=384, max_source_positions=150,  # 3 s
        ),
        text_config=dict(
            model_type="qwen2", vocab_size=-(-len(tokenizer) // 64) * 64, hidden_size=128,
            intermediate_size=320, initializer_range=0.05,
            num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=False,
            bos_token_id=None, eos_token_id=eos, pad_token_id=pad,
        ),
        audio_token_index=processor.audio_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen2AudioForConditionalGeneration(config).float()
    use_own_attention(model)
    model.generation_config.update(do_sample=False, eos_token_id=[eos, pad], pad_token_id=pad)
    table = parts(model).audio_tower.embed_positions.weight
    half = table.shape[1] // 2
    scale = torch.exp(-math.log(10000) / (half - 1) * torch.arange(half))
    angles = torch.arange(len(table))[:, None] * scale
    with torch.no_grad():
        table.copy_(torch.cat([angles.sin(), angles.cos()], 1))
    return model


def draw_clips(processor, start: int, count: int) -> tuple[list[Tensor], list[int], list[dict[str, str]]]:
    """Synthesise clips of the pretraining split: their mels, frames and facts."""
    extractor = processor.feature_extractor
    mels, frames, facts = [], [], []
    for index in range(start, start + count):
        rng = np.random.default_rng([0, synth.SPLITS.index("pretraining"), index])
        wave, known = sounds.clip(synth.TASKS[index % 3], rng)
        mels.append(audio.log_mel(wave, extractor.feature_size, extractor.chunk_length))
        frames.append(audio.num_frames(len(wave)))
        facts.append(known)
    return mels, frames, facts


def learn_to_hear(model, processor, steps: int, batch: int = 48, lr: float = 2e-3) -> None:
    """Train the audio tower and the projector to name every fact of a clip.

    The linear layer that names them, from the mean and maximum of a clip's audio tokens, is then thrown away.
    """
    p = parts(model)
    naming = nn.Linear(2 * p.projector.linear.out_features, sum(len(f.values) for f in synth.FACTS.values()))
    trained = [*p.audio_tower.parameters(), *p.projector.parameters(), *naming.parameters()]
    optimizer, began = Optimizer(trained, lr, steps), time.time()
    for step in range(steps):
        mels, frames, facts = draw_clips(processor, step * batch, batch)
        longest = max(mel.shape[1] for mel in mels)
        features = torch.stack([nn.functional.pad(mel, (0, longest - mel.shape[1])) for mel in mels])
        heard = encode_audio(model, features, torch.tensor(frames))
        heard = heard.split([audio.num_audio_tokens(F) for F in frames])
        logits = naming(torch.stack([torch.cat([x.mean(0), x.amax(0)]) for x in heard]))  # (batch, values)
        losses, right = [], []
        for fact, about in synth.FACTS.items():
            rows = [row for row, known in enumerate(facts) if fact in known]
            if rows:
                truth = torch.tensor([about.values.index(facts[row][fact]) for row in rows])
                part = logits[rows, FIRST[fact] : FIRST[fact] + len(about.values)]
                losses.append(nn.functional.cross_entropy(part, truth, reduction="sum"))
                right += (part.argmax(1) == truth).tolist()
        loss = sum(losses) / batch
        optimizer.update(loss)
        if step % 25 == 0 or step == steps - 1:
            named = f"{np.mean(right):.0%} of the facts named"
            print(f"hear {step} {time.time() - began:.0f} s, loss {loss.item():.2f}, {named}", flush=True)


def learn_to_talk(model, processor, steps: int, batch: int = 12, lr: float = 2e-3, chat: bool = False) -> None:
    """Train the whole model on dialogues: captions and remarks for the first two fifths, then choices too.

    chat: the last stage, with choices from the start, and more talkative.
    """
    p, rng, began = parts(model), np.random.default_rng(2 if chat else 1), time.time()
    start = CLIPS_TO_HEAR + CLIPS_TO_TALK * chat
    optimizer = Optimizer(model.parameters(), lr, steps)
    for step in range(steps):
        mels, frames, facts = draw_clips(processor, start + step * batch, batch)
        choices = CHOICES if chat or step > 0.4 * steps else 0.0
        pairs = [[dialogue(known, rng, choices, chat) for _ in range(4)] for known in facts]
        prompts, ids, mask, taught = dialogue_batch(processor, mels, frames, pairs)
        sees, place, order = shared_row(prompts.attention_mask, mask[..., 1:])  # the last token predicts nothing
        shifted = (ids[..., :-1], ids[..., 1:], taught[..., 1:])
        fed, targets, taught = (x.flatten(1).gather(1, order) for x in shifted)  # (B, K)
        table = p.language_model.get_input_embeddings()
        embeds = torch.cat([embed(model, prompts), table(fed)], 1)
        hidden = backbone(model, embeds, sees, place)[:, -fed.shape[1] :]
        loss = nn.functional.cross_entropy(p.head(hidden[taught]), targets[taught])
        optimizer.update(loss)
        if step % 25 == 0 or step == steps - 1:
            print(f"talk {step} {time.time() - began:.0f} s, loss {loss.item():.3f}", flush=True)


def dialogue_batch(processor, mels, frames, pairs) -> tuple[Prompts, Tensor, Tensor, Tensor]:
    """Tokenise G dialogues about each of B clips, to follow the clip in one row.

    Returns the prompts up to the end of the clip and what follows, (B, G, C) each: the ids, which of them are real, and
    which are replies.
    """
    tokenizer, token = processor.tokenizer, processor.audio_token
    content = [{"type": "audio"}, {"type": "text", "text": "§"}]
    rendered = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    before, after = rendered.split("§")
    heads = [before.replace(token, token * audio.num_audio_tokens(F)) for F in frames]
    heads = tokenizer(heads, add_special_tokens=False).input_ids
    prompts = collate(processor, [Example(*row) for row in zip(heads, mels, frames, strict=True)])
    flat = [pair for group in pairs for pair in group]
    asked = tokenizer([said + after for said, _ in flat], add_special_tokens=False).input_ids
    replies = tokenizer([reply + "<|im_end|>" for _, reply in flat], add_special_tokens=False).input_ids
    shape = (len(flat), max(len(a) + len(b) for a, b in zip(asked, replies, strict=True)))
    ids = torch.full(shape, tokenizer.pad_token_id)
    mask, taught = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for row, (a, b) in enumerate(zip(asked, replies, strict=True)):
        ids[row, : len(a) + len(b)] = torch.tensor(a + b)
        mask[row, : len(a) + len(b)] = True
        taught[row, len(a) : len(a) + len(b)] = True
    return prompts, *(x.unflatten(0, (len(pairs), -1)) for x in (ids, mask, taught))


class Optimizer:
    """Muon for the layers' matrices and AdamW for all else, both on one cosine schedule with a warm-up."""

    def __init__(self, trained, lr: float, steps: int):
        self.trained = [p for p in trained if p.requires_grad]
        inner = [p for p in self.trained if p.ndim == 2 and max(p.shape) <= WIDEST]
        outer = [p for p in self.trained if p.ndim != 2 or max(p.shape) > WIDEST]
        muon = torch.optim.Muon(inner, lr=2 * lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(outer, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
        self.optimizers = (muon, adam)
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, partial(_cosine, steps)) for o in self.optimizers]

    def update(self, loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def _cosine(steps: int, step: int) -> float:
    return min((step + 1) / (0.05 * steps + 1), 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def ask_model(model, processor, split: str, count: int, style: int = 2, silent: bool = False, **options):
    """Ask the first questions of a split, and return them and the replies; options go to `rollout.sample`."""
    questions, replies = [], []
    for start in range(0, count, 50):
        examples = []
        for index in range(start, min(start + 50, count)):
            wave, question = synth.example(split, index)
            clip = audio.Clip(wave * 0 if silent else wave)
            examples.append(encode(processor, prompt.messages(question, style), clip))
            questions.append(replace(question, audio=as_wav(wave)))
        rollouts = sample(model, processor, collate(processor, examples), max_completion_length=32, **options)
        replies += decode(processor, rollouts)
    return questions, replies


def as_wav(wave: np.ndarray) -> bytes:
    """Write a wave, (S,), as the bytes of a WAV file."""
    file = io.BytesIO()
    soundfile.write(file, wave, audio.SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def measure(model, processor, count: int = 600) -> dict[str, float]:
    """Measure a base on the first test questions, in percent: accuracy (strict; on silence; of 8 samples) and form."""

    def right(reply: str, question: Question) -> bool:
        return prompt.matches(prompt.extract_answer(reply), question.answer, question.choices)

    def percent(values) -> float:
        return round(100 * float(np.mean(list(values))), 1)

    questions, replies = ask_model(model, processor, "test", count, temperature=0)
    correct = [right(reply, question) for question, (reply,) in zip(questions, replies, strict=True)]
    numbers = {"accuracy": percent(correct)}
    for task in synth.TASKS:
        numbers[task] = percent(c for c, q in zip(correct, questions, strict=True) if q.task == task)
    numbers["greedy format"] = percent(reward.format(None, [r for (r,) in replies]))
    _, replies = ask_model(model, processor, "test", count, silent=True, temperature=0)
    numbers["silent"] = percent(right(r, q) for q, (r,) in zip(questions, replies, strict=True))
    _, groups = ask_model(model, processor, "test", count, num_generations=8)
    hits = [[right(r, q) for r in group] for q, group in zip(questions, groups, strict=True)]
    numbers |= {"sampled": percent(hits), "any of 8": percent(map(any, hits))}
    numbers["sampled format"] = percent(reward.format(None, sum(groups, [])))
    _, groups = ask_model(model, processor, "test", count, style=3, num_generations=8)
    numbers["sampled think format"] = percent(reward.think_format(None, sum(groups, [])))
    likeliest = []
    for question in questions:
        chances = evaluation.choice_probabilities(model, processor, question, style=2)
        likeliest.append(max(chances, key=chances.get) == question.answer)
    return numbers | {"likeliest choice": percent(likeliest), "n": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--hear-steps", type=int, default=HEAR_STEPS, help="steps of naming facts, 48 clips each")
    parser.add_argument("--talk-steps", type=int, default=TALK_STEPS, help="steps of dialogues, 12 clips each")
    parser.add_argument("--chat-steps", type=int, default=CHAT_STEPS, help="steps of talkative dialogues")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights")
    options = parser.parse_args()
    began = time.time()
    processor = build_processor()
    model = build_model(processor, options.seed)
    learn_to_hear(model, processor, options.hear_steps)
    learn_to_talk(model, processor, options.talk_steps)
    learn_to_talk(model, processor, options.chat_steps, lr=5e-4, chat=True)
    save(model, processor, options.out)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {time.time() - began:.0f} s")
    found = measure(model.float(), processor)
    (options.out / MEASURED).write_text(json.dumps(found | {"environment": files.environment()}, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

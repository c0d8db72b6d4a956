"""Count the memory of a training run before it starts, and choose what fits.

`model, masters -> [planner] -> training`. The paper needs eight 80 GB cards, with the masters offloaded to their hosts.
Whether one card can do it is arithmetic, and this module does it: how weights are kept (`masters.MASTERS`), where the
reference is, how many tokens a pass may hold, and above how many the backward pass recomputes activations. Weights,
gradients and states are exact. Activations are those that autograd saves, counted tensor by tensor on a small model
(tests/large/test_planner.py: within 5 %); CUDA's kernels save a little more or less. A GB is 10^9 bytes.

    python -m aqa_lib plan --scale full --memory 80
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from transformers import AutoConfig, Qwen2_5OmniThinkerConfig, Qwen2AudioConfig, VoxtralConfig

from .. import attention
from ..architectures import families, foreign
from ..model import add_adapters, choose_trainable, parts, refuse_arguments
from ..runtime.errors import AqaError
from .masters import MASTERS, refusal

GB = 1e9
RESERVE = 2 * GB  # CUDA's context and workspaces, and what its allocator cannot use: an assumption
NF4 = 0.516  # bytes per 4-bit weight, including its doubly quantized scales
TEXT_TOKENS = 30  # in a prompt, besides its clip
FORWARD = 4  # a pass without gradients may hold this many times the tokens of one with them
TOKENS = 8192  # in a pass, if the memory is not known
SHARE = 0.9  # of what is left goes to activations, whose count is an estimate
ITEMS = (
    "weights", "gradients", "states", "reference", "autocast's copies", "gathered", "cache", "activations", "logits",
)  # fmt: skip
AUTO = {"master": "auto", "reference": "auto", "max_tokens_per_forward": None, "checkpoint_above": None}
LOWERED = ("per_device_train_batch_size", "per_device_eval_batch_size", "max_completion_length")


def qwen2_audio_7b() -> Qwen2AudioConfig:
    """Return the sizes of Qwen2-Audio-7B, so that planning needs no download: 8.397 B parameters."""
    return Qwen2AudioConfig(
        audio_config=dict(
            model_type="qwen2_audio_encoder", num_mel_bins=128, d_model=1280, encoder_layers=32,
            encoder_attention_heads=20, encoder_ffn_dim=5120, max_source_positions=1500,
        ),
        text_config=dict(
            model_type="qwen2", vocab_size=156032, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=8192, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=False,
        ),
        audio_token_index=151646,
    )  # fmt: skip


def qwen2_5_omni(hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int) -> Qwen2_5OmniThinkerConfig:
    """Return the sizes of a Qwen2.5-Omni thinker, whose two releases differ only in the language model's."""
    return Qwen2_5OmniThinkerConfig(
        audio_config={"output_dim": hidden},
        vision_config={"hidden_size": 1280, "out_hidden_size": hidden},
        text_config=dict(
            hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv, vocab_size=vocab, tie_word_embeddings=False,
        ),
    )  # fmt: skip


PUBLISHED = {
    "Qwen/Qwen2-Audio-7B-Instruct": qwen2_audio_7b,
    "Qwen/Qwen2.5-Omni-3B": partial(qwen2_5_omni, 2048, 11008, 36, 16, 2, 151936),
    "Qwen/Qwen2.5-Omni-7B": partial(qwen2_5_omni, 3584, 18944, 28, 28, 4, 152064),
    "mistralai/Voxtral-Mini-3B-2507": partial(VoxtralConfig, tie_word_embeddings=False),  # transformers' own default
}


def skeleton(name: str, train: Sequence[str], lora_r: int | None = None, dtype: str = "auto") -> nn.Module:
    """Build a model of the right shapes without weights, on the meta device; raises ModelError if it cannot be."""
    refuse_arguments(dtype, train)
    if name not in PUBLISHED:
        foreign.refuse_missing(name)
        foreign.refuse_broken(name)
    with foreign.told(name, "config.json"):
        config = PUBLISHED[name]() if name in PUBLISHED else AutoConfig.from_pretrained(name)
        family = families.named(config.model_type)
        config = family.own_config(config)
        dtype = (config.dtype or torch.bfloat16) if dtype == "auto" else getattr(torch, dtype)
        with torch.device("meta"):
            model = family.model_class(config)(config).to(dtype)
            if lora_r is not None:
                return add_adapters(model, r=lora_r)
            choose_trainable(model, train)
            return model


@dataclass(frozen=True)
class ModelSizes:
    """What determines a model's memory. learn: the sizes of its trained tensors; frozen: bytes of the others."""

    learn: tuple[int, ...]
    low: bool  # some of them are in half precision
    frozen: float
    matrices: int  # trained weights that autocast computes with in half precision
    streamed: int  # weights of a reference that stay on the device, and of two of its layers
    hidden: int
    inner: int
    layers: int
    heads: int
    kv: int  # width of a layer's keys, and of its values
    vocab: int
    tower_hidden: int
    tower_inner: int
    tower_layers: int
    tower_positions: int  # that become an audio token
    audio_tokens: int  # of the longest clip; of 30 s where there is no longest
    tower_learns: bool
    adapters: bool

    @classmethod
    def of(cls, model: nn.Module, quantization: str | None = None) -> "ModelSizes":
        """Measure a model. quantization: how the weights of a skeleton will be quantized."""
        p, text = parts(model), model.config.get_text_config()
        family = families.named(model.config.model_type)
        packed = set()
        if quantization:  # all linear layers but the head
            packed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m is not p.head}
        parameters = list(model.parameters())
        frozen = sum(
            w.numel() * (NF4 if id(w) in packed else 2 * NF4 if w.dtype == torch.uint8 else w.element_size())
            for w in parameters  # a model loaded in 4 bits has two weights in a byte
            if not w.requires_grad
        )
        matrices = {id(w) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d) for w in m.parameters()}
        both = (*p.audio_tower.layers, *p.language_model.layers)
        layers = [sum(w.numel() for w in layer.parameters()) for layer in both]
        within = {id(w) for layer in both for w in layer.parameters()}
        outside = [w for w in parameters if id(w) not in within]
        table = p.language_model.get_input_embeddings().weight
        linear = [m for m in p.audio_tower.layers[0].modules() if isinstance(m, nn.Linear)]
        positions = getattr(p.audio_tower, "embed_positions", None)  # Whisper's, and those like it
        heads = text.num_attention_heads
        return cls(
            learn=tuple(w.numel() for w in parameters if w.requires_grad),
            low=any(w.requires_grad and w.element_size() == 2 for w in parameters),
            frozen=frozen,
            matrices=sum(w.numel() for w in parameters if w.requires_grad and id(w) in matrices),
            streamed=sum(w.numel() for w in outside if w.requires_grad and w is not table) + 2 * max(layers),
            hidden=table.shape[1],
            inner=text.intermediate_size,
            layers=len(p.language_model.layers),
            heads=heads,
            kv=text.num_key_value_heads * (getattr(text, "head_dim", None) or table.shape[1] // heads),
            vocab=table.shape[0],
            tower_hidden=min(m.in_features for m in linear),
            tower_inner=max(m.out_features for m in linear),
            tower_layers=len(p.audio_tower.layers),
            tower_positions=family.positions,
            audio_tokens=750 if positions is None else len(positions.weight) // family.positions,
            tower_learns=any(w.requires_grad for w in p.audio_tower.parameters()),
            adapters=hasattr(model, "disable_adapter"),
        )


@dataclass(frozen=True)
class Work:
    """What a step does. prompt, answer: tokens in each; questions: per step; generations: answers to each."""

    prompt: int
    answer: int
    questions: int
    generations: int
    asked: int  # questions that an evaluation answers at a time
    chunk: int
    half: bool  # computes in half precision
    beta: float = 0.0
    checkpointing: bool = False
    accumulates: bool = False
    single_pass: bool = False  # all questions in one pass, as SFT does
    shards: int = 1  # processes among which the model is sharded

    @classmethod
    def of(cls, args, sizes: ModelSizes, prompt: int | None = None) -> "Work":
        """Read a step from a `GRPOConfig` or `SFTConfig`; prompt: tokens, those of the longest clip if not given."""
        return cls(
            prompt=prompt or sizes.audio_tokens + TEXT_TOKENS,
            answer=args.max_completion_length,
            questions=args.per_device_train_batch_size,
            generations=getattr(args, "num_generations", 1),
            asked=args.per_device_eval_batch_size * (args.eval_strategy != "no"),
            chunk=args.logits_chunk_size,
            half=args.bf16 or args.fp16,
            beta=getattr(args, "beta", 0.0),
            checkpointing=args.gradient_checkpointing,
            accumulates=args.gradient_accumulation_steps > 1,
            single_pass=not hasattr(args, "num_generations"),
            shards=args.world_size if args.fsdp else 1,
        )

    @property
    def row(self) -> int:
        """Tokens of one question with all its answers; the last token of an answer is not run."""
        return self.prompt + self.generations * (self.answer - 1)


def saved_per_token(a: ModelSizes, work: Work, master: str, recompute: bool) -> float:
    """Count the bytes per token that a forward pass keeps for the backward pass.

    Every token counts as an audio token, with two positions in the tower. recompute: keep each layer's input, and all
    of one layer.
    """
    wide = 2 if MASTERS[master].width == 2 or (a.adapters and work.half) else 4  # of the residual stream
    w = 2 if work.half else wide  # of what is computed with
    shared = w == wide  # else autocast makes a copy of its input for each linear layer
    layer = 2 * (4 + wide) * a.hidden + ((3 if shared else 6) + 3) * w * a.hidden + 4 * w * a.inner + 4 * a.heads + 8
    if a.adapters:  # each adapter reads a float32 copy of its input
        layer += 4 * (6 * a.hidden + a.inner)
    P, G, C = work.prompt, work.generations, work.answer - 1
    if attention.pays(P, G, C, G * C):
        layer += (P + C) * w  # its row of the mask; copies of all but the prompt; and for each answer one of the prompt
        layer += (4 + 2 * G * P / work.row) * w * a.hidden
    else:
        layer += work.row * w  # this token's row of the mask
    tower = (2 * wide + ((3 if shared else 5) + 4) * w) * a.tower_hidden + 2 * w * a.tower_inner  # of a position
    front = 8 * w * a.tower_hidden  # its convolutions
    heard = a.tower_positions * a.tower_learns
    ends = (4 + 3 * wide) * a.hidden + heard * front
    if recompute:
        return wide * (a.layers * a.hidden + heard * a.tower_layers * a.tower_hidden) + layer + heard * tower + ends
    return a.layers * layer + heard * a.tower_layers * tower + ends


def forward_per_token(a: ModelSizes, work: Work, master: str) -> float:
    """Count the bytes per token of a pass without gradients: those of one layer, at its peak."""
    w = 2 if work.half else MASTERS[master].width
    tower = a.tower_positions * w * (2 * a.tower_inner + 6 * a.tower_hidden)
    return 3 * w * a.inner + (8 * w + 8) * a.hidden + tower


def phases(a: ModelSizes, work: Work, master: str, reference: str | None, tokens: int, plain: int) -> dict[str, dict]:
    """Count the bytes held in each phase of a step, by what holds them.

    reference: where it is kept, None without one. tokens: the most in a pass. plain: the most in one that does not
    recompute activations.
    """
    row, count = MASTERS[master], sum(a.learn)
    shared = work.shards > 1
    copies = 2 * a.matrices if master == "fp32" and work.half and not shared else 0  # autocast's, of float32 weights
    narrow = 2 if work.half else row.width
    held = {
        "weights": count * row.width / work.shards + a.frozen,
        "states": sum(row.states(n) for n in a.learn) / work.shards,
        "reference": {
            None: 0,
            "resident": (a.matrices * narrow + (count - a.matrices) * row.width) / work.shards,
            "streamed": a.streamed * narrow,
        }[reference],
    }
    gathered = shared * (a.streamed + a.vocab * a.hidden)  # weights: two layers, and all that is in no layer
    gradients = {"gradients": count * row.width / work.shards}
    steps = {"autocast's copies": copies, "gathered": gathered * narrow}
    backward = {"gathered": gathered * (2 * narrow + 4)}  # and their gradients, which are summed in float32
    carried = gradients if work.accumulates else {}  # from one batch of a step to the next
    forward = forward_per_token(a, work, master)
    logits = 14 * a.vocab * min(work.chunk, work.questions * work.generations * work.answer)
    saved = plain * saved_per_token(a, work, master, False)
    if work.checkpointing:
        saved = max(saved, tokens * saved_per_token(a, work, master, True))

    def decoding(questions: int, G: int) -> dict[str, float]:
        cache = questions * (work.prompt + G * work.answer) * 2 * a.layers * a.kv * narrow
        return {
            "cache": cache * (1 + 1 / a.layers),  # finished prompts leave it by copying, one layer at a time
            "activations": questions * work.prompt * forward,
            "logits": 16 * a.vocab * questions * G,
        }

    ahead = min(FORWARD * tokens, work.questions * work.row) * forward
    result = {
        "rollout": held | carried | steps | decoding(work.questions, work.generations),
        "reference": held | carried | {"gathered": gathered * narrow, "activations": ahead, "logits": logits},
        "policy": held | gradients | steps | backward | {"activations": saved, "logits": logits},
        # a compiled or fused step needs nothing more; the others, a few copies of the largest tensor in float32
        "update": held | gradients | {"activations": 0 if master in ("fp32", "24bit") else 12 * max(a.learn)},
        "evaluation": held | steps | decoding(work.asked, 1),
    }
    unused = {"rollout": work.single_pass, "reference": not work.beta, "evaluation": not work.asked}
    return {name: items for name, items in result.items() if not unused.get(name)}


@dataclass(frozen=True)
class Plan:
    """How a run will be laid out, and what it holds. reference, tokens, plain: see `phases`."""

    master: str
    reference: str | None
    tokens: int
    plain: int
    phases: dict[str, dict[str, float]]
    limit: float | None

    @property
    def peak(self) -> float:
        return max(sum(items.values()) for items in self.phases.values()) + RESERVE

    @property
    def fits(self) -> bool:
        return self.limit is None or self.peak <= self.limit


def plan(a: ModelSizes, work: Work, limit: float | None, args, device=None) -> Plan:
    """Lay a run out in `limit` bytes, with the first master, and then the first place for the reference, that fits.

    device: only masters that work there are considered; None for some other machine. What `args` settles (master,
    reference, max_tokens_per_forward, checkpoint_above) stays. If nothing fits, the smallest is returned; without a
    limit, the first.
    """
    masters = [args.master]
    if args.master == "auto":
        masters = [name for name in MASTERS if device is None or not refusal(name, device, args.fsdp)]
        if limit is None or not a.low:
            masters = ["fp32"]
    if a.adapters or not work.beta:
        places = [None]
    else:
        chosen = getattr(args, "reference", "auto")
        places = [chosen] if chosen != "auto" else ["resident"] if args.fsdp else ["resident", "streamed"]
    found = [_lay_out(a, work, limit, args, master, place) for master in masters for place in places]
    return next((p for p in found if p.fits), min(found, key=lambda p: p.peak))


def _lay_out(a: ModelSizes, work: Work, limit: float | None, args, master: str, reference: str | None) -> Plan:
    most = work.questions * work.row
    least = most if work.single_pass else work.row  # a question is never split
    tokens, plain = getattr(args, "max_tokens_per_forward", None), getattr(args, "checkpoint_above", None)
    if limit is None:
        tokens = tokens or (most if work.single_pass else TOKENS)
        plain = tokens if not work.checkpointing else plain or 0
        return Plan(master, reference, tokens, plain, phases(a, work, master, reference, tokens, plain), limit)
    base = phases(a, work, master, reference, 0, 0)
    free = {name: SHARE * (limit - RESERVE - sum(items.values())) for name, items in base.items()}
    without, again = (saved_per_token(a, work, master, recompute) for recompute in (False, True))
    if work.beta:
        most = min(most, int(free["reference"] / (FORWARD * forward_per_token(a, work, master))))
    tokens = tokens or max(min(int(free["policy"] / (again if work.checkpointing else without)), most), least)
    if not work.checkpointing:
        plain = tokens
    elif plain is None:
        plain = 0 if work.single_pass else max(min(int(free["policy"] / without), tokens), 0)
    held = phases(a, work, master, reference, max(tokens, least), plain)
    return Plan(master, reference, tokens, plain, held, limit)


def table(plan: Plan, a: ModelSizes, work: Work) -> str:
    """Format a plan: what holds how much in each phase of a step, in GB, and whether it fits."""
    learn = sum(a.learn)
    count = f"{learn / 1e9:.3f} B" if learn >= 1e8 else f"{learn / 1e6:.3f} M"
    again = f", and recomputes activations above {plan.plain}" if work.checkpointing else ""
    lines = [
        f"{count} weights are trained, {plan.master}: {MASTERS[plan.master].says}",
        f"{work.questions} questions of {work.prompt} tokens, {work.generations} answers each of up to {work.answer}",
        f"reference: {plan.reference or 'none'}; a pass takes up to {plan.tokens} tokens{again}",
        "",
        f"{'GB':<18}" + "".join(f"{phase:>11}" for phase in plan.phases),
    ]
    held = {name: items | {"CUDA itself": RESERVE} for name, items in plan.phases.items()}
    held = {name: items | {"together": sum(items.values())} for name, items in held.items()}
    for item in (*ITEMS, "CUDA itself", "together"):
        if any(items.get(item) for items in held.values()):
            row = [f"{items[item] / GB:.1f}" if items.get(item) else "" for items in held.values()]
            lines.append(f"{item:<18}" + "".join(f"{cell:>11}" for cell in row))
    verdict = "" if plan.limit is None else f" of {plan.limit / GB:g} GB: {'fits' if plan.fits else 'does not fit'}"
    return "\n".join([*lines, f"peak: {plan.peak / GB:.1f} GB{verdict}"])


def card(args) -> float | None:
    """Return the bytes that a run may use: `args.memory` GB, else all of the GPU; None if neither is known."""
    if args.memory:
        return args.memory * GB
    if args.device.type == "cuda":
        return float(torch.cuda.get_device_properties(args.device).total_memory)
    return None


def settle(a: ModelSizes, args, prompt: int | None = None) -> Plan:
    """Choose what `args` leaves open to suit the device's memory, write it into `args`, and refuse what cannot fit."""
    made = plan(a, Work.of(args, a, prompt), card(args), args, args.device)
    if not made.fits:
        raise AqaError(
            f"this run needs about {made.peak / GB:.3g} GB but only {made.limit / GB:.3g} GB are available: "
            f'{advice(a, args, made.limit, args.device, prompt)}. Run "plan" to see the breakdown.'
        )
    args.master = made.master
    if hasattr(args, "reference"):
        args.reference = made.reference or args.reference
        args.max_tokens_per_forward, args.checkpoint_above = made.tokens, made.plain
    return made


def advice(a: ModelSizes, args, limit: float, device=None, prompt: int | None = None) -> str:
    """Name two changes that would make a run fit, the mildest first, each with what it would then need."""
    count = sum(a.learn)
    lora = replace(a, learn=(1,), low=False, matrices=0, frozen=a.frozen + 2 * count, adapters=True)
    four = replace(lora, frozen=NF4 * count + (2 - NF4) * 2 * a.vocab * a.hidden)  # embeddings and head stay
    quarter = {name: max(getattr(args, name) // 4, 1) for name in LOWERED}
    lower = "lower " + ", ".join(f"{name} to {value}" for name, value in quarter.items())
    four_bit = "train adapters on a 4-bit model (lora_r 16, quantization 4bit)"
    changes = [
        ("turn on gradient_checkpointing", a, {"gradient_checkpointing": True}),
        *(
            (f"pip install {row.package} for master {name}", a, {"master": name})
            for name, row in MASTERS.items()
            if args.master == "auto" and device and refusal(name, device) and not (row.cuda and device.type != "cuda")
        ),
        ("let master, reference and the tokens of a pass be chosen for you", a, AUTO),
        *(
            (f"lower {name} to {getattr(args, name) // 2}", a, {name: getattr(args, name) // 2})
            for name in LOWERED
            if getattr(args, name) > 1
        ),
        (lower, a, quarter),
        ("train adapters (lora_r 16)", lora, AUTO),
        (four_bit, four, AUTO),
        (f"{four_bit} and {lower}", four, AUTO | quarter),
    ]
    found = []
    for words, sizes, change in changes:
        changed = copy.copy(args)
        for name, value in change.items():
            if hasattr(args, name):
                setattr(changed, name, value)
        made = plan(sizes, Work.of(changed, sizes, prompt), limit, changed, device)
        if made.fits:
            found.append(f"{words} (about {made.peak / GB:.3g} GB)")
    return "; or ".join(found[:2]) or "use a smaller model or a larger device"

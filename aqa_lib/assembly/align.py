"""Teach an assembled model to say what it hears: first its projector, then its language model too.

`sft -> [align]`. It is SFT on lessons of `facts` instead of on questions: what is asked has no choices, and the reply
is what is known of the clip. The encoder is frozen and hears each clip once. Held-out clips choose the checkpoint, by
the share of facts that the model names, and at the end that is set beside what a linear probe names from the states
that the projector is given: "hears 94, says 41".
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from .. import evaluation, inputs, prompt
from .. import model as models
from ..dataset import Question
from ..results.stats import wilson
from ..runtime import checkpoints, files
from ..runtime.errors import AqaError
from ..sft import SFTConfig, SFTTrainer
from . import facts
from .probe import LinearProbe, StatesCache

REPORT = "alignment.json"
FIRST = "projector"  # the folder of the first stage, in that of the whole


@dataclass
class AlignConfig(SFTConfig):
    """Options of an alignment: those of SFT, and of the stage before, in which only the projector learns."""

    output_dir: str = field(
        default="runs/align", metadata={"help": "Folder for both stages, the model and its report."}
    )
    max_steps: int = field(default=200, metadata={"help": "Steps of the second stage: projector and language model."})
    projector_steps: int = field(
        default=100, metadata={"help": "Steps of the first stage, in which only the projector learns; 0 for none."}
    )
    first_learning_rate: float = field(
        default=1e-3, metadata={"help": "Peak learning rate of the projector in the first stage."}
    )
    projector_learning_rate: float | None = field(
        default=3e-4, metadata={"help": "Peak learning rate of the projector in the second stage."}
    )
    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate of the language model."})
    warmup_steps: float = field(default=5, metadata={"help": "Steps in which the rates rise to their peaks."})
    max_completion_length: int = field(default=32, metadata={"help": "Longest reply in tokens."})
    eval_on_start: bool = field(default=False, metadata={"help": "Ask the held-out clips before the first step."})
    prompt_style: int = field(default=1, init=False)
    target: str = field(default="plain", init=False)

    def __post_init__(self):
        super().__post_init__()
        self.prompt_style = prompt.FREE
        if self.projector_steps < 0 or self.max_steps < 1:
            raise AqaError("projector_steps must be 0 or more, and max_steps 1 or more.")
        if self.audio_tower_learning_rate is not None:
            raise AqaError("the audio tower does not learn in an alignment; drop audio_tower_learning_rate.")


class AlignTrainer(SFTTrainer):
    """SFT on lessons, which ranks its checkpoints by the facts that the model names of held-out clips.

    train_dataset: lessons, of `facts.lessons`. eval_dataset: clips, of `facts.read`. known: the values of each fact.
    kept: states of clips that are encoded already.
    """

    def __init__(self, model, processor, args: AlignConfig, train_dataset, eval_dataset, known, kept=None):
        self.known = known
        super().__init__(model, processor, args, train_dataset, eval_dataset)
        self.audio_cache = StatesCache(model, args.audio_cache_gb, kept)

    def measured(self, held_out: Sequence[Question]) -> set[str]:
        """Name what `evaluate` measures."""
        return {"accuracy"} | {f"accuracy_{fact}" for fact in self.known}

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Ask what is heard in the held-out clips: the share of facts that are named, of all and of each."""
        clips = self.eval_dataset if eval_dataset is None else eval_dataset
        self.engine.sync_weights(self.accelerator.unwrap_model(self.model))
        with self.accelerator.autocast():
            rows = ask(self.model, self.processing_class, clips, self.args, engine=self.engine)
        right = named(rows, clips, self.known)
        every = [verdict for some in right.values() for verdict in some.values()]
        metrics = {"accuracy": sum(every) / len(every)}
        metrics |= {f"accuracy_{fact}": sum(some.values()) / len(some) for fact, some in right.items()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def ask(model: nn.Module, processor, clips: Sequence[Question], args: AlignConfig, path=None, engine=None):
    """Ask a model, greedily, to name what it hears, and return the rows of `evaluation.predict`."""
    return evaluation.predict(
        model,
        processor,
        clips,
        path,
        style=prompt.FREE,
        batch_size=args.per_device_eval_batch_size,
        max_completion_length=args.max_completion_length,
        progress=False,
        engine=engine,
    )


def named(rows: Sequence[Mapping], clips: Sequence[Question], known) -> dict[str, dict[str, bool]]:
    """Tell of each fact, and of each clip's id that has it, whether the reply names it."""
    verdicts: dict[str, dict[str, bool]] = {}
    for row, clip in zip(rows, clips, strict=True):
        for fact, value in clip.meta["facts"].items():
            said = facts.says(row["model_output"] or "", fact, value, known)
            verdicts.setdefault(fact, {})[clip.id] = said
    return verdicts


# -- the whole ---------------------------------------------------------------------------------------------------------


def align(
    name: str,
    train: Sequence[Question],
    held_out: Sequence[Question],
    args: AlignConfig,
    dtype: str = "auto",
    resume: bool = False,
    labels: Mapping | None = None,
) -> dict:
    """Align a model, by folder or hub id, with clips of `facts.read`, into `args.output_dir`; return the report.

    resume: continue what was interrupted, in either stage. labels: what the record of a run should say besides. The
    report is also written to `alignment.json`: for each fact, of n held-out clips, how many the probe names, how many
    the model named before and names after, and how many naming the most common value each time would.
    """
    out = Path(args.output_dir)
    if not resume:
        for folder in (out, out / FIRST):
            checkpoints.refuse_other_run(folder, None)
    out.mkdir(parents=True, exist_ok=True)
    known = facts.values([*train, *held_out])
    policy, processor = models.load(name, dtype, args.device, train=())
    before = ask(policy, processor, held_out, args, out / "before.jsonl")
    cache = StatesCache(policy, args.audio_cache_gb)
    heard = {fact: probed(cache, processor, train, held_out, fact) for fact in known}
    del policy
    base, taught = name, facts.lessons(train)
    for folder, parts, options in stages(args):
        done = folder / "config.json"  # written when a stage has ended
        if not (resume and done.is_file() and folder != out):
            policy, processor = models.load(base, dtype, args.device, train=parts)
            trainer = AlignTrainer(policy, processor, options, taught, held_out, known, cache.kept)
            trainer.labels = {"model": name, "stage": folder.name if folder != out else "whole"} | dict(labels or {})
            trainer.train(resume_from_checkpoint=resume or None)
            trainer.save_model()
            trainer.save_state()
            del policy
        base = str(folder)
    after = ask(trainer.model, processor, held_out, args, out / "after.jsonl")
    verdicts = {"heard": heard, "before": named(before, held_out, known), "after": named(after, held_out, known)}
    report = {
        "model": Path(name).name if Path(name).is_dir() else name,
        "labels": dict(labels or {}),
        "seed": args.seed,
        "steps": [args.projector_steps, args.max_steps],
        "clips": {"train": len(train), "held_out": len(held_out)},
        "facts": {fact: _row(fact, held_out, verdicts) for fact in known if verdicts["after"].get(fact)},
        "environment": files.environment(),
        "finished": files.now(),
    }
    files.write_whole(out / REPORT, json.dumps(report, indent=1) + "\n")
    return report


def stages(args: AlignConfig) -> list[tuple[Path, tuple[str, ...], AlignConfig]]:
    """List the stages, each with its folder, the parts that learn, and its options."""
    whole = Path(args.output_dir)
    last = (whole, ("projector", "language_model"), args)
    if not args.projector_steps:
        return [last]
    first = copy(args)
    first.output_dir, first.max_steps = str(whole / FIRST), args.projector_steps
    first.learning_rate, first.projector_learning_rate = args.first_learning_rate, None
    return [(whole / FIRST, ("projector",), first), last]


def probed(cache: StatesCache, processor, train, held_out, fact: str) -> dict[str, bool]:
    """Tell of each held-out clip that has a fact whether a linear probe, fit on the training clips, names it."""
    rows = [[clip for clip in some if fact in clip.meta["facts"]] for some in (train, held_out)]
    names = [[clip.meta["facts"][fact] for clip in some] for some in rows]
    if not all(rows) or len(set(names[0])) < 2:
        return {}
    features = [pooled(cache, processor, some) for some in rows]
    guesses = LinearProbe(features[0], names[0])(features[1])
    return {clip.id: guess == name for clip, guess, name in zip(rows[1], guesses, names[1], strict=True)}


@torch.no_grad()
def pooled(cache: StatesCache, processor, clips: Sequence[Question]) -> torch.Tensor:
    """Average each clip's states over time, (n, D); a clip is encoded where the cache does not have it."""
    found = []
    for clip in clips:
        key = cache.key(clip)
        if key not in cache.kept:
            prompts = inputs.collate(processor, [inputs.prepare(processor, clip, prompt.FREE)])
            kept = cache.encode(prompts.to(cache.model.device)).cpu()
            if cache.free_bytes >= kept.nbytes:
                cache.free_bytes -= kept.nbytes
                cache.kept[key] = kept
        else:
            kept = cache.kept[key]
        found.append(kept.float().mean(0))
    return torch.stack(found)


def _row(fact: str, held_out: Sequence[Question], verdicts: dict) -> dict:
    """Count one fact for the report."""
    truth = Counter(clip.meta["facts"][fact] for clip in held_out if fact in clip.meta["facts"])
    row = {"n": sum(truth.values()), "most_common": max(truth.values())}
    return row | {when: sum(some[fact].values()) if some.get(fact) else None for when, some in verdicts.items()}


def told(report: Mapping) -> str:
    """Write a report for a reader, one line a fact.

    >>> row = {"n": 50, "most_common": 8, "heard": 47, "before": 5, "after": 41}
    >>> print(told({"facts": {"sound": row}}))
    sound: hears 94 %, says 82 % [69, 90] (10 % before; always the same: 16 %), 50 held-out clips
    """
    lines = []
    for fact, row in report["facts"].items():
        n = row["n"]
        low, high = (100 * bound for bound in wilson(row["after"], n))
        percent = {when: "?" if row[when] is None else f"{100 * row[when] / n:.0f}" for when in row}
        lines.append(
            f"{fact}: hears {percent['heard']} %, says {percent['after']} % [{low:.0f}, {high:.0f}] "
            f"({percent['before']} % before; always the same: {percent['most_common']} %), {n} held-out clips"
        )
    return "\n".join(lines)

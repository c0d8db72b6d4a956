"""Teach an aligned model by rewards and by answers, on sounds alone, and test it on sounds, speech and music.

`assembly, lab -> [real] -> notebook 08, docs/real_recordings.md`. One file of clips with facts is all it needs: the
alignment has learned from some (split `align`), some choose checkpoints and rates (`held_out`), questions about others
(`questions`) are what GRPO and SFT learn from, with right labels or a share of wrong ones, and none of them has heard
the last (`test`). `python -m aqa_lib study --real` runs the trials that are missing, one row of `real.jsonl` each.
Rates are chosen on held-out questions, with seed 0 and right labels, before anything else is trained.

The wording is prompt 1, for both methods and for the base, and the answer stands alone: a model that was just taught to
name what it hears never writes a tag, and what is never tried is never rewarded.
"""

import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from .. import dataset, model, scale
from ..assembly import align, facts
from ..assembly.probe import StatesCache
from ..dataset import Question
from ..grpo import GRPOConfig, GRPOTrainer
from ..results import causes
from ..results import real as results
from ..results.scoring import Rate
from ..runtime import files, locks
from ..runtime.errors import AqaError
from ..sft import SFTConfig, SFTTrainer
from . import lab, recipes
from .lab import Trial

RESULTS = lab.RESULTS.with_name("real.jsonl")
ALIGNMENT = lab.RESULTS.with_name("alignment.json")
BASE = Trial("base", 0.0, 0.0, 0, 0)
METHODS = ("grpo", "sft")
RATES = (1e-5, 3e-5)
WRONG = 0.3
STYLE, REWARDS, TARGET = 1, ("accuracy",), "plain"
LEARN = ("projector", "language_model")
ROUNDS = 2  # questions about each held-out clip
ENGLISH = (  # what a model of English should still find likely
    "The train was late, so we walked along the river until it was dark.",
    "If you boil an egg for ten minutes, the yolk becomes firm.",
    "She opened the letter, read it twice, and put it back into the drawer.",
    "Most birds fly south in autumn and return to the same place in spring.",
    "Please remember to close the window before you leave the house.",
    "The price of bread has doubled in the last five years.",
    "A triangle has three sides, and its angles add up to a half turn.",
    "He had never been to the sea, but he knew at once what he heard.",
)


@dataclass(frozen=True)
class Material:
    """What all trials share. model: the aligned model's folder; clips: of `facts.read`, with their splits."""

    model: str
    clips: tuple[Question, ...]
    bf16: bool = False

    def split(self, *names: str) -> list[Question]:
        """List the clips of some splits."""
        return [clip for clip in self.clips if clip.meta.get("split") in names]

    def questions(self, trial: Trial) -> recipes.Questions:
        """Ask about clips: a share of the training labels is wrong, those of held-out and test questions are right."""
        known = facts.values(self.clips)
        train = facts.questions(self.split(facts.ASKED), known)
        tasks = {question.task for question in train}
        held_out = [clip for clip in self.split(*facts.HELD_OUT) if clip.task in tasks]
        rounds = [facts.questions(held_out, known, seed) for seed in range(ROUNDS)]
        test = facts.questions(self.split(facts.TEST), known)
        if not (train and held_out and test):
            wanted = f"{facts.ASKED}, {facts.HELD_OUT[0]} and {facts.TEST}"
            raise AqaError(f"the clips need the splits {wanted}, the first two of the same task, to be asked about.")
        return recipes.Questions(dataset.relabel(train, trial.wrong, trial.seed), sum(rounds, []), test)


def first(steps: int) -> list[Trial]:
    """List what chooses the rates: seed 0 and right labels, at each rate.

    >>> [trial.name for trial in first(40)][:2]
    ['grpo-wrong0-lr1e-05-steps40-seed0', 'sft-wrong0-lr1e-05-steps40-seed0']
    """
    return [Trial(method, 0.0, rate, steps, 0) for rate in RATES for method in METHODS]


def rest(rates: dict[str, float], steps: int, seeds: Iterable[int] = (0, 1, 2)) -> list[Trial]:
    """List the trials of each seed, with right and with wrong labels, at the rates that were chosen."""
    doses = (0.0, WRONG)
    return [Trial(method, wrong, rates[method], steps, seed) for seed in seeds for wrong in doses for method in METHODS]


def run(trial: Trial, folder: Path, material: Material) -> dict:
    """Train and test one trial in a folder, which is deleted at the end; return its row."""
    start, here, asked = time.monotonic(), scale.get(), material.questions(trial)
    policy, processor = model.load(material.model, "float32", train=LEARN)
    trained: dict = {}
    if trial.method != BASE.method:
        options = {
            "output_dir": str(folder), "seed": trial.seed, "max_steps": trial.steps, "learning_rate": trial.rate,
            "eval_strategy": "no", "eval_on_start": False, "save_strategy": "no", "load_best_model_at_end": False,
            "report_to": "none", "disable_tqdm": True, "bf16": material.bf16, "logging_steps": 5, "prompt_style": STYLE,
        }  # fmt: skip
        if trial.method == "grpo":
            args = GRPOConfig(**here.grpo | options)
            trainer = GRPOTrainer(policy, processor, REWARDS, args, asked.train)
        else:
            args = SFTConfig(**here.sft | options | {"target": TARGET})
            trainer = SFTTrainer(policy, processor, args, asked.train)
        trainer.audio_cache = StatesCache(policy, args.audio_cache_gb)  # the encoder is frozen, the projector learns
        trainer.train()
        policy = trainer.model
        times = [row["step_time"] for row in trainer.state.log_history if "step_time" in row]
        trained = {"train": len(asked.train), "batch": args.per_device_train_batch_size}
        trained |= {"step_seconds": sum(times) / len(times)}
    if material.bf16:
        policy.to(torch.bfloat16)
    row = asdict(trial) | trained | measures(policy, processor, asked)
    if trial.method == BASE.method:
        row |= baselines(policy, processor, asked, material)
    row |= {"gigabytes": peak(), "seconds": round(time.monotonic() - start)}
    shutil.rmtree(folder, ignore_errors=True)
    return row | {"model": Path(material.model).name, "environment": files.environment()}


def measures(policy, processor, asked: recipes.Questions) -> dict:
    """Ask the test and the held-out questions, greedily, and read English.

    `last`: a character a test question, "1" where the answer is right, and `asked` its task; `tasks` and `held_out` are
    counts with 95 % intervals; `outside`: replies that are none of the choices; `english`: nats per token of `ENGLISH`.
    """
    policy.eval()
    rows, held_out = (ask(policy, processor, some) for some in (asked.test, asked.held_out))
    outside = [not causes.is_choice(row) for row in rows]
    return {
        "last": lab.signs(rows),
        "asked": [question.task for question in asked.test],
        "tasks": by_task(rows),
        "outside": Rate(sum(outside), len(rows)).to_dict(),
        "held_out": by_task(held_out)["all"],
        "english": english(policy, processor),
    }


def baselines(policy, processor, asked: recipes.Questions, material: Material) -> dict:
    """Measure what else the base can do: answer silence, be right in one of eight tries, hear with a probe's ears.

    `heard`: a linear probe, fit on the encoder's states of the clips of the alignment, names facts of test clips.
    `unsaid`: training labels, with seed 0, that the base says in none of a group's replies.
    """
    silent = by_task(ask(policy, processor, asked.test, "silent"))
    tries = lab.tries(policy, processor, asked.test, 0, STYLE)
    some = [bool(lab.right(question, replies)) for question, replies in zip(asked.test, tries, strict=True)]
    rows = [{"task": q.task, "correct": right} for q, right in zip(asked.test, some, strict=True)]
    cache = StatesCache(policy, 2.0)
    heard = {}
    for fact in facts.values(material.clips):
        named = align.probed(cache, processor, material.split(*facts.TRAIN), material.split(facts.TEST), fact)
        heard |= {fact: Rate(sum(named.values()), len(named)).to_dict()} if named else {}
    return {
        "silence": silent,
        f"any_of_{lab.GROUP}": by_task(rows),
        "heard": heard,
        "unsaid": unsaid(policy, processor, material),
    }


def unsaid(policy, processor, material: Material) -> dict[str, dict]:
    """Count the training questions, with right and with wrong labels, whose label is in none of a group's replies.

    Such a group has no deviation, so its label teaches GRPO nothing: what protects it from wrong ones (notebook 04).
    """
    asked = material.questions(Trial("grpo", WRONG, 0.0, 0, 0)).train
    groups = lab.tries(policy, processor, asked, 0, STYLE)
    never: dict[str, list[bool]] = {"right": [], "wrong": []}
    for question, replies in zip(asked, groups, strict=True):
        never["wrong" if "right" in question.meta else "right"].append(not lab.right(question, replies))
    return {label: Rate(sum(some), len(some)).to_dict() for label, some in never.items()}


def ask(policy, processor, asked: Sequence[Question], audio: str = "heard") -> list[dict]:
    """Ask questions greedily in this study's prompt; see `lab.ask`."""
    return lab.ask(policy, processor, asked, STYLE, scale.get().grpo["per_device_eval_batch_size"], audio)


def by_task(rows: Sequence[dict]) -> dict[str, dict]:
    """Count right answers by task, and of "all"."""
    tasks = [*dict.fromkeys(row["task"] for row in rows), "all"]
    some = {task: [bool(row["correct"]) for row in rows if task in (row["task"], "all")] for task in tasks}
    return {task: Rate(sum(right), len(right)).to_dict() for task, right in some.items()}


@torch.no_grad()
def english(policy, processor, sentences: Sequence[str] = ENGLISH) -> float:
    """Measure how surprised a model is by sentences alone, in nats per token after each sentence's first."""
    total, count = 0.0, 0
    for sentence in sentences:
        ids = processor.tokenizer(sentence, return_tensors="pt").input_ids.to(policy.device)
        logits = policy(input_ids=ids).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return total / count


def peak() -> float | None:
    """Return the most memory that this process has held so far, in GB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most * (1 if sys.platform == "darwin" else 1024) / 1e9, 2)


def run_all(folder: str | Path, material: Material, seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Run every trial that `real.jsonl` in a folder lacks, the rates first, and report on all."""
    file = Path(folder) / RESULTS.name
    steps = scale.get().grpo["max_steps"]
    Path(folder).mkdir(parents=True, exist_ok=True)
    with locks.hold(Path(folder) / ".lock", str(folder)):
        material.questions(BASE)  # refuses clips that cannot be asked about, before anything is trained
        go = partial(lab.complete, file=file, run=partial(run, material=material))
        go(first(steps))
        rates = results.choose(results.read(file))
        print("rates, by held-out questions: " + ", ".join(f"{name} {rate:g}" for name, rate in rates.items()))
        wanted = rest(rates, steps, seeds)
        go([*wanted[:4], BASE, *wanted[4:]])
    report(folder)


def report(folder: str | Path) -> None:
    """Print the tables of the trials that a folder's `real.jsonl` holds so far; raises AqaError where it has none."""
    file = Path(folder) / RESULTS.name
    if not (rows := results.read(file)):
        raise AqaError(f"{file} holds no trial yet; run python -m aqa_lib study --real first.")
    print(results.markdown(rows))

"""Measure when rewards beat answers: accuracy against wrong labels, learning rate, and questions seen.

`recipes -> [lab] -> notebook 04`. The paper trains on answers that people wrote while they watched a video, so some of
them cannot be heard. How many is unknown; here it is a dial. Every trial trains the tiny base once, on sound questions
whose labels are right except for a share of them, and asks the same test questions of its last weights and of the
checkpoint that held-out questions (labelled just as badly) would choose. `python -m aqa_lib study --dose` runs all
trials that are missing, seed 0 of every curve first; each finished trial is one line of `dose.jsonl`.
"""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from .. import dataset, evaluation, inputs, model, prompt, reward, rollout, scale, sft
from ..audio import load
from ..dataset import Question
from ..grpo import GRPOConfig, GRPOTrainer
from ..logps import completion_logps
from ..loss import group_advantages, grpo_loss
from ..results import dose
from ..results.dose import DOSE, RATE, STEPS
from ..runtime import files, locks
from ..runtime.errors import AqaError
from ..sft import SFTConfig, SFTTrainer
from ..tiny import synth
from . import recipes

WORLD = scale.TINY.with_name("lab")
RESULTS = scale.ROOT / "data" / "results" / "dose.jsonl"  # of the whole laboratory, as it was run
MECHANISM = RESULTS.with_name("mechanism.json")
DOSES = (0.0, 0.1, 0.2, 0.3, 0.5)  # share of training labels replaced by another choice
RATES = (3e-5, 1e-4, 2e-4, 5e-4, 1e-3)
BUDGETS = (8, 16, 32, 64, 150, 256)  # optimizer steps, of 16 questions each
METHODS = ("sft", "sft-lora", "grpo")
REPAIRED = ("sft-filtered", "raft", "dft")  # SFT with a wrong label's pull taken out in one way or another
GROUP = 8  # tries a question, for what the base gets right


@dataclass(frozen=True)
class Trial:
    """One training: a method on labels of which a share is wrong."""

    method: str
    wrong: float
    rate: float
    steps: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-wrong{self.wrong:g}-lr{self.rate:g}-steps{self.steps}-seed{self.seed}"


def trials(seeds: Iterable[int] = (0, 1, 2)) -> list[Trial]:
    """List all trials, each once, seed by seed; the curves share the point at which they meet.

    >>> len(trials([0])), trials([0])[0].name
    (45, 'sft-wrong0-lr0.0001-steps150-seed0')
    """
    found = []
    for seed in seeds:
        for method in METHODS:
            found += [Trial(method, wrong, RATE, STEPS, seed) for wrong in DOSES]
        for method in METHODS:
            found += [Trial(method, DOSE, rate, STEPS, seed) for rate in RATES]
        found += [Trial(method, DOSE, RATE, STEPS, seed) for method in REPAIRED]
        for method in METHODS:
            found += [Trial(method, DOSE, RATE, steps, seed) for steps in BUDGETS]
    return list(dict.fromkeys(found))


def questions(trial: Trial) -> recipes.Questions:
    """Return a trial's questions: training and held-out ones with its share of wrong labels, the test as it is."""
    synth.write(WORLD, relations={"Sound": 1.0})
    train, held_out = (dataset.read(WORLD / name) for name in ("train.jsonl", "val.jsonl"))
    wrong = [dataset.relabel(some, trial.wrong, trial.seed) for some in (train, held_out)]
    return recipes.Questions(*wrong, dataset.read(WORLD / "test.json"))


def run(trial: Trial, folder: Path) -> dict:
    """Train and test one trial in a folder, which is deleted at the end; return its row."""
    start, asked = time.monotonic(), questions(trial)
    base, processor = recipes.policy(lora_r=recipes.LORA_R if trial.method == "sft-lora" else None, seed=trial.seed)
    every = max(1, min(50, trial.steps // 2))
    options = {
        "output_dir": str(folder), "seed": trial.seed, "max_steps": trial.steps, "learning_rate": trial.rate,
        "eval_steps": every, "save_steps": every, "save_total_limit": None, "save_only_model": True,
        "load_best_model_at_end": False, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    here = scale.get()
    if trial.method == "grpo":
        args = GRPOConfig(**here.grpo | options)
        trainer = GRPOTrainer(base, processor, recipes.REWARDS[2], args, asked.train, asked.held_out)
    else:
        lessons = {"sft-filtered": filtered, "raft": own_right_answers}.get(trial.method, lambda *_: asked.train)
        extra = {"raft": {"target": "reply"}, "dft": {"loss_type": "dft"}}.get(trial.method, {})
        args = SFTConfig(**here.sft | options | extra)
        train = lessons(base, processor, asked.train, trial.seed)
        trainer = SFTTrainer(base, processor, args, train, asked.held_out)
    trainer.train()
    style = args.prompt_style
    held_out = {
        row["step"]: row["eval_accuracy"] for row in trainer.state.log_history if "eval_accuracy" in row
    }  # the first of equals, as transformers chooses
    chosen = max((step for step in held_out if step), key=lambda step: (held_out[step], -step))
    row = asdict(trial) | {
        "last": verdicts(trainer.model, processor, asked.test, style),
        "chosen_step": chosen,
        "held_out": held_out,
    }
    row["chosen"] = row["last"]
    if chosen != trial.steps:
        kept, _ = model.load(folder / f"checkpoint-{chosen}", here.dtype, train=())
        row["chosen"] = verdicts(kept, processor, asked.test, style)
    if (trial.wrong, trial.rate, trial.steps) == (DOSE, RATE, STEPS):
        row |= aftermath(trainer.model, processor, asked, style)
    row |= {"seconds": round(time.monotonic() - start), "environment": files.environment()}
    shutil.rmtree(folder)
    return row


def verdicts(policy, processor, asked: Sequence[Question], style: int) -> str:
    """Ask questions greedily; return one character a question, "1" where the answer is right."""
    return signs(ask(policy, processor, asked, style))


def signs(rows: Sequence[dict]) -> str:
    """Write rows of `evaluation.predict` as one character each, "1" where the answer is right."""
    return "".join("01"[bool(row["correct"])] for row in rows)


def ask(
    policy, processor, asked: Sequence[Question], style: int, batch_size: int = 100, audio: str = "heard"
) -> list[dict]:
    """Ask questions greedily, and return the rows of `evaluation.predict`."""
    options = {"max_completion_length": scale.get().max_completion_length, "progress": False, "audio": audio}
    return evaluation.predict(policy, processor, asked, style=style, batch_size=batch_size, **options)


# -- SFT, repaired ----------------------------------------------------------------------------------------------------


def tries(policy, processor, asked: Sequence[Question], seed: int, style: int = 1) -> list[list[str]]:
    """Sample `GROUP` replies to each question."""
    replies = []
    for start in range(0, len(asked), 50):
        examples = [inputs.prepare(processor, question, style) for question in asked[start : start + 50]]
        prompts = inputs.collate(processor, examples).to(policy.device)
        longest = scale.get().max_completion_length
        sampled = rollout.sample(policy, processor, prompts, GROUP, longest, seed=seed + start)
        replies += rollout.decode(processor, sampled)
    return replies


def right(question: Question, replies: Sequence[str]) -> list[str]:
    """List the replies that a question's label calls right."""
    columns = {"answer": [question.answer] * len(replies), "choices": [question.choices] * len(replies)}
    paid = reward.accuracy(None, list(replies), **columns)
    return [reply for reply, pay in zip(replies, paid, strict=True) if pay == 1]


def filtered(policy, processor, asked: Sequence[Question], seed: int) -> list[Question]:
    """Keep the questions of medium difficulty: those whose label the base says in 1 to 7 of 8 tries."""
    groups = tries(policy, processor, asked, seed)
    return [q for q, replies in zip(asked, groups, strict=True) if 0 < len(right(q, replies)) < GROUP]


def own_right_answers(policy, processor, asked: Sequence[Question], seed: int) -> list[Question]:
    """Give each question one of the base's own replies that its label calls right (RAFT, arXiv 2504.11343)."""
    groups = tries(policy, processor, asked, seed)
    own = [(q, right(q, replies)) for q, replies in zip(asked, groups, strict=True)]
    return [replace(q, meta=q.meta | {"reply": replies[0]}) for q, replies in own if replies]


# -- the mechanism ----------------------------------------------------------------------------------------------------


def aftermath(policy, processor, asked: recipes.Questions, style: int, n: int = 200) -> dict:
    """Measure what a training left behind: wrong labels that are repeated, distance from the base, what is forgotten.

    Of the wrongly labelled training questions, how many get the wrong label as their answer, and how many the right
    one; the KL to the base, in nats per token of its own test answers; and by how many nats per token the base's own
    captions of test clips have become less likely.
    """
    wrong = [question for question in asked.train if "right" in question.meta][:n]
    rows = ask(policy, processor, wrong, style)
    said = [(row["prediction"], question) for row, question in zip(rows, wrong, strict=True)]
    base, _ = recipes.policy()
    policy.eval()
    own = sample(policy, processor, [(q, prompt.messages(q, style)) for q in asked.test[:n]])
    captions = sample(base, processor, [(q, DESCRIBE) for q in asked.test[:n]])
    with torch.no_grad():
        new, old = (completion_logps(each, own)[0][own.mask] for each in (policy, base))
        after, before = (completion_logps(each, captions)[0][captions.mask] for each in (policy, base))
    return {
        "wrong_asked": len(wrong),
        "wrong_repeated": sum(prompt.matches(text, q.answer, q.choices) for text, q in said),
        "wrong_righted": sum(prompt.matches(text, q.meta["right"], q.choices) for text, q in said),
        "kl": float((new - old).mean()),
        "captions_lost": float((before - after).mean()),
    }


DESCRIBE = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "Describe the audio."}]}]


def sample(policy, processor, asked: Sequence[tuple[Question, list[dict]]]) -> inputs.Rollouts:
    """Reply to (question, messages) pairs, once each, at temperature 1."""
    examples = [inputs.encode(processor, messages, load(question.audio)) for question, messages in asked]
    prompts = inputs.collate(processor, examples).to(policy.device)
    return rollout.sample(policy, processor, prompts, 1, scale.get().max_completion_length, seed=0)


def pulls(policy, processor, asked: Sequence[Question], style: int = 2) -> list[dict]:
    """Measure how hard each question pulls at all weights: the gradient's norm under SFT and under GRPO.

    Returns one row a question: `wrong` (its label), `sft`, `grpo` (accuracy and format, eight answers, beta 0), and
    `silent`, whether its group has no deviation and so no gradient at all.
    """
    learn = [weight for weight in policy.parameters() if weight.requires_grad]

    def norm(loss: torch.Tensor) -> float:
        gradients = torch.autograd.grad(loss, learn, allow_unused=True)
        return float(torch.nn.utils.get_total_norm([g for g in gradients if g is not None]))

    rows = []
    for number, question in enumerate(asked):
        prompts = inputs.collate(processor, [inputs.prepare(processor, question, style)]).to(policy.device)
        shown = sft.answers(prompts, sft.labels(processor, [prompt.target(question)]).to(policy.device))
        logps, _ = completion_logps(policy, shown)
        row = {"wrong": "right" in question.meta, "sft": norm(-logps.sum() / shown.mask.sum())}
        group = rollout.sample(policy, processor, prompts, GROUP, scale.get().max_completion_length, seed=number)
        (replies,) = rollout.decode(processor, group)
        columns = {"answer": [question.answer] * GROUP, "choices": [question.choices] * GROUP}
        paid = torch.tensor([f(None, replies, **columns) for f in (reward.accuracy, reward.format)]).sum(0)
        row |= {"silent": bool(paid.std() == 0), "grpo": 0.0}
        if not row["silent"]:
            logps, _ = completion_logps(policy, group)
            loss, _ = grpo_loss(logps, logps.detach(), group_advantages(paid[None]), group.mask, beta=0)
            row["grpo"] = norm(loss)
        rows.append(row)
    return rows


# -- all of it --------------------------------------------------------------------------------------------------------


def missing(wanted: Sequence[Trial], rows: Iterable[dict]) -> list[Trial]:
    """List the trials that have no row yet."""
    names = Trial.__dataclass_fields__
    done = {Trial(**{name: row[name] for name in names}) for row in rows}
    return [trial for trial in wanted if trial not in done]


def complete(wanted: Sequence[Trial], file: str | Path, run: Callable[[Trial, Path], dict] = run) -> None:
    """Run the trials that a file lacks, and append each as it is finished.

    Each trains in a folder next to the file; what an interrupted one left there is deleted, and it starts anew.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    for trial in missing(wanted, dose.read(file)):
        folder = file.parent / trial.name
        shutil.rmtree(folder, ignore_errors=True)
        row = run(trial, folder)
        with locks.hold(locks.beside(file), str(file), wait=math.inf), open(file, "a+b", buffering=0) as out:
            out.seek(0)
            out.truncate(out.read().rfind(b"\n") + 1)  # a kill may have cut the last line short
            files.append(out, row)
        percent = 100 * row["last"].count("1") / len(row["last"])
        print(f"{trial.name}: {percent:.1f} % right, {row['seconds']} s", flush=True)


@contextmanager
def run_missing(
    wanted: Sequence[Trial], file: Path, processes: int, run: Callable[[Trial, Path], dict] = run
) -> Iterator[None]:
    """Run the trials that a file lacks, in processes of one thread each, and hold the file's folder until the end.

    Raises AqaError at another scale than tiny, and LockError where another process is at it.
    """
    if scale.get().name != "tiny":
        raise AqaError(f"the laboratory needs the tiny scale: unset {scale.VARIABLE}, or set it to tiny.")
    if processes < 1:
        raise AqaError(f"processes {processes}: give 1 or more.")
    synth.write(WORLD, relations={"Sound": 1.0})  # before the processes do, all at once
    file.parent.mkdir(parents=True, exist_ok=True)
    with locks.hold(file.parent / ".lock", str(file.parent)):
        left = missing(wanted, dose.read(file))
        print(
            f"{len(wanted) - len(left)} of {len(wanted)} trials are done; the rest will be added to {file}", flush=True
        )
        with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            for done in [pool.submit(complete, [trial], file, run) for trial in left]:
                done.result()
        yield


def run_all(folder: str | Path, seeds: Sequence[int], processes: int = 2) -> None:
    """Run every trial that `dose.jsonl` in a folder lacks (see `run_missing`), and report on all."""
    folder = Path(folder)
    with run_missing(trials(seeds), folder / "dose.jsonl", processes):
        if not (folder / "mechanism.json").exists():
            files.write_whole(folder / "mechanism.json", json.dumps(mechanism(), indent=1) + "\n")
    report(folder)


def report(folder: str | Path) -> None:
    """Write tables and figure of the trials that a folder's `dose.jsonl` holds so far: `dose.md` and `dose.svg`."""
    folder = Path(folder)
    rows = dose.read(folder / "dose.jsonl")
    if not rows:
        raise AqaError(f"{folder / 'dose.jsonl'} holds no trial yet; run python -m aqa_lib study --dose first.")
    dose.plot(rows, path=folder / "dose.svg")
    files.write_whole(folder / "dose.md", dose.markdown(rows))
    print(dose.markdown(rows))


def mechanism(steps: int = 40, n: int = 60) -> dict:
    """Measure how hard right and wrong labels pull on a model that has just learned the form; see `pulls`.

    The model is the base after `steps` steps of GRPO on labels of which `DOSE` are wrong; n questions of each kind are
    asked. Returns quartiles of the gradients' norms under SFT and GRPO, and how many groups had no deviation.
    """
    asked = questions(Trial("grpo", DOSE, RATE, steps, 0))
    with tempfile.TemporaryDirectory() as folder:
        options = {"max_steps": steps, "learning_rate": RATE, "eval_strategy": "no", "save_strategy": "no"}
        options |= {"output_dir": folder, "report_to": "none", "disable_tqdm": True}
        base, processor = recipes.policy()
        trainer = GRPOTrainer(
            base, processor, recipes.REWARDS[2], GRPOConfig(**scale.get().grpo | options), asked.train
        )
        trainer.train()
    kinds = {wrong: [q for q in asked.train if ("right" in q.meta) == wrong][:n] for wrong in (False, True)}
    found = {}
    for wrong, some in kinds.items():
        rows = pulls(trainer.model, processor, some)
        found["wrong" if wrong else "right"] = {
            "n": len(rows),
            "sft": np.percentile([row["sft"] for row in rows], (25, 50, 75)).tolist(),
            "grpo": np.percentile([row["grpo"] for row in rows], (25, 50, 75)).tolist(),
            "silent": sum(row["silent"] for row in rows),
        }
    return found | {"steps": steps, "seed": 0, "environment": files.environment()}

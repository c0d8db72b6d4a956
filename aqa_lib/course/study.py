"""Make the paper's whole table in one command: base, SFT, SFT with LoRA, GRPO with prompts 2 and 3, three seeds each.

`grpo, sft -> evaluation -> results -> [study]`. Every run is a process of its own with the very commands that a user
would type (`commands.txt` lists them), at the scale that AQA_SCALE names. A study that was stopped resumes. Each
trained row gets the learning rate that held-out questions choose for it, with the first seed, from the same five; they
are labelled as badly as the training questions. The winner, too, is chosen before its test answers are looked at; and
the controls that show whether it listens are asked of it and of the base.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import predictions
from .. import scale as scales
from ..architectures import foreign
from ..results import ablation, comparison, report, scoring
from ..results.plotting import read_metrics
from ..runtime.errors import AqaError
from ..runtime.files import environment, write_whole
from . import plan

SEEDS = (0, 1, 2)
RATES = {"tiny": (3e-5, 1e-4, 2e-4, 5e-4, 1e-3)}  # by scale; elsewhere the scale's own rates are taken
WORLD = scales.TINY.with_name("study")  # the tiny world with more questions to choose on and to test on
CONTROLS = "--controls"
PROGRAM = ["python", "-m", "aqa_lib"]  # how a command of `plan` begins


@dataclass(frozen=True)
class Run:
    """One training with one seed and its evaluation, or the evaluation of the base (seed None).

    train, evaluate: what follows `python -m aqa_lib`; train is empty for the base. folder: the trained model's.
    """

    name: str
    method: str
    style: int
    seed: int | None
    folder: Path
    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    on_trial: bool = False  # its learning rate is: it is trained, and not tested

    @property
    def predictions(self) -> Path:
        return self.folder.with_name(f"{self.name}.jsonl")

    @property
    def trained(self) -> bool:
        """Whether there is nothing left to train: the last thing that a training writes is there."""
        return not self.train or (self.folder / "trainer_state.json").exists()


class StudyError(AqaError):
    """A run of the study that failed, or was made with other settings."""


def runs(
    folder: str | Path,
    seeds: Sequence[int] = SEEDS,
    train_options: Sequence[str] = (),
    evaluate_options: Sequence[str] = (),
    rates: Mapping[str, float] | None = None,
) -> list[Run]:
    """List the runs of a study: each row of `plan.JOBS` with each seed; the base has no seed.

    rates: by row, as in `grpo-2`, where they were chosen; a run's name then ends with its rate.

    >>> [run.name for run in runs("runs/study", seeds=[0])]
    ['base-2', 'base-3', 'sft-1-0', 'sft-lora-1-0', 'grpo-2-0', 'grpo-3-0']
    """
    made = []
    for job in plan.JOBS:
        for seed in seeds if job.command else [None]:
            row = f"{job.method}-{job.style}"
            name = row if seed is None else f"{row}-{seed}"
            rate = [] if seed is None or not rates else ["--learning_rate", f"{rates[row]:g}"]
            name += f"-lr{rate[1]}" if rate else ""
            at, train = Path(folder) / name, ()
            evaluate = ["evaluate", "--style", str(job.style), "--method", job.method, *evaluate_options]
            evaluate += ["--output", f"{at}.jsonl"]
            if seed is None:
                evaluate += [CONTROLS]
            else:
                words = shlex.split(job.command)[len(PROGRAM) :]
                train = (*words, "--seed", str(seed), "--output_dir", str(at), *train_options, *rate)
                evaluate += ["--model", str(at), "--train_seed", str(seed)]
            made.append(Run(name, job.method, job.style, seed, at, train, tuple(evaluate)))
    return made


def choose(trials: Sequence[Run]) -> dict[str, float]:
    """Choose each row's learning rate by held-out accuracy; the gentler of equals. trials: one training a rate."""
    best: dict[str, tuple[float, float]] = {}
    for run in trials:
        rate = float(run.train[run.train.index("--learning_rate") + 1])
        row = f"{run.method}-{run.style}"
        best[row] = max(best.get(row, (-1.0, 0.0)), (held_out(run), -rate))
    return {row: -rate for row, (_, rate) in best.items()}


def complete(
    study: Sequence[Run], processes: int = 2, call: Callable[[Sequence[str], Path], int] | None = None
) -> None:
    """Train and evaluate what is not finished yet, `processes` runs at a time; the longest begin first.

    call: runs one command into a log and returns its exit code. Raises StudyError for what failed, when all else is
    done, and for a folder that other commands have made.
    """
    for run in study:
        _same_command(run)
    order = sorted(study, key=lambda run: (bool(run.train), run.method != "grpo", -run.style))
    call = call or _caller(processes)
    with ThreadPoolExecutor(processes) as pool:
        failures = [failure for failure in pool.map(lambda run: _complete(run, call), order) if failure]
    if failures:
        raise StudyError("\n".join(failures))


def _complete(run: Run, call: Callable) -> str | None:
    """Finish one run, and return what went wrong."""
    start, log = time.monotonic(), run.folder.with_name(f"{run.name}.log")
    if run.trained and (run.on_trial or _answered(run)):
        print(f"{run.name}: already done", flush=True)
        return None
    if not run.trained:
        resume = ["--resume", "true"] if any(run.folder.glob("checkpoint-*/trainer_state.json")) else []
        if code := call([*run.train, *resume], log):
            return _failure(run, log, code)
    if run.on_trial:
        print(f"{run.name}: {held_out(run):.1%} right on held-out questions", flush=True)
        return None
    if code := call(run.evaluate, log):
        return _failure(run, log, code)
    for checkpoint in run.folder.glob("checkpoint-*"):  # the model itself lies beside them
        shutil.rmtree(checkpoint)
    found = scoring.score(predictions.read(run.predictions))
    print(f"{run.name}: {found.strict} % right, {(time.monotonic() - start) / 60:.1f} min", flush=True)
    return None


def _answered(run: Run) -> bool:
    """Whether all that a run's evaluation asks for is there."""
    files = [run.predictions]
    if CONTROLS in run.evaluate:
        files += [predictions.control_path(run.predictions, name) for name in predictions.CONTROLS]
    return all(file.exists() and "finished" in predictions.read_meta(file) for file in files)


def _same_command(run: Run) -> None:
    """Note how a run is made, or refuse to resume one that was made with other settings."""
    asked = [word for word in run.evaluate if word != CONTROLS]  # controls may be added later
    beside, commands = run.folder.with_name(f"{run.name}.command.json"), [scales.get().name, [*run.train], asked]
    if beside.exists() and json.loads(beside.read_text(encoding="utf-8")) != commands:
        raise StudyError(f"{run.folder}: was made with other settings ({beside}); give another --output, or delete it.")
    beside.parent.mkdir(parents=True, exist_ok=True)
    write_whole(beside, json.dumps(commands))


def _failure(run: Run, log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return f"{run.name} failed with code {code} ({log}): {lines[-1] if lines else 'no output'}"


def _caller(processes: int) -> Callable[[Sequence[str], Path], int]:
    """Make the function that runs `python -m aqa_lib ...`, with its share of the cores."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    environment = {"OMP_NUM_THREADS": threads, "TQDM_DISABLE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(scales.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

    def call(command: Sequence[str], log: Path) -> int:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"$ {shlex.join([*PROGRAM, *command])}\n")
            file.flush()
            program = [sys.executable, *PROGRAM[1:], *command]
            return subprocess.run(program, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode

    return call


# -- what came of it --------------------------------------------------------------------------------------------------


def held_out(run: Run) -> float:
    """Return the held-out accuracy, 0 to 1, of the checkpoint that a training ended with: the best after step 0."""
    steps, values = read_metrics(run.folder / "metrics.csv").get("eval_accuracy", ((), ()))
    return float(max((value for step, value in zip(steps, values, strict=True) if step), default=float("nan")))


def best(study: Sequence[Run]) -> list[Run]:
    """Choose the method and prompt of the best mean held-out accuracy over its seeds, and return its runs."""
    trained: dict[tuple[str, int], list[Run]] = {}
    for run in study:
        if run.train:
            trained.setdefault((run.method, run.style), []).append(run)
    scores = {key: float(np.mean([held_out(run) for run in group])) for key, group in trained.items()}
    known = {key: score for key, score in scores.items() if not np.isnan(score)}
    return trained[max(known, key=known.get)] if known else []


def budget(study: Sequence[Run]) -> str:
    """Write what each training took and which checkpoint it kept, as Markdown."""
    names = ("run", "steps", "questions", "tokens", "training (min)", "held-out accuracy (%)", "at step")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for run in study:
        if not run.train:
            continue
        log = read_metrics(run.folder / "metrics.csv")
        state = json.loads((run.folder / "trainer_state.json").read_text(encoding="utf-8"))
        cells = [str(state["global_step"])]
        cells += [f"{log[name][1][-1]:.0f}" if name in log else "" for name in ("num_questions", "num_tokens")]
        cells += [f"{ablation.spent(*log['step_time']) / 60:.1f}" if "step_time" in log else ""]
        cells += [f"{100 * held_out(run):.1f}", str(state.get("best_global_step") or "")]
        lines.append(f"| {run.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def summarize(study: Sequence[Run], folder: str | Path) -> str:
    """Write the paper's table, the paired tests, the ablation and the budget into a folder; return all as Markdown."""
    files, folder = [run.predictions for run in study], Path(folder)
    tables = report.write(files, folder)
    tests = comparison.compare(files)
    thinking = [run.predictions for run in study if run.method in ("base", "grpo")]
    arms = ablation.write(thinking, folder) if thinking else []
    winners, chosen = best(study), ""
    if winners:
        chosen = f"Best on held-out questions: {comparison.describe(predictions.read(winners[0].predictions))}. "
    text = "\n".join(
        [
            report.markdown(tables),
            "# Paired tests of all pairs",
            "",
            tests.markdown(),
            ablation.markdown(arms) if arms else "",
            "# Budgets, and the checkpoints that held-out questions chose",
            "",
            f"{chosen}Test questions chose nothing.",
            "",
            budget(study),
        ]
    )
    (folder / "study.md").write_text(text, encoding="utf-8", newline="\n")
    return text


def record(study: Sequence[Run], file: Path, rates: Mapping[str, float]) -> None:
    """Write what a study found as JSON: every run's score by task, and the findings with their verdicts."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for run in study:
        found = scoring.score(predictions.read(run.predictions))
        by_task = {task: rates["official"].to_dict() for task, rates in found.by.get("task", {}).items()}
        row = {"name": run.name, "method": run.method, "style": run.style, "seed": run.seed}
        row |= {"rate": rates.get(f"{run.method}-{run.style}"), "n": found.n, "official": found.official.to_dict()}
        rows.append(row | {"by_task": by_task} | ({"held_out": held_out(run)} if run.train else {}))
    ours = [table for table in report.build(report.gather([run.predictions for run in study])) if table.findings]
    findings = [
        {"claim": finding.claim, "verdict": finding.verdict}
        | {key: getattr(finding.ours, key) for key in ("points", "low", "high", "p_holm")}
        for table in ours
        for finding in table.findings
        if finding.ours
    ]
    recipes = comparison.recipes_of([predictions.read(run.predictions) for run in study])
    means = [{"name": recipe.name, "seeds": recipe.seeds, "mean": list(recipe.over_questions)} for recipe in recipes]
    made = {"rates": dict(rates), "means": means, "findings": findings, "runs": rows, "environment": environment()}
    write_whole(file, json.dumps(made, indent=1) + "\n")


def run_study(args: Namespace) -> None:
    """Run what is missing, then the controls of the best, and print the paper's table for this scale's world."""
    start, scale = time.monotonic(), scales.get()
    print(scale)
    foreign.refuse_missing(scale.model)
    options = (shlex.split(args.train_options), shlex.split(args.evaluate_options))
    if scale.name == "tiny":  # before the processes do, all at once
        from ..tiny import synth

        synth.write(WORLD, validation=300, test=1500)
        options[0][:0] = ["--train", str(WORLD / "train.jsonl"), "--held_out", str(WORLD / "val.jsonl")]
        options[1][:0] = ["--questions", str(WORLD / "test.json")]
    seeds, chosen = list(dict.fromkeys(args.seeds)), None
    study = runs(args.output, seeds, *options)
    rows = list(dict.fromkeys(f"{run.method}-{run.style}" for run in study))
    if unknown := set(args.rows or ()) - set(rows):
        raise StudyError(f"no row is named {', '.join(sorted(unknown))}; choose from {', '.join(rows)}.")
    study = [run for run in study if f"{run.method}-{run.style}" in (args.rows or rows)]
    if args.processes < 1:
        raise StudyError(f"processes {args.processes}: give 1 or more.")
    kept = {f"{run.method}-{run.style}" for run in study}
    if rates := RATES.get(scale.name):
        trials = [run for rate in rates for run in runs(args.output, seeds[:1], *options, dict.fromkeys(rows, rate))]
        trials = [replace(run, on_trial=True) for run in trials if run.train and f"{run.method}-{run.style}" in kept]
        complete(trials, args.processes)
        chosen = choose(trials)
        print("learning rates, by held-out accuracy: " + ", ".join(f"{row} {rate:g}" for row, rate in chosen.items()))
        study = runs(args.output, seeds, *options, dict.fromkeys(rows, 0.0) | chosen)
        study = [run for run in study if f"{run.method}-{run.style}" in kept]
    complete(study, args.processes)
    winners = {run.name for run in best(study)}
    study = [replace(run, evaluate=(*run.evaluate, CONTROLS)) if run.name in winners else run for run in study]
    complete([run for run in study if run.name in winners], args.processes)
    (args.output / "commands.txt").write_text(
        "".join(f"{shlex.join([*PROGRAM, *words])}\n" for run in study for words in (run.train, run.evaluate) if words),
        encoding="utf-8",
    )
    print(summarize(study, args.output / "report"))
    record(study, args.output / "report" / "study.json", chosen or {})
    print(f"{(time.monotonic() - start) / 60:.1f} minutes; written: {args.output / 'report'}")

"""Run the paper's step at full size on one GPU, and say where the time goes: `python tests/benchmarks/bench.py gpu`.

The model has Qwen2-Audio-7B's true configuration and random weights, so nothing is downloaded; the
trainer is `GRPOTrainer` with the options of the full scale. Memory is capped at an 80 GB card's. Without a GPU the same
code runs at a tiny size, which proves that it runs and measures nothing of interest.
"""

import gc
import io
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median

import soundfile
import torch
from bench import G, build, build_processor, example, noise, our_trainer, quiet, tflop
from transformers import TrainerCallback

from aqa_lib import audio, evaluation, grpo, scale
from aqa_lib.dataset import Question
from aqa_lib.runtime import faults

SHAPES = ((280, 12), (780, 12), (280, 64), (780, 256))
QUESTIONS = 16  # a step, the paper's
CAP = 80e9  # bytes
REPORT = (115, 144)  # GPU-seconds a step, on eight cards
TEST_MINI = 1000  # questions
SETTLED = ("master", "reference", "max_tokens_per_forward", "checkpoint_above")  # what memory decides


class Stopwatch(TrainerCallback):
    """Add up the seconds of a step by part, waiting for the GPU at each part's ends."""

    def __init__(self, device: torch.device):
        self.device, self.steps = device, []
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, part: str, function: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            start = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += self.now() - start

        return wrapped

    def on_step_begin(self, *args, **kwargs):
        self.seconds.clear()
        self.start = self.now()

    def on_pre_optimizer_step(self, *args, **kwargs):
        self.before = self.now()

    def on_optimizer_step(self, *args, **kwargs):
        self.seconds["optimizer"] = self.now() - self.before

    def on_step_end(self, *args, **kwargs):
        self.steps.append({"step": self.now() - self.start, **self.seconds})


def matmul_rate(device: torch.device, dtype: torch.dtype, n: int) -> float:
    """Measure the operations a second of an (n, n) matrix product."""
    a = torch.randn(n, n, device=device, dtype=dtype)
    watch, taken = Stopwatch(device), []
    for _ in range(12):
        start = watch.now()
        a @ a
        taken.append(watch.now() - start)
    return 2 * n**3 / median(taken[2:])


def bench_gpu(
    size: str | None = None,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    questions: int = QUESTIONS,
    steps: int = 3,
    asked: int = 256,
) -> list[dict]:
    """Time steps of `questions` x 8 answers by part, then greedy evaluation of `asked` questions on 10 s clips.

    steps: those counted, after one that is not. A shape that does not fit is reported as such, and the next one taken.
    """
    cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32
    size = size or ("full" if cuda else "tiny")
    if cuda:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / total))
    rate = matmul_rate(device, dtype, 8192 if cuda else 256)
    model, processor = build(size, device, dtype), build_processor(size)
    rows = [{"what": "matmul", "tflop_per_s": rate / 1e12}]
    options = scale.get("full").grpo | {"memory": CAP / 1e9} if cuda else {}
    with tempfile.TemporaryDirectory() as folder:
        options = quiet(folder) | {"use_cpu": not cuda, "max_steps": 1 + steps, "memory": CAP / 1e9} | options
        longest = max(C for _, C in shapes)  # what the trainer plans its memory for
        run = our_trainer(model, processor, None, longest, questions, **options)
        rows.append({"what": "settings"} | {name: getattr(run.args, name) for name in SETTLED})
        watch = Stopwatch(run.args.device)
        run.add_callback(watch)
        run.engine.generate = watch.timed("rollout", run.engine.generate)
        run._logps, run._backward = watch.timed("reference", run._logps), watch.timed("policy", run._backward)
        for P, C in shapes:
            run.train_dataset.example, run.args.max_completion_length = example(model, processor, P), C
            row = {"what": "step", "prompt": P, "answer": C, "questions": questions}
            row |= _step(run, watch, device)
            if "seconds" in row:
                work = questions * sum(tflop(size, (P, C)))
                row |= {
                    "tflop": work,
                    "share_of_matmul": work * 1e12 / row["seconds"]["policy"] / rate,
                    "tokens_per_s": questions * (P + G * C) / row["seconds"]["step"],
                    "sampled_tokens_per_s": questions * G * C / row["seconds"]["rollout"],
                    "hours": {n: n * row["seconds"]["step"] / 3600 for n in (500, 1000)},
                    "report_gpu_hours": {n: [n * s / 3600 for s in REPORT] for n in (500, 1000)},
                }
            rows.append(row)
        wave = io.BytesIO()
        soundfile.write(wave, noise(10), audio.SAMPLE_RATE, format="WAV")
        test = [Question(f"q{i}", wave.getvalue(), "What is heard?", ("a", "b"), "a") for i in range(asked)]
        start = watch.now()
        with run.accelerator.autocast():
            evaluation.predict(model, processor, test, max_completion_length=12, progress=False)
        speed = asked / (watch.now() - start)
    return [*rows, {"what": "evaluation", "questions_per_s": speed, "test_mini_s": TEST_MINI / speed}]


def _step(run: grpo.GRPOTrainer, watch: Stopwatch, device: torch.device) -> dict:
    """Take a few steps; return the median seconds of each part and the peak of memory, or that it did not fit."""
    watch.steps.clear()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        run.train()
    except (torch.OutOfMemoryError, faults.RunError) as error:
        gc.collect()
        torch.cuda.empty_cache()
        return {"did_not_fit": re.split(r"[.;] ", str(error))[0]}
    counted = watch.steps[1:]
    seconds = {part: median(step.get(part, 0.0) for step in counted) for part in counted[0]}
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    return {"seconds": seconds, "peak_gb": peak}


def markdown(rows: list[dict]) -> str:
    """Write the figures as a table and a few sentences."""
    parts = ("step", "rollout", "reference", "policy", "optimizer")
    head = [*(f"{part}, s" for part in parts), "share of matmul", "peak, GB", "hours for 500, 1000 steps"]
    lines = [f"| prompt, answer tokens | {' | '.join(head)} |", "|" + "---|" * (1 + len(head))]
    for row in rows:
        if row["what"] != "step":
            continue
        cells = [f"{row['prompt']}, {row['answer']}"]
        if "seconds" in row:
            cells += [f"{row['seconds'].get(part, 0):.2f}" for part in parts]
            cells += [f"{row['share_of_matmul']:.0%}", "" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}"]
            cells.append(", ".join(f"{hours:.1f}" for hours in row["hours"].values()))
        else:
            cells += [row["did_not_fit"], *[""] * (len(head) - 1)]
        lines.append(f"| {' | '.join(cells)} |")
    evaluated = rows[-1]
    return "\n".join(
        [
            *lines,
            "",
            f"The paper's own: {' to '.join(f'{1000 * s / 3600:.0f}' for s in REPORT)} GPU-hours for 1000 steps. "
            f"A matrix product here: {rows[0]['tflop_per_s']:.3g} TFLOP/s. Evaluation: "
            f"{evaluated['questions_per_s']:.3g} questions/s, {evaluated['test_mini_s']:.0f} s for MMAU Test-mini.",
        ]
    )

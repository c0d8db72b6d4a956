"""Show the whole idea in minutes: a model answers, learns by GRPO, and answers again.

`python -m aqa_lib demo`, which `make demo` runs. Nothing here is special to the demonstration: the data, the trainer
and the scorer are those of every scale.
"""

import time
from pathlib import Path

from transformers import set_seed

from . import dataset, evaluation, model, plotting, predictions, scale, scoring, synth
from .trainer import GRPOConfig, GRPOTrainer


def run(output_dir: str | Path = "runs/demo", seed: int = 0, **options) -> str:
    """Train the scale's model with GRPO and return the table of before and after.

    Writes predictions, the trained model, `table.md` and `curves.png` to `output_dir`. options: of `GRPOConfig`.
    """
    start, here, output_dir = time.monotonic(), scale.get(), Path(output_dir)
    print(here)
    if here.name == "tiny":
        synth.write(scale.TINY)
    questions, test = dataset.read(here.train), dataset.read(here.test)
    held_out = dataset.read(here.held_out) if here.held_out else None
    if held_out is None:
        questions, held_out = dataset.split(questions, here.held_out_fraction, seed)
    set_seed(seed)  # adapters start at random
    lora = {"r": here.lora_r} if here.lora_r else None
    policy, processor = model.load(here.model, here.dtype, lora=lora, quantization=here.quantization)

    args = GRPOConfig(**here.grpo | {"output_dir": str(output_dir), "seed": seed, "report_to": "none"} | options)
    output_dir.mkdir(parents=True, exist_ok=True)

    def examine(name: str, method: str, audio: str = "heard") -> scoring.Report:
        path = output_dir / f"{name}.jsonl"
        path.unlink(missing_ok=True)
        evaluation.predict(
            policy,
            processor,
            test,
            path,
            args.prompt_style,
            args.per_device_eval_batch_size,
            args.max_completion_length,
            audio=audio,
            data=here.test,
            labels={"method": method, "scale": here.name, "train_seed": seed},
            progress=False,
        )
        return scoring.score(predictions.read(path))

    print(f"asking the base {len(test)} test questions, with sound and with silence")
    base, deaf = examine("base", "base"), examine("base.silent", "base", "silent")
    print(f"training on {len(questions)} other questions: {args.max_steps} steps of GRPO, seed {seed}")
    trainer = GRPOTrainer(policy, processor, args=args, train_dataset=questions, eval_dataset=held_out)
    trainer.train()
    trainer.save_model()
    print("asking again")
    tuned = examine("grpo", "grpo")
    plotting.curves({"GRPO": output_dir / "metrics.csv"}, output_dir / "curves.png", len(held_out))
    text = table({"base, silence": deaf, "base": base, "GRPO": tuned})
    (output_dir / "table.md").write_text(text, encoding="utf-8")
    gain = tuned.strict.percent - base.strict.percent
    return (
        f"{text}\n{gain:+.1f} points in {(time.monotonic() - start) / 60:.1f} minutes; "
        f"the curves are in {output_dir / 'curves.png'}, the answers beside them."
    )


def table(reports: dict[str, scoring.Report]) -> str:
    """Lay reports side by side as Markdown: accuracy in percent with 95 % intervals, by task, and the format rate."""
    tasks = sorted(next(iter(reports.values())).by["task"], key="sound music speech".find)
    lines = [f"| model | {' | '.join(tasks)} | average | format |", "|---" * (len(tasks) + 3) + "|"]
    for name, report in reports.items():
        cells = [str(report.by["task"][task]["strict"]) for task in tasks]
        lines.append(f"| {' | '.join([name, *cells, str(report.strict), str(report.tagged)])} |")
    n = next(iter(reports.values())).strict.n
    return "\n".join(
        [
            *lines,
            "",
            f"Percent of {n} test questions [95 % interval]: answered with the right choice; in the form asked for.",
            "",
        ]
    )

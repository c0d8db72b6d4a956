"""Show the whole idea in minutes: a model answers, learns by GRPO, and answers again.

`python -m aqa_lib demo`, which `make demo` runs. Nothing here is special to the demonstration: the data, the trainer
and the scorer are those of every scale.
"""

import shutil
import time
from pathlib import Path

from .. import predictions, scale
from ..escape import markdown
from ..results import plotting, scoring
from . import recipes


def run(output_dir: str | Path = "runs/demo", seed: int = 0, **options) -> str:
    """Train the scale's model with GRPO and return the table of before and after.

    Writes predictions, the trained model, `table.md` and `curves.png` to `output_dir`, over those of an earlier
    demonstration. options: of `GRPOConfig`.
    """
    start, output_dir = time.monotonic(), Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    for old in output_dir.glob("*.jsonl*"):  # or they would be gone on with
        old.unlink()
    for old in output_dir.glob("checkpoint-*"):
        shutil.rmtree(old)
    print(scale.get())
    questions = recipes.questions(seed)

    def examine(name: str, path: Path | None = None, controls: tuple[str, ...] = ()) -> scoring.Report:
        recipes.answers(output_dir, path, controls=controls, file=f"{name}.jsonl", method=name, train_seed=seed)
        return scoring.score(predictions.read(output_dir / f"{name}.jsonl"))

    print(f"asking the base {len(questions.test)} test questions, with sound and with silence")
    base = examine("base", controls=("silent",))
    deaf = scoring.score(predictions.read(output_dir / "base.silent.jsonl"))
    print(f"training on {len(questions.train)} other questions by GRPO, seed {seed}")
    recipes.grpo(output_dir, seed=seed, **options)
    print("asking again")
    tuned = examine("grpo", output_dir)
    plotting.curves({"GRPO": output_dir / "metrics.csv"}, output_dir / "curves.png", len(questions.held_out))
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
    lines = [f"| model | {' | '.join(map(markdown, tasks))} | average | format |", "|---" * (len(tasks) + 3) + "|"]
    for name, report in reports.items():
        cells = [str(report.by["task"][task]["strict"]) for task in tasks]
        lines.append(f"| {' | '.join([markdown(name), *cells, str(report.strict), str(report.tagged)])} |")
    n = next(iter(reports.values())).strict.n
    return "\n".join(
        [
            *lines,
            "",
            f"Percent of {n} test questions [95 % interval]: answered with the right choice; in the form asked for.",
            "",
        ]
    )

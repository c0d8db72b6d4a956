"""Show the whole idea in minutes: a model answers, learns by GRPO, and answers again.

`python -m aqa_lib demo`, which `make demo` runs. Nothing here is special to the demonstration: the data, the trainer
and the scorer are those of every scale.
"""

import json
import shutil
import time
from pathlib import Path

import numpy as np

from .. import audio, predictions, scale
from ..dataset import Question
from ..results import plotting, scoring
from ..runtime import checkpoints, files
from ..runtime.escape import markdown
from . import recipes

MARK, SAYS = "demo.json", '{"written by": "python -m aqa_lib demo, which deletes what it wrote when it is run again"}\n'
ASKED = ("base.jsonl", "base.silent.jsonl", "grpo.jsonl")
WRITES = (  # deleted by the next demonstration; checkpoints too, but not what a user keeps next to them
    *ASKED, *(f"{name}.meta.json" for name in ASKED),
    *("run.json", "metrics.csv", "completions.jsonl", "trainer_state.json"),
    *("table.md", "scores.json", "example.json", "curves.png"),
    *("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"),
)  # fmt: skip


def run(output_dir: str | Path = "runs/demo", seed: int = 0, **options) -> str:
    """Train the scale's model with GRPO and return the table of before and after.

    Writes predictions, the trained model, `table.md`, `scores.json`, `example.json` and `curves.png` to `output_dir`,
    over those of an earlier demonstration, whose `demo.json` says what it wrote. options: of `GRPOConfig`. Raises
    FileExistsError for a folder that holds anything else.
    """
    start, output_dir = time.monotonic(), Path(output_dir)
    clear(output_dir)
    here = scale.get()
    print(here)
    if here.train.parent == scale.TINY and not scale.TINY.exists():
        print("making the clips and questions of the tiny world: about 15 s, once")
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
    scores = {name: figures(report) for name, report in {"base, silence": deaf, "base": base, "GRPO": tuned}.items()}
    minutes = round((time.monotonic() - start) / 60, 1)
    made = {"seed": seed, "minutes": minutes, "scores": scores, "environment": files.environment()}
    (output_dir / "scores.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    shown = example(output_dir, questions.test)
    (output_dir / "example.json").write_text(json.dumps(shown) + "\n", encoding="utf-8")
    gain = tuned.strict.percent - base.strict.percent
    return (
        f"{text}\n{gain:+.1f} points in {(time.monotonic() - start) / 60:.1f} minutes; "
        f"the curves are in {output_dir / 'curves.png'}, the answers next to them."
    )


def figures(report: scoring.Report) -> dict:
    """Return a report's scores as plain numbers: by task, the average, and replies in tags."""
    by_task = {task: rates["strict"].to_dict() for task, rates in report.by["task"].items()}
    return by_task | {"average": report.strict.to_dict(), "tags": report.tagged.to_dict()}


def example(folder: Path, asked: list[Question], columns: int = 60, bands: int = 16) -> dict | None:
    """Pick the first "What do you hear" that training made right: its replies before and after, and its clip's mel.

    mel: (bands, columns), 0 to 9 over the loudest 40 dB, low frequencies first. None if training put no question right.
    """
    before, after = (predictions.read(folder / name) for name in ("base.jsonl", "grpo.jsonl"))
    by_id = {question.id: question for question in asked}
    for old, new in zip(before.rows, after.rows, strict=True):
        if new["question"].startswith("What do you hear") and new["correct"] and not old["correct"]:
            mel = audio.log_mel(audio.load(by_id[new["id"]].audio).wave, 80).numpy()
            mel = mel[:, : mel.shape[1] // columns * columns].reshape(bands, 80 // bands, columns, -1).mean((1, 3))
            levels = np.clip((mel - mel.max() + 1) * 9, 0, 9).round().astype(int)  # 1 is 40 dB
            kept = {key: new[key] for key in ("id", "question", "choices", "answer")}
            replies = {"before": old["model_output"], "after": new["model_output"], "mel": levels.tolist()}
            return kept | replies | {"environment": after.meta["environment"]}
    return None


def clear(folder: Path) -> None:
    """Make the demonstration's folder, or delete in it what an earlier one wrote and nothing else."""
    mark = folder / MARK
    folder.mkdir(parents=True, exist_ok=True)
    strange = sorted(path.name for path in folder.iterdir())
    if mark.is_file() and mark.read_text(encoding="utf-8") == SAYS:
        for path in [folder / name for name in WRITES] + checkpoints.in_order(folder):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    elif strange:
        raise FileExistsError(
            f"{folder} holds files that no demonstration wrote ({strange[0]}); choose another --output_dir."
        )
    mark.write_text(SAYS, encoding="utf-8")


def table(reports: dict[str, scoring.Report]) -> str:
    """Lay reports side by side as Markdown: accuracy in percent with 95 % intervals, by task, and the format rate."""
    tasks = sorted(next(iter(reports.values())).by["task"], key="sound music speech".find)
    lines = [f"| model | {' | '.join(map(markdown, tasks))} | average | tags |", "|---" * (len(tasks) + 3) + "|"]
    for name, report in reports.items():
        cells = [str(report.by["task"][task]["strict"]) for task in tasks]
        lines.append(f"| {' | '.join([markdown(name), *cells, str(report.strict), str(report.tagged)])} |")
    n = next(iter(reports.values())).strict.n
    return "\n".join(
        [
            *lines,
            "",
            f"Percent of {n} test questions [95 % interval] with the right choice; tags: in the form asked for.",
            "Processors round differently: on another one the same seed may end 3 or 4 points away.",
            "",
        ]
    )

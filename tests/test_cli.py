"""Use the command line as a user types it: from the repository's root, and with a user's mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from aqa_lib import scale
from aqa_lib.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "aqa_lib", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=1800)


@pytest.fixture
def typed(capsys):
    """Run a command in this process, which has the libraries already; it must succeed. Returns what it prints."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        try:
            code = main([*arguments])
        except SystemExit as left:  # argparse, after a --help
            code = left.code or 0
        said = capsys.readouterr()
        assert not code, said.err
        return said.out

    return run


def training(world, output, *more):
    return [
        "train", "--model", f"{world}/model", "--train", f"{world}/data/train.jsonl",
        "--held_out", f"{world}/data/val.jsonl", "--output_dir", str(output), "--max_completion_length", "4",
        "--per_device_train_batch_size", "4", "--num_generations", "2", "--logging_steps", "1",
        "--eval_steps", "2", "--save_steps", "2", "--report_to", "tensorboard", *more,
    ]  # fmt: skip


def test_train_resume_evaluate_score_compare(world, tmp_path, typed):
    output = tmp_path / "run"
    first = shell(*training(world, output, "--max_steps", "2", "--beta", "0.04"))
    assert first.returncode == 0, first.stderr
    assert "step    2:" in first.stdout + first.stderr and "held-out accuracy" in first.stdout + first.stderr
    assert {"metrics.csv", "completions.jsonl", "model.safetensors", "checkpoint-2"} <= {
        p.name for p in output.iterdir()
    }
    assert list(output.rglob("events.out.tfevents.*"))
    typed(*training(world, output, "--max_steps", "4", "--beta", "0.04", "--resume"))
    steps = [line.split(",")[0] for line in (output / "metrics.csv").read_text().splitlines()[1:]]
    assert steps[0] == "0" and {"1", "2", "3", "4"} <= set(steps)
    assert len((output / "completions.jsonl").read_text().splitlines()) == 4

    for model, name in ((world / "model", "base"), (output, "grpo")):
        said = typed(
            "evaluate", "--model", str(model), "--questions", f"{world}/data/test.json", "--method", name,
            "--output", str(tmp_path / f"{name}.jsonl"), "--max_completion_length", "4", "--controls",
        )  # fmt: skip
        assert "silent" in said and "shuffled" in said
    files = [str(tmp_path / "base.jsonl"), str(tmp_path / "grpo.jsonl")]
    scored = shell("score", *files, "--json")
    assert [report["n"] for report in json.loads(scored.stdout)] == [12, 12]
    assert "grpo" in typed("compare", *files)


def test_help_is_for_a_stranger(typed):
    assert shell().stdout == shell("--help").stdout == typed("--help")
    assert "train a model with GRPO" in typed()
    short, whole = typed("train", "--help"), typed("train", "--help-all")
    assert "--num_generations" in short and "Answers to each question" in short
    assert "--fsdp" not in short and "--fsdp" in whole


MISTAKES = {
    "job": (["trian"], "no command is named 'trian'; choose from demo, prepare"),
    "option": (["train", "--learning", "1"], "--learning"),
    "type": (["train", "--max_steps", "many"], "invalid int value: 'many'"),
    "value": (["train", "--num_generations", "1"], "num_generations must be at least 2"),
    "file": (["train", "--train", "nowhere.jsonl"], "nowhere.jsonl"),
    "model": (["train", "--model", "no/such-folder"], "no model could be loaded"),
    "memory": (["train", "--memory", "24", "--model", "no/such-folder"], "no model could be loaded"),
    "part": (["train", "--train_parts", "ear"], "no part is named ear"),
    "rank": (["train", "--lora_r", "0"], "--lora_r must be a positive integer"),
    "reward": (["train", "--rewards", "kindness"], "kindness"),
    "batch": (["train", "--per_device_train_batch_size", "1000"], "fewer than the 1000"),
    "questions": (["evaluate", "--questions", "nowhere.json"], "nowhere.json"),
    "columns": (["evaluate", "--columns", "answer"], "OURS=THEIRS"),
    "predictions": (["score", "nowhere.jsonl"], "nowhere.jsonl"),
    "reports": (["train", "--report_to", "nosuch"], "report_to 'nosuch' is unknown; choose none, all, "),
    "metric": (["train", "--metric_for_best_model", "nosuch"], "'nosuch' is not measured here; choose accuracy, "),
    "loss": (["train", "--metric_for_best_model", "eval_loss"], "'loss' is not measured here"),
    "adapters": (["train", "--lora_r", "9" * 19], "give a rank from 1 to the model's width"),
    "no folder": (["train", "--output_dir", ""], "output_dir is empty: name a folder"),
    "NUL": (["train", "--train", "a\0b.jsonl"], "'a\\x00b.jsonl' holds a NUL character"),
    "limit": (["evaluate", "--limit", "-5"], "'-5': give a whole number, 1 or more"),
    "seed": (["evaluate", "--seed", "9" * 30], "give a whole number from 0 to 4294967295"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_exit_code_2(name, world, tmp_path, capsys):
    arguments, reason = MISTAKES[name]
    if arguments[0] == "train":
        arguments = [*training(world, tmp_path / "run", "--max_steps", "1"), *arguments[1:]]
    elif arguments[0] == "evaluate":
        defaults = {"--questions": f"{world}/data/test.json", "--output": f"{tmp_path}/out.jsonl"}
        arguments = ["evaluate", *(x for pair in defaults.items() for x in pair), *arguments[1:]]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    lines = [line for line in message.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and reason in lines[0], message
    assert "Traceback" not in message


def test_bad_rows_are_all_named(world, tmp_path, capsys):
    lines = (world / "data" / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows[2]["answer"] = 9
    rows[7]["audio_path"] = "audio/gone.flac"
    bad = world / "data" / "bad.jsonl"
    bad.write_text("\n".join(map(json.dumps, rows)))
    arguments = training(world, tmp_path / "run", "--max_steps", "1", "--train", str(bad))
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "bad.jsonl line 3" in message and "bad.jsonl line 8" in message and "gone.flac" in message
    assert main([*arguments, "--skip_bad_rows", "--eval_strategy", "no"]) == 0


def test_an_unknown_scale_lists_the_known_ones():
    made = shell("evaluate", AQA_SCALE="huge")
    assert made.returncode == 2
    assert made.stderr.strip() == "error: no scale is named 'huge'; set AQA_SCALE to one of tiny, small, colab, full."


def test_a_silent_clip_in_training_is_named(world, tmp_path, capsys):
    rows = [json.loads(line) for line in (world / "data" / "train.jsonl").read_text().splitlines()]
    soundfile.write(world / "data" / "audio" / "silent.wav", [0.0] * 32_000, 16_000)
    for row in rows:
        row["audio_path"] = "audio/silent.wav"
    (world / "data" / "silent.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = training(world, tmp_path / "run", "--max_steps", "1", "--train", f"{world}/data/silent.jsonl")
    assert main(arguments) == 2
    assert "silent.wav" in capsys.readouterr().err


HELP = "torch transformers matplotlib scipy"
LIGHT = [  # one after the other in one process: what a command loads stays loaded
    (["--help"], f"{HELP} numpy"),
    (["trian"], f"{HELP} numpy"),
    *(([name, "--help"], HELP) for name in ("score", "compare", "study", "evaluate")),
    (["score", "{predictions}"], "torch transformers"),
    (["compare", "{predictions}", "{predictions}"], "torch transformers"),
    (["report", "{predictions}"], "torch transformers"),
]


def test_nothing_heavy_is_imported_before_it_is_needed(tmp_path):
    file = tmp_path / "theirs.json"
    rows = [
        {"id": str(i), "question": "?", "choices": ["a", "b"], "answer": "a", "model_output": "a"} for i in range(4)
    ]
    file.write_text(json.dumps(rows))
    asked = [([word.format(predictions=file) for word in words], unwanted.split()) for words, unwanted in LIGHT]
    code = f"""
import sys
from aqa_lib import scale
from aqa_lib.__main__ import main
for words, unwanted in {asked!r}:
    try:
        main(words)
    except SystemExit:
        pass
    print("loaded by", *words, [name for name in unwanted if name in sys.modules])
"""
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    said = [line for line in made.stdout.splitlines() if line.startswith("loaded by ")]
    assert said == [" ".join(["loaded by", *words, "[]"]) for words, _ in asked], made.stdout + made.stderr


def test_assemble_names_the_part_that_cannot_be_had(tmp_path, capsys):
    assert main(["assemble", "--out", str(tmp_path / "out"), "--encoder", str(tmp_path / "nowhere")]) == 2
    assert f"{tmp_path}/nowhere: no such folder" in capsys.readouterr().err
    assert main(["train", "--model", scale.SCALES["small"].model, "--output_dir", str(tmp_path / "run")]) == 2
    assert "run `python -m aqa_lib assemble` and then" in capsys.readouterr().err


def test_align_resume_and_say_what_is_heard(world, tmp_path, capsys):
    rows = [json.loads(line) for line in (world / "data" / "train.jsonl").read_text().splitlines()]
    rows = [f"audio/{Path(row['audio_path']).name},{row['multi_choice'][row['answer']]}" for row in rows]
    (world / "data" / "facts.csv").write_text("\n".join(["clip,sound", *rows]))
    arguments = [
        "align", "--model", f"{world}/model", "--train", f"{world}/data/facts.csv", "--held_out_fraction", "0.2",
        "--columns", "audio=clip,sound=sound", "--output_dir", f"{tmp_path}/run", "--max_completion_length", "4",
        "--per_device_train_batch_size", "2", "--projector_steps", "1", "--max_steps", "1", "--eval_steps", "1",
        "--save_steps", "1", "--report_to", "none",
    ]  # fmt: skip
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "10 clips to learn from, 2 held out" in told and "sound: hears" in told and "2 held-out clips" in told
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    report = json.loads((tmp_path / "run" / "alignment.json").read_text())
    assert report["labels"]["train"] == "facts.csv" and len(report["labels"]["train_sha256"]) == 64


def test_questions_can_come_from_the_hub(world, tmp_path, monkeypatch):
    import datasets

    questions = [json.loads(line) for line in (world / "data" / "train.jsonl").read_text().splitlines()]
    clips = [(world / "data" / row["audio_path"]).read_bytes() for row in questions]
    data = datasets.Dataset.from_dict(
        {
            "clip": [{"bytes": clip, "path": None} for clip in clips],
            "asked": [row["question_text"] for row in questions],
            "choices": [row["multi_choice"] for row in questions],
            "answer": [row["answer"] for row in questions],
        }
    ).cast_column("clip", datasets.Audio())
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or data)
    arguments = training(world, tmp_path / "run", "--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no")
    columns = ["--columns", "audio=clip,question=asked"]
    assert main([*arguments, "--train", "hub:some/set:train[:12]", "--held_out", "none", *columns]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["labels"]["train"] == "set:train[:12]"
    assert asked == [("some/set", "train[:12]")]


def test_every_command_follows_the_protocol(typed):
    from importlib import import_module

    from aqa_lib.cli import COMMANDS

    for name in COMMANDS:
        module = import_module(f"aqa_lib.cli.{name}")
        assert module.__doc__.startswith(f"`{name}`") and callable(module.run)
        assert f"usage: python -m aqa_lib {name}" in typed(name, "--help")

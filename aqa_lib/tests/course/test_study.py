"""The runs are played by a function that writes what a training and an evaluation leave behind."""

import itertools
import json
import re
import threading
from argparse import ArgumentParser

import pytest

from aqa_lib import predictions
from aqa_lib.cli import study as command
from aqa_lib.course import study
from aqa_lib.tests.helpers import REPLIES, write_run

HELD_OUT = {"sft-1": 0.5, "sft-lora-1": 0.4, "grpo-2": 0.7, "grpo-3": 0.6}


class Player:
    """Play `python -m aqa_lib`; notes the commands, and fails or dies at those that hold a given word."""

    def __init__(self, fails: str = "", dies: str = ""):
        self.commands, self.fails, self.dies, self.lock = [], fails, dies, threading.Lock()

    def __call__(self, command, log):
        with self.lock:
            self.commands.append(list(command))
        options = dict(itertools.pairwise(command))
        with open(log, "a") as file:
            file.write("$ command\nerror: a bad day.\n")
        if self.fails and any(self.fails in word for word in command):
            return 2
        if command[0] != "evaluate":
            return self.train(log.with_suffix(""), options)
        name, folder = log.stem, log.parent
        style = int(options["--style"])
        replies = REPLIES.get(style, REPLIES[2])[: 20 if options["--method"] == "base" else 40]
        replies += ["<answer>a cat</answer>"] * (40 - len(replies))
        write_run(folder, name, style, options["--method"], options.get("--train_seed"), replies, trained=False)
        files = [log.with_suffix(".jsonl")]
        if "--controls" in command:
            for control in predictions.CONTROLS:
                write_run(folder, f"{name}.{control}", style, options["--method"], 0, replies, trained=False)
                files.append(predictions.control_path(files[0], control))
        for file in files:
            meta = predictions.read_meta(file)
            predictions.meta_path(file).write_text(json.dumps(meta | {"finished": "2026-01-01"}))
        return 0

    def train(self, folder, options):
        (folder / "checkpoint-1").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint-1" / "trainer_state.json").write_text("{}")
        if self.dies and self.dies in folder.name:
            return -9
        row = re.match(r"[a-z-]+\d", folder.name)[0]
        right = HELD_OUT[row] - abs(float(options.get("--learning_rate", 2e-4)) - 2e-4)  # the best rate is 2e-4
        # what the base gets right before the first step, 0.65, is no merit of a training
        text = f"step,eval_accuracy,step_time,num_questions,num_tokens\n0,0.65,,,\n1,,2.0,16,900\n1,{right},,,\n"
        (folder / "metrics.csv").write_text(text)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1, "best_global_step": 1}))
        return 0


def test_runs_are_the_rows_of_the_plan_with_each_seed(tmp_path):
    made = study.runs(tmp_path, [0, 1], ["--max_steps", "7"], ["--limit", "5"])
    assert [run.name for run in made] == [
        "base-2", "base-3", "sft-1-0", "sft-1-1", "sft-lora-1-0", "sft-lora-1-1",
        "grpo-2-0", "grpo-2-1", "grpo-3-0", "grpo-3-1",
    ]  # fmt: skip
    by_name = {run.name: run for run in made}
    assert by_name["base-3"].train == () and by_name["base-3"].evaluate[-1] == "--controls"
    lora = by_name["sft-lora-1-1"]
    assert lora.train[0] == "sft" and {"--prompt_style", "--lora_r"} < set(lora.train)
    assert lora.train[-6:] == ("--seed", "1", "--output_dir", str(lora.folder), "--max_steps", "7")
    assert lora.evaluate == (
        "evaluate", "--style", "1", "--method", "sft-lora", "--limit", "5", "--output", str(lora.predictions),
        "--model", str(lora.folder), "--train_seed", "1",
    )  # fmt: skip


def test_a_study_is_completed_once(tmp_path, capsys):
    made, player = study.runs(tmp_path, [0]), Player()
    study.complete(made, 2, player)
    assert len(player.commands) == 2 + 4 * 2
    assert not list(tmp_path.glob("*/checkpoint-*")) and (tmp_path / "grpo-2-0" / "trainer_state.json").exists()
    again = Player()
    study.complete(made, 2, again)
    assert again.commands == []
    assert capsys.readouterr().out.count("already done") == 6


def test_a_study_goes_on_where_it_was_stopped(tmp_path):
    made = study.runs(tmp_path, [0])
    with pytest.raises(study.StudyError, match=r"grpo-3-0 failed with code -9 .*: error: a bad day"):
        study.complete(made, 1, Player(dies="grpo-3"))
    again = Player()
    study.complete(made, 1, again)
    assert [command[0] for command in again.commands] == ["train", "evaluate"]  # all else was done
    assert again.commands[0][-2:] == ["--resume", "true"]


def test_an_evaluation_that_failed_is_made_again_alone(tmp_path):
    made = study.runs(tmp_path, [0])
    with pytest.raises(study.StudyError) as caught:
        study.complete(made, 2, Player(fails="evaluate"))
    assert str(caught.value).count("failed with code 2") == 6
    again = Player()
    study.complete(made, 2, again)
    assert {command[0] for command in again.commands} == {"evaluate"}


def test_what_was_made_in_another_way_is_refused(tmp_path, monkeypatch):
    study.complete(study.runs(tmp_path, [0])[:1], 1, Player())
    with pytest.raises(study.StudyError, match="base-2: was made with other settings"):
        study.complete(study.runs(tmp_path, [0], evaluate_options=["--limit", "3"])[:1], 1, Player())
    monkeypatch.setenv("AQA_SCALE", "full")
    with pytest.raises(study.StudyError, match="base-2: was made with other settings"):
        study.complete(study.runs(tmp_path, [0])[:1], 1, Player())


def test_the_whole_study_is_printed_with_controls_for_the_base_and_the_best(tmp_path, monkeypatch, capsys):
    from aqa_lib.tiny import synth

    player = Player()
    monkeypatch.setattr(study, "_caller", lambda processes: player)
    monkeypatch.setattr(synth, "write", lambda folder, **sizes: folder)
    parser = ArgumentParser()
    command.add_arguments(parser)
    study.run_study(parser.parse_args(["--output", str(tmp_path), "--seeds", "0", "1"]))
    controlled = [command for command in player.commands if "--controls" in command]
    assert sorted(command[command.index("--output") + 1].rpartition("/")[2] for command in controlled) == [
        "base-2.jsonl", "base-3.jsonl", "grpo-2-0-lr0.0002.jsonl", "grpo-2-1-lr0.0002.jsonl",
    ]  # fmt: skip
    text = capsys.readouterr().out
    assert "Best on held-out questions: grpo, prompt 2." in text
    assert "| GRPO makes the base better |" in text and "| sft-lora, prompt 1 |" in text
    assert "| grpo-3-1-lr0.0002 | 1 | 16 | 900 | 0.0 | 60.0 | 1 |" in text
    assert "learning rates, by held-out accuracy: sft-1 0.0002, sft-lora-1 0.0002, grpo-2 0.0002, grpo-3 0.0002" in text
    made = json.loads((tmp_path / "report" / "study.json").read_text())
    assert set(made["rates"].values()) == {2e-4} and len(made["runs"]) == 2 + 8 and len(made["findings"]) == 4
    trained = [command for command in player.commands if command[0] != "evaluate"]
    assert len(trained) == 4 * 5 + 4  # seed 0 at every rate, which seed 1 need not try again
    evaluated = [command for command in player.commands if command[0] == "evaluate" and "--controls" not in command]
    assert not any("lr0.0005" in word for command in evaluated for word in command)  # the test chose no rate
    assert {"study.json", "report.md", "report.csv", "report.svg", "ablation.md", "ablation.svg", "study.md"} <= {
        file.name for file in (tmp_path / "report").iterdir()
    }
    commands = (tmp_path / "commands.txt").read_text().splitlines()
    assert len(commands) == 2 + 8 * 2 and all(line.startswith("python -m aqa_lib ") for line in commands)


def test_rows_can_be_chosen_and_unknown_ones_are_refused(tmp_path, monkeypatch):
    player = Player()
    monkeypatch.setattr(study, "_caller", lambda processes: player)
    monkeypatch.setenv("AQA_SCALE", "colab")  # no data are made there
    monkeypatch.setattr(study, "summarize", lambda runs, folder: "")
    parser = ArgumentParser()
    command.add_arguments(parser)
    options = ["--output", str(tmp_path), "--seeds", "3", "--rows", "base-2", "grpo-2"]
    study.run_study(parser.parse_args(options))
    assert {command[command.index("--style") + 1] for command in player.commands if command[0] == "evaluate"} == {"2"}
    with pytest.raises(study.StudyError, match="no row is named ppo-2; choose from base-2"):
        study.run_study(parser.parse_args([*options, "ppo-2"]))
    with pytest.raises(study.StudyError, match="processes 0"):
        study.run_study(parser.parse_args([*options, "--processes", "0"]))


def test_a_command_runs_in_a_process_of_its_own(tmp_path):
    assert study._caller(1)(["--help"], tmp_path / "log") == 0
    said = (tmp_path / "log").read_text()
    assert said.startswith("$ python -m aqa_lib --help") and "usage: python -m aqa_lib COMMAND" in said

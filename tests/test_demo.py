"""Run the demonstration at reduced steps, as `make demo` does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aqa_lib.course import demo
from aqa_lib.results import plotting

ROOT = Path(__file__).resolve().parents[1]


def test_demo_trains_and_shows_before_and_after(tmp_path):
    command = [sys.executable, "-m", "aqa_lib", "demo", "--max_steps", "30", "--output_dir", str(tmp_path)]
    made = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=1800)
    assert made.returncode == 0, made.stderr
    rows = [line for line in made.stdout.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[0].strip("|").split("|")] == [
        "model",
        "sound",
        "music",
        "speech",
        "average",
        "tags",
    ]
    values = {cells[0]: cells for cells in ([c.strip() for c in row.strip("|").split("|")] for row in rows[2:])}
    assert list(values) == ["base, silence", "base", "GRPO"]
    average = {name: float(cells[4].split()[0]) for name, cells in values.items()}
    formed = {name: float(cells[5].split()[0]) for name, cells in values.items()}
    assert 40 <= average["base"] <= 60  # the base can hear
    assert average["base, silence"] < 35  # and does not only read
    assert formed["base"] < 20 < formed["GRPO"]  # thirty steps are enough to learn the tags
    assert "points in" in made.stdout
    assert (tmp_path / "curves.png").stat().st_size > 20_000
    rewards = plotting.read_metrics(tmp_path / "metrics.csv")["reward"]
    assert len(rewards[0]) >= 2
    assert (tmp_path / "model.safetensors").is_file() and (tmp_path / "grpo.jsonl").is_file()


def test_demo_deletes_nothing_that_it_did_not_write(tmp_path):
    """A folder of results is refused; in the demonstration's own folder notes and copies stay."""
    for name in ("mine.jsonl", "mine.jsonl.tags.json"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(FileExistsError, match="holds files that no demonstration wrote .*choose another --output_dir"):
        demo.run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-7", "mine.jsonl", "mine.jsonl.tags.json"]
    own = tmp_path / "demo"
    demo.clear(own)
    for name in ("base.jsonl", "base.jsonl.tags.json", "questions.jsonl", "metrics.csv"):
        (own / name).write_text("")
    for name in ("checkpoint-7", "checkpoint-7-keep"):
        (own / name).mkdir()
    demo.clear(own)
    left = ["base.jsonl.tags.json", "checkpoint-7-keep", "demo.json", "questions.jsonl"]
    assert sorted(path.name for path in own.iterdir()) == left

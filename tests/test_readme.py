"""The README's figures are those of the files that commands made, and what it says of them holds."""

import json
import subprocess

import pytest

from aqa_lib import scale
from aqa_lib.results import dose, readme, real

TEXT = (scale.ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [str(page.relative_to(scale.ROOT)) for page in readme.PAGES])
def test_every_block_is_what_the_files_say(page):
    text = (scale.ROOT / page).read_text(encoding="utf-8")
    assert readme.filled(text) == text, "python -m aqa_lib.results.readme"
    assert "(not run)" not in text


@pytest.mark.skipif(not (scale.ROOT / ".git").exists(), reason="not a checkout")
def test_git_keeps_the_files_that_the_figures_come_from():
    names = ("dose.jsonl", "dose.svg", "mechanism.json", "demo-0.json", "real.jsonl", "alignment.json")
    names = [str(readme.RESULTS / name) for name in names]
    ignored = subprocess.run(["git", "-C", scale.ROOT, "check-ignore", *names], capture_output=True, text=True)
    assert ignored.returncode == 1, f"{ignored.stdout}{ignored.stderr}"  # 1: none is


def test_it_is_short_and_begins_with_what_it_is():
    lines = TEXT.splitlines()
    assert len(lines) <= 150
    assert any("make demo" in line for line in lines[:20]) and any(".svg" in line for line in lines[:12])


def test_what_it_says_of_wrong_labels_holds():
    rows = dose.read(readme.RESULTS / "dose.jsonl")
    found = {method: dose.curve(rows, method, "wrong") for method in ("sft", "grpo")}
    _, low, high = dose.difference(found["grpo"][0.0], found["sft"][0.0])
    assert low < 0 < high, "with right labels the two tie"
    falls = [dose.difference(found["grpo"][share], found["sft"][share])[0] for share in (0.1, 0.2, 0.3, 0.5)]
    assert falls == sorted(falls) and falls[0] > 0
    ties = {row["method"] for row in dose.repaired(rows) if row["against GRPO"] == "ties"}
    assert {"SFT, medium questions", "RAFT", "DFT"} <= ties


def test_on_real_recordings_rewards_lose_to_answers():
    trials = real.groups(real.read(readme.RESULTS / "real.jsonl"))
    for wrong in (0.0, 0.3):
        grpo, sft = ({row["seed"]: row for row in trials[method, wrong]} for method in ("grpo", "sft"))
        both = sorted(grpo.keys() & sft.keys())
        ours, theirs = (real.verdicts([some[seed] for seed in both], "sound") for some in (grpo, sft))
        _, _, high = dose.difference(ours, theirs)
        assert high < 0, wrong


def test_the_demonstration_gains_thirty_points_in_every_seed():
    files = sorted(readme.RESULTS.glob("demo-*.json"))
    assert [file.name for file in files] == ["demo-0.json", "demo-1.json", "demo-2.json"]
    for file in files:
        scores = json.loads(file.read_text(encoding="utf-8"))["scores"]
        before, after = scores["base"], scores["GRPO"]
        assert after["average"]["percent"] - before["average"]["percent"] >= 30
        assert all(after[task]["percent"] > before[task]["percent"] for task in readme.TASKS)

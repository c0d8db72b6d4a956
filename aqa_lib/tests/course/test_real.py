"""The study of real recordings: who hears which clips, what is chosen by what, and what a trial's row says."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import soundfile
import torch

from aqa_lib import __main__, scale
from aqa_lib import model as models
from aqa_lib.assembly import facts
from aqa_lib.course import lab, real
from aqa_lib.results import real as results
from aqa_lib.runtime.errors import AqaError
from aqa_lib.tests.helpers import length_reward

SPLITS = ["align"] * 4 + ["held_out"] * 2 + ["questions"] * 10 + ["test"] * 4
STEPS = 1


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Twenty clips, of a sound or of music, high or low."""
    folder, rows = tmp_path_factory.mktemp("real"), []
    for number, split in enumerate(SPLITS):
        pitch = ("high", "low")[number % 2]
        time = np.arange(5_000 + 100 * number) / 16_000
        soundfile.write(
            folder / f"{number}.wav", np.sin(2 * np.pi * (3e3 if pitch == "high" else 3e2) * time) / 4, 16_000
        )
        task = "music" if number == len(SPLITS) - 1 else "sound"
        row = {"id": str(number), "audio": f"{number}.wav", "facts": {"pitch": pitch}, "split": split, "task": task}
        rows.append(row)
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "facts.jsonl"


@pytest.fixture
def material(file, model, processor, tmp_path, monkeypatch):
    here = scale.get("tiny")
    few = {"per_device_train_batch_size": 2, "num_generations": 2, "max_steps": STEPS}
    made = replace(
        here, grpo=here.grpo | few, sft=here.sft | {"per_device_train_batch_size": 2}, max_completion_length=4
    )
    monkeypatch.setattr(scale, "get", lambda name=None: made)
    models.save(model, processor, tmp_path / "aligned", torch.float32)
    return real.Material(str(tmp_path / "aligned"), tuple(facts.read(file)))


def row(method, rate=1e-5, wrong=0.0, seed=0, right=3, last="0110", **more):
    counts = {"right": 2, "n": 4, "percent": 50.0}
    trial = asdict(lab.Trial(method, wrong, rate, 40, seed))
    measured = {"last": last, "asked": ["sound", "sound", "sound", "music"], "tasks": {"sound": counts, "all": counts}}
    measured |= {"held_out": {"right": right, "n": 4}, "outside": counts, "english": 4.0, "seconds": 60}
    return trial | measured | {"step_seconds": 2.0, "gigabytes": 3.0} | more


BASE = row("base", last="0100", silence={"all": {"right": 1, "n": 4}})
BASE |= {"any_of_8": {"all": {"right": 4, "n": 4}}}


def test_nobody_is_tested_on_a_clip_that_was_learned_from(material):
    asked = material.questions(lab.Trial("grpo", 0.3, 1e-5, STEPS, 0))
    clips = {name: {q.audio for q in getattr(asked, name)} for name in ("train", "held_out", "test")}
    clips["align"] = {clip.audio for clip in material.split("align")}
    assert sum(map(len, clips.values())) == len(set.union(*clips.values())) == len(SPLITS)
    assert len(asked.held_out) == real.ROUNDS * 2


def test_only_training_labels_are_wrong_by_the_trials_own_share_and_seed(material):
    right, wrong, other = (
        material.questions(lab.Trial("sft", share, 1e-5, STEPS, seed)) for share, seed in ((0.0, 0), (0.3, 0), (0.3, 1))
    )
    assert sum("right" in q.meta for q in wrong.train) == 3 and not any("right" in q.meta for q in right.train)
    assert wrong.train != other.train and [q.id for q in wrong.train] == [q.id for q in right.train]
    assert (wrong.held_out, wrong.test) == (right.held_out, right.test)


def test_clips_without_the_splits_are_refused(material):
    with pytest.raises(AqaError, match="need the splits questions, held_out and test"):
        replace(material, clips=tuple(material.split("align", "test"))).questions(real.BASE)


@pytest.mark.parametrize("method", real.METHODS)
def test_a_trial_trains_all_but_the_encoder_and_leaves_only_its_row(material, method, tmp_path, monkeypatch):
    seen = {}

    def measures(policy, processor, asked):
        start, _ = models.load(material.model, "float32")
        before, after = (dict(each.named_parameters()) for each in (start, policy))
        seen["changed"] = {name for name in before if not torch.equal(before[name], after[name])}
        return {"last": "1"}

    monkeypatch.setattr(real, "measures", measures)
    if method == "grpo":  # an untrained model is never right
        monkeypatch.setattr(real, "REWARDS", [length_reward])
    made = real.run(lab.Trial(method, 0.0, 1e-3, STEPS, 0), tmp_path / "trial", material)
    assert any("projector" in name for name in seen["changed"]) and any("lm_head" in name for name in seen["changed"])
    assert not any("audio_tower" in name for name in seen["changed"])
    assert made["train"] == 10
    assert made["step_seconds"] > 0 and made["environment"]["torch"] and not (tmp_path / "trial").exists()


def test_the_bases_row_counts_every_question_under_every_control(material, tmp_path):
    made = real.run(real.BASE, tmp_path / "trial", material)
    assert made["asked"] == ["sound"] * 3 + ["music"] and len(made["last"]) == 4
    for counts in (made["tasks"], made["silence"], made["any_of_8"]):
        assert {task: count["n"] for task, count in counts.items()} == {"sound": 3, "music": 1, "all": 4}
    assert made["heard"]["pitch"]["n"] == 4 and made["heard"]["pitch"]["right"] > 2
    assert {label: count["n"] for label, count in made["unsaid"].items()} == {"right": 7, "wrong": 3}
    assert results.unsaid([made])[1]["questions"] == 3 and results.ears([made])[0]["test clips"] == 4
    assert made["held_out"]["n"] == 4 and made["english"] > 0
    assert json.loads(json.dumps(made)) == made


def test_english_is_the_mean_surprise_of_a_sentence(model, processor):
    ids = processor.tokenizer("a dog and rain", return_tensors="pt").input_ids
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:])
    assert real.english(model, processor, ["a dog and rain"]) == pytest.approx(float(loss), rel=1e-5)


def test_the_rates_are_tried_first_and_held_out_questions_choose_them(material, tmp_path, monkeypatch):
    ran = []

    def run(trial, folder, material):
        ran.append(trial)
        return BASE if trial == real.BASE else row(**asdict(trial), right=4 if trial.rate == real.RATES[-1] else 3)

    def row(method, rate, wrong, seed, right, steps):
        return globals()["row"](method, rate, wrong, seed, right) | {"steps": steps}

    monkeypatch.setattr(real, "run", run)
    monkeypatch.setattr(real, "BASE", lab.Trial("base", 0.0, 1e-5, 40, 0))
    real.run_all(tmp_path / "study", material, [0, 1])
    assert ran[:4] == real.first(STEPS) and {trial.wrong for trial in ran[:4]} == {0.0}
    later = [trial for trial in ran[4:] if trial.method != "base"]
    assert {trial.rate for trial in later} == {real.RATES[-1]} and len(ran) == len(set(ran)) == 4 + 6 + 1
    rows = (tmp_path / "study" / "real.jsonl").read_bytes()
    (tmp_path / "study" / "real.jsonl").write_bytes(rows[: rows.rfind(b"\n", 0, -1) + 1])  # the last was interrupted
    ran.clear()
    real.run_all(tmp_path / "study", material, [0, 1])
    assert ran == [later[-1]] and (tmp_path / "study" / "real.jsonl").read_bytes() == rows


def test_of_equally_good_rates_the_gentler_is_chosen_and_the_test_has_no_say():
    rows = [
        row("grpo", rate, right=right, last=last)
        for rate, right, last in [(3e-5, 5, "0000"), (1e-5, 5, "0000"), (1e-4, 4, "1111")]
    ]
    assert results.choose([*rows, row("grpo", 1e-4, seed=1, right=9)]) == {"grpo": 1e-5}


def test_tables_show_the_chosen_rate_against_the_base_and_against_sft():
    rows = [BASE, row("grpo", last="1111"), row("grpo", 3e-5, right=1, last="0000"), row("sft", last="0111")]
    rows += [row("grpo", seed=1, last="1110")]
    scores = {line["model"]: line for line in results.scores(rows)}
    assert scores["GRPO"]["all"].startswith("87.5") and scores["GRPO"]["seeds"] == 2
    assert scores["base"]["all"].startswith("50.0") and scores["base, right in one of 8 tries"]["all"].startswith("100")
    gains = {line["method"]: line for line in results.gains(rows)}
    assert gains["GRPO"]["by seed"] == "+75.0, +50.0" and gains["GRPO"]["minus SFT"].startswith("+25.0")
    sounds = {line["method"]: line for line in results.gains(rows, "sound")}
    assert sounds["SFT"]["minus base"].startswith("+33.3") and sounds["SFT"]["minus SFT"] == ""
    assert "GRPO" in results.markdown(rows) and results.spent(rows)[0]["trials"] == 3


def test_a_report_on_the_alignment_shows_what_is_heard_and_what_is_said():
    (line,) = results.hearing(
        {"facts": {"sound": {"n": 50, "most_common": 8, "heard": None, "before": 5, "after": 41}}}
    )
    assert line["after"].startswith("82.0 [") and line["the probe hears (%)"] == "" and line["held-out clips"] == 50


def test_a_picture_is_drawn_of_whatever_is_there(tmp_path):
    results.plot([BASE, row("grpo"), row("sft", last="0111")], tmp_path / "real.svg")
    assert "GRPO" in (tmp_path / "real.svg").read_text()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--real", "--dose"], "separate experiments"),
        (["--dose", "--bf16"], "go with --real"),
        (["--real", "--report", "--output", "nowhere"], "holds no trial yet"),
        (["--real", "--model", scale.SCALES["tiny"].model, "--facts", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
    ],
)
def test_commands_that_cannot_be_are_refused_in_one_sentence(words, fault, capsys):
    assert __main__.main(["study", *words]) != 0
    assert fault in capsys.readouterr().err

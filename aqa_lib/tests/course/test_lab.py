"""The laboratory: labels are wrong by the share that it says, repairs do what their names say, and it resumes."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from aqa_lib import __main__, dataset, inputs, rollout, scale, sft
from aqa_lib.course import lab, recipes
from aqa_lib.logps import completion_logps
from aqa_lib.loss import group_advantages, grpo_loss
from aqa_lib.results import dose
from aqa_lib.runtime import locks
from aqa_lib.runtime.errors import AqaError
from aqa_lib.tiny import synth

TRIALS = [lab.Trial("sft", wrong, 1e-4, 2, 0) for wrong in (0.0, 0.1, 0.2)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "lab"
    return synth.write(folder, train=24, validation=4, test=4, relations={"Sound": 1.0})


@pytest.fixture
def small(world, monkeypatch):
    """Few questions and steps; the point at which all curves meet is at 2 steps."""
    here = scale.get("tiny")
    few = {"per_device_train_batch_size": 4, "logging_steps": 1}
    made = replace(here, grpo=here.grpo | few, sft=here.sft | few)
    monkeypatch.setattr(scale, "get", lambda name=None: made)
    monkeypatch.setattr(lab, "WORLD", world)
    monkeypatch.setattr(lab, "STEPS", 2)
    monkeypatch.setattr(synth, "write", lambda *args, **options: world)


@pytest.fixture
def asked(world):
    return dataset.relabel(dataset.read(world / "train.jsonl"), 0.5)


def finished(trial, folder=None):
    """Stand in for a training; an interrupted one leaves its folder."""
    return asdict(trial) | {"last": "10", "chosen": "10", "seconds": 1}


def say(monkeypatch, right):
    """Let the base give each question's label in so many of its eight tries, a wrong answer in the others."""

    def tries(policy, processor, asked, seed):
        other = [next(choice for choice in q.choices if choice != q.answer) for q in asked]
        return [[q.answer] * r + [o] * (lab.GROUP - r) for q, o, r in zip(asked, other, right, strict=True)]

    monkeypatch.setattr(lab, "tries", tries)


# -- trials -----------------------------------------------------------------------------------------------------------


def test_every_point_of_every_curve_is_there_once_and_the_first_seed_comes_first():
    made = lab.trials([0, 1])
    assert len(set(made)) == len(made) == 2 * len(lab.trials([0]))
    assert [trial.seed for trial in made] == sorted(trial.seed for trial in made)
    rows = [finished(trial) for trial in made]
    for method in lab.METHODS:
        for along, values in [("wrong", lab.DOSES), ("rate", lab.RATES), ("steps", lab.BUDGETS)]:
            found = dose.curve(rows, method, along)
            assert [*found] == [*values] and all(len(verdicts) == 2 for verdicts in found.values())
    assert all([*dose.curve(rows, method, "wrong")] == [lab.DOSE] for method in lab.REPAIRED)


def test_what_trains_and_what_chooses_is_labelled_wrongly_and_what_tests_is_not(small):
    clean, bad = (lab.questions(replace(TRIALS[0], wrong=wrong)) for wrong in (0, 0.5))
    assert sum("right" in q.meta for q in bad.train) == 12 and sum("right" in q.meta for q in bad.held_out) == 2
    assert bad.test == clean.test and not any("right" in q.meta for q in (*clean.train, *bad.test))


@pytest.mark.parametrize("method", [*lab.METHODS, *lab.REPAIRED])
def test_a_trial_leaves_its_row_and_no_folder(small, tmp_path, method):
    trial = lab.Trial(method, lab.DOSE, lab.RATE, 2, 0)
    row = lab.run(trial, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not lab.missing([trial], [json.loads(json.dumps(row))])
    assert len(row["last"]) == len(row["chosen"]) == 4 and {*row["last"], *row["chosen"]} <= {"0", "1"}
    best = max(accuracy for step, accuracy in row["held_out"].items() if step)
    assert row["chosen_step"] and row["held_out"][row["chosen_step"]] == best
    assert row["wrong_asked"] == round(lab.DOSE * 24) >= row["wrong_repeated"] + row["wrong_righted"]
    assert torch.tensor([row["kl"], row["captions_lost"]]).isfinite().all()


def test_the_base_is_at_no_distance_from_itself_and_what_it_says_of_wrong_labels_is_counted(small, monkeypatch):
    def said(policy, processor, wrong, style):
        right, label = [q.meta["right"] for q in wrong], [q.answer for q in wrong]
        return [{"prediction": text} for text in (*right[:5], *label[5:8], *["I hear a sound."] * 4)]

    monkeypatch.setattr(lab, "ask", said)
    base, processor = recipes.policy()
    left = lab.aftermath(base, processor, lab.questions(replace(TRIALS[0], wrong=0.5)), style=2)
    counts = {"wrong_asked": 12, "wrong_repeated": 3, "wrong_righted": 5}
    assert left == {**counts, "kl": 0, "captions_lost": 0}


# -- SFT, repaired ----------------------------------------------------------------------------------------------------


def test_medium_questions_are_those_that_the_base_gets_right_in_1_to_7_of_8_tries(asked, monkeypatch):
    right = [0, 1, 4, 7, 8] + [0] * 19
    say(monkeypatch, right)
    assert lab.filtered(None, None, asked, 0) == asked[1:4]


def test_raft_learns_replies_of_the_base_that_the_label_calls_right_and_no_other(asked, monkeypatch):
    say(monkeypatch, [0, 1, 8] + [0] * 21)
    lessons = lab.own_right_answers(None, None, asked, 0)
    assert [q.id for q in lessons] == [q.id for q in asked[1:3]]
    assert [sft.TARGETS["reply"](q) for q in lessons] == [q.answer for q in asked[1:3]]


def test_the_base_tries_each_question_eight_times_and_a_seed_repeats_them(asked):
    base, processor = recipes.policy()
    first, again, other = (lab.tries(base, processor, asked[:3], seed) for seed in (0, 0, 1))
    assert [len(replies) for replies in first] == [8] * 3 and first == again != other


# -- the mechanism ----------------------------------------------------------------------------------------------------


def test_a_group_without_deviation_pulls_at_nothing_and_sft_at_everything(asked, monkeypatch, tmp_path):
    """The norms are those of the trainer's own loss, and of the group's loss by hand."""
    base, processor = recipes.policy()
    question = next(q for q in asked if "right" in q.meta)
    learn = [weight for weight in base.parameters() if weight.requires_grad]

    def norm(loss):
        gradients = torch.autograd.grad(loss, learn, allow_unused=True)
        return torch.cat([g.flatten() for g in gradients if g is not None]).norm().item()

    texts = [f"<answer>{question.meta['right']}</answer>"] * lab.GROUP  # all wrong by the label
    monkeypatch.setattr(rollout, "decode", lambda *_: [texts])
    (row,) = lab.pulls(base, processor, [question])
    trainer = sft.SFTTrainer(
        base,
        processor,
        sft.SFTConfig(
            str(tmp_path), prompt_style=2, report_to="none", eval_strategy="no", load_best_model_at_end=False
        ),
        [question],
    )
    assert row["wrong"] and row["sft"] > 0.1
    loss = trainer.compute_loss(base, trainer.train_dataset.collate([trainer.train_dataset[0]]))
    assert row["sft"] == pytest.approx(norm(loss), rel=1e-4)
    prompts = inputs.collate(processor, [inputs.prepare(processor, question, 2)])
    group = rollout.sample(base, processor, prompts, lab.GROUP, 32, seed=0)
    for right, silent in [(0, True), (3, False)]:
        texts[:right] = [f"<answer>{question.answer}</answer>"] * right
        (row,) = lab.pulls(base, processor, [question])
        logps, _ = completion_logps(base, group)
        paid = torch.tensor([[2.0] * right + [1.0] * (lab.GROUP - right)])
        by_hand = norm(grpo_loss(logps, logps.detach(), group_advantages(paid), group.mask, beta=0)[0])
        assert row["silent"] == silent and row["grpo"] == pytest.approx(by_hand, rel=1e-4)
        assert (row["grpo"] == 0) == silent


# -- all of it --------------------------------------------------------------------------------------------------------


def test_only_what_is_missing_is_run(tmp_path, capsys):
    file, run = tmp_path / "dose.jsonl", []
    lab.complete(TRIALS[:2], file, finished)
    lab.complete(TRIALS, file, lambda trial, folder: run.append(trial) or finished(trial))
    assert run == TRIALS[2:] and dose.read(file) == [finished(trial) for trial in TRIALS]


def test_a_line_that_a_kill_cut_short_is_run_again_and_spoils_no_other(tmp_path):
    file = tmp_path / "dose.jsonl"
    lab.complete(TRIALS[:2], file, finished)
    file.write_bytes(file.read_bytes()[:-10])
    lab.complete(TRIALS, file, finished)
    assert dose.read(file) == [finished(trial) for trial in TRIALS]


def test_a_trial_that_a_kill_interrupted_starts_anew(small, tmp_path, monkeypatch):
    trial, file = lab.Trial("sft", 0.5, 1e-4, 2, 0), tmp_path / "dose.jsonl"
    with monkeypatch.context() as kill, pytest.raises(KeyboardInterrupt):
        kill.setattr(lab, "verdicts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # when it is trained
        lab.complete([trial], file)
    assert (tmp_path / trial.name / "checkpoint-1").is_dir()
    lab.complete([trial], file)
    assert not lab.missing([trial], dose.read(file)) and not (tmp_path / trial.name).exists()


def test_the_report_is_of_the_trials_that_are_there(tmp_path, capsys):
    with pytest.raises(AqaError, match="holds no trial yet"):
        lab.report(tmp_path)
    lab.complete([replace(trial, steps=lab.STEPS) for trial in TRIALS], tmp_path / "dose.jsonl", finished)
    __main__.main(["study", "--dose", "--report", "--output", str(tmp_path)])
    assert "| 0.1 | 50.0 [" in (tmp_path / "dose.md").read_text() and (tmp_path / "dose.svg").is_file()


def test_a_finished_laboratory_trains_nothing_and_lets_no_second_process_in(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lab, "trials", lambda seeds: TRIALS)
    monkeypatch.setattr(lab, "mechanism", lambda: {"steps": 40})
    lab.complete(TRIALS, tmp_path / "dose.jsonl", finished)
    lab.run_all(tmp_path, [0])
    assert "3 of 3 trials are done" in capsys.readouterr().out
    assert json.loads((tmp_path / "mechanism.json").read_text()) == {"steps": 40}
    monkeypatch.setattr(lab, "mechanism", lambda: pytest.fail("it is there"))
    lab.run_all(tmp_path, [0])
    with locks.hold(tmp_path / ".lock", "the folder"), pytest.raises(locks.LockError, match="is in use"):
        lab.run_all(tmp_path, [0])


def test_it_says_what_it_cannot_do(tmp_path, monkeypatch):
    with pytest.raises(AqaError, match="processes 0: give 1 or more"):
        lab.run_all(tmp_path, [0], processes=0)
    monkeypatch.setenv(scale.VARIABLE, "full")
    with pytest.raises(AqaError, match="needs the tiny scale"):
        lab.run_all(tmp_path, [0])

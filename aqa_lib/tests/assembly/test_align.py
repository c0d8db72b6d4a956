import json

import numpy as np
import pytest
import soundfile
import torch
from torch.testing import assert_close

from aqa_lib import model as models
from aqa_lib.assembly import align, facts, probe
from aqa_lib.inputs import collate, prepare
from aqa_lib.runtime.errors import AqaError
from aqa_lib.tests.helpers import SHORT
from aqa_lib.training.data import AudioCache

OPTIONS = SHORT | {"max_completion_length": 4, "save_strategy": "steps", "save_steps": 1, "projector_steps": 2}
OPTIONS |= {"eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1, "save_total_limit": None}

BRIEF = {"max_steps": 2, "eval_strategy": "no"}


@pytest.fixture
def clips(tmp_path):
    """Eight clips, high or low, two of them held out."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(8):
        pitch = ("high", "low")[number % 2]
        time = np.arange(6_000 + 800 * number) / 16_000
        wave = np.sin(2 * np.pi * (3_000 if pitch == "high" else 300) * time) / 4 + rng.standard_normal(len(time)) / 50
        soundfile.write(tmp_path / f"{number}.wav", wave, 16_000)
        part = "held_out" if number > 5 else "align"
        rows.append({"id": str(number), "audio": f"{number}.wav", "facts": {"pitch": pitch}, "split": part})
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return facts.parts(facts.read(tmp_path / "facts.jsonl"), 0.5, 0)


@pytest.fixture
def base(model, processor, tmp_path):
    models.save(model, processor, tmp_path / "base", torch.float32)
    return str(tmp_path / "base")


@pytest.fixture
def config(tmp_path):
    return lambda folder="run", **options: align.AlignConfig(str(tmp_path / folder), **OPTIONS | options)


def weights(folder):
    policy, _ = models.load(folder, "float32", check=False)
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_each_stage_trains_its_parts_and_the_tower_never(base, clips, config, tmp_path):
    report = align.align(base, *clips, config(**BRIEF))
    start, first, last = (weights(folder) for folder in (base, tmp_path / "run" / "projector", tmp_path / "run"))
    assert changed(start, first) == {name for name in start if "projector" in name}
    assert changed(first, last) == {name for name in start if "audio_tower" not in name}
    assert report["model"] == "base"  # a folder's name, not where it lies on this machine
    assert report["facts"]["pitch"]["n"] == 2 and report["facts"]["pitch"]["most_common"] == 1
    assert json.loads((tmp_path / "run" / align.REPORT).read_text()) == report
    after = [json.loads(line) for line in (tmp_path / "run" / "after.jsonl").read_text().splitlines()]
    assert [row["question"] for row in after] == [facts.NAME] * 2


def test_the_learned_prompt_is_the_question_alone(base, clips, config):
    policy, processor = models.load(base, "float32", train=("projector",))
    trainer = align.AlignTrainer(policy, processor, config(), facts.lessons(clips[0]), clips[1], {})
    lesson, example = trainer.train_dataset[4]
    assert lesson.question == "What is the pitch?"
    text = processor.tokenizer.decode(example.ids)
    assert "What is the pitch?<|im_end|>" in text and "options" not in text
    batch = trainer.train_dataset.collate([trainer.train_dataset[4]])
    learned = batch["labels"][0][batch["labels"][0] != -100]
    assert processor.tokenizer.decode(learned) == "high<|im_end|>"


def test_cached_states_give_the_loss_and_the_gradients_of_the_whole_model(base, clips, config):
    policy, processor = models.load(base, "float32", train=("projector", "language_model"))
    trainer = align.AlignTrainer(policy, processor, config(), facts.lessons(clips[0]), clips[1], {})
    batch = trainer.train_dataset.collate([trainer.train_dataset[i] for i in (0, 4, 9, 14)])
    learn = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}

    def losses():
        loss = trainer.compute_loss(policy, batch)
        return loss, torch.autograd.grad(loss, list(learn.values()), allow_unused=True)

    cached = losses()
    assert len(trainer.audio_cache.kept) == 3  # lessons 0 and 4 are on one clip
    trainer.audio_cache = lambda questions, prompts: prompts
    whole = losses()
    assert_close(cached[0], whole[0], atol=1e-6, rtol=1e-5)
    for name, ours, theirs in zip(learn, cached[1], whole[1], strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert_close(ours, theirs, atol=2e-5, rtol=1e-2)


def test_each_clip_is_encoded_once_in_both_stages(base, clips, config, monkeypatch):
    encoded = []
    encode = probe.StatesCache.encode
    monkeypatch.setattr(probe.StatesCache, "encode", lambda self, alone: encoded.append(1) or encode(self, alone))
    align.align(base, *clips, config(**BRIEF | {"max_steps": 6}))
    assert len(encoded) == len(clips[0]) + len(clips[1])


@pytest.mark.parametrize("stage", ["projector", "run"])
def test_a_run_that_was_stopped_in_either_stage_is_resumed_to_the_same_weights(
    base, clips, config, tmp_path, monkeypatch, stage
):
    align.align(base, *clips, config("whole", **BRIEF))
    step = align.AlignTrainer.training_step

    def stopped(self, *args, **kwargs):
        if self.args.output_dir.endswith(stage) and self.state.global_step == 1:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(align.AlignTrainer, "training_step", stopped)
        align.align(base, *clips, config("run", **BRIEF))
    with pytest.raises(AqaError, match="resume"):
        align.align(base, *clips, config("run", **BRIEF))
    report = align.align(base, *clips, config("run", **BRIEF), resume=True)
    assert not changed(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert report["facts"] == json.loads((tmp_path / "whole" / align.REPORT).read_text())["facts"]


def test_held_out_clips_choose_the_checkpoint(base, clips, config, tmp_path, monkeypatch):
    replies = iter(["high high"] * 10)

    def answer(model, processor, asked, args, path=None, engine=None):
        right = trainer.state.global_step == 1
        return [{"model_output": clip.answer if right else next(replies, "?")} for clip in asked]

    monkeypatch.setattr(align, "ask", answer)
    policy, processor = models.load(base, "float32", train=("projector",))
    options = config(max_steps=3, load_best_model_at_end=True)
    trainer = align.AlignTrainer(policy, processor, options, facts.lessons(clips[0]), clips[1], facts.values(clips[1]))
    trainer.train()
    named = [row["eval_accuracy"] for row in trainer.state.log_history if "eval_accuracy" in row]
    assert named[0] == 1.0 and max(named[1:]) < 1  # "high high" is right of one clip of two
    assert trainer.state.best_global_step == 1
    kept = weights(tmp_path / "run" / "checkpoint-1")
    assert not changed(kept, dict(trainer.model.named_parameters()))


def test_without_a_first_stage_everything_is_in_one_folder(base, clips, config, tmp_path):
    align.align(base, *clips, config(**BRIEF | {"projector_steps": 0, "max_steps": 1}))
    assert not (tmp_path / "run" / "projector").exists() and (tmp_path / "run" / align.REPORT).is_file()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"projector_steps": -1}, "projector_steps must be 0 or more"),
        ({"audio_tower_learning_rate": 1e-4}, "the audio tower does not learn"),
    ],
)
def test_options_that_cannot_be_are_refused(config, options, fault):
    with pytest.raises(AqaError, match=fault):
        config(**options)


def test_the_probe_is_scikit_learns_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    names = [f"class {number % 4}" for number in range(120)]
    features = (
        rng.standard_normal((120, 12)) * np.arange(1, 13) + np.array([number % 4 for number in range(120)])[:, None]
    )
    given = torch.tensor(features, dtype=torch.float32)
    ours = probe.LinearProbe(given[:80], names[:80])
    standard = (given - given[:80].mean(0)) / given[:80].std(0)
    theirs = linear_model.LogisticRegression(C=1.0, max_iter=5000, tol=1e-8).fit(standard[:80], names[:80])
    assert ours(given[80:]) == theirs.predict(standard[80:]).tolist()
    weight = torch.tensor(theirs.coef_, dtype=torch.float32)
    assert_close(ours.weight - ours.weight.mean(0), weight - weight.mean(0), atol=1e-3, rtol=1e-2)


def test_the_probe_hears_what_differs_and_guesses_where_nothing_does(base, clips):
    policy, processor = models.load(base, "float32", train=())
    cache = probe.StatesCache(policy, 1.0)
    assert all(align.probed(cache, processor, *clips, "pitch").values())
    assert align.probed(cache, processor, clips[0][:1], clips[1], "pitch") == {}  # one value cannot be told apart


def test_a_full_cache_still_gives_every_state(base, clips):
    policy, processor = models.load(base, "float32", train=())
    kept, none = probe.StatesCache(policy, 1.0), probe.StatesCache(policy, 0.0)
    assert_close(*(align.pooled(cache, processor, clips[0]) for cache in (kept, none)))
    assert len(kept.kept) == len(clips[0]) and not none.kept


def test_states_are_what_the_projector_is_given(base, clips):
    policy, processor = models.load(base, "float32", train=())
    prompts = collate(processor, [prepare(processor, clip, 0) for clip in clips[0]])
    heard = probe.states(policy, prompts.input_features, prompts.feature_lengths)
    tokens = models.encode_audio(policy, prompts.input_features, prompts.feature_lengths)
    assert_close(models.parts(policy).projector(heard), tokens)
    cached = probe.StatesCache(policy, 1.0)(clips[0], prompts)
    assert_close(cached.audio_embeds, AudioCache(policy, 1.0)(clips[0], prompts).audio_embeds, atol=1e-6, rtol=1e-5)

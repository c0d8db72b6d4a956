"""Questions on several clips: prompts, logits and answers as transformers' own; refused where a model takes one."""

import json
from io import BytesIO

import numpy as np
import pytest
import soundfile
import torch

from aqa_lib import inputs, predictions, prepare
from aqa_lib import model as models
from aqa_lib.architectures import families
from aqa_lib.course import browser, inspection
from aqa_lib.dataset import Question, read
from aqa_lib.evaluation import predict
from aqa_lib.inputs import PromptError
from aqa_lib.reading import recordings
from aqa_lib.rollout import sample
from aqa_lib.tests import zoo
from aqa_lib.training.data import AudioCache
from aqa_lib.training.dynamic import join


@pytest.fixture(scope="module")
def two(clips):
    """Two questions: one on two clips of different lengths, one on one."""
    waves = [clips[0].wave, clips[2].wave, clips[1].wave]
    files = []
    for wave in waves:
        file = BytesIO()
        soundfile.write(file, wave, 16_000, format="WAV", subtype="FLOAT")
        files.append(file.getvalue())
    both = Question("both", files[0], "Which is louder?", ("the first", "the second"), "the first", more=(files[1],))
    return [both, Question("one", files[2], "What is heard?", ("rain", "wind"), "rain")], waves


def ours_and_theirs(name, tiny, model, two):
    """Return (model, processor, our prompts, transformers' own inputs) for a family."""
    questions, waves = two
    if name == "qwen2_audio":
        processor = tiny
        texts = [zoo.render(processor, q) for q in questions]
        theirs = processor(text=texts, audio=waves, sampling_rate=16_000, padding=True, return_tensors="pt")
    else:
        model, processor, processed = zoo.build(name, tiny)
        texts = [zoo.render(processor, q) for q in questions]
        theirs = processed(texts, waves) if name != "voxtral" else voxtral(processor, questions, waves)
    prompts = inputs.collate(processor, [inputs.prepare(processor, q) for q in questions])
    return model.eval(), processor, prompts, dict(theirs)


def voxtral(processor, questions, waves):
    """Put two clips into one prompt, as VoxtralProcessor's template of ids has them: each with its own beginning."""
    texts = []
    for question, own in zip(questions, (waves[:2], waves[2:]), strict=True):
        places = "".join(f"[BEGIN_AUDIO]{25 * -(-len(wave) // 32_000) * '[AUDIO]'}" for wave in own)
        texts.append(f"<s>[INST]{places}{zoo.prompt.text(question, 2)}[/INST]")
    ids = processor.tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    options = type(processor).audio_kwargs | {"pad_to_multiple_of": 32_000, "max_source_positions": 200}
    features = processor._retrieve_input_features(waves, **options)
    return {"input_ids": ids.input_ids, "attention_mask": ids.attention_mask, "input_features": features}


SEVERAL = [family.model_type for family in families.FAMILIES if family.several]


@pytest.mark.parametrize("name", SEVERAL)
def test_two_clips_in_a_prompt_equal_transformers_own(name, processor, model, two):
    model, processor, prompts, theirs = ours_and_theirs(name, processor, model, two)
    assert torch.equal(prompts.input_ids, theirs["input_ids"]) and prompts.clips.tolist() == [2, 1]
    with torch.no_grad():
        mask, places = prompts.attention_mask, inputs.positions(prompts.attention_mask)
        mine = models.parts(model).head(models.backbone(model, models.embed(model, prompts), mask, places))
        real = mask.bool()
        whole = model(**theirs).logits
    assert (mine[real] - whole[real]).norm() / whole[real].norm() < 1e-5
    free = model.generate(**theirs, max_new_tokens=8, do_sample=False)[:, prompts.input_ids.shape[1] :]
    answers = sample(model, processor, prompts, 1, 8, temperature=0)
    for row, ids, kept in zip(free.tolist(), answers.completion_ids[:, 0], answers.mask[:, 0], strict=True):
        assert ids[kept].tolist() == row[: int(kept.sum())]


def test_rows_of_a_batch_keep_their_clips(processor, model, two):
    questions, _ = two
    prompts = inputs.collate(processor, [inputs.prepare(processor, q) for q in questions])
    for row in (0, 1):
        alone = inputs.collate(processor, [inputs.prepare(processor, questions[row])])
        some = prompts.select([row])
        assert torch.equal(some.input_ids, alone.input_ids) and str(some.clips) == str(alone.clips)
        assert torch.equal(some.feature_lengths, alone.feature_lengths)
        assert torch.equal(some.input_features, alone.input_features)
    models.choose_trainable(model, [])
    kept = AudioCache(model, 1.0)(questions, prompts)
    with torch.no_grad():
        assert torch.allclose(models.embed(model, kept), models.embed(model, prompts), atol=1e-5)
    swapped = prompts.select([1, 0])
    assert swapped.clips.tolist() == [1, 2] and torch.equal(
        swapped.select([1]).input_ids, prompts.select([0]).input_ids
    )


def test_a_model_that_takes_one_clip_refuses_two_in_a_sentence(processor, two):
    _, flamingo, _ = zoo.build("audioflamingo3", processor)
    with pytest.raises(PromptError, match="both: it is about 2 clips, and this model takes one in a prompt; leave it"):
        inputs.prepare(flamingo, two[0][0])
    assert inputs.prepare(flamingo, two[0][0], heard="none").mel is None  # text alone needs no ears


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        soundfile.write(tmp_path / f"{name}.wav", rng.uniform(-0.5, 0.5, 8_000), 16_000)
    rows = [
        {"id": "2", "audio": ["a.wav", "b.wav"], "question": "Which?", "choices": ["x", "y"], "answer": "x"},
        {"id": "1", "audio": ["c.wav"], "question": "Which?", "choices": ["x", "y"], "answer": "y"},
        {"id": "b", "audio": "b.wav", "question": "Which?", "choices": ["x", "y"], "answer": "y"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_they_are_read_split_and_prepared(folder):
    both, _, other = questions = read(folder / "q.jsonl")
    assert [clip.name for clip in both.clips] == ["a.wav", "b.wav"] and other.more == ()
    assert recordings.groups(questions) == [0, 1, 0]  # b.wav is one recording
    for flac in (False, True):
        report = prepare.prepare(folder / "q.jsonl", folder / f"{flac}.jsonl", folder, flac=flac, progress=False)
        assert (report.kept, report.clips) == (3, 3)
        again = read(folder / f"{flac}.jsonl")
        assert [len(question.clips) for question in again] == [2, 1, 1]
    (folder / "b.wav").write_bytes(b"RIFF")
    report = prepare.prepare(folder / "q.jsonl", folder / "less.jsonl", folder, progress=False)
    assert (report.kept, [row["id"] for row in report.dropped]) == (1, ["2", "b"])


def test_they_are_answered_and_shown(folder, processor, model, capsys):
    questions = read(folder / "q.jsonl")
    rows = predict(model, processor, questions, folder / "p.jsonl", max_completion_length=3, progress=False)
    silent = predict(model, processor, questions, max_completion_length=3, progress=False, audio="silent")
    assert len(rows) == len(silent) == 3 and predictions.read(folder / "p.jsonl").rows[0]["id"] == "2"
    assert inspection.sound(questions[0]).count("<audio") == 2 and "b.wav" in inspection.sound(questions[0])
    view = browser.browse({"base": folder / "p.jsonl"}, questions, {"base": (model, processor)})
    view.kind.value = "all"
    assert view.card.count("<audio") == 2 and "<meter" in view.card  # and the choices' probabilities


def test_answers_of_batches_with_and_without_several_clips_are_joined(processor, two):
    prompts = inputs.collate(processor, [inputs.prepare(processor, q) for q in two[0]])
    ids = torch.randint(10, 200, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    made = inputs.Rollouts(prompts, ids, torch.ones_like(ids).bool(), torch.ones(2, 3).bool())
    joined = join(made.select([1]), made.select([0]))
    assert joined.prompts.clips.tolist() == [1, 2] and len(joined.prompts.input_features) == 3
    assert torch.equal(joined.select([1]).prompts.input_ids, made.select([0]).prompts.input_ids)

"""Prediction: order, record, resuming after a kill at any byte, controls, and clips that cannot be used."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aqa_lib import evaluation, predictions
from aqa_lib.audio import AudioError
from aqa_lib.dataset import Question
from aqa_lib.inputs import Example
from aqa_lib.runtime import files

N = 11
QUESTIONS = [
    Question(
        f"q{i}", None, f"What is sound {i}" + "?" * (i * 7 % 5), ("a dog", "a cat", "a cow"), "a dog",
        task=("sound", "music")[i % 2], meta={"difficulty": "easy", "category": ["Reasoning"], "other": 1},
    )
    for i in range(N)
]  # fmt: skip


class Model(torch.nn.Linear):
    """Answers "a dog" to even questions and "a cat" to odd ones; what it is asked is kept."""

    device, dtype, name_or_path = torch.device("cpu"), torch.float32, "some/where/run/checkpoint-5"

    def __init__(self):
        super().__init__(2, 2)
        torch.nn.init.ones_(self.weight)
        torch.nn.init.zeros_(self.bias)
        self.generation_config = SimpleNamespace(
            do_sample=True, temperature=0.7, top_k=20, top_p=0.5, repetition_penalty=1.1
        )
        self.batches, self.calls = [], []


@pytest.fixture
def model(monkeypatch):
    model = Model()

    def prepare(processor, question, style, heard, wording):
        if question.question.startswith("broken"):
            raise AudioError(f"{question.id}: silent; leave it out.")
        return Example([int(question.id[1:]), len(question.question)], None)

    class Batch(list):
        def to(self, device):
            return self

    def sample(model, processor, prompts, num_generations, max_completion_length, seed=0, **options):
        model.batches.append([example.ids[0] for example in prompts])
        model.calls.append({"seed": seed, "length": max_completion_length} | options)
        B = len(prompts)
        return SimpleNamespace(
            numbers=model.batches[-1], mask=torch.ones(B, 1, 4, dtype=torch.bool), ended=torch.ones(B, 1) > 0
        )

    def decode(processor, answers):
        return [[f"<answer>{'a cat' if i % 2 else 'a dog'}</answer>"] for i in answers.numbers]

    monkeypatch.setattr(evaluation.inputs, "prepare", prepare)
    monkeypatch.setattr(evaluation.inputs, "collate", lambda processor, examples: Batch(examples))
    monkeypatch.setattr(evaluation.rollout, "sample", sample)
    monkeypatch.setattr(evaluation.rollout, "decode", decode)
    return model


def answer(model, path=None, **options):
    options = {"batch_size": 4, "progress": False} | options
    return evaluation.predict(model, None, options.pop("questions", QUESTIONS), path, **options)


def test_rows_come_back_in_order_with_all_that_scoring_needs(model, tmp_path):
    path = tmp_path / "new" / "p.jsonl"
    rows = answer(model, path)
    assert [row["id"] for row in rows] == [q.id for q in QUESTIONS]
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    assert rows[0] == {
        "index": 0, "id": "q0", "task": "sound", "question": "What is sound 0",
        "choices": ["a dog", "a cat", "a cow"], "answer": "a dog", "difficulty": "easy",
        "category": ["Reasoning"], "model_output": "<answer>a dog</answer>",
        "prediction": "a dog", "correct": True, "tokens": 4, "ended": True,
    }  # fmt: skip
    assert evaluation.accuracy(rows) == {"sound": 1.0, "music": 0.0, "average": 6 / 11}
    lengths = [len(QUESTIONS[i].question) for batch in model.batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)  # longest first


def test_the_record_says_how_the_file_was_made(model, tmp_path):
    data = tmp_path / "questions.json"
    data.write_text("[]")
    answer(model, tmp_path / "p.jsonl", data=data, labels={"method": "grpo", "train_seed": 3})
    meta = json.loads((tmp_path / "p.jsonl.meta.json").read_text())
    assert meta["settings"]["data_sha256"] == files.sha256(data)
    assert meta["settings"]["style"] == 2 and meta["settings"]["decoding"] == "greedy"
    assert meta["labels"] == {
        "model": "run/checkpoint-5", "data": "questions.json", "batch_size": 4,
        "method": "grpo", "train_seed": 3,
    }  # fmt: skip
    assert meta["counts"]["task"] == {"sound": 6, "music": 5}
    assert meta["counts"]["category"] == {"Reasoning": 11}
    assert {"torch", "transformers", "commit", "dirty", "python", "device"} <= set(meta["environment"])
    assert meta["finished"] >= meta["started"] and meta["seconds"] >= 0 and "resumed" not in meta


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_run_killed_at_any_byte_resumes_without_losing_or_repeating_a_row(model, tmp_path, data):
    path = tmp_path / "p.jsonl"
    for file in tmp_path.iterdir():
        file.unlink()
    whole = answer(model, path)
    lines = path.read_bytes().splitlines(keepends=True)
    order = [i for batch in evaluation.sorted_batches(QUESTIONS, 4) for i in batch]
    written = b"".join(lines[i] for i in order)  # as it stood before the end
    kill = data.draw(st.integers(0, len(written)))
    path.write_bytes(written[:kill])
    meta = json.loads((tmp_path / "p.jsonl.meta.json").read_text())
    del meta["finished"], meta["seconds"]
    (tmp_path / "p.jsonl.meta.json").write_text(json.dumps(meta | {"opened": 1}))
    done, model.batches = written[:kill].count(b"\n"), []
    assert answer(model, path) == whole
    assert path.read_bytes() == b"".join(lines)
    assert len(model.batches) == (3 - done // 4 if done < N else 0)  # whole batches are not answered again
    after = json.loads((tmp_path / "p.jsonl.meta.json").read_text())
    assert after.get("resumed", False) == (done > 0) and "finished" in after


def test_a_finished_file_is_not_answered_again(model, tmp_path):
    rows = answer(model, tmp_path / "p.jsonl")
    before = (tmp_path / "p.jsonl.meta.json").read_text()
    model.batches = []
    assert answer(model, tmp_path / "p.jsonl") == rows
    assert model.batches == [] and (tmp_path / "p.jsonl.meta.json").read_text() == before


@pytest.mark.parametrize(
    "other",
    [
        {"style": 3}, {"audio": "silent"}, {"shuffle_choices": 1}, {"max_completion_length": 9},
        {"decoding": "generation_config"}, {"questions": QUESTIONS[:-1]},
    ],
)  # fmt: skip
def test_resuming_with_other_settings_is_refused(model, tmp_path, other):
    answer(model, tmp_path / "p.jsonl")
    before = (tmp_path / "p.jsonl").read_bytes()
    with pytest.raises(predictions.PredictionsError, match=r"p.jsonl: was made with other settings \("):
        answer(model, tmp_path / "p.jsonl", **other)
    assert (tmp_path / "p.jsonl").read_bytes() == before


def test_resuming_with_other_weights_or_another_order_is_refused(model, tmp_path):
    answer(model, tmp_path / "p.jsonl")
    with pytest.raises(predictions.PredictionsError, match="line 1: not a row of this run"):
        answer(model, tmp_path / "p.jsonl", questions=QUESTIONS[::-1])
    with torch.no_grad():
        model.weight[0, 0] += 1e-6
    with pytest.raises(predictions.PredictionsError, match="other settings .weights"):
        answer(model, tmp_path / "p.jsonl")


def test_somebody_elses_file_is_not_touched(model, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(predictions.PredictionsError, match="has no p.jsonl.meta.json"):
        answer(model, tmp_path / "p.jsonl")
    assert (tmp_path / "p.jsonl").read_text() == '{"id": 1}\n'


def test_decoding(model):
    answer(model)
    assert model.calls[0] == {"seed": 0, "length": 256, "temperature": 0}
    model.calls.clear()
    answer(model, decoding="generation_config", seed=2)
    sampled = {"temperature": 0.7, "top_k": 20, "top_p": 0.5, "repetition_penalty": 1.1}
    assert model.calls[1] == {"seed": 2_000_007, "length": 256} | sampled
    model.generation_config = SimpleNamespace(do_sample=False, temperature=None)
    assert evaluation.sampling_of(model, "generation_config")["temperature"] == 0
    with pytest.raises(ValueError, match="decoding 'beam' is unknown; choose greedy, sample, generation_config"):
        answer(model, decoding="beam")


def test_bad_arguments_are_refused_before_anything_is_written(model, tmp_path):
    for bad in (
        {"style": 4},
        {"audio": "loud"},
        {"batch_size": 0},
        {"questions": []},
        {"max_completion_length": 0},
    ):
        with pytest.raises(ValueError):
            answer(model, tmp_path / "p.jsonl", **bad)
    assert list(tmp_path.iterdir()) == []


def test_shuffled_choices_are_the_same_choices_in_another_order(model, tmp_path):
    plain, shuffled = answer(model), answer(model, shuffle_choices=1)
    again, other = answer(model, shuffle_choices=1), answer(model, shuffle_choices=2)
    assert shuffled == again != other
    assert any(a["choices"] != b["choices"] for a, b in zip(plain, shuffled, strict=True))
    assert [sorted(row["choices"]) for row in shuffled] == [sorted(row["choices"]) for row in plain]
    assert files.fingerprint(shuffled) == files.fingerprint(plain)


def test_a_bad_clip_stops_or_is_left_without_a_prediction(model, tmp_path):
    questions = [*QUESTIONS[:2], Question("q9", None, "broken?", ("a", "b"), "a", "sound")]
    with pytest.raises(AudioError, match="q9: silent"):
        answer(model, questions=questions)
    rows = answer(model, tmp_path / "p.jsonl", questions=questions, on_error="skip")
    assert rows[2]["model_output"] is None and rows[2]["prediction"] == "" and rows[2]["correct"] is False
    assert rows[2]["error"] == "q9: silent; leave it out."
    assert [row["correct"] for row in rows[:2]] == [True, False]
    assert answer(model, questions=questions[2:], on_error="skip")[0]["model_output"] is None


def test_a_withheld_answer_is_neither_right_nor_wrong(model):
    (row,) = answer(model, questions=[Question("q1", None, "What?", ("a", "b"), "")])
    assert row["correct"] is None and row["prediction"] == "a cat"


def test_clips_are_made_ready_in_the_background_in_order():
    here, makers = threading.current_thread(), []

    def work(i):
        makers.append((i, threading.current_thread() is here))
        return i * i

    batches = [[1, 2], [3], [4, 5, 6], [7], [8]]
    ready = evaluation.prefetch(batches, work, ahead=2)
    assert next(ready) == [1, 4]
    assert {i for i, _ in makers} <= {1, 2, 3, 4, 5, 6}  # two batches ahead, no more: memory is bounded
    assert list(ready) == [[9], [16, 25, 36], [49], [64]]
    assert not any(at_home for _, at_home in makers)


def test_clip_lengths_are_read_from_headers(tmp_path):
    import io

    import soundfile

    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 16_000)
    held = io.BytesIO()
    soundfile.write(held, np.zeros(4000), 16_000, format="WAV")
    sources = [tmp_path / "a.wav", held.getvalue(), None, tmp_path / "none.wav", b"no sound"]
    lengths = [evaluation.seconds(Question("1", source, "?", ("a", "b"), "a")) for source in sources]
    assert lengths == [0.5, 0.25, 0.0, 0.0, 0.0]

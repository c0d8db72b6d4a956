import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import soundfile

from aqa_lib import dataset
from aqa_lib.tiny import sounds, synth


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synth.write(tmp_path_factory.mktemp("synth") / "data", train=24, validation=6, test=12)


def test_clip_is_deterministic_and_fits_the_model():
    for task in synth.TASKS:
        wave, facts = sounds.clip(task, np.random.default_rng(7))
        again, same = sounds.clip(task, np.random.default_rng(7))
        assert wave.dtype == np.float32 and wave.ndim == 1 and 2.0 <= len(wave) / 16_000 <= 2.5
        assert np.array_equal(wave, again) and facts == same
        assert not np.array_equal(wave[:1000], sounds.clip(task, np.random.default_rng(8))[0][:1000])


def test_many_clips_are_finite_audible_and_unclipped():
    for index in range(300):
        wave, question = synth.example("train", index)
        peak = np.abs(wave).max()
        assert np.isfinite(wave).all() and 0.01 < peak <= 1.0, question
        assert question.answer in question.choices and len(set(question.choices)) == len(question.choices) in (2, 4)


def test_no_clip_or_id_stands_in_two_splits():
    seen = {}
    for split in synth.SPLITS:
        for index in range(40):
            wave, question = synth.example(split, index)
            for key in (hashlib.sha256(wave.tobytes()).hexdigest(), question.id):
                assert key not in seen, (split, index, seen[key])
                seen[key] = (split, index)


def test_questions_are_balanced():
    rng = np.random.default_rng(0)
    questions, facts_of = [], []
    for index in range(900):
        facts = sounds.clip(synth.TASKS[index % 3], rng)[1] if index < 300 else facts_of[index % 300]
        facts_of.append(facts)
        questions.append(synth.ask(facts, rng))
    places = Counter(q.choices.index(q.answer) for q in questions if len(q.choices) == 4)
    for place in range(4):  # no place in the list is the better guess
        assert 0.2 < places[place] / sum(places.values()) < 0.3
    guess = np.mean([1 / len(q.choices) for q in questions])
    assert 0.25 <= guess <= 0.32
    assert {q.meta["difficulty"] for q in questions} == {"easy", "medium", "hard"}
    for fact, about in synth.FACTS.items():
        answers = Counter(q.answer for q in questions if q.meta["fact"] == fact)
        assert answers, f"{fact} is never asked"
        assert max(answers.values()) <= 3 * sum(answers.values()) / len(about.values) + 3, (fact, answers)


def test_a_watcher_labels_what_was_seen():
    """Sound: what is heard. View: nothing is. Both: the thing in the picture, which is another one in four."""
    rng = np.random.default_rng(0)
    asked = {relation: [] for relation in synth.RELATIONS}
    for number in range(1200):
        facts, relation = sounds.clip("sound", rng)[1], list(asked)[number % 3]
        asked[relation].append((facts, synth.watch(facts, rng, relation)))
    for relation, rows in asked.items():
        for facts, question in rows:
            heard = question.meta["heard"]
            assert question.meta["relation"] == relation and question.answer in question.choices
            if relation == "View":
                assert heard is None and question.meta["fact"] in synth.VIEWS
            else:
                assert heard == facts[question.meta["fact"]] and heard in question.choices
            if relation == "Sound":
                assert question.answer == heard
            if relation == "Both":
                assert question.meta["fact"] in ("source", "first", "last")
    seen = np.mean([question.answer == question.meta["heard"] for _, question in asked["Both"]])
    assert abs(seen - synth.ON_SCREEN) < 0.07
    guesses = Counter(question.choices.index(question.answer) for _, question in asked["View"])
    assert max(guesses.values()) < 0.36 * sum(guesses.values())  # no place in the list is the better guess


def test_training_questions_come_in_the_shares_asked_for(folder):
    asked = [synth.example("train", index)[1].meta["relation"] for index in range(400)]
    for relation, share in synth.RELATIONS.items():
        assert abs(asked.count(relation) / 400 - share) < 0.07, relation
    only = [synth.example("train", index, relations={"Sound": 1.0})[1] for index in range(60)]
    assert all(question.answer == question.meta["heard"] for question in only)
    for line in (folder / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["question_relation"] in synth.RELATIONS
        assert row["heard"] is None if row["question_relation"] == "View" else row["heard"] in row["multi_choice"]


@pytest.mark.parametrize("fact", [*synth.FACTS, *synth.VIEWS])
def test_every_fact_can_be_asked(fact):
    facts = {name: row.values[0] for name, row in (synth.FACTS | synth.VIEWS).items()}
    facts |= {"noise": "20 dB", "last": "rain"}
    for seed in range(20):
        question = synth.ask(facts, np.random.default_rng(seed), fact, it="video")
        assert question.answer == facts[fact] and question.task == (synth.FACTS | synth.VIEWS)[fact].task
        assert "video" in question.question and "{" not in question.question


def test_what_is_also_heard_is_among_the_choices():
    facts = {"first": "rain", "last": "a dog", "noise": "20 dB"}
    for seed in range(50):
        assert {"rain", "a dog"} <= set(synth.ask(facts, np.random.default_rng(seed)).choices)


def test_loudness_follows_its_fact():
    rng = np.random.default_rng(0)
    for _ in range(200):
        wave, facts = sounds.clip("sound", rng)
        if facts.get("loudness") in ("getting louder", "getting quieter") and float(facts["noise"][:-3]) > 15:
            half = len(wave) // 2
            louder = np.square(wave[half:]).mean() > np.square(wave[:half]).mean()
            assert louder == (facts["loudness"] == "getting louder"), facts


def test_readers_accept_what_is_written(folder):
    train, test = dataset.read_avqa(folder / "train.jsonl"), dataset.read_mmau(folder / "test.json")
    assert len(train) == 24 and len(test) == 12
    assert Counter(q.task for q in test) == {"sound": 4, "music": 4, "speech": 4}
    for question in train + test:
        assert question.answer in question.choices and question.audio.is_file()
        assert "video" not in question.question
    row = json.loads((folder / "train.jsonl").read_text().splitlines()[5])
    assert "video" in row["question_text"] and row["task"] == "sound"
    wave, question = synth.example("train", 5, it="video")
    stored, rate = soundfile.read(folder / row["audio_path"], dtype="float32")
    assert rate == 16_000 and np.abs(stored - wave).max() < 1e-4
    assert row["multi_choice"][row["answer"]] == question.answer


def test_test_set_has_mmau_keys(folder):
    keys = "id audio_id question choices answer dataset task split category sub-category difficulty".split()
    for row in json.loads((folder / "test.json").read_text()):
        assert list(row) == keys
        assert row["audio_id"] == f"./test-mini-audios/{row['id']}.wav"


def test_writing_twice_does_nothing_and_other_arguments_do(folder):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    synth.write(folder, train=24, validation=6, test=12)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    other = synth.write(folder.parent / "other", train=24, validation=6, test=12)
    assert (other / "train.jsonl").read_bytes() == (folder / "train.jsonl").read_bytes()
    synth.write(other, train=3, validation=3, test=3, seed=1)
    assert len((other / "train.jsonl").read_text().splitlines()) == 3
    synth.write(other, train=9, validation=3, test=3, seed=1, relations={"View": 1.0})
    rows = [json.loads(line) for line in (other / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 9 and {row["question_relation"] for row in rows} == {"View"}
    names = sorted(p.name for p in folder.parent.iterdir())
    assert names == [".data.lock", ".other.lock", "data", "other"]  # no draft is left behind


def test_a_folder_of_others_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="another folder"):
        synth.write(tmp_path, train=3, validation=3, test=3)
    assert (tmp_path / "thesis.txt").read_text() == "mine"

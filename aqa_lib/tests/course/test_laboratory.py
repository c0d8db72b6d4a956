"""The sound laboratory: what noise and speed do to a clip, what the models make of it, and what is said about it."""

import base64
import io
import re
from datetime import datetime

import numpy as np
import pytest
import soundfile

from aqa_lib.audio import Clip
from aqa_lib.course import laboratory, microphone
from aqa_lib.course.laboratory import Laboratory, change, made, remarks
from aqa_lib.evaluation import choice_probabilities

TONE = Clip(np.sin(np.arange(16_000) / 5).astype(np.float32), "tone")


@pytest.fixture
def lab(model, processor, questions):
    return Laboratory({"base": (model, processor), "grpo": (model, processor)}, questions[:2])


def shown(lab):
    return re.findall(r"(\d+) %", lab.page.value)


def test_noise_has_the_loudness_that_is_asked_for():
    for decibels in (-20, 0, 10):
        added = change(TONE, decibels).wave - TONE.wave
        ratio = 20 * np.log10(np.sqrt(np.mean(added**2) / np.mean(TONE.wave**2)))
        assert ratio == pytest.approx(decibels, abs=0.2)
    assert np.array_equal(change(TONE).wave, TONE.wave)


def test_speed_is_a_tape_s():
    fast = change(TONE, speed=2.0)
    assert len(fast.wave) == pytest.approx(8_000, abs=2)
    spectrum = np.abs(np.fft.rfft(fast.wave))
    assert spectrum.argmax() / fast.seconds == pytest.approx(2 * 16_000 / (2 * np.pi * 5), rel=0.02)
    slow = change(TONE, speed=0.5, max_seconds=1.5)
    assert slow.seconds == 1.5 and "cut from 2.00 s to 1.5 s" in slow.notes


@pytest.mark.parametrize(("fact", "values"), laboratory.TINY_WORLD.items())
def test_every_sound_on_offer_can_be_made(fact, values):
    for value in values:
        source = made(fact, value)
        assert source.question.answer == value and value in source.question.choices and source.kind == "made"


def test_the_bars_are_the_model_s_probabilities(lab, model, processor, questions):
    known = choice_probabilities(model, processor, questions[0])
    assert lab.shares["base"] == pytest.approx(known, abs=1e-4)
    assert set(shown(lab)) >= {f"{100 * share:.0f}" for share in known.values()}
    before, page = lab.shares["base"], lab.page.value
    lab.noise.value = 20.0
    assert lab.shares["base"] != before and lab.page.value != page
    lab.speed.value = 0.5
    assert "change with the speed" in lab.page.value
    assert lab.clip.seconds == pytest.approx(2 * lab.source.clip.seconds, abs=0.01)


def test_question_and_choices_can_be_changed(lab):
    assert "&#10004;" in lab.page.value
    lab.choices.value = "rain, or so | a <b>unicorn</b>"
    assert set(lab.shares["base"]) == {"rain, or so", "a <b>unicorn</b>"}
    assert "a &lt;b&gt;unicorn" in lab.page.value and "<b>" not in lab.page.value and "never met" in lab.page.value
    lab.choices.value = "rain"
    assert 'role="alert"' in lab.page.value and "two choices or more" in lab.page.value
    lab.sound.value = "made here: a bell"
    assert lab.source.question.answer == "a bell" and "a bell" in lab.choices.value


def upload(lab, content, name="mine.wav"):
    lab.upload.value = (
        {"name": name, "content": memoryview(content), "size": 0, "type": "", "last_modified": datetime.now()},
    )


def test_an_uploaded_file_is_asked_about_and_called_foreign(lab):
    file = io.BytesIO()
    soundfile.write(file, np.stack([TONE.wave] * 2, 1), 44_100, format="WAV")
    before, lab.noise.value = lab.choices.value, 20.0  # what was asked last is asked again, without the noise
    upload(lab, file.getvalue())
    assert lab.sound.value == "yours: mine.wav" and lab.choices.value == before
    assert np.array_equal(lab.clip.wave, lab.source.clip.wave)
    assert "Outside its world" in lab.page.value and "&#10004;" not in lab.page.value
    assert "2 channels mixed down" in lab.page.value
    upload(lab, b"no sound", "text.wav")
    assert "text.wav: not readable as audio" in lab.page.value


def test_a_recording_reaches_the_models(lab):
    samples = (32767 * TONE.wave).astype("<i2").tobytes()
    lab.recorded.value = base64.b64encode(samples).decode()
    assert lab.recorded.value == "" and lab.sound.value == "yours: your recording"
    assert np.allclose(lab.source.clip.wave, TONE.wave, atol=1e-3) and "Outside its world" in lab.page.value
    lab.recorded.value = base64.b64encode(bytes(32_000)).decode()
    assert "your recording: silent" in lab.page.value


def test_what_fails_behind_a_control_is_told_on_the_page(lab, monkeypatch):
    monkeypatch.setattr(laboratory, "likelihoods", lambda *_: open("/no/such/<clip>"))
    lab.noise.value = 0.0
    assert "No such file" in lab.page.value and "&lt;clip&gt;" in lab.page.value


def test_the_recorder_says_what_it_cannot_do():
    button = microphone.button()
    assert button.count("upload a file") == 3 and "getUserMedia" in button and "SECONDS" not in button


def test_remarks_are_made_only_where_they_hold():
    bell = made("source", "a bell")
    assert remarks(bell, bell.question, 1.0, tiny=True) == []
    assert "computed" in remarks(bell, bell.question, 1.0, tiny=False)[0]


def test_it_is_there_for_readers_without_a_kernel(lab):
    data = lab._repr_mimebundle_()
    assert "run this cell" in data["text/html"] and lab.page.value in data["text/html"]

import contextlib
import io
import logging
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import WhisperFeatureExtractor

from aqa_lib import audio
from aqa_lib.audio import AudioError, load

RATE = audio.SAMPLE_RATE


def tone(seconds: float, rate: int = RATE, channels: int = 1, peak: float = 0.5) -> np.ndarray:
    wave = peak * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, 1).astype(np.float32)


def write(path, wave, rate=RATE, **kwargs):
    soundfile.write(path, wave, rate, **kwargs)
    return path


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_every_rate_and_channel_count_gives_the_same_tone(tmp_path, rate, channels):
    clip = load(write(tmp_path / "a.wav", tone(1.0, rate, channels), rate))
    assert clip.wave.dtype == np.float32 and clip.wave.shape == (RATE,)
    spectrum = np.abs(np.fft.rfft(clip.wave))
    assert spectrum.argmax() == 440
    assert np.abs(clip.wave).max() == pytest.approx(0.5, abs=0.02)


def test_all_channels_are_mixed_not_the_first_taken(tmp_path):
    wave = np.stack([np.zeros(RATE), tone(1.0)[:, 0]], 1)
    clip = load(write(tmp_path / "a.wav", wave))
    assert np.abs(clip.wave).max() == pytest.approx(0.25, abs=1e-3)
    assert clip.notes == ("2 channels mixed down",)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("mp3 named.wav", {"format": "MP3"}),
        ("a.mp3", {}),
        ("a.flac", {}),
        ("a.ogg", {}),
        ("24 bit.wav", {"subtype": "PCM_24"}),
        ("32 bit.wav", {"subtype": "PCM_32"}),
        ("float.wav", {"subtype": "FLOAT"}),
        ("double.wav", {"subtype": "DOUBLE"}),
        ("u8.wav", {"subtype": "PCM_U8"}),
    ],
)
def test_formats_of_the_real_test_set(tmp_path, name, kwargs):
    path = write(tmp_path / name, tone(1.0), **kwargs)
    for source in (path, str(path), path.read_bytes()):
        clip = load(source)
        assert abs(len(clip.wave) - RATE) < 1500  # MP3 pads its ends
        assert np.abs(clip.wave).max() == pytest.approx(0.5, abs=0.05)


def test_peaks_above_one_are_kept(tmp_path):
    clip = load(write(tmp_path / "a.wav", tone(1.0, peak=1.7), subtype="FLOAT"))
    assert np.abs(clip.wave).max() == pytest.approx(1.7, rel=1e-3)


def test_integer_arrays_are_scaled():
    wave = (tone(1.0)[:, 0] * 32767).astype(np.int16)
    assert np.abs(load((wave, RATE)).wave).max() == pytest.approx(0.5, abs=1e-3)
    assert np.abs(load(((wave // 256 + 128).astype(np.uint8), RATE)).wave).max() == pytest.approx(0.5, abs=0.02)


def test_start_and_end_cut_the_clip(tmp_path):
    wave = np.concatenate([tone(1.0, 44_100) * 0.1, tone(1.0, 44_100)])
    path = write(tmp_path / "a.wav", wave, 44_100, subtype="FLOAT")
    clip = load(path, start=1.0, end=1.5)
    assert len(clip.wave) == RATE // 2
    assert np.abs(clip.wave).max() == pytest.approx(0.5, abs=0.02)
    assert np.allclose(clip.wave, load((wave, 44_100), start=1.0, end=1.5).wave, atol=1e-6)


def test_a_long_clip_is_cut_aloud(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        clip = load(write(tmp_path / "long.wav", tone(41.5, 8_000), 8_000))
    assert len(clip.wave) == 30 * RATE
    assert clip.notes[0] == "cut from 41.50 s to 30 s"
    assert "long.wav" in caplog.text and "41.50" in caplog.text


def test_a_clip_of_just_thirty_seconds_is_not_cut(tmp_path):
    assert load(write(tmp_path / "a.wav", tone(30.0))).notes == ()


def bad_files(folder):
    (folder / "text.wav").write_text("this is not a sound")
    (folder / "empty file.wav").write_bytes(b"")
    write(folder / "no samples.wav", np.zeros((0, 1), np.float32))
    nan = tone(1.0)
    nan[500] = np.nan
    write(folder / "nan.wav", nan, subtype="FLOAT")
    infinite = tone(1.0)
    infinite[500] = np.inf
    write(folder / "infinite.wav", infinite, subtype="FLOAT")
    write(folder / "one sample.wav", tone(1.0)[:1])
    write(folder / "too short.wav", tone(1.0)[: audio.MIN_SAMPLES - 1])
    write(folder / "silent.wav", np.zeros((RATE, 1)))
    (folder / "folder.wav").mkdir()
    whole = write(folder / "whole.flac", tone(1.0)).read_bytes()
    (folder / "cut.flac").write_bytes(whole[:30])
    return {
        "text.wav": "not readable",
        "empty file.wav": "not readable",
        "no samples.wav": "two audio tokens",
        "nan.wav": "NaN",
        "infinite.wav": "infinite",
        "one sample.wav": "two audio tokens",
        "too short.wav": "two audio tokens",
        "silent.wav": "silent",
        "folder.wav": "no such file",
        "missing.wav": "no such file",
        "cut.flac": "",
    }


def test_every_bad_file_is_refused_in_one_sentence_that_names_it(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(AudioError) as error:
            load(tmp_path / name)
        message = str(error.value)
        assert name in message and reason in message and "\n" not in message, message


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 2, 2)), np.array(["a"]), np.zeros(0), np.float32(1.0), np.zeros(5, bool), np.ones(5, complex)],
)
def test_arrays_that_are_no_sound(array):
    with pytest.raises(AudioError):
        load((array, RATE))


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 1), (1, 1), (5, 6)])
def test_cuts_that_leave_nothing(start, end):
    with pytest.raises(AudioError):
        load((tone(1.0), RATE), start=start, end=end)


@given(
    wave=arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=1, max_dims=2, max_side=4_000),
        elements=st.floats(-4, 4, width=32) | st.sampled_from([np.nan, np.inf]),
        fill=st.floats(-1, 1, width=32),
    ),
    rate=st.sampled_from([8_000, 16_000, 44_100, 48_000, 192_000]),
)
def test_an_array_is_refused_or_heard_in_full(wave, rate):
    try:
        clip = load((wave, rate))
    except AudioError as error:
        assert "array" in str(error)
        return
    assert clip.wave.dtype == np.float32 and clip.wave.ndim == 1 and np.isfinite(clip.wave).all()
    assert abs(len(clip.wave) - len(wave) * RATE / rate) <= 1
    assert np.abs(clip.wave).max() >= audio.SILENCE


@given(noise=st.binary(max_size=400), cut=st.integers(0, 2_000), place=st.integers(0, 300))
def test_damaged_bytes_are_refused_or_heard(noise, cut, place):
    file = io.BytesIO()
    soundfile.write(file, tone(0.2), RATE, format="WAV")
    data = file.getvalue()[: len(file.getvalue()) - cut]
    data = data[:place] + noise + data[place + len(noise) :]
    with contextlib.suppress(AudioError):
        assert np.isfinite(load(data).wave).all()


@pytest.mark.parametrize("num_mel_bins", [80, 128])
@pytest.mark.parametrize(
    "samples", [961, 16_000, 16_001, 64_512, 160_000, 479_360, 479_500, 479_700, 479_800, 479_999, 480_000]
)
def test_mel_equals_the_feature_extractor(num_mel_bins, samples):
    rng = np.random.default_rng(samples)
    wave = (rng.standard_normal(samples) * np.linspace(0.01, 1, samples)).astype(np.float32)  # loudest at its end
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins)
    theirs = extractor(wave, sampling_rate=RATE, return_attention_mask=True, return_tensors="pt")
    ours, frames = audio.log_mel(wave, num_mel_bins), audio.num_frames(samples)
    assert frames == int(theirs.attention_mask.sum())
    assert ours.shape == (num_mel_bins, min(frames + 2, 3000))
    assert torch.allclose(ours, theirs.input_features[0][:, : ours.shape[1]], atol=1e-5)


@pytest.mark.parametrize(
    ("samples", "frames", "tokens"), [(64_512, 404, 101), (160_000, 1000, 250), (480_000, 3000, 750)]
)
def test_the_reports_counts(samples, frames, tokens):
    assert audio.num_frames(samples) == frames
    assert audio.num_audio_tokens(frames) == tokens


def test_the_shortest_clip_gives_two_tokens():
    assert audio.num_audio_tokens(audio.num_frames(audio.MIN_SAMPLES)) == 2
    assert audio.num_audio_tokens(audio.num_frames(audio.MIN_SAMPLES - 1)) < 2


def test_a_mel_longer_than_the_chunk_is_refused():
    with pytest.raises(AudioError, match="longer than"):
        audio.log_mel(np.zeros(RATE * 3 + 1), 80, chunk_length=3)


def test_many_channels_take_no_more_memory_than_their_mix(tmp_path):
    """255 channels at 192 kHz, 30 s: 5.9 GB as one array, 23 MB mixed down. A small file can hold them."""
    seconds, rate, channels = 2, 192_000, 255
    tone = np.sin(np.arange(seconds * rate) / 40).astype(np.float32) / 2
    with soundfile.SoundFile(tmp_path / "wide.wav", "w", rate, channels, "PCM_16") as file:
        for start in range(0, len(tone), 4_000):
            file.write(np.repeat(tone[start : start + 4_000, None], channels, 1))
    tracemalloc.start()
    clip = audio.load(tmp_path / "wide.wav")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6 < channels * tone.nbytes, peak
    assert clip.notes[0] == "255 channels mixed down" and clip.seconds == seconds
    assert np.abs(clip.wave - audio.load((tone, rate)).wave).max() < 1e-3


@pytest.mark.parametrize(
    ("start", "end"), [(10**400, None), (float("nan"), None), ("x", None), (2, 1), (-1, None), (1e300, 2e300), (0, 0)]
)
def test_parts_that_no_clip_has_are_refused_in_a_sentence(start, end):
    with pytest.raises(audio.AudioError, match=r"^array: cannot cut from \S+ s to \S+ s; give 0 <= start < end"):
        audio.load((np.sin(np.arange(16_000)), 16_000), start, end)


def test_an_end_beyond_any_clip_is_the_clips_end():
    wave = np.sin(np.arange(16_000) / 5)
    assert audio.load((wave, 16_000), 0, 1e300).seconds == audio.load((wave, 16_000), 0.5, 1e300).seconds * 2 == 1


def test_a_file_without_a_header_says_so(tmp_path):
    (tmp_path / "clip.raw").write_bytes(b"\0\1" * 9_000)
    with pytest.raises(audio.AudioError, match=r"clip\.raw: a \.raw file has no header, so its rate, channels and"):
        audio.load(tmp_path / "clip.raw")

"""Sound is decoded to its end, whatever a header says of its length: joined files, streams, counts that are wrong."""

import io
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from aqa_lib import audio, dataset, evaluation
from aqa_lib.prepare import prepare
from aqa_lib.reading import streams
from aqa_lib.scale import ROOT

RATE = audio.SAMPLE_RATE
INPUTS = ROOT.parent / "shared" / "inputs" / "audio"


def tone(seconds, hertz, rate=RATE):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def sound(kind, seconds, hertz=440, rate=RATE, channels=1, **options):
    file = io.BytesIO()
    soundfile.write(file, np.repeat(tone(seconds, hertz, rate)[:, None], channels, 1), rate, format=kind, **options)
    return file.getvalue()


def pitch(wave):
    return np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave)


def patched(data, form, *places):
    """Write numbers over a header. places: (offset, number) pairs."""
    data = bytearray(data)
    for offset, number in places:
        struct.pack_into(form, data, offset, number)
    return bytes(data)


def wav(seconds, size, hertz=440):
    """A WAV whose header claims that its sound has `size` bytes."""
    data = sound("WAV", seconds, hertz)
    return patched(data, "<I", (4, size), (data.find(b"data") + 4, size))


def flac(seconds, samples, hertz=440, **options):
    """A FLAC whose header claims so many samples; 0: it does not know."""
    data = sound("FLAC", seconds, hertz, **options)
    packed = struct.unpack_from(">Q", data, 18)[0]
    return patched(data, ">Q", (18, packed >> 36 << 36 | samples))


ID3 = b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10)
JOINED = {  # 4 s at 440 Hz, then 3 s at 880 Hz
    "ogg": sound("OGG", 4) + sound("OGG", 3, 880),
    "opus": sound("OGG", 4, rate=48_000, subtype="OPUS") + sound("OGG", 3, 880, 48_000, subtype="OPUS"),
    "mp3": sound("MP3", 4) + sound("MP3", 3, 880),
    "mp3 with a tag between": ID3 + sound("MP3", 4) + ID3 + sound("MP3", 3, 880),
    "mp3 at two rates": sound("MP3", 4) + sound("MP3", 3, 880, 44_100),
    "wav": sound("WAV", 4) + sound("WAV", 3, 880),
    "wav stereo and mono": sound("WAV", 4, channels=2) + sound("WAV", 3, 880),
    "flac": sound("FLAC", 4) + sound("FLAC", 3, 880),
    "flac streams": flac(4, 0) + flac(3, 0, 880),
}
MISTAKEN = {  # 4 s at 440 Hz
    "wav of a stream": wav(4, 2**32 - 1),
    "wav of a pipe": wav(4, 0),
    "wav that claims less": wav(4, 32_000),
    "wav that claims more": wav(4, 10**6),
    "flac of a pipe": flac(4, 0),
    "flac of a pipe, stereo": flac(4, 0, channels=2),
    "flac that claims less": flac(4, 16_000),
    "flac that claims more": flac(4, 10**6),
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_files_are_heard_whole(name, tmp_path):
    (tmp_path / "sound.wav").write_bytes(JOINED[name])
    for source in (JOINED[name], tmp_path / "sound.wav"):
        clip = audio.load(source)
        assert clip.seconds == pytest.approx(7, abs=0.1) and clip.notes[0] == "2 streams joined"
        assert pitch(clip.wave[RATE : 2 * RATE]) == 440 and pitch(clip.wave[-2 * RATE : -RATE]) == 880
        across, after = audio.load(source, 3.0, 5.5), audio.load(source, start=5)
        assert across.seconds == pytest.approx(2.5, abs=0.01) and pitch(across.wave[:12_000]) == pytest.approx(
            440, 1e-2
        )
        assert after.seconds == pytest.approx(2, abs=0.1) and pitch(after.wave[:RATE]) == 880
        assert audio.length(source) == pytest.approx(7, abs=0.1)


@pytest.mark.parametrize("name", MISTAKEN)
def test_a_header_that_is_wrong_is_not_believed(name):
    clip = audio.load(MISTAKEN[name])
    assert (clip.seconds, audio.length(MISTAKEN[name])) == (4, 4)
    assert not any(note.startswith("cut") or "joined" in note for note in clip.notes)
    assert pitch(clip.wave) == 440
    assert audio.load(MISTAKEN[name], 2.5, 9).seconds == 1.5


def test_a_long_stream_is_cut_from_its_true_length():
    clip = audio.load(flac(50, 0))
    assert clip.notes == ("cut from 50.00 s to 30 s",) and clip.seconds == 30


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_a_file_that_is_right_is_left_alone(kind):
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    soundfile.write(file, rng.standard_normal(40_000) / 8, RATE, format=kind)
    assert streams.parts(file.getvalue()) == []


@pytest.mark.parametrize("rest", [b"TAG" + bytes(125), b"LIST\x04\x00\x00\x00abcd", bytes(4_000), b"\x07"])
def test_what_follows_a_sound_is_not_heard(rest):
    assert streams.parts(sound("WAV", 1) + rest) == []


def test_a_stream_that_cannot_be_read_is_told_and_counted(caplog):
    broken = bytearray(sound("FLAC", 3, 880))
    broken[8:42] = bytes(34)  # no STREAMINFO that makes sense
    clip = audio.load(sound("FLAC", 4) + bytes(broken), name="radio")
    assert clip.seconds == 4 and clip.notes[0].startswith("cut by 1 of 2 streams that cannot be read")
    assert "radio: cut by 1 of 2" in caplog.text


@given(
    st.sampled_from(sorted(JOINED) + sorted(MISTAKEN)),
    st.integers(0, 60_000),
    st.binary(max_size=40),
    st.integers(0, 99),
)
def test_damage_is_no_traceback(name, place, noise, cut):
    data = (JOINED | MISTAKEN)[name]
    streams.parts(data[:place] + noise + data[place + len(noise) : len(data) - cut])
    streams.parts(data[:4] + noise)


def test_prepare_and_the_order_of_an_evaluation_know_the_whole(tmp_path):
    (tmp_path / "a.ogg").write_bytes(JOINED["ogg"])
    (tmp_path / "b.flac").write_bytes(MISTAKEN["flac of a pipe"])
    rows = [
        {"id": f"{i}", "audio_path": name, "question_text": "?", "multi_choice": ["a", "b"], "answer": 0}
        for i, name in enumerate(("a.ogg", "b.flac"))
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = prepare(tmp_path / "q.jsonl", tmp_path / "out.jsonl", flac=True, progress=False)
    assert report.hours * 3600 == pytest.approx(11, abs=0.1) and report.cut == 0
    clean = dataset.read(tmp_path / "out.jsonl")
    assert [soundfile.info(q.audio).duration for q in clean] == [pytest.approx(7, abs=0.1), 4]
    asked = dataset.read(tmp_path / "q.jsonl")
    assert [evaluation.seconds(q) for q in asked] == [pytest.approx(7, abs=0.1), 4]
    endless = replace(asked[0], audio=flac(50, 0))
    assert evaluation.seconds(endless) == 50


@pytest.mark.skipif(not INPUTS.is_dir(), reason="the inputs of the issue are not beside this checkout")
def test_the_files_that_were_reported():
    assert audio.load(INPUTS / "chained.ogg").seconds == 8
    assert audio.load(INPUTS / "piped.flac").seconds == 4
    assert audio.load(INPUTS / "piped50.flac").notes[0] == "cut from 50.00 s to 30 s"
    with pytest.raises(audio.AudioError, match=r"clip\.raw: a \.raw file has no header, so its rate"):
        audio.load(INPUTS / "clip.raw")

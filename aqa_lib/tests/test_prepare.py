"""Preparation, on a folder with one of every fault: nothing bad gets through, all is told, and stops cost nothing."""

import json

import numpy as np
import pytest
import soundfile

from aqa_lib import audio, prepare
from aqa_lib.__main__ import main
from aqa_lib.dataset import DataError, read, split


@pytest.fixture
def folder(tmp_path):
    """Two good clips, one of them long, quiet or loud; one silent, one broken; and rows on these and on none."""
    rng, clips = np.random.default_rng(0), tmp_path / "clips"
    clips.mkdir()
    noise = rng.uniform(-1, 1, 160_000)
    soundfile.write(clips / "good.wav", noise * 0.5, 16_000)
    soundfile.write(clips / "long.wav", np.stack([noise, noise], 1)[:96_000] * 0.02, 8_000)
    soundfile.write(clips / "loud.wav", noise * 1.5, 16_000, subtype="FLOAT")
    soundfile.write(clips / "silent.wav", noise * 0, 16_000)
    (clips / "broken.wav").write_bytes(b"RIFF, and then nothing")
    names = ["good", "good", "long", "loud", "silent", "broken", "gone"]
    rows = [
        {
            "id": i,
            "question_text": "Which video?",
            "multi_choice": ["a", "b"],
            "answer": 1,
            "audio_path": f"clips/{n}.wav",
        }
        for i, n in enumerate(names)
    ]
    rows[1] |= {"start": 1.0, "end": 3.5, "question_type": "Which"}
    rows.append(rows[0] | {"id": 7, "answer": 2})
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def counted(monkeypatch):
    """Count the clips that are loaded from here on."""
    loaded, load = [], audio.load
    monkeypatch.setattr(
        audio, "load", lambda source, *args, **kwargs: loaded.append(source) or load(source, *args, **kwargs)
    )
    return loaded


def test_bad_rows_and_clips_are_left_out_and_told(folder):
    report = prepare.prepare(folder / "all.jsonl", folder / "clean.jsonl", max_seconds=11, progress=False)
    assert (report.questions, report.kept, report.clips, report.cut) == (8, 4, 4, 1)
    assert report.hours * 3600 == pytest.approx(10 + 2.5 + 11 + 10)
    told = [(row["id"], row["kind"]) for row in report.dropped]
    assert told == [(None, "bad rows"), ("4", "unusable clips"), ("5", "unusable clips"), ("6", "missing clips")]
    assert "line 8: answer 2 is not an index" in report.dropped[0]["reason"]
    assert "clips/silent.wav: silent" in str(report) and "clips/gone.wav is not there" in str(report)
    assert json.loads((folder / "clean.jsonl.report.json").read_text())["dropped"] == report.dropped
    clean = read(folder / "clean.jsonl")  # with every check on
    assert [q.id for q in clean] == ["0", "1", "2", "3"]
    assert clean[1].meta["start"] == 1.0 and clean[1].task == "which" and clean[1].answer == "b"


def test_flac_holds_what_the_model_hears(folder):
    prepare.prepare(
        folder / "all.jsonl", folder / "out" / "clean.jsonl", folder, flac=True, max_seconds=5, progress=False
    )
    before = {q.id: q for q in read(folder / "all.jsonl", on_error=[], check_audio=False)}
    for question in read(folder / "out" / "clean.jsonl"):
        source = before[question.id]
        heard = audio.load(source.audio, source.meta.get("start"), source.meta.get("end"), max_seconds=5).wave
        info, stored = soundfile.info(str(question.audio)), audio.load(question.audio)
        assert (info.samplerate, info.channels, stored.notes) == (16_000, 1, ())
        assert np.abs(stored.wave - heard).max() <= 2**-16 and "start" not in question.meta
        peak = np.abs(heard).max()
        assert info.subtype == ("FLOAT" if peak >= 1 else "PCM_16" if peak > 0.1 else "PCM_24")


def test_a_stopped_preparation_goes_on_where_it_was(folder, monkeypatch):
    arguments = {"source": folder / "all.jsonl", "output": folder / "clean.jsonl", "flac": True, "progress": False}
    whole = prepare.prepare(**arguments)
    wanted, journal = (folder / "clean.jsonl").read_bytes(), folder / "clean.jsonl.clips.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 7  # clips and parts of clips: question 7 asks about that of question 0
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # killed while it wrote
    loaded = counted(monkeypatch)
    assert prepare.prepare(**arguments) == whole
    assert len(loaded) == 3 and (folder / "clean.jsonl").read_bytes() == wanted  # of 4 left one is not there
    assert prepare.prepare(**arguments) == whole and len(loaded) == 3

    soundfile.write(folder / "clips" / "broken.wav", np.sin(np.arange(16_000)) / 2, 16_000)  # mended by its owner
    next(folder.glob("clean/good-*.flac")).unlink()
    assert prepare.prepare(**arguments).kept == whole.kept + 1 and len(loaded) == 5


def test_the_number_of_threads_changes_nothing(folder):
    reports = [prepare.prepare(folder / "all.jsonl", folder / f"{n}.jsonl", workers=n, progress=False) for n in (1, 4)]
    assert reports[0] == reports[1] and (folder / "1.jsonl").read_text() == (folder / "4.jsonl").read_text()


def test_the_official_form_is_prepared_too(folder):
    rows = [{"id": "m", "audio_id": "clips/good.wav", "question": "Who?", "choices": ["x", "x", "y"], "answer": "x"}]
    rows.append(rows[0] | {"id": "w", "answer": ""})
    (folder / "mmau.json").write_text(json.dumps(rows))
    report = prepare.prepare(folder / "mmau.json", folder / "clean.jsonl", progress=False)
    assert [row["kind"] for row in report.dropped] == ["unanswered"]
    (question,) = read(folder / "clean.jsonl")
    assert question.answer == "x" and question.choices == ("x", "x", "y")


def test_a_full_disk_is_no_fault_of_a_clip(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        prepare.prepare(folder / "all.jsonl", folder / "clean.jsonl", flac=True, progress=False)


def test_what_cannot_be_prepared_is_one_sentence(folder):
    with pytest.raises(DataError, match="give the clean one another name"):
        prepare.prepare(folder / "all.jsonl", folder / "all.jsonl")
    with pytest.raises(DataError, match="audio folder .* does not exist"):
        prepare.prepare(folder / "all.jsonl", folder / "clean.jsonl", folder / "nowhere")
    for name in ("good", "long", "loud"):
        (folder / "clips" / f"{name}.wav").unlink()
    with pytest.raises(DataError, match="none of 8 questions can be used; the first: .*line 8"):
        prepare.prepare(folder / "all.jsonl", folder / "clean.jsonl", progress=False)
    (folder / "clean.jsonl.clips.jsonl").write_text("notes of mine\n")
    with pytest.raises(DataError, match="no journal of ours"):
        prepare.prepare(folder / "all.jsonl", folder / "clean.jsonl", progress=False)


def test_from_a_shell(folder, capsys):
    assert main(["prepare", f"{folder}/all.jsonl", f"{folder}/clean.jsonl", "--flac"]) == 0
    assert "4 of 8 questions kept" in capsys.readouterr().out
    assert main(["prepare", f"{folder}/none.jsonl", f"{folder}/clean.jsonl"]) == 2


def test_one_bad_path_or_long_name_does_not_stop_the_others(tmp_path):
    """300 characters are more than a name may have; 244 bytes are legal, but not with what a copy's name adds."""
    wave = np.sin(np.arange(16_000) / 9) / 2
    names = ["ok.wav", "ü" * 120 + ".wav", "x" * 300 + ".wav", "/".join(["deep"] * 1500) + ".wav"]
    for name in names[:2]:
        soundfile.write(tmp_path / name, wave, 16_000)
    rows = [
        {"id": i, "audio": name, "question": "What?", "choices": ["a", "b"], "answer": "a"}
        for i, name in enumerate(names)
    ]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for flac in (False, True):
        output = tmp_path / "out" / f"{flac}.jsonl"
        report = prepare.prepare(tmp_path / "raw.jsonl", output, audio_root=tmp_path, flac=flac, progress=False)
        assert (report.kept, [row["kind"] for row in report.dropped]) == (2, ["missing clips"] * 2)
    written = [json.loads(line)["audio_path"] for line in output.read_text("utf-8").splitlines()]
    assert all((output.parent / path).is_file() for path in written)


def test_parts_and_copies_of_a_recording_stay_on_one_side(tmp_path):
    """After `prepare --flac`, two parts of a file, a copy of it and the same sound in another format are four files."""
    rng = np.random.default_rng(0)
    for number in range(12):
        soundfile.write(tmp_path / f"{number}.wav", rng.uniform(-0.5, 0.5, 32_000), 16_000)
    (tmp_path / "copy.wav").write_bytes((tmp_path / "0.wav").read_bytes())
    soundfile.write(tmp_path / "other.flac", soundfile.read(tmp_path / "0.wav")[0], 16_000)
    names = ["0.wav", "0.wav", "copy.wav", "other.flac", *(f"{number}.wav" for number in range(1, 12))]
    rows = [
        {"id": i, "question_text": "?", "multi_choice": ["a", "b"], "answer": 0, "audio_path": name}
        for i, name in enumerate(names)
    ]
    rows[1] |= {"start": 0.5, "end": 1.5}
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for flac in (True, False):
        prepare.prepare(tmp_path / "all.jsonl", tmp_path / f"{flac}.jsonl", flac=flac, progress=False)
        questions = read(tmp_path / f"{flac}.jsonl")
        assert len({question.audio for question in questions}) == len(names) - (not flac)
        for seed in range(10):
            held = {question.id for question in split(questions, 0.3, seed)[1]}
            assert not held & set("0123") or held >= set("0123")

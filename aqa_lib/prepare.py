"""Check a whole question file and its clips once, and write a clean one: `python -m aqa_lib prepare`.

`audio, dataset -> [prepare] -> trainer`. Run it before a long training, on AVQA's 38,000 questions say: rows that
cannot be read, clips that are missing, broken, silent or too short are left out and told, instead of stopping the run
hours later. Clips are checked in parallel, each once however many questions ask about it, and noted in a journal as
they are done, so that the same command goes on where it was stopped. `flac=True` also writes what the model hears:
mono, 16 kHz, no longer than it can hold. The paper trains on the files as they are, and trusts them.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from tqdm.auto import tqdm

from . import audio, dataset
from .dataset import Question
from .reading import recordings, tables
from .runtime import locks
from .runtime.files import append, write_whole

READER = 2  # of clips; what another release found is not believed
SHOWN = 10  # dropped questions that are printed; the report file has all
STEM = 200  # bytes of a clip's own name that its copy keeps: most disks allow 255 in all
UNHEARD = "answered without the sound"
QUIET = 0.1  # peak below which 16 bits would be heard as noise


@dataclass(frozen=True)
class Report:
    """What preparation found. dropped: one `{"id", "kind", "reason"}` for each question that was left out.

    questions: rows of the file; kept: those written; clips: different ones among these; hours: of sound in them, as
    the model hears it; cut: clips that were longer than that.
    """

    questions: int
    kept: int
    clips: int
    hours: float
    cut: int
    dropped: list[dict]

    def __str__(self) -> str:
        lines = [
            f"{self.kept} of {self.questions} questions kept, on {self.clips} clips: {self.hours:.2f} h of sound, "
            f"{self.cut} clips cut to what the model hears."
        ]
        kinds = Counter(row["kind"] for row in self.dropped)
        lines += [f"dropped, {kind}: {count}" for kind, count in kinds.most_common()]
        lines += [f"  {row['reason']}" for row in self.dropped[:SHOWN]]
        more = len(self.dropped) - SHOWN
        return "\n".join(lines + [f"  ... and {more} more"] * (more > 0))


def prepare(  # noqa: PLR0913 (the command's options by name)
    source: str | Path,
    output: str | Path,
    audio_root: str | Path | None = None,
    columns: dict | None = None,
    flac: bool = False,
    workers: int | None = None,
    max_seconds: float = audio.MAX_SECONDS,
    progress: bool = True,
    leave_out: Callable[[list[Question]], Mapping[str, str]] | None = None,
) -> Report:
    """Write the questions of `source` that can be trained on to `output`, as JSON lines in AVQA's form.

    source, audio_root, columns: as in `dataset.read`. flac: write every clip too, into a folder named like `output`,
    and refer to those, as is needed where `source` holds the clips themselves; otherwise paths stay relative to the
    audio folder. workers: threads, one a core if None. leave_out: given the questions that can be used, says which to
    leave out, and why, by id (`training.dependence`).
    Beside `output`: `.clips.jsonl`, the journal, and `.report.json`. Raises DataError if no question is left, LockError
    where another process writes `output` or trains on it.
    """
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with locks.hold(locks.beside(output), str(output)):
        return _prepare(str(source), output, audio_root, columns, flac, workers, max_seconds, progress, leave_out)


def _prepare(  # noqa: PLR0913 (prepare's own)
    source: str, output: Path, audio_root, columns, flac, workers, max_seconds, progress, leave_out
) -> Report:
    root = Path(os.path.realpath(tables.folder(source) if audio_root is None else audio_root))
    if not root.is_dir():
        raise dataset.DataError(f"the audio folder {root} does not exist: name the folder of the clips by --audio")
    if output.exists() and tables.on_disk(source) and output.samefile(source):
        raise dataset.DataError(f"{output} is the file to be prepared: give the clean one another name")
    faults: list[str] = []
    questions = dataset.read(source, root, faults, check_audio=False, columns=columns)
    dropped = [{"id": None, "kind": "bad rows", "reason": fault} for fault in faults]
    if not flac and any(isinstance(question.audio, bytes) for question in questions):
        raise dataset.DataError(f"{source} holds the clips themselves: give --flac, which writes them to files")
    folder = output.with_suffix("") if flac else None
    check = partial(check_clip, root=root, folder=folder, max_seconds=max_seconds)
    found = _check_all(questions, check, Path(f"{output}.clips.jsonl"), workers, progress)

    usable = []
    for question in questions:
        if entry := next((found[key] for key in map(_key, _each(question)) if "reason" in found[key]), None):
            dropped.append({"id": question.id, "kind": entry["kind"], "reason": f"{question.id}: {entry['reason']}"})
        elif not question.answer:
            reason = f"{question.id}: has no answer, and training needs one"
            dropped.append({"id": question.id, "kind": "unanswered", "reason": reason})
        else:
            usable.append(question)
    reasons = leave_out(usable) if leave_out and usable else {}
    dropped += [{"id": name, "kind": UNHEARD, "reason": f"{name}: {reason}"} for name, reason in reasons.items()]
    rows, used = [], {}
    for question in (question for question in usable if question.id not in reasons):
        entries = {_key(one): found[_key(one)] for one in _each(question)}
        used |= entries
        if flac:
            paths = [Path(folder.name, found[_key(one)]["file"]) for one in _each(question)]
        else:
            paths = [clip.relative_to(root) for clip in question.clips]
        heard = next(iter(entries.values())) if len(paths) == 1 else None
        rows.append(_row(question, [path.as_posix() for path in paths], heard, root if flac else None))
    if not rows:
        raise dataset.DataError(f"none of {len(dropped)} questions can be used; the first: {dropped[0]['reason']}")
    seconds = [entry["seconds"] for entry in used.values()]
    report = Report(
        questions=len(questions) + len(faults),
        kept=len(rows),
        clips=len(used),
        hours=sum(seconds) / 3600,
        cut=sum(entry["cut"] for entry in used.values()),
        dropped=dropped,
    )
    write_whole(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_whole(f"{output}.report.json", json.dumps(asdict(report), indent=1, ensure_ascii=False))
    return report


def check_clip(question: Question, root: Path, folder: Path | None = None, max_seconds: float = audio.MAX_SECONDS):
    """Load a question's clip as training would, and write it into `folder`, if there is one.

    Returns `{"seconds", "cut", "file"}`, or `{"kind", "reason"}` where the clip cannot be used.
    """
    inside = isinstance(question.audio, bytes)
    if question.audio is None or not (inside or os.path.isfile(question.audio)):
        what = "names no clip" if question.audio is None else f"{question.audio.relative_to(root)} is not there"
        return {"kind": "missing clips", "reason": what}
    part = (question.meta.get("start"), question.meta.get("end"))
    name = f"{question.id} of the table" if inside else question.audio.relative_to(root).as_posix()
    try:
        clip = audio.load(question.audio, *part, name=name, max_seconds=max_seconds)
    except audio.AudioError as error:
        return {"kind": "unusable clips", "reason": str(error)}
    heard = hashlib.sha256((clip.wave * 2**15).astype(np.int32)).hexdigest()[:16]  # in whatever format it was kept
    entry = {"seconds": clip.seconds, "sha256": heard, "cut": any(note.startswith("cut ") for note in clip.notes)}
    if folder is None:
        return entry
    return entry | {"file": _write(clip, folder, _key(question) if inside else f"{name} {part}")}


def _write(clip: audio.Clip, folder: Path, key: str) -> str:
    """Write a clip so that it reads back within 2**-16 of full scale; return its file's name, which is the key's."""
    peak = np.abs(clip.wave).max()
    stem = Path(clip.name).stem.encode()[:STEM].decode(errors="ignore")
    name = f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    if peak >= 1:  # FLAC holds integers, which end at full scale
        name, form = f"{name}.wav", {"format": "WAV", "subtype": "FLOAT"}
    else:
        name, form = f"{name}.flac", {"format": "FLAC", "subtype": "PCM_24" if peak < QUIET else "PCM_16"}
    whole = io.BytesIO()  # in memory first: a full disk is then an OSError, and no fault of the clip
    soundfile.write(whole, clip.wave, audio.SAMPLE_RATE, **form)
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f"{name}.part"
    half.write_bytes(whole.getvalue())
    half.replace(folder / name)
    return name


def _each(question: Question) -> list[Question]:
    """Take a question on several clips apart: one on each."""
    return [replace(question, audio=clip, more=()) for clip in question.clips] or [question]


def _key(question: Question) -> str:
    """Name what of which clip is meant; questions with the same key share one check."""
    inside = isinstance(question.audio, bytes)
    clip = hashlib.sha256(question.audio).hexdigest() if inside else str(question.audio)
    return json.dumps([clip, question.meta.get("start"), question.meta.get("end")])


def _check_all(
    questions: Sequence[Question], check: partial, journal: Path, workers: int | None, progress: bool
) -> dict[str, dict]:
    """Check every clip that the journal does not know, in threads, and note each there; return all by key."""
    folder = check.keywords["folder"]
    settings = [check.keywords["max_seconds"], folder is not None, READER]
    known, wanted, found = _read_journal(journal), {}, {}
    for one in (one for question in questions for one in _each(question)):
        wanted.setdefault(_key(one), one)
    stamps = {key: [_state(question), *settings] for key, question in wanted.items()}  # before any is read
    for key in wanted:
        entry = known.get(key, {})
        if entry.get("stamp") == stamps[key] and ("file" not in entry or (folder / entry["file"]).is_file()):
            found[key] = entry
    missing = [key for key in wanted if key not in found]
    bar = tqdm(total=len(wanted), initial=len(found), unit=" clips", disable=not progress)
    pool = ThreadPoolExecutor(workers or os.cpu_count())  # decoding and resampling leave Python's lock
    try:
        with open(journal, "ab", buffering=0) as file:
            checked = pool.map(check, [wanted[key] for key in missing])
            for key, entry in zip(missing, checked, strict=True):
                found[key] = {"key": key, "stamp": stamps[key]} | entry
                append(file, found[key])
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    return found


def _state(question: Question) -> list[int] | None:
    """Tell a file from its later self: size and time of change; None if there is none, or the clip is not a file."""
    if isinstance(question.audio, bytes):
        return None
    try:
        state = os.stat(question.audio)
    except (OSError, TypeError):
        return None
    return [state.st_size, state.st_mtime_ns]


def _read_journal(journal: Path) -> dict[str, dict]:
    """Read what was checked before; take off a last line that a kill cut short."""
    whole = journal.read_bytes() if journal.exists() else b""
    kept = whole[: whole.rfind(b"\n") + 1]
    if len(kept) < len(whole):
        os.truncate(journal, len(kept))
    try:
        return {entry["key"]: entry for entry in map(json.loads, kept.decode("utf-8").splitlines())}
    except (ValueError, KeyError, TypeError) as error:
        raise dataset.DataError(
            f"{journal} is no journal of ours: delete it, and every clip is checked again"
        ) from error


def _row(question: Question, paths: list[str], entry: dict | None, root: Path | None) -> dict:
    """Write a question as AVQA has them; a part of a clip that has become a file needs no start and end.

    entry: what is known of its clip; None where there are several, which no one recording can stand for.
    """
    ours = {
        "id": question.id,
        "question_text": question.question,
        "multi_choice": list(question.choices),
        "answer": question.choices.index(question.answer),
        "task": question.task,
        "audio_path": paths[0] if len(paths) == 1 else paths,
    }
    kept = {key: value for key, value in question.meta.items() if not (root and key in ("start", "end"))}
    if entry is None:
        return kept | ours
    if root and isinstance(question.audio, Path):  # the new file no longer tells from which recording it was cut
        kept.setdefault(recordings.SOURCE, question.audio.relative_to(root).as_posix())
    return kept | ours | {recordings.HEARD: entry["sha256"]}

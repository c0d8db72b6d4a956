"""Keep predictions in files that survive a kill, say how they were made, and can be read by anybody.

`evaluation.predict -> [predictions] -> results`. One JSON line per question, flushed as it comes, and next to
the file `<file>.meta.json` with the settings, the data's sha256, the versions and the commit. The paper's code
writes one JSON list at the very end, under a key that MMAU's own scorer does not read; ours can be written in
the official form too.
"""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import prompt
from .dataset import Question
from .reading import benchmarks, tables
from .runtime.errors import AqaError
from .runtime.escape import show
from .runtime.files import as_line, now, write_whole

GROUPS = ("task", "difficulty", "category", "sub-category")  # what scores are broken down by
# MMAU's, AVQA's and the other sets', carried to predictions
KEPT = ("audio_id", "dataset", "split", *GROUPS[1:], "question_relation", benchmarks.MARK)
SHOWN = 5  # keys named in a message
# The official key first, then the one that r1-aqa writes, then MMAR's
OUTPUTS = ("model_output", "model_prediction", "answer_prediction")
KNOWN = {"index", "id", "question", "choices", "answer", "task", *KEPT, *OUTPUTS, "prediction", "official", "correct"}
CONTROLS = {  # their names, and what `evaluation.predict` is asked for
    "silent": {"audio": "silent"},
    "shuffled": {"shuffle_choices": 0},
    "text-only": {"audio": "none"},
}
SEVERAL = 3  # other orders, and other wordings, that `evaluate --robust` knows
ORDERS = {f"order-{seed}": {"shuffle_choices": seed} for seed in range(1, SEVERAL + 1)}
WORDINGS = {f"wording-{number}": {"wording": number} for number in range(1, SEVERAL + 1)}
WITHOUT_SOUND = ("silent", "text-only")  # the controls in which nothing can be heard


class PredictionsError(AqaError):
    """A file of predictions that cannot be used; its one sentence names the file, the fault and the remedy."""


@dataclass(frozen=True)
class Predictions:
    """A file of predictions that was read. meta: its record, {} if it has none. rows: see `read`.

    open_ones: how many answers need a judge model, by category; they are not among the rows.
    """

    name: str
    rows: list[dict]
    meta: dict = field(default_factory=dict)
    open_ones: dict = field(default_factory=dict)

    @property
    def settings(self) -> dict:
        return self.meta.get("settings", {})

    @property
    def labels(self) -> dict:
        return self.meta.get("labels", {})


def meta_path(path: str | Path) -> Path:
    """Return the path of a prediction file's record."""
    return Path(f"{path}.meta.json")


def group(row: Mapping, key: str) -> str:
    """Return the group of a row; MMAU writes some categories as a list.

    >>> group({"category": ["Reasoning"]}, "category")
    'Reasoning'
    """
    value = row.get(key) or ""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def question_row(index: int, question: Question) -> dict:
    """Return a question as the first part of a prediction."""
    kept = {key: question.meta[key] for key in KEPT if key in question.meta}
    return {
        "index": index,
        "id": question.id,
        "task": question.task,
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
    } | kept


def read_meta(path: str | Path) -> dict:
    """Read the record of a file of predictions; {} if it has none."""
    beside = meta_path(path)
    if not beside.exists():
        return {}
    try:
        meta = json.loads(beside.read_text(encoding="utf-8"))
        meta["settings"].items(), meta["labels"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PredictionsError(
            f"{beside}: not a record written by aqa_lib; delete it to read the predictions without one."
        ) from error
    return meta


def control_path(path: str | Path, name: str) -> Path:
    """Return the path of a control ("silent", "shuffled", "text-only") of a file of predictions.

    >>> control_path("runs/p.jsonl", "silent").name
    'p.silent.jsonl'
    """
    path = Path(path)
    return path.with_name(f"{path.stem}.{name}{path.suffix}")


def share_path(path: str | Path, rank: int, processes: int) -> Path:
    """Return the path at which one of several processes keeps its share of the predictions until all are done.

    >>> share_path("runs/p.jsonl", 0, 2).name
    'p.jsonl.1-of-2'
    """
    return Path(f"{path}.{rank + 1}-of-{processes}")


def resume(path: str | Path, meta: dict, ids: Sequence[str]) -> dict[int, dict]:
    """Open a file of predictions for `append`, or start it; return the rows that it already has, by index.

    A last line that a kill cut short is removed. meta: the record of this run; ids: the questions', in order.
    Raises PredictionsError if the file was made with other settings, or is not one of ours.
    """
    path, beside = Path(path), meta_path(path)
    whole = path.read_bytes() if path.exists() else b""
    if whole and not beside.exists():
        raise PredictionsError(f"{path}: has no {beside.name}, so it cannot be resumed; choose another name.")
    kept = whole[: whole.rfind(b"\n") + 1]
    if not kept:  # nothing to lose, whatever its record says
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        write_whole(beside, json.dumps(meta | {"opened": 1}, indent=1))
        return {}
    there, settings = read_meta(path), json.loads(json.dumps(meta["settings"]))
    then = there["settings"]
    other = [f"{key} {then.get(key)!r}, now {new!r}" for key, new in settings.items() if then.get(key) != new]
    if other:
        raise PredictionsError(
            f"{path}: was made with other settings ({'; '.join(other)}); "
            f"choose another name, or delete it and {beside.name}."
        )
    if "finished" not in there:
        write_whole(beside, json.dumps(there | {"opened": there["opened"] + 1}, indent=1))
    if len(kept) < len(whole):
        os.truncate(path, len(kept))
    rows = {}
    for number, line in enumerate(kept.decode("utf-8").split("\n")[:-1], 1):
        try:
            row = json.loads(line)
            index = row["index"]
            known = ids[index] == row["id"] and index >= 0 and index not in rows
        except (ValueError, KeyError, TypeError, IndexError):
            known = False
        if not known:
            raise PredictionsError(
                f"{path} line {number}: not a row of this run; choose another name, or delete the file."
            )
        rows[index] = row
    return rows


def finish(path: str | Path, rows: Sequence[dict], seconds: float) -> None:
    """Put a complete file into its questions' order, and note in its record when it was done and how long it took."""
    write_whole(path, "".join(map(as_line, rows)))
    meta = read_meta(path)
    if "finished" not in meta:
        resumed = {"resumed": True} if meta.pop("opened") > 1 else {}  # its seconds are those of the last part
        meta |= {"finished": now(), "seconds": round(seconds, 2)} | resumed
        write_whole(meta_path(path), json.dumps(meta, indent=1))


def read(path: str | Path, asked: Sequence[Mapping] | None = None) -> Predictions:
    """Read finished predictions, ours or anybody's in the official form: a JSON list or JSON lines.

    Every row needs `choices` (strings), and has `answer` (a string; absent if withheld) and `model_output` or
    `model_prediction` (absent if missing). Rows come out with `id, task, question, choices, answer` ("" if
    withheld), `model_output` (None if missing), `prediction` (the answer read from it, "" if none can be) and
    `official` (what MMAU's rule is given: our extracted answer; in others' files, the output as it stands). Files of
    the sets in `reading.benchmarks` are read with their own keys; answers that need a judge model are counted only.
    asked: the questions, without which a submission of ids and answers alone (ADQA's) cannot be read.
    Raises PredictionsError with the first bad row and the number of others.
    """
    path = Path(path)
    entries = _entries(path)
    meta = read_meta(path)
    benchmark = benchmarks.detect(entries)
    entries, open_ones = benchmarks.closed(entries, benchmark)
    names = {key: None for _, row in entries if isinstance(row, dict) for key in row}
    if set(names) == benchmarks.SUBMISSION:
        entries, names = _submitted(path, entries, asked), dict.fromkeys(OUTPUTS)
    rows, bad = [], []
    for number, (place, raw) in enumerate(entries, 1):
        try:
            if isinstance(raw, ValueError):
                last = number == len(entries) > 1
                raise ValueError(f"{raw}{'; if its run was killed, run it again to repair the file' * last}.")
            raw = benchmarks.plain(raw, benchmark, names) if benchmark and isinstance(raw, Mapping) else raw
            rows.append(_row(raw, len(rows)))
        except ValueError as error:
            bad.append(f"{place}: {error}")
    if bad:
        more = f" ({len(bad) - 1} more rows are bad)" if len(bad) > 1 else ""
        raise PredictionsError(bad[0] + more)
    if not rows:
        raise PredictionsError(f"{path}: contains no predictions; has its run started?")
    outputs = [*OUTPUTS, *([benchmark.output] if benchmark else [])]
    if not any(key in names for key in outputs):
        others = ", ".join(map(show, sorted({*rows[0]} - KNOWN)[:SHOWN])) or "none"
        raise PredictionsError(
            f"{path}: no row has {' or '.join(dict.fromkeys(outputs))}: all would count as wrong (other keys: "
            f"{others}); rename the replies' key to model_output."
        )
    if all("index" in row for row in rows):
        rows.sort(key=lambda row: row["index"])
    return Predictions(str(path), rows, meta, dict(open_ones))


def _entries(path: str | Path) -> tables.Rows:
    """Read a file as (place, row), in any format that questions have; a bad line comes out as its error."""
    try:
        return tables.rows(path)
    except tables.DataError as error:
        raise PredictionsError(str(error).replace("questions come as", "predictions come as")) from error


def _submitted(path: Path, entries: tables.Rows, asked: Sequence[Mapping] | None) -> tables.Rows:
    """Complete a submission, whose `question` is an id and whose `answer` is the reply, by the questions asked."""
    if asked is None:
        raise PredictionsError(f"{path}: holds ids and answers alone; give the questions that were asked, --questions.")
    known = {row["id"]: row for row in asked}
    complete = []
    for place, row in entries:
        name = str(row["question"]) if isinstance(row, Mapping) else ""
        if name not in known:
            raise PredictionsError(f"{place}: predicts {show(name)}, which is not one of the questions.")
        complete.append((place, {**known[name], "model_output": row["answer"] or ""}))  # type: ignore[index]
    return complete


def _row(raw: object, index: int) -> dict:
    """Check one row and complete it; see `read`."""
    if not isinstance(raw, Mapping):
        raise ValueError("not a JSON object; each row needs choices, answer and model_output.")
    choices, answer = raw.get("choices"), raw.get("answer") or ""
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise ValueError("`choices` must be a list of strings; add the question's choices to each row.")
    if not isinstance(answer, str):
        raise ValueError(f"`answer` is {answer!r}; it must be the text of a choice, not its index.")
    output = next((raw[key] for key in OUTPUTS if raw.get(key) is not None), None)
    if output is not None and not isinstance(output, str):
        raise ValueError(f"the model's output is {type(output).__name__}, not text; write the reply as a string.")
    ours = "prediction" in raw and isinstance(raw["prediction"], str)
    prediction = raw["prediction"] if ours else prompt.extract_answer(output or "") or ""
    given = {
        "id": str(raw.get("id", index)),
        "task": raw.get("task") or "",
        "question": raw.get("question") or "",
    }
    return (
        dict(raw)
        | given
        | {
            "answer": answer,
            "model_output": output,
            "prediction": prediction,
            "official": prediction if ours else output or "",
        }
    )


def write_official(rows: Sequence[Mapping], path: str | Path, questions: str | Path | None = None) -> None:
    """Write predictions as their set's scorer reads them; MMAU's reads a JSON list with `model_output`.

    `model_output` is the answer that was read from the reply, since the official rule would hold the words of
    a thought against it. questions: the set's own file, of which every row and field is then kept, with
    an empty output for a question without a prediction. Withheld answers are left out. MMAR's scorer looks for
    `answer_prediction`; MMSU's reads JSON lines with a letter as `response`; ADQA wants a CSV of ids and answers.
    """
    keys = ("id", "audio_id", "question", "choices", "answer", "task", *KEPT[1:])
    said = {str(row["id"]): row for row in rows}
    name = next((row[benchmarks.MARK] for row in rows if row.get(benchmarks.MARK)), None)
    benchmark = benchmarks.BENCHMARKS.get(name)
    if questions is not None:
        entries = [entry for _, entry in benchmarks.closed(_entries(questions), benchmark)[0]]
        if strange := set(said) - {str(entry.get("id")) for entry in entries}:
            raise PredictionsError(f"{path}: predicts {min(strange)!r}, which is not in {questions}; check the file.")
    else:
        entries = [{key: row[key] for key in keys if row.get(key) not in (None, "")} for row in rows]
    key = benchmark.output if benchmark else OUTPUTS[0]
    official = [entry | {key: _reply_for(benchmark, said.get(str(entry.get("id"))))} for entry in entries]
    if benchmark is benchmarks.ADQA:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("question", "answer"), *((entry["id"], entry[key]) for entry in official)])
        write_whole(path, file.getvalue())
    elif benchmark is benchmarks.MMSU:
        write_whole(path, "".join(map(as_line, official)))
    else:
        write_whole(path, json.dumps(official, indent=4, ensure_ascii=False) + "\n")


def _reply_for(benchmark: benchmarks.Benchmark | None, row: Mapping | None) -> str:
    """Return what a set's scorer is given of a prediction: the answer, or the letter or the text of its choice."""
    if row is None:
        return ""
    said = row["prediction"]
    if benchmark in (benchmarks.MMSU, benchmarks.ADQA):
        place = prompt.choice_of(said, row["choices"])
        if place is not None:
            return chr(65 + place) if benchmark is benchmarks.MMSU else row["choices"][place]
    return said

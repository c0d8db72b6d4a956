"""Read the rows of questions from whatever holds them: JSON, JSON lines, CSV, TSV, parquet, Arrow, the hub.

`[tables] -> forms -> dataset`. A row comes as (place, dict); one that cannot be read comes as its ValueError, so that
all bad rows are told at once. Clips that lie in a table stay encoded, as they were written.
"""

import csv
import gc
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.errors import AqaError, reason

HUB = "hub:"
FORMATS = "JSON, JSON lines, CSV, TSV, parquet or Arrow"
MARK = b"\xef\xbb\xbf"  # that some editors put before UTF-8
UTF16 = (b"\xff\xfe", b"\xfe\xff")
TIMES = ("start", "end")  # cells of a table of texts that are numbers

Rows = list[tuple[str, object]]


class DataError(AqaError):
    """Questions that cannot be used: one line for each bad row, with its file, its line and its fault."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python from searching millions of new objects for cycles, of which rows and questions have none."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@uncollected()
def rows(source, keep: tuple[str, ...] = ()) -> Rows:
    """Read (place, row) from a file, from a folder of parquet or of `save_to_disk`, or from `hub:NAME[:SPLIT]`.

    keep: columns of a table that may hold encoded sound; other columns of bytes, as pictures, are left out. Raises
    DataError where nothing can be read.
    """
    if str(source).startswith(HUB):
        return _hub(str(source), keep)
    path = Path(source)
    if path.is_dir() and (inside := _in_folder(path)):
        return inside(path, keep)
    try:
        if path.suffix == ".parquet" or path.suffix == ".arrow":
            return _stored(path, keep)
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in its name
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if data.startswith(UTF16):
        data = _from_utf16(path, data)
    data = data.removeprefix(MARK)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _cells(path, data)
    start = data.lstrip()[:1]
    if start not in (b"", b"{", b"["):
        fault = _parse(data.lstrip().splitlines()[0])
        why = str(fault) if isinstance(fault, ValueError) and "UTF-8" in str(fault) else "is not JSON"
        why = "is not text" if b"\0" in data[:1000] else why
        raise DataError(f"{path} line 1: {why}; questions come as {FORMATS}, the last four known by the file's ending")
    return _list(path, data) if start == b"[" else _lines(path, data)


def on_disk(source) -> Path | None:
    """Return the file that questions come from, to name it by its sha256; None for a folder and for the hub."""
    return Path(source) if not str(source).startswith(HUB) and Path(source).is_file() else None


def folder(source) -> Path:
    """Return the folder to which the paths of clips in `source` are relative."""
    if str(source).startswith(HUB):
        return Path()
    return Path(source) if Path(source).is_dir() else Path(source).parent


# -- JSON --------------------------------------------------------------------------------------------------------------


def _list(path: Path, data: bytes) -> Rows:
    found = _parse(data)
    if isinstance(found, ValueError):
        raise DataError(f"{path} line {getattr(found.__cause__, 'lineno', 1)}: {found}")
    return [(f"{path} row {number}", row) for number, row in enumerate(found, 1)]


def _lines(path: Path, data: bytes) -> Rows:
    lines, known = enumerate(_split(data), 1), {}
    found = [(f"{path} line {number}", _shared(_parse(line), known)) for number, line in lines if line.strip()]
    if found and isinstance(found[0][1], ValueError) and (objects := _objects(data)):
        found = [(f"{path} object {number}", row) for number, row in enumerate(objects, 1)]
    if len(found) == 1 and isinstance(found[0][1], dict):
        found = _wrapped(path, found[0][1]) or found
    return found


def _split(data: bytes) -> Iterator[bytes]:
    """Yield lines one by one, split as bytes.splitlines does: no line ends at a U+2028 inside a text."""
    for line in io.BytesIO(data):
        yield from line.splitlines() if b"\r" in line else (line,)


def _shared(row: object, known: dict[str, str]) -> object:
    """Let equal texts of all rows be one: names of columns, and most values, come again and again."""
    if not isinstance(row, dict):
        return row
    return {known.setdefault(key, key): _one(value, known) for key, value in row.items()}


def _one(value: object, known: dict[str, str]) -> object:
    if type(value) is str:
        return known.setdefault(value, value)
    if type(value) is list:
        return [_one(item, known) for item in value]
    return value


def _objects(data: bytes) -> list | None:
    """Read JSON objects that each take several lines, one after the other; None if the file holds something else."""
    decoder, found, at = json.JSONDecoder(), [], 0
    try:
        text = data.decode("utf-8").strip()
        while at < len(text):
            row, at = decoder.raw_decode(text, at)
            found.append(row)
            at += len(text[at : at + 1000]) - len(text[at : at + 1000].lstrip())
    except (ValueError, RecursionError):
        return None
    return found


def _wrapped(path: Path, row: dict) -> Rows | None:
    """Read rows that lie in one object: under its only list (`{"data": [...]}`), or each under a name of its own."""
    if {"question", "question_text"} & row.keys():
        return None  # a question, whatever its choices are
    if lists := [(key, value) for key, value in row.items() if isinstance(value, list) and value]:
        ((key, value), *others) = lists
        if not others and all(isinstance(item, dict) for item in value):
            return [(f"{path} {key} {number}", item) for number, item in enumerate(value, 1)]
    elif row and all(isinstance(value, dict) and len(value) > 1 for value in row.values()):
        return [(f"{path} {key!r}", value) for key, value in row.items()]
    return None


def _parse(data: bytes) -> object:
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        return ValueError("is not UTF-8 text: save it as UTF-8")
    except json.JSONDecodeError as error:
        fault = ValueError(f"is not JSON ({error.msg} at column {error.colno})")
        fault.__cause__ = error
        return fault
    except (ValueError, RecursionError):  # a number of over 4300 digits, or brackets without end
        return ValueError("is not JSON that can be read: a number is too long or lists too deep")


def _from_utf16(path: Path, data: bytes) -> bytes:
    try:
        return data.decode("utf-16").encode()
    except UnicodeError:
        raise DataError(f"{path} line 1: is not UTF-8 text, and UTF-16 in part only: save it as UTF-8") from None


# -- tables of text ----------------------------------------------------------------------------------------------------


def _cells(path: Path, data: bytes) -> Rows:
    """Read CSV, separated by commas or, as some countries' Excel writes it, by semicolons, or TSV. Empty is None."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path} line {line}: is not UTF-8 text: save it as UTF-8") from None
    head = text.lstrip().split("\n", 1)[0]
    separator = "\t" if "\t" in head else ";" if ";" in head and "," not in head else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names, found, number = None, [], 1
    try:
        for cells in reader:
            place, number = f"{path} line {number}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                continue
            found.append((place, _row(names, cells)))
    except csv.Error as error:
        raise DataError(f"{path} line {number}: is not a table that can be read ({error})") from error
    return found


def _row(names: list[str], cells: list[str]) -> dict | ValueError:
    if len(cells) != len(names):
        return ValueError(f"has {len(cells)} cells, and the first line names {len(names)}: quote cells with separators")
    row = {name: cell or None for name, cell in zip(names, cells, strict=True)}
    for name in TIMES:
        try:
            row |= {name: float(row[name])} if row.get(name) else {}
        except ValueError:
            pass  # the reader says what it should be
    return row


# -- tables of columns -------------------------------------------------------------------------------------------------


def _in_folder(path: Path) -> Callable[[Path, tuple[str, ...]], Rows] | None:
    if (path / "dataset_dict.json").is_file():
        raise DataError(f"{path} holds several splits: give the folder of one of them")
    if (path / "state.json").is_file():
        return _saved
    return _shards if any(path.glob("*.parquet")) else None


def _saved(path: Path, keep: tuple[str, ...]) -> Rows:
    import datasets  # a second to import, and only these readers need it

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # of many classes, by what is broken
        raise DataError(f"{path} cannot be read ({reason(error)})") from error
    return from_datasets(data, str(path), keep)


def _shards(path: Path, keep: tuple[str, ...]) -> Rows:
    return [row for shard in sorted(path.glob("*.parquet")) for row in _stored(shard, keep)]


def _stored(path: Path, keep: tuple[str, ...]) -> Rows:
    """Read a parquet or an Arrow file; sound in it is bytes or a path, as `datasets` writes it, and is not decoded."""
    import pyarrow

    try:
        found = [row for batch in _batches(path) for row in _plain(batch, keep).to_pylist()]
    except (pyarrow.ArrowException, ValueError) as error:
        kind = "a parquet" if path.suffix == ".parquet" else "an Arrow"
        raise DataError(f"{path} is not {kind} file that can be read ({reason(error)})") from error
    return [(f"{path} row {number}", row) for number, row in enumerate(found, 1)]


def _batches(path: Path) -> Iterator:
    import pyarrow.parquet

    if path.suffix == ".parquet":
        yield from pyarrow.parquet.ParquetFile(path).iter_batches()
        return
    with open(path, "rb") as file:
        whole = file.read(6) == b"ARROW1"
        file.seek(0)
        if whole:
            reader = pyarrow.ipc.open_file(file)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield from pyarrow.ipc.open_stream(file)


def _plain(batch, keep: tuple[str, ...]):
    """Leave out columns of bytes that are no sound, and write dates and decimals as texts."""
    import pyarrow

    kind = pyarrow.types

    def of_bytes(form) -> bool:
        inner = [form.field(number).type for number in range(form.num_fields)] if kind.is_nested(form) else []
        return kind.is_binary(form) or kind.is_large_binary(form) or any(map(of_bytes, inner))

    columns = {}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if kind.is_temporal(field.type) or kind.is_decimal(field.type):
            column = column.cast(pyarrow.string())
        if field.name in keep or not of_bytes(field.type):
            columns[field.name] = column
    return pyarrow.table(columns)


def _hub(source: str, keep: tuple[str, ...]) -> Rows:
    name, _, split = source.removeprefix(HUB).partition(":")
    return from_datasets(*load(name, split or "train"), keep)


def load(name: str, split: str):
    """Load one split of a data set of the hub, or of a folder of the same form; return it and its name in messages."""
    import datasets

    if not name:
        raise DataError("hub: names no data set; give hub:NAME or hub:NAME:SPLIT")
    try:
        return datasets.load_dataset(name, split=split), f"{name} ({split})"
    except Exception as error:  # of many classes: no such set, no such split, no connection, a broken file
        raise DataError(f"{name} ({split}) cannot be loaded: {reason(error)}") from error


def from_datasets(data, source: str, keep: tuple[str, ...]) -> Rows:
    """Read the rows of a loaded `datasets.Dataset`, its sound undecoded."""
    import datasets

    if not isinstance(data, datasets.Dataset):
        raise DataError(f"{source} is a {type(data).__name__}: give one split of it, a datasets.Dataset")
    media = {name for name, feature in data.features.items() if hasattr(feature, "decode")}
    data = data.remove_columns(sorted(media - set(keep)))
    for name in media & set(keep):  # decoding is audio.load's work; here it would also need FFmpeg
        data = data.cast_column(name, datasets.Audio(decode=False))
    return [(f"{source} row {number}", row) for number, row in enumerate(data, 1)]

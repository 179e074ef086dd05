"""Read records of data files: jsonl, json, csv, tsv, txt, parquet, Arrow, and folders of images.

A record remembers where it stands, so that each error names the file and the line.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autocompress.errors import TaskError, nearest_name
from autocompress.huggingface.data.reading.known import known_rows
from autocompress.huggingface.data.reading.split_folders import SAVED, is_hidden, split_folders
from autocompress.huggingface.data.reading.tables import read_table
from autocompress.huggingface.extra import library, told

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
METADATA = ("metadata.jsonl", "metadata.csv")  # beside the files that their column file_name names
FILE_NAME = "file_name"
TRANSLATION = "translation"  # column of data sets that holds a text in several languages
SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Record:
    """Hold one sample as it stands in the data.

    Attributes:
        values: by name of the column.
        place: such as "train.jsonl line 3", for messages.
        folder: that paths in it are relative to.
    """

    values: Mapping[str, Any]
    place: str
    folder: Path


def read_records(path: str, notes: list[str]) -> list[Record]:
    """Read all records of a file or folder.

    Args:
        path: a data file, a folder of images or sounds in one folder per label, or a folder that
            `datasets` saved.
        notes: gets a line where the way of reading is a guess.

    Returns:
        At least one record.

    Raises:
        TaskError: it is missing, empty or damaged, or of an unknown kind.
    """
    place = Path(path)
    if place.is_dir():
        records = _folder(place, notes)
    elif not place.is_file():
        siblings = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
        near = nearest_name(place.name, siblings) or "none"
        raise TaskError(f"{path}: no such data file; nearest: {near}")
    else:
        records = _file(place, notes)
    if not records:
        raise TaskError(f"{path}: holds no sample")
    return [_unfolded(record) for record in records]


def _unfolded(record: Record) -> Record:
    """Return a record with a column for each language of its translations, as "translation.en"."""
    texts = record.values.get(TRANSLATION)
    if not isinstance(texts, Mapping):
        return record
    values = {name: value for name, value in record.values.items() if name != TRANSLATION}
    values |= {f"{TRANSLATION}.{language}": text for language, text in texts.items()}
    return replace(record, values=values)


def _file(path: Path, notes: list[str]) -> list[Record]:
    suffix, kinds = path.suffix.lower(), (*READERS, *SEPARATORS)
    if suffix in SEPARATORS:
        return _table(path, notes)
    if suffix in READERS:
        return READERS[suffix](path)
    raise TaskError(
        f"{path}: unknown kind of data file {path.suffix!r}; nearest: "
        f"{nearest_name(suffix, kinds)} (there are {', '.join(kinds)})"
    )


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: is no text in UTF-8 (byte {error.start})") from None


def _lines_of(path: Path) -> list[str]:
    """Return the lines of a file; other separators than line breaks are part of a text."""
    return [line.rstrip("\n") for line in io.StringIO(_text_of(path), newline=None)]


def _jsonl(path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(_lines_of(path), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise TaskError(f"{path} line {number}: is no JSON ({error.msg})") from None
        records.append(_record(values, path, f"line {number}"))
    return records


def _json(path: Path) -> list[Record]:
    text = _text_of(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object per line
            return _jsonl(path)
        raise TaskError(f"{path} line {error.lineno}: is no JSON ({error.msg})") from None
    with told(f"{path}: lacks a part that files of its layout have"):
        rows = known_rows(rows) or rows
    if not isinstance(rows, list):
        raise TaskError(f"{path}: expected a list of objects, got {type(rows).__name__}")
    return [_record(values, path, f"entry {i}") for i, values in enumerate(rows, 1)]


def _record(values: Any, path: Path, where: str) -> Record:
    if not isinstance(values, dict):
        raise TaskError(
            f'{path} {where}: expected an object such as {{"text": ...}}, '
            f"got {type(values).__name__}"
        )
    return Record(values, f"{path.name} {where}", path.parent)


def _table(path: Path, notes: list[str]) -> list[Record]:
    """Return the rows of a table with names of columns in its first line."""
    rows = read_table(path, _text_of(path), SEPARATORS[path.suffix.lower()], notes)
    return [Record(row, f"{path.name} line {line}", path.parent) for line, row in rows]


def _lines(path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(_lines_of(path), 1):
        if line.strip():
            records.append(Record({"text": line}, f"{path.name} line {number}", path.parent))
    return records


def _parquet(path: Path) -> list[Record]:
    tables = library("pyarrow.parquet", f"{path}: parquet files", "pyarrow")
    with told(f"{path}: cannot be read"):
        rows = tables.read_table(path).to_pylist()
    return [Record(row, f"{path.name} row {i}", path.parent) for i, row in enumerate(rows, 1)]


def _arrow(path: Path) -> list[Record]:
    arrow = library("pyarrow", f"{path}: Arrow files", "pyarrow")
    with told(f"{path}: cannot be read"):
        try:
            rows = arrow.ipc.open_stream(path).read_all().to_pylist()
        except arrow.ArrowInvalid:
            rows = arrow.ipc.open_file(path).read_all().to_pylist()
    return [Record(row, f"{path.name} row {i}", path.parent) for i, row in enumerate(rows, 1)]


READERS: dict[str, Callable[[Path], list[Record]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".txt": _lines,
    ".parquet": _parquet,
    ".arrow": _arrow,
}


def _folder(path: Path, notes: list[str]) -> list[Record]:
    splits = sorted(folder.name for folder in split_folders(path).values())
    if (path / SAVED).is_file():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    if splits:
        raise TaskError(
            f"{path}: holds the splits {', '.join(splits)}; name one: {path}/{splits[0]}"
        )
    if (path / "state.json").is_file():
        return _saved(path)
    for name in METADATA:
        if (path / name).is_file():
            return [_beside(record) for record in _file(path / name, notes)]
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in (*IMAGES, *SOUNDS))
    records = []
    for file in files:
        values: dict[str, Any] = {FILE_NAME: str(file.relative_to(path))}
        parts = file.relative_to(path).parts
        if any(map(is_hidden, parts)):
            continue
        if len(parts) > 1:
            values["label"] = parts[0]
        records.append(Record(values, str(file), path))
    if not records:
        raise TaskError(
            f"{path}: holds no image and no sound; expected {path}/LABEL/*.png, "
            f"{METADATA[0]}, or a folder that datasets saved"
        )
    return records


def _beside(record: Record) -> Record:
    if FILE_NAME not in record.values:
        raise TaskError(f"{record.folder}/{record.place}: has no column {FILE_NAME}")
    return record


def _saved(path: Path) -> list[Record]:
    datasets = library("datasets", f"{path}: saved data sets", "datasets")
    with told(f"{path}: cannot be read"):
        rows = datasets.load_from_disk(str(path))
        return [Record(dict(row), f"{path.name} row {i}", path) for i, row in enumerate(rows, 1)]

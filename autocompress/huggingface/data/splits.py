"""Read the splits of the data, and cut those that are missing."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.errors import TaskError
from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.reading.split_folders import split_folders
from autocompress.huggingface.data.records import Record, read_records
from autocompress.huggingface.extra import told
from autocompress.huggingface.options import Options

CUT = 0.2  # share of a split that becomes another one
MOST_CUT = 2000  # samples of it
LEAST = 10  # samples of a split from which another one is cut


@dataclass(frozen=True)
class Splits:
    """Hold the records of each split.

    Attributes:
        train: None if there are none; recovery then trains on the inputs of `validation`.
        validation: of the search.
        test: None if there are none.
        notes: lines that say how files were read, and what was cut.
    """

    train: list[Record] | None
    validation: list[Record]
    test: list[Record] | None
    notes: tuple[str, ...]

    def parts(self) -> Iterator[tuple[str, list[Record]]]:
        """Yield the name and the records of each split that is there."""
        for name in ("validation", "train", "test"):
            records = getattr(self, name)
            if records is not None:
                yield name, records


def read_splits(
    options: Options,
    regroup: Callable[[list[Record]], list[Record]] | None = None,
    together: str | None = None,
    labels: Sequence[str] = (),
) -> Splits:
    """Read the splits of the data.

    Args:
        options: name the files.
        regroup: records of a file -> the samples that splits are made of, in their order in one
            text; None takes the records.
        together: part of a sample, such as "context". Samples that share it are cut into one split.
        labels: parts of a sample that may be its label, such as "label". A test split is cut from
            the validation split where the training data have none of them and that has.

    Returns:
        The splits; each with at most `options.samples` samples, drawn by the seed.

    Raises:
        TaskError: there is no data, a file cannot be read, or it cannot be cut.
    """
    if options.data is None and options.validation is None:
        raise TaskError(
            f"{options.folder}: there is no data; nearest: --data FILE or --validation FILE"
        )
    notes: list[str] = []

    def read(path: str | None) -> list[Record] | None:
        records = None if path is None else read_records(path, notes)
        return regroup(records) if regroup is not None and records is not None else records

    one_text = regroup is not None  # whose neighbouring parts are alike
    cutter = _Cutter(options.columns or {}, together, one_text, notes)
    train, validation, test = map(read, _paths(options, notes))
    if validation is None:
        assert train is not None
        train, validation = cutter.cut(train, options.seed, "training data", "validation")
    if test is None:
        from_train = train is not None and not cutter.lacks(labels, train, validation)
        source = train if train is not None and from_train else validation
        if len(source) < LEAST:
            notes.append(f"data: {len(source)} samples are too few to cut a test split from")
        elif len(cutter.groups(source)) < 2:
            notes.append(f"data: no test split is cut, since all samples have the same {together}")
        elif from_train:
            train, test = cutter.cut(source, options.seed + 1, "training data", "test")
        else:
            validation, test = cutter.cut(source, options.seed + 1, "validation", "test")
    if train is None:
        notes.append("data: training sees the inputs of the validation split, without labels")
    return Splits(
        None if train is None else _drawn(train, options, "training data", notes),
        _drawn(validation, options, "validation", notes),
        None if test is None else _drawn(test, options, "test", notes),
        tuple(notes),
    )


def _paths(options: Options, notes: list[str]) -> tuple[str | None, str | None, str | None]:
    """Return the paths of training, validation and test data; one folder may hold all of them."""
    named = {"train": options.data, "validation": options.validation, "test": options.test}
    inner = {} if options.data is None else split_folders(Path(options.data))
    if inner:
        paths = {split: str(folder) for split, folder in inner.items()}
        others = {split: path for split, path in named.items() if split != "train" and path}
        named = {split: others.get(split) or paths.get(split) for split in named}
        folders = ", ".join(f"{s} is {p.name}" for s, p in inner.items() if s not in others)
        notes.append(f"data: folders of {options.data} are splits: {folders}")
    return named["train"], named["validation"], named["test"]


@dataclass(frozen=True)
class _Cutter:
    """Cut a part off a split.

    Attributes:
        columns: part of a sample -> column that the user named.
        together: part of a sample that no two splits may share; None for none.
        one_text: True if the samples are parts of one text; then the end is cut off.
        notes: get a line for each cut.
    """

    columns: Mapping[str, str]
    together: str | None
    one_text: bool
    notes: list[str]

    def lacks(self, parts: Sequence[str], records: list[Record], others: list[Record]) -> bool:
        """Return True if the records have no column for any of the parts and the others have."""
        columns = Columns("", self.columns)
        if any(columns.find_or_none(part, records) for part in parts):
            return False
        return any(columns.find(part, others) for part in parts)

    def groups(self, records: list[Record]) -> list[list[int]]:
        """Return the numbers of the records that share a value, in the order of the file."""
        column = None
        if self.together is not None:
            column = Columns("", self.columns).find(self.together, records)
        groups: dict[Any, list[int]] = {}
        for i, record in enumerate(records):
            value = None if column is None else shared_value(record, column)
            groups.setdefault(i if value is None else value, []).append(i)
        return list(groups.values())

    def cut(
        self, records: list[Record], seed: int, source: str, name: str
    ) -> tuple[list[Record], list[Record]]:
        """Return the rest and the cut part, both in the order of the file.

        The cut part is drawn by the seed; of one text it is the end.
        """
        if len(records) < LEAST:
            raise TaskError(
                f"{records[0].place}: {len(records)} samples are too few to cut a {name} split "
                f"from; nearest: --{name} FILE"
            )
        groups = self.groups(records)
        if len(groups) < 2:
            raise TaskError(
                f"{records[0].place}: all {len(records)} samples have the same {self.together}, "
                f"which a {name} split may not share; nearest: --{name} FILE"
            )
        count = min(MOST_CUT, max(1, round(CUT * len(records))))
        which = "the last " if self.one_text else ""
        if self.one_text:
            chosen = set(range(len(records) - count, len(records)))
        else:
            chosen = _drawn_groups(groups, count, seed)
        shared = len(groups) < len(records)
        self.notes.append(
            f"data: {which}{len(chosen)} of {len(records)} samples of the {source} are the {name} "
            f"split{f', which shares no {self.together} with the others' if shared else ''}"
        )
        rest = [record for i, record in enumerate(records) if i not in chosen]
        return rest, [records[i] for i in sorted(chosen)]


def _drawn_groups(groups: list[list[int]], count: int, seed: int) -> set[int]:
    """Return the members of groups that the seed draws, at most `count` if any group is so small.

    Groups of one member each are drawn as single samples.
    """
    draw = random.Random(seed)
    if all(len(group) == 1 for group in groups):
        return {groups[i][0] for i in draw.sample(range(len(groups)), count)}
    chosen: set[int] = set()
    for i in draw.sample(range(len(groups)), len(groups)):
        if len(chosen) + len(groups[i]) <= count:
            chosen.update(groups[i])
    smallest = min(groups, key=len)
    return chosen or set(smallest)


def shared_value(record: Record, column: str) -> str | bytes | None:
    """Return a value that is equal for records with the same text, picture or sound.

    Args:
        record: holds a text, the name or the bytes of a file, or what a data set decoded.
        column: that holds it.

    Returns:
        The value; None if the record has none.
    """
    value: Any = record.values.get(column)
    if isinstance(value, Mapping):  # as data sets store files
        value = value.get("bytes") or value.get("path") or value.get("array")
    if hasattr(value, "tobytes"):  # of a picture of PIL, or of an array
        with told(f"{record.place}: column {column!r} cannot be read"):
            value = hashlib.sha256(value.tobytes()).digest()
    return value if isinstance(value, (str, bytes)) and value else None


def _drawn(records: list[Record], options: Options, name: str, notes: list[str]) -> list[Record]:
    if options.samples is None or len(records) <= options.samples:
        return records
    chosen = random.Random(options.seed).sample(range(len(records)), options.samples)
    notes.append(f"data: {options.samples} of {len(records)} samples of the {name} are used")
    return [records[i] for i in sorted(chosen)]

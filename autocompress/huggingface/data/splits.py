"""Read the splits of the data, and cut those that are missing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from autocompress.errors import TaskError
from autocompress.huggingface.data.records import Record, read_records
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
    options: Options, regroup: Callable[[list[Record]], list[Record]] | None = None
) -> Splits:
    """Read the splits of the data.

    Args:
        options: name the files.
        regroup: records of a file -> the samples that splits are made of, in their order in one
            text; None takes the records.

    Returns:
        The splits; each with at most `options.samples` samples, drawn by the seed.

    Raises:
        TaskError: there is no data, a file cannot be read, or it is too small to be cut.
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
    train, validation, test = map(read, (options.data, options.validation, options.test))
    if validation is None:
        assert train is not None
        train, validation = _cut(
            train, options.seed, "training data", "validation", notes, one_text
        )
    if test is None:
        source = validation if train is None else train
        if len(source) < LEAST:
            notes.append(f"data: {len(source)} samples are too few to cut a test split from")
        elif train is None:
            validation, test = _cut(source, options.seed + 1, "validation", "test", notes, one_text)
        else:
            train, test = _cut(source, options.seed + 1, "training data", "test", notes, one_text)
    if train is None:
        notes.append("data: training sees the inputs of the validation split, without labels")
    return Splits(
        None if train is None else _drawn(train, options, "training data", notes),
        _drawn(validation, options, "validation", notes),
        None if test is None else _drawn(test, options, "test", notes),
        tuple(notes),
    )


def _cut(
    records: list[Record], seed: int, source: str, name: str, notes: list[str], one_text: bool
) -> tuple[list[Record], list[Record]]:
    """Return the rest and the cut part, both in the order of the file.

    The cut part is drawn by the seed; of one text it is the end.
    """
    if len(records) < LEAST:
        raise TaskError(
            f"{records[0].place}: {len(records)} samples are too few to cut a {name} split from; "
            f"nearest: --{name} FILE"
        )
    count = min(MOST_CUT, max(1, round(CUT * len(records))))
    chosen = set(random.Random(seed).sample(range(len(records)), count))
    which = "the last " if one_text else ""
    if one_text:
        chosen = set(range(len(records) - count, len(records)))
    notes.append(
        f"data: {which}{count} of {len(records)} samples of the {source} are the {name} split"
    )
    rest = [record for i, record in enumerate(records) if i not in chosen]
    return rest, [records[i] for i in sorted(chosen)]


def _drawn(records: list[Record], options: Options, name: str, notes: list[str]) -> list[Record]:
    if options.samples is None or len(records) <= options.samples:
        return records
    chosen = random.Random(options.seed).sample(range(len(records)), options.samples)
    notes.append(f"data: {options.samples} of {len(records)} samples of the {name} are used")
    return [records[i] for i in sorted(chosen)]

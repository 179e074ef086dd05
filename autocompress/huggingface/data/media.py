"""Give batches of pictures or sounds, which are read when they are asked for."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import Collect, padded, token_length
from autocompress.huggingface.data.encoding import Row
from autocompress.huggingface.data.reading.cells import unpacked
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.extra import quiet, told
from autocompress.huggingface.options import Options

Read = Callable[[Sequence[Record]], dict[str, Tensor]]  # records -> inputs of the model
LABELS = "labels"  # what is read under this name is the target of a batch


def media_file(record: Record, column: str, what: str) -> Path | io.BytesIO:
    """Return the file of a picture or sound.

    Args:
        record: names a file relative to its folder, or holds the bytes of one.
        column: that holds it.
        what: "picture" or "sound", for messages.

    Returns:
        A path to a file that is there, or the bytes.

    Raises:
        TaskError: there is no such file, or the record holds something else.
    """
    value: Any = record.values.get(column)
    if isinstance(value, str) and value[:1] == "{":
        value = unpacked(value, column, record.place)
    if isinstance(value, Mapping):  # as data sets store them
        value = io.BytesIO(value["bytes"]) if value.get("bytes") else value.get("path")
    if isinstance(value, str) and value:
        value = record.folder / value
        if not value.is_file():
            raise TaskError(f"{record.place}: no {what} {value}")
    if isinstance(value, (Path, io.BytesIO)):
        return value
    raise TaskError(
        f"{record.place}: column {column!r} must name a {what}, got {str(value)[:40]!r}"
    )


def processed(processor: Any, what: str, place: str, *media: Any, **arguments: Any) -> Any:
    """Return what a processor makes of pictures or sounds.

    Args:
        processor: of the folder.
        what: its name in the error.
        place: of the first record, for the error.
        media: for the processor.
        arguments: for the processor.

    Returns:
        Mapping of tensors.

    Raises:
        TaskError: the processor fails.
    """
    with quiet(), told(f"{place}: the {what} fails"):
        return processor(*media, **arguments, return_tensors="pt")


class MediaBatches:
    """Give batches of pictures or sounds, with the texts of the same samples; re-iterable.

    Args:
        records: of one split.
        read: turns records into inputs of the model, and into "labels" if they are read with them.
        targets: of the records; None if there are none.
        collect: joins the targets of a batch.
        options: batch size, and the seed of the order.
        rows: the tokens of each sample; None without texts.
        padding: argument -> number that fills up short rows.
    """

    def __init__(
        self,
        records: Sequence[Record],
        read: Read,
        targets: Sequence[Any] | None,
        collect: Collect,
        options: Options,
        rows: Sequence[Row] | None = None,
        padding: Mapping[str, int] | None = None,
    ) -> None:
        self.records, self.read, self.collect = records, read, collect
        self.targets = [None] * len(records) if targets is None else targets
        self.rows, self.padding = rows, padding or {}
        self.size, self.least = options.samples_of_batch, options.fixed_length
        self.order = list(range(len(records)))
        random.Random(options.seed).shuffle(self.order)

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Any]]:
        for start in range(0, len(self.order), self.size):
            chosen = self.order[start : start + self.size]
            inputs: dict[str, Tensor] = {}
            if self.rows is not None:
                inputs = padded([self.rows[i] for i in chosen], self.padding, self.least)
            length = token_length(inputs) if inputs else 0
            inputs |= self.read([self.records[i] for i in chosen])
            target = inputs.pop(LABELS, None)
            if target is None:
                target = self.collect([self.targets[i] for i in chosen], length)
            yield inputs, target

    def example(self, count: int) -> dict[str, Tensor]:
        """Return the picture or sound at which latency is measured.

        Args:
            count: samples.

        Returns:
            The inputs of the first record, repeated.

        Raises:
            TaskError: it cannot be read.
        """
        first = self.read(self.records[:1])
        first.pop(LABELS, None)
        return {name: torch.cat([values] * count) for name, values in first.items()}

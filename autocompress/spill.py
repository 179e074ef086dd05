"""Keep large tensors in a temporary file.

Statistics of all layers together are larger than the model: a layer with n inputs has n^2 of them.
So are the outputs of a language model on a split.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from autocompress.cache import cache_folder

LEAST_BYTES = 1 << 20  # smaller tensors stay in memory
RESERVE_BYTES = 1 << 30  # free bytes of the disk that are left to results
ROWS_IN_MEMORY = 64 << 20  # first bytes of `SpilledRows`
ROWS_BYTES = 4 << 30  # most bytes of `SpilledRows`

T = TypeVar("T")


@dataclass(frozen=True)
class _Place:
    """Hold where a tensor lies in the file."""

    start: int
    shape: torch.Size
    dtype: np.dtype[Any]


class Spilled(Mapping[str, T], Generic[T]):
    """Map names to dataclasses of tensors, the large ones of which lie on disk.

    Each lookup reads a new object. The file has no name, so that nothing is left behind however
    the process ends. Tensors that do not fit on the disk stay in memory.
    """

    def __init__(self, items: Iterable[tuple[str, T]] = (), least_bytes: int | None = None) -> None:
        """Take the items one by one.

        Args:
            items: (name, frozen dataclass) pairs; tensors in its fields are on the CPU.
            least_bytes: of a tensor that is put into the file; default: `LEAST_BYTES`.
        """
        self._least_bytes = LEAST_BYTES if least_bytes is None else least_bytes
        self._file: Any = None
        self._end = 0
        self._items: dict[str, tuple[type[T], dict[str, Any]]] = {}
        for name, item in items:
            self.put(name, item)

    def put(self, name: str, item: T) -> None:
        """Add an item, or replace one: in its place in the file where sizes are equal.

        Args:
            name: of the item.
            item: frozen dataclass; tensors in its fields are on the CPU.
        """
        _, old = self._items.get(name, (None, {}))
        values = {}
        for field in fields(item):  # type: ignore[arg-type]
            values[field.name] = self._stored(getattr(item, field.name), old.get(field.name))
        self._items[name] = type(item), values

    def is_on_disk(self, name: str) -> bool:
        """Return True if all tensors of an item are in the file.

        Args:
            name: of the item.
        """
        values = self._items[name][1].values()
        return not any(isinstance(value, Tensor) for value in values)

    def drop(self, name: str) -> None:
        """Forget an item; its place in the file is not used again.

        Args:
            name: of the item.
        """
        del self._items[name]

    def rows(self, name: str, field: str, first: int, count: int) -> Tensor:
        """Return some rows of one tensor of an item; no others are read.

        Args:
            name: of the item.
            field: of the tensor (n, ...).
            first: index of the first row.
            count: number of rows, at most n - first.

        Returns:
            (count, ...).
        """
        value = self._items[name][1][field]
        if not isinstance(value, _Place):
            return cast(Tensor, value[first : first + count])
        shape = torch.Size((count, *value.shape[1:]))
        start = value.start + first * shape[1:].numel() * value.dtype.itemsize
        return cast(Tensor, self._read(_Place(start, shape, value.dtype)))

    def __getitem__(self, name: str) -> T:
        kind, values = self._items[name]
        return kind(**{field: self._read(value) for field, value in values.items()})

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def _stored(self, value: Any, old: Any) -> Any:
        if not isinstance(value, Tensor) or value.nbytes < self._least_bytes:
            return value
        array, folder, start = value.detach().contiguous().numpy(), cache_folder(), self._end
        content = array.reshape(-1).view(np.uint8).data
        place = _Place(start, value.shape, array.dtype)
        if isinstance(old, _Place) and (old.shape, old.dtype) == (place.shape, place.dtype):
            with suppress(OSError):
                self._write(content, old.start)
                return old
        try:
            if self._file is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            if shutil.disk_usage(folder).free < value.nbytes + RESERVE_BYTES:
                return value
            self._end = self._write(content, start)
        except OSError:
            if self._file is not None:  # what was written of it would fill the disk
                with suppress(OSError):
                    os.ftruncate(self._file.fileno(), start)
            return value
        return place

    def _write(self, content: memoryview, start: int) -> int:
        """Write at a place of the file, and return the end of what was written."""
        while len(content):
            written = os.pwrite(self._file.fileno(), content, start)
            start, content = start + written, content[written:]
        return start

    def _read(self, value: Any) -> Any:
        if not isinstance(value, _Place):
            return value
        array = np.empty(tuple(value.shape), value.dtype)
        content, start = array.reshape(-1).view(np.uint8).data, value.start
        while len(content):
            read = os.preadv(self._file.fileno(), [content], start)
            if not read:
                raise OSError(f"the temporary file in {cache_folder()} was cut")
            start, content = start + read, content[read:]
        return torch.from_numpy(array)


@dataclass(frozen=True)
class _Part:
    """Hold rows that were added together."""

    rows: Tensor


class SpilledRows(Generic[T]):
    """Keep rows of tensors, in memory up to `ROWS_IN_MEMORY` and then on disk up to `ROWS_BYTES`.

    Rows above that, or that the disk has no room for, are computed again.
    """

    def __init__(self, again: Callable[[T], Tensor]) -> None:
        """Begin without rows.

        Args:
            again: what rows are made of -> the rows.
        """
        self._again = again
        self._spilled: Spilled[_Part] = Spilled(least_bytes=0)
        self._in_memory: dict[int, Tensor] = {}
        self._ends: list[int] = []
        self._bytes = 0

    def add(self, rows: Tensor) -> None:
        """Add rows behind the others.

        Args:
            rows: (n, ...) on the CPU; nothing writes to them afterwards.
        """
        part, self._bytes = len(self._ends), self._bytes + rows.nbytes
        self._ends.append(len(self) + len(rows))
        if self._bytes <= ROWS_IN_MEMORY:
            self._in_memory[part] = rows
        elif self._bytes <= ROWS_BYTES:
            self._spilled.put(str(part), _Part(rows))
            if not self._spilled.is_on_disk(str(part)):
                self._spilled.drop(str(part))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def take(self, places: Sequence[int], source: T) -> Tensor:
        """Return some rows.

        Args:
            places: of rows of one shape, in any order, counted in the order of `add`.
            source: what these rows are made of, all of them and no others.

        Returns:
            (places, ...) in the order of `places`.
        """
        found: list[Tensor] = []
        at = 0
        while at < len(places):
            part = bisect_right(self._ends, places[at])
            count = 1
            while (
                at + count < len(places)
                and places[at + count] == places[at] + count < self._ends[part]
            ):
                count += 1
            rows = self._rows(part, places[at], count)
            if rows is None:
                return self._again(source)
            found.append(rows)
            at += count
        if not found:
            return self._again(source)
        return found[0] if len(found) == 1 else torch.cat(found)

    def _rows(self, part: int, place: int, count: int) -> Tensor | None:
        """Return `count` rows of one part from a place on; None if it is not kept."""
        first = place - (self._ends[part - 1] if part else 0)
        if part in self._in_memory:
            return self._in_memory[part][first : first + count]
        if str(part) not in self._spilled:
            return None
        return self._spilled.rows(str(part), "rows", first, count)

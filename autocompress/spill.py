"""Keep large tensors in a temporary file.

Statistics of all layers together are larger than the model: a layer with n inputs has n^2 of them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from autocompress.cache import cache_folder

LEAST_BYTES = 1 << 20  # smaller tensors stay in memory
RESERVE_BYTES = 1 << 30  # free bytes of the disk that are left to results

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

    def __init__(self, items: Iterable[tuple[str, T]] = ()) -> None:
        """Take the items one by one.

        Args:
            items: (name, frozen dataclass) pairs; tensors in its fields are on the CPU.
        """
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

    def drop(self, name: str) -> None:
        """Forget an item; its place in the file is not used again.

        Args:
            name: of the item.
        """
        del self._items[name]

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
        if not isinstance(value, Tensor) or value.nbytes < LEAST_BYTES:
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

"""Keep memory small: large tensors in a temporary file, and free memory back to the system.

Statistics of all layers together are larger than the model: a layer with n inputs has n^2 of them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
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

    def __init__(self, items: Iterable[tuple[str, T]]) -> None:
        """Take the items one by one.

        Args:
            items: (name, frozen dataclass) pairs; tensors in its fields are on the CPU.
        """
        self._file: Any = None
        self._end = 0
        self._items: dict[str, tuple[type[T], dict[str, Any]]] = {}
        for name, item in items:
            values = {}
            for field in fields(item):  # type: ignore[arg-type]
                values[field.name] = self._stored(getattr(item, field.name))
            self._items[name] = type(item), values

    def __getitem__(self, name: str) -> T:
        kind, values = self._items[name]
        return kind(**{field: self._read(value) for field, value in values.items()})

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def _stored(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.nbytes < LEAST_BYTES:
            return value
        array, folder, start = value.detach().contiguous().numpy(), cache_folder(), self._end
        try:
            if self._file is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            if shutil.disk_usage(folder).free < value.nbytes + RESERVE_BYTES:
                return value
            content = array.reshape(-1).view(np.uint8).data
            while len(content):
                written = os.pwrite(self._file.fileno(), content, self._end)
                self._end, content = self._end + written, content[written:]
        except OSError:
            if self._file is not None:  # what was written of it would fill the disk
                with suppress(OSError):
                    os.ftruncate(self._file.fileno(), start)
                self._end = start
            return value
        return _Place(start, value.shape, array.dtype)

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


def release_memory() -> None:
    """Give free memory back to the system.

    The allocator of Linux keeps what is freed between blocks in use: after an export that is more
    than the model. Other systems are left alone.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)

"""Write graphs whose weights lie in a file beside them.

They do where one ONNX file cannot hold them, and where a graph has towers: these have graphs of
their own, which read the same weights.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper

from autocompress.export.float_graph.towers import cut, noted_towers
from autocompress.measure.size import FILE_BYTES, GRAPH_BYTES
from autocompress.results.files import MODEL_FILE, disk_error, write_atomic, write_parts
from autocompress.targets.device.sessions import DATA_SUFFIX, TOWERS, tower_file

LEAST_APART = 1 << 10  # bytes of a tensor that lies in the other file
PAGE = 4096  # bytes; weights begin at pages, where a system maps them into memory
BITS = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    getattr(TensorProto, "INT2", -1): 2,
    getattr(TensorProto, "UINT2", -1): 2,
}
Content = Callable[[TensorProto], Any]  # returns what a file's `write` takes


class _Apart(NamedTuple):
    """Hold a graph without its large tensors, and where these lie in the other file."""

    bare: ModelProto
    tensors: list[tuple[int, TensorProto]]
    end: int


def needs_other_file(proto: ModelProto) -> bool:
    """Return True if one ONNX file cannot hold a graph, or its towers read its weights too.

    Args:
        proto: the graph; its initializers may be set aside.
    """
    if noted_towers(proto):
        return True
    total = sum(map(_bytes_of, proto.graph.initializer))
    return total > FILE_BYTES - GRAPH_BYTES


def file_bytes(proto: ModelProto) -> int:
    """Return the bytes of the model.onnx of a graph, and of the files beside it if there are some.

    Args:
        proto: the graph; its initializers may be set aside.
    """
    if not needs_other_file(proto):
        return int(proto.ByteSize())
    apart = _apart(proto, MODEL_FILE)
    towers = [cut(apart.bare, tower) for tower in noted_towers(proto)]
    return sum(int(graph.ByteSize()) for graph in (apart.bare, *towers)) + apart.end


def write_apart(path: Path, proto: ModelProto, content: Content) -> int:
    """Write a graph, its large weights, one at a time, and the graphs of its towers.

    Args:
        path: of the graph; the weights get its name with ".data" behind it, and towers theirs.
        proto: the graph, which is not changed.
        content: returns the bytes of an initializer.

    Returns:
        Bytes of all files.

    Raises:
        RunFolderError: a file cannot be written.
    """
    apart = _apart(proto, path.name)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            for offset, tensor in apart.tensors:
                file.seek(offset)
                file.write(content(tensor))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, data_of(path))
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise disk_error(path, error) from error
    graphs = {path: apart.bare}
    for tower in noted_towers(proto):
        graphs[tower_file(path, tower.name)] = cut(apart.bare, tower)
    size = apart.end
    for place, graph in graphs.items():
        data = graph.SerializeToString(deterministic=True)
        write_atomic(place, data)
        size += len(data)
    return size


def write_whole(path: Path, parts: Iterable[bytes]) -> int:
    """Write a graph that has all of its weights, and remove weights that lay beside an earlier one.

    Args:
        path: of the graph.
        parts: its content; one at a time is in memory.

    Returns:
        Bytes of the file.

    Raises:
        RunFolderError: the file cannot be written.
    """
    write_parts(path, parts)
    data_of(path).unlink(missing_ok=True)
    return path.stat().st_size


def data_of(path: Path) -> Path:
    """Return the file of the weights beside a graph, which need not be there.

    Args:
        path: of the graph.
    """
    return path.with_name(f"{path.name}{DATA_SUFFIX}")


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, and of the weights and towers beside it if there are some.

    Args:
        path: of the graph.
    """
    sum_of = hashlib.sha256()
    for part in (path, data_of(path), *(tower_file(path, name) for name in TOWERS)):
        if part == path or part.is_file():
            with part.open("rb") as file:
                while block := file.read(1 << 24):
                    sum_of.update(block)
    return sum_of.hexdigest()


def _apart(proto: ModelProto, name: str) -> _Apart:
    """Return a graph without its large tensors; the small parts are copied."""
    bare, tensors, end = ModelProto(), [], 0
    copy_fields(proto, bare, lambda number: number != ModelProto.GRAPH_FIELD_NUMBER)
    copy_fields(
        proto.graph, bare.graph, lambda number: number != GraphProto.INITIALIZER_FIELD_NUMBER
    )
    for tensor in proto.graph.initializer:
        size = _bytes_of(tensor)
        if size < LEAST_APART or not _is_raw(tensor):
            bare.graph.initializer.append(tensor)
            continue
        offset = -(-end // PAGE) * PAGE
        tensors.append((offset, tensor))
        end = offset + size
        other = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        other.data_location = TensorProto.EXTERNAL
        for key, value in _entries(name, offset, size):
            other.external_data.add(key=key, value=value)
        bare.graph.initializer.append(other)
    return _Apart(bare, tensors, end)


def _entries(name: str, offset: int, size: int) -> Iterator[tuple[str, str]]:
    """Yield what tells where the content of a tensor lies."""
    yield "location", f"{name}{DATA_SUFFIX}"
    yield "offset", str(offset)
    yield "length", str(size)


def copy_fields(source: Any, target: Any, is_wanted: Callable[[int], bool]) -> None:
    """Copy some fields of a message; the content of the others may be large.

    Args:
        source: a message of protobuf.
        target: a message of the same type, which gets them.
        is_wanted: returns True for the number of a field to copy.
    """
    for field, value in source.ListFields():
        if not is_wanted(field.number):
            continue
        own = getattr(target, field.name)
        if hasattr(own, "extend"):
            own.extend(value)
        elif hasattr(own, "CopyFrom"):
            own.CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _is_raw(tensor: TensorProto) -> bool:
    """Return True if the content of a tensor is set aside, or are bytes and not numbers."""
    return tensor.data_location == TensorProto.EXTERNAL or tensor.HasField("raw_data")


def _bytes_of(tensor: TensorProto) -> int:
    """Return the bytes of a tensor's content, without looking at it."""
    count: int = math.prod(tensor.dims)
    bits: int | None = BITS.get(tensor.data_type)
    if bits is None:
        bits = 8 * int(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)
    return -(-count * bits // 8)

"""Read nodes and weights of an ONNX file from its bytes, since a device need not have `onnx`."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Numbers of fields in onnx.proto.
GRAPH, METADATA = 7, 14  # of ModelProto
NODE, INITIALIZER = 1, 5  # of GraphProto
INPUT, OUTPUT, NAME, OPERATOR, ATTRIBUTE = 1, 2, 3, 4, 5  # of NodeProto
ONE_TENSOR, ONE_GRAPH, TENSORS, GRAPHS = 5, 6, 10, 11  # of AttributeProto
DIMS, TENSOR_NAME, RAW_DATA, EXTERNAL_DATA, LOCATION = 1, 8, 9, 13, 14  # of TensorProto
EXTERNAL = 1  # value of LOCATION
PACKED = (4, 5, 7, 10, 11)  # fields of TensorProto that hold values instead of raw data
KEY, VALUE = 1, 2  # of StringStringEntryProto

FLAT = b"TFL3"  # bytes 4 to 8 of a .tflite file
FEWEST_VALUES = 16  # fewer values than these may well be equal in different weights
# An odd number: multiplying by it maps 64-bit numbers one to one.
MIX = np.uint64(0x9E3779B97F4A7C15)


class GraphNode(NamedTuple):
    """Hold one operator: its name, the names of its input and output tensors, and its type."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operator: str = ""


@dataclass(frozen=True)
class GraphFile:
    """Hold the graph of an ONNX file.

    Attributes:
        nodes: in the file's order, without those of bodies and functions.
        constants: serialized TensorProto of each initializer, by name.
    """

    nodes: tuple[GraphNode, ...]
    constants: Mapping[str, memoryview]

    @classmethod
    def read(cls, model: bytes | mmap.mmap) -> GraphFile:
        """Read a graph.

        Args:
            model: serialized ModelProto, whose content is not copied.
        """
        nodes, constants = [], {}
        for graph in _parts(memoryview(model), GRAPH):
            for node in _parts(graph, NODE):
                texts: dict[int, list[str]] = {INPUT: [], OUTPUT: [], NAME: [], OPERATOR: []}
                for number, value in _fields(node):
                    if number in texts and not isinstance(value, int):
                        texts[number].append(str(value, "utf-8"))
                ends = (tuple(texts[INPUT]), tuple(texts[OUTPUT]))
                nodes.append(GraphNode("".join(texts[NAME]), *ends, "".join(texts[OPERATOR])))
            for tensor in _parts(graph, INITIALIZER):
                constants[_text(tensor, TENSOR_NAME)] = tensor
        return cls(tuple(nodes), constants)

    @classmethod
    def of(cls, model: bytes | str) -> GraphFile:
        """Read a graph; the weights of a file stay on the disk.

        Args:
            model: content or path of an ONNX file, or of a .tflite file.
        """
        if is_flat(model):
            from .litert.operators import flat_graph

            return flat_graph(model)
        return cls.read(_content(model))

    @cached_property
    def names(self) -> frozenset[str]:
        """Return the names of all initializers and of all outputs of nodes."""
        outputs = {output for node in self.nodes for output in node.outputs}
        return frozenset(self.constants) | outputs

    def is_weight(self, name: str) -> bool:
        """Return True if a tensor is a constant of two or more dimensions, as weights are.

        Args:
            name: of a tensor.
        """
        return name in self.constants and _rank(self.constants[name]) >= 2

    def values_hash(self, name: str, folder: Path | None = None) -> tuple[int, int] | None:
        """Return a hash of a constant's values that neither their order nor added zeros change.

        Layouts for kernels reorder values and pad them with zeros.

        Args:
            name: of an initializer.
            folder: holds the files of external data.

        Returns:
            (count, sum of mixed 32-bit words) of all words but zeros. None if they are too few to
            tell weights apart.
        """
        words = _words(self.constants[name], folder)
        words = words[words != 0].astype(np.uint64)
        if len(words) < FEWEST_VALUES:
            return None
        mixed = words * MIX
        mixed = (mixed ^ (mixed >> np.uint64(29))) * MIX
        return len(words), int(mixed.sum(dtype=np.uint64))


def is_flat(model: bytes | str) -> bool:
    """Return True for a .tflite file.

    Args:
        model: content or path of a file.
    """
    if isinstance(model, bytes):
        return model[4:8] == FLAT
    with open(model, "rb") as file:
        return file.read(8)[4:] == FLAT


def external_files(path: str) -> set[Path]:
    """Return the files that hold external data of an ONNX file.

    Args:
        path: of the ONNX file; .tflite files have none.
    """
    files: set[Path] = set()
    if is_flat(path):
        return files
    for graph in _parts(memoryview(_content(path)), GRAPH):
        for tensor in _tensors(graph):
            for entry in _parts(tensor, EXTERNAL_DATA):
                if _text(entry, KEY) == "location":
                    files.add(Path(path).parent / _text(entry, VALUE))
    return files


def without_weights(path: str, least: int) -> bytes:
    """Return the graph of an ONNX file, whose large weights are external data of the same file.

    A runtime maps such weights from the disk, where it copies those of a whole file twice.

    Args:
        path: of the ONNX file.
        least: bytes from which on a weight is left where it is.
    """
    content = _content(path)
    start = _address(memoryview(content))
    parts = []
    for number, value in _fields(memoryview(content)):
        if number != GRAPH or isinstance(value, int):
            parts.append(_message(number, value))
            continue
        graph = []
        for inner, part in _fields(value):
            if inner == INITIALIZER and not isinstance(part, int):
                graph.append(_left_out(part, start, Path(path).name, least))
            else:
                graph.append(_message(inner, part))
        parts.append(_message(GRAPH, b"".join(graph)))
    return b"".join(parts)


def _left_out(tensor: memoryview, start: int, file: str, least: int) -> bytes:
    """Return an initializer as a field of its graph; its content stays in the file if it is large.

    `start` is the address of the file in memory.
    """
    raw = next(_parts(tensor, RAW_DATA), memoryview(b""))
    if len(raw) < least:
        return _message(INITIALIZER, tensor)
    fields = [_message(number, value) for number, value in _fields(tensor) if number != RAW_DATA]
    where = {"location": file, "offset": str(_address(raw) - start), "length": str(len(raw))}
    for key, value in where.items():
        entry = _message(KEY, key.encode()) + _message(VALUE, value.encode())
        fields.append(_message(EXTERNAL_DATA, entry))
    fields.append(_message(LOCATION, EXTERNAL))
    return _message(INITIALIZER, b"".join(fields))


def _address(part: memoryview) -> int:
    """Return the address of bytes in memory."""
    return int(np.frombuffer(part, np.uint8).ctypes.data)


def _message(number: int, value: int | bytes | memoryview) -> bytes:
    """Return a field of a protobuf message: its number and type, its length, its content."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return b"".join((_varint(number << 3 | 2), _varint(len(value)), value))


def _varint(number: int) -> bytes:
    """Return a number with 7 bits per byte; the last byte is below 128."""
    content = bytearray()
    while number > 127:
        content.append(number & 127 | 128)
        number >>= 7
    return bytes([*content, number])


def metadata(model: bytes | str) -> dict[str, str]:
    """Return the notes of an ONNX file.

    Args:
        model: content or path of the file; .tflite files have none.
    """
    if is_flat(model):
        return {}
    entries = _parts(memoryview(_content(model)), METADATA)
    return {_text(entry, KEY): _text(entry, VALUE) for entry in entries}


def _tensors(graph: memoryview) -> Iterator[memoryview]:
    """Yield the constants of a graph, and of the bodies of its branches and loops."""
    yield from _parts(graph, INITIALIZER)
    for node in _parts(graph, NODE):
        for attribute in _parts(node, ATTRIBUTE):
            for number in (ONE_TENSOR, TENSORS):
                yield from _parts(attribute, number)
            for number in (ONE_GRAPH, GRAPHS):
                for body in _parts(attribute, number):
                    yield from _tensors(body)


def _content(model: bytes | str) -> bytes | mmap.mmap:
    """Return the content of a file, which stays on the disk, or the bytes themselves."""
    if isinstance(model, bytes):
        return model
    with open(model, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _rank(tensor: memoryview) -> int:
    """Return the number of dimensions of a TensorProto, which come one by one or packed."""
    rank = 0
    for number, value in _fields(tensor):
        if number == DIMS:
            rank += 1 if isinstance(value, int) else sum(byte < 128 for byte in value)
    return rank


def _words(tensor: memoryview, folder: Path | None) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return the values of a TensorProto as 32-bit words."""
    content: bytes | memoryview = b""
    for number in (RAW_DATA, *PACKED):
        content = b"".join((content, *_parts(tensor, number)))
    where = {_text(entry, KEY): _text(entry, VALUE) for entry in _parts(tensor, EXTERNAL_DATA)}
    if (
        not content
        and folder is not None
        and "location" in where
        and (folder / where["location"]).is_file()
    ):
        with (folder / where["location"]).open("rb") as file:
            file.seek(int(where.get("offset", 0)))
            content = file.read(int(where.get("length", -1)))
    return np.frombuffer(content, np.uint32, len(content) // 4)


def _text(message: memoryview, number: int) -> str:
    return "".join(str(part, "utf-8") for part in _parts(message, number))


def _parts(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield the contents of the length-delimited fields of a number."""
    for number, value in _fields(message):
        if number == wanted and not isinstance(value, int):
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (number, content) of the fields of a protobuf message, without those of fixed width."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = varint()
        kind = tag & 7
        if kind == 2:
            size = varint()
            yield tag >> 3, message[at : at + size]
            at += size
        elif kind == 0:
            yield tag >> 3, varint()
        else:
            at += 8 if kind == 1 else 4

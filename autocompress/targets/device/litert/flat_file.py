"""Collect tensors and operators of a .tflite file, and write them as a flatbuffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph_file import FLAT

Array = NDArray[Any]
VERSION = 3  # of the format
INT4 = "int4"
TYPES = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "int64": "INT64",
    "int32": "INT32",
    "int16": "INT16",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
    INT4: "INT4",
}
# Versions of operators whose kernels differ by version; the others are 1.
LARGEST_VERSIONS = {
    "FULLY_CONNECTED": 12,
    "CONV_2D": 8,
    "DEPTHWISE_CONV_2D": 7,
    "DEQUANTIZE": 6,
    "BROADCAST_TO": 2,
}


@cache
def schema() -> Any:
    """Return the module with the classes of the format, of an optional dependency."""
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


@dataclass(frozen=True)
class Rows:
    """Hold the scales of integers.

    Attributes:
        scale: (n,) positive, one per index of `axis`, or one in all.
        axis: dimension of the scales.
        zero: integer that stands for 0.
    """

    scale: Array
    axis: int = 0
    zero: int = 0


@dataclass
class FlatFile:
    """Collect one file.

    Attributes:
        tensors: in the order of their numbers.
        operators: in the order of computation.
        inputs: numbers of the tensors that are fed.
        outputs: numbers of the tensors that are returned.
    """

    tensors: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    _buffers: list[Any] = field(default_factory=list)
    _codes: dict[str, int] = field(default_factory=dict)
    _shared: dict[tuple[str, tuple[int, ...], bytes] | None, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._buffers.append(schema().BufferT())  # of all tensors without content

    def tensor(
        self, shape: Sequence[int], kind: str, name: str = "", rows: Rows | None = None
    ) -> int:
        """Add a tensor that an operator writes or that is fed.

        Args:
            shape: its dimensions.
            kind: a key of `TYPES`.
            name: for users; "" for none, which takes no bytes.
            rows: scale of integers that stand for floats.

        Returns:
            Its number.
        """
        return self._add(shape, kind, 0, name, rows)

    def like(self, number: int, shape: Sequence[int]) -> int:
        """Add a tensor with the type and the scale of another one, whose elements it gets.

        Args:
            number: of the other one.
            shape: its dimensions.

        Returns:
            Its number.
        """
        new = self._add(shape, "float32", 0, "", None)
        self.tensors[new].type = self.tensors[number].type
        self.tensors[new].quantization = self.tensors[number].quantization
        return new

    def constant(
        self, values: Array, name: str = "", rows: Rows | None = None, kind: str = ""
    ) -> int:
        """Add a constant; equal shapes, axes and single numbers are one.

        Weights and biases never are, so that the size of a file does not depend on their values.

        Args:
            values: its content.
            name: as in `tensor`.
            rows: scales of integers.
            kind: a key of `TYPES`, for integers of 4 bits; "" for the type of the array.

        Returns:
            Its number.
        """
        content = np.ascontiguousarray(values)
        kind = kind or content.dtype.name
        data = packed_nibbles(content) if kind == INT4 else content.reshape(-1).view(np.uint8)
        key = None
        if rows is None and not name and (values.dtype.kind in "iub" or values.ndim == 0):
            key = (kind, values.shape, data.tobytes())
        if key in self._shared:
            return self._shared[key]
        buffer = schema().BufferT()
        buffer.data = data
        self._buffers.append(buffer)
        number = self._add(values.shape, kind, len(self._buffers) - 1, name, rows)
        if key is not None:
            self._shared[key] = number
        return number

    def _add(
        self, shape: Sequence[int], kind: str, buffer: int, name: str, rows: Rows | None
    ) -> int:
        tensor = schema().TensorT()
        tensor.shape = [int(size) for size in shape]
        tensor.type = getattr(schema().TensorType, TYPES[kind])
        tensor.buffer = buffer
        tensor.name = name or None
        tensor.hasRank = not tensor.shape
        if rows is not None:
            scales = schema().QuantizationParametersT()
            scales.scale = np.asarray(rows.scale, np.float32)
            scales.zeroPoint = np.full(len(rows.scale), rows.zero, np.int64)
            scales.quantizedDimension = rows.axis
            tensor.quantization = scales
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def add(
        self,
        code: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        kind: str = "",
        **options: Any,
    ) -> None:
        """Add an operator.

        Args:
            code: a name of `BuiltinOperator`.
            inputs: numbers of tensors; -1 leaves an optional one out.
            outputs: numbers of tensors.
            kind: name of the table of its options; "" if it has none.
            **options: fields of that table.
        """
        operator = schema().OperatorT()
        operator.opcodeIndex = self._codes.setdefault(code, len(self._codes))
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if kind:
            table = getattr(schema(), f"{kind}T")()
            for name, value in options.items():
                setattr(table, name, value)
            operator.builtinOptionsType = getattr(schema().BuiltinOptions, kind)
            operator.builtinOptions = table
        self.operators.append(operator)

    def content(self) -> bytes:
        """Return the content of the file; equal files are equal bytes."""
        graph = schema().SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = self.inputs, self.outputs
        model = schema().ModelT()
        model.version, model.subgraphs, model.buffers = VERSION, [graph], self._buffers
        model.operatorCodes = [self._code(name) for name in self._codes]
        builder = sharing_builder()
        builder.Finish(model.Pack(builder), file_identifier=FLAT)
        return bytes(builder.Output())

    def _code(self, name: str) -> Any:
        code = schema().OperatorCodeT()
        number = getattr(schema().BuiltinOperator, name)
        code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
        code.version = LARGEST_VERSIONS.get(name, 1)
        return code


def sharing_builder() -> Any:
    """Return a builder that writes equal zero points once.

    They take 8 bytes each, and LiteRT asks for one per scale.
    """
    import flatbuffers

    base: Any = flatbuffers.Builder
    written: dict[bytes, int] = {}

    def vector(self: Any, values: Array) -> int:
        if values.dtype != np.int64:
            return int(base.CreateNumpyVector(self, values))
        key = values.tobytes()
        if key not in written:
            written[key] = int(base.CreateNumpyVector(self, values))
        return written[key]

    return type("SharingBuilder", (base,), {"CreateNumpyVector": vector})(1 << 16)


def packed_nibbles(values: Array) -> Array:
    """Return integers of 4 bits, two in a byte, the first one in its lower half.

    Args:
        values: any shape, in [-8, 7].

    Returns:
        (bytes,) uint8.
    """
    flat = values.reshape(-1).astype(np.int8).view(np.uint8) & np.uint8(15)
    flat = np.pad(flat, (0, -len(flat) % 2))
    return np.asarray(flat[0::2] | (flat[1::2] << np.uint8(4)), np.uint8)

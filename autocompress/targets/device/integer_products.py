"""Find out whether integer products saturate here, without `onnx`, which a device need not have."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .graph_file import (
    DIMS,
    GRAPH,
    INITIALIZER,
    INPUT,
    NODE,
    OPERATOR,
    OUTPUT,
    RAW_DATA,
    TENSOR_NAME,
)
from .sessions import open_session

# More numbers of fields in onnx.proto.
IR_VERSION, OPSETS = 1, 8  # of ModelProto
VERSION = 2  # of OperatorSetIdProto
GRAPH_NAME, GRAPH_INPUT, GRAPH_OUTPUT = 2, 11, 12  # of GraphProto
VALUE_NAME, TYPE = 1, 2  # of ValueInfoProto
TENSOR_TYPE = 1  # of TypeProto
ELEMENT_TYPE, SHAPE = 1, 2  # of TypeProto.Tensor
DIMENSION = 1  # of TensorShapeProto
DATA_TYPE = 2  # of TensorProto
UINT8, INT8, INT32 = 2, 3, 6  # types of elements

COLUMNS, OUTPUTS = 64, 32


def product_model() -> bytes:
    """Return the content of a file with one MatMulInteger of "x" by the largest weights."""
    node = [_field(number, name) for number, name in ((INPUT, "x"), (INPUT, "w"), (OUTPUT, "y"))]
    weight = [_field(DIMS, size) for size in (COLUMNS, OUTPUTS)]
    weight += [_field(DATA_TYPE, INT8), _field(TENSOR_NAME, "w")]
    weight.append(_field(RAW_DATA, np.full((COLUMNS, OUTPUTS), 127, np.int8).tobytes()))
    graph = [
        _field(NODE, b"".join([*node, _field(OPERATOR, "MatMulInteger")])),
        _field(GRAPH_NAME, "product"),
        _field(INITIALIZER, b"".join(weight)),
        _field(GRAPH_INPUT, _value("x", UINT8)),
        _field(GRAPH_OUTPUT, _value("y", INT32)),
    ]
    opset = _field(OPSETS, _field(VERSION, 21))
    return _field(IR_VERSION, 10) + opset + _field(GRAPH, b"".join(graph))


def saturates(session: Any) -> bool:
    """Return True if the product comes out too small.

    Args:
        session: of `product_model`.
    """
    # A single row runs on another kernel.
    for rows in (1, 8):
        (product,) = session.run(None, {"x": np.full((rows, COLUMNS), 255, np.uint8)})
        if (product != COLUMNS * 255 * 127).any():
            return True
    return False


@cache
def products_here() -> str:
    """Return "exact" or "saturating" by a product of ONNX Runtime on this processor.

    A hypervisor may hide instructions from the runtime and not from the system. The answer takes
    about a millisecond. It is "" for builds of the runtime without this product.
    """
    try:
        return "saturating" if saturates(open_session(product_model())) else "exact"
    except Exception:  # each failure of a session is a class of its own
        return ""


def _value(name: str, kind: int) -> bytes:
    """Return the ValueInfoProto of a matrix of any shape."""
    shape = _field(SHAPE, 2 * _field(DIMENSION, b""))
    tensor = _field(TENSOR_TYPE, _field(ELEMENT_TYPE, kind) + shape)
    return _field(VALUE_NAME, name) + _field(TYPE, tensor)


def _field(number: int, content: int | str | bytes) -> bytes:
    """Return one field of a protobuf message."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    content = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])

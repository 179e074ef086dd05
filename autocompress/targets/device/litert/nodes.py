"""Describe the operators of a .tflite file as those of an ONNX file, with shapes and types."""

from __future__ import annotations

import hashlib

from ..profiler import NodeTime
from .flat_file import TYPES, schema
from .operators import computed, read_flat, tensor_name

# Type in ONNX files of operators whose operations or bytes are counted in their own way.
OPERATORS = {
    "CONV_2D": "Conv",
    "DEPTHWISE_CONV_2D": "Conv",
    "TRANSPOSE_CONV": "ConvTranspose",
    "FULLY_CONNECTED": "Gemm",
    "BATCH_MATMUL": "MatMul",
    "RESHAPE": "Reshape",
    "GATHER": "Gather",
    "EMBEDDING_LOOKUP": "Gather",
    "STRIDED_SLICE": "Slice",
}
KINDS = {"float32": "float", "float64": "double"}  # names of types that differ


def flat_nodes(model: bytes | str) -> list[NodeTime]:
    """Return the operators of a file without times.

    The weights of convolutions come second and have their outputs first, as in ONNX files. Those of
    lookups come first.

    Args:
        model: content or path of the file.

    Returns:
        Operators in the order of the file, without those that unpack constants.
    """
    flat = read_flat(model)
    (graph,) = flat.subgraphs
    kinds = {getattr(schema().TensorType, name): kind for kind, name in TYPES.items()}

    def described(number: int) -> tuple[str, tuple[int, ...]]:
        tensor = graph.tensors[int(number)]
        kind = kinds[tensor.type]
        return KINDS.get(kind, kind), tuple(int(size) for size in tensor.shape)

    nodes = []
    for node in computed(flat)[0]:
        inputs = [described(number) for number in node.read]
        if node.code == "DEPTHWISE_CONV_2D":
            kind, (_, *kernel, outputs) = inputs[1]
            inputs[1] = kind, (outputs, 1, *kernel)
        elif node.code == "TRANSPOSE_CONV":  # (shape, weight, input)
            kind, (outputs, *kernel, width) = inputs[1]
            inputs = [inputs[2], (kind, (width, outputs, *kernel)), *inputs[3:]]
        elif node.code == "EMBEDDING_LOOKUP":
            inputs = inputs[::-1]
        names = tuple(tensor_name(int(number)) for number in node.operator.outputs)
        ends = tuple(described(number) for number in node.operator.outputs)
        weights = tuple(tensor_name(number) for number in node.weights)
        operator = OPERATORS.get(node.code, node.code)
        nodes.append(NodeTime(operator, names, 0.0, tuple(inputs), ends, weights))
    return nodes


def profile_digest(model: bytes | str) -> str:
    """Return a hash of what a profile of a file tells: operators, shapes and numbers of tensors.

    The values of weights play no part.

    Args:
        model: content or path of the file.

    Returns:
        Hexadecimal digits.
    """
    return hashlib.sha256(repr(flat_nodes(model)).encode()).hexdigest()[:16]

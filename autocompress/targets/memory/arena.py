"""Estimate the memory of a .tflite file in a session: weights, and activations by lifetimes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from functools import cache
from math import ceil, prod
from typing import Any

from autocompress.targets.device.litert.flat_file import INT4, TYPES, schema
from autocompress.targets.device.litert.operators import computed, read_flat
from autocompress.targets.memory.lifetimes import Step, lifetimes, peak_bytes

# Bytes of an element by the name of its type; the others take as many as their name says.
BYTES = {"bool": 1.0, "int4": 0.5}
PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
ALIGNED = 64  # bytes, at whose multiples LiteRT's arena begins tensors


def flat_memory(model: bytes | str) -> int:
    """Return the bytes that a session takes for weights and activations.

    These are constants as the file stores them, constants that operators unpack, the arena, and a
    further copy of a weight for each product with it but one: XNNPACK packs a weight for each
    product that reads it. Other copies that kernels make and scratch space are not counted.

    Args:
        model: content or path of a .tflite file.
    """
    flat = read_flat(model)
    (graph,) = flat.subgraphs
    stored = sum(len(one.data) for one in flat.buffers if one.data is not None)
    unpacked = _unpacked(flat) - _stored(flat)
    floats = sum(_size(graph.tensors[i]) for i in unpacked)
    return stored + floats + _repeated(flat) + arena_bytes(flat)


def _repeated(flat: Any) -> int:
    """Return the bytes of weights that products read, without the first reader of each."""
    (graph,) = flat.subgraphs
    nodes, constants, unpacks = computed(flat)
    int4 = getattr(schema().TensorType, TYPES[INT4])

    def is_packed(number: int) -> bool:
        """Return True for a constant, but for floats of 4 bits, which XNNPACK does not take."""
        stored = int(unpacks[number].inputs[0]) if number in unpacks else -1
        return number in constants and (stored < 0 or graph.tensors[stored].type != int4)

    readers = Counter(int(node.operator.inputs[1]) for node in nodes if node.code in PRODUCTS)
    return sum(
        (count - 1) * _size(graph.tensors[number])
        for number, count in readers.items()
        if is_packed(number)
    )


def arena_bytes(flat: Any) -> int:
    """Return the largest sum of the tensors that are alive at once.

    A tensor lives from the operator that writes it to the last one that reads it; inputs live from
    the start, outputs to the end. LiteRT places tensors so that its arena is this size or a little
    larger; operators that write in place, such as RESHAPE, can make it smaller.

    Args:
        flat: content of a file, as `read_flat` returns it.

    Returns:
        Bytes, without constants.
    """
    (graph,) = flat.subgraphs
    constants = _unpacked(flat)
    steps = [
        Step(tuple(map(int, one.inputs)), tuple(map(int, one.outputs))) for one in graph.operators
    ]
    alive = lifetimes(steps, map(int, graph.inputs), map(int, graph.outputs))
    sizes: dict[Hashable, int] = {}
    for number in alive:
        if isinstance(number, int) and number not in constants:
            sizes[number] = ceil(_size(graph.tensors[number]) / ALIGNED) * ALIGNED
    return peak_bytes(alive, sizes, len(steps))


def _stored(flat: Any) -> set[int]:
    """Return the numbers of the tensors with content."""
    (graph,) = flat.subgraphs
    tensors = enumerate(graph.tensors)
    return {i for i, tensor in tensors if flat.buffers[tensor.buffer].data is not None}


def _unpacked(flat: Any) -> set[int]:
    """Return the numbers of all tensors that follow from constants."""
    (graph,) = flat.subgraphs
    constants = _stored(flat)
    for operator in graph.operators:
        if all(int(number) < 0 or int(number) in constants for number in operator.inputs):
            constants.update(map(int, operator.outputs))
    return constants


def _size(tensor: Any) -> int:
    """Return the bytes of a tensor."""
    kind = _kinds()[tensor.type]
    bits = int("".join(filter(str.isdigit, kind)) or 8)
    return ceil(prod(int(size) for size in tensor.shape) * BYTES.get(kind, bits / 8))


@cache
def _kinds() -> dict[int, str]:
    """Return the types of elements by their number in the format."""
    return {getattr(schema().TensorType, name): kind for kind, name in TYPES.items()}

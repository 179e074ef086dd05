"""Time the operators of a .tflite file, each in a file of its own.

LiteRT's package for Python shows no profile. An operator alone runs on the same kernel as in the
whole file, with constants that are unpacked in front of it. Equal operators are timed once.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..graph_file import FLAT, GraphFile, GraphNode
from ..profiler import NodeTime
from ..sessions import SessionSettings
from .flat_file import schema
from .session import LitertSession

WARM_UP = 2
LEAST_S = 4e-5  # seconds between two looks at the clock
DIMENSION = b"\x08\x01"  # of a TensorProto: the size 1


def read_flat(model: bytes | str) -> Any:
    """Return the content of a .tflite file as objects.

    Args:
        model: content or path of the file.
    """
    content = Path(model).read_bytes() if isinstance(model, str) else model
    return schema().ModelT.InitFromPackedBuf(bytearray(content), 0)


def tensor_name(number: int) -> str:
    """Return the name of a tensor in tables of times.

    Args:
        number: of the tensor in the file.
    """
    return f"t{number}"


def flat_graph(model: bytes | str) -> GraphFile:
    """Return the operators and constants of a .tflite file, tensors under their numbers.

    Args:
        model: content or path of the file.
    """
    flat = read_flat(model)
    (graph,) = flat.subgraphs
    nodes = []
    for i, operator in enumerate(graph.operators):
        ends = (_names(operator.inputs), _names(operator.outputs))
        nodes.append(GraphNode(f"operator{i}", *ends, _code(flat, operator)))
    constants = {}
    for number in _constants(flat):
        rank = len(graph.tensors[number].shape)
        constants[tensor_name(number)] = memoryview(DIMENSION * rank)
    return GraphFile(tuple(nodes), constants)


def _names(numbers: Sequence[int]) -> tuple[str, ...]:
    return tuple(tensor_name(int(number)) for number in numbers if number >= 0)


def _constants(flat: Any) -> list[int]:
    """Return the numbers of the tensors with content."""
    (graph,) = flat.subgraphs
    return [
        i for i, tensor in enumerate(graph.tensors) if flat.buffers[tensor.buffer].data is not None
    ]


@cache
def _operator_names() -> dict[int, str]:
    codes = schema().BuiltinOperator
    return {value: name for name, value in vars(codes).items() if isinstance(value, int)}


def _code(flat: Any, operator: Any) -> str:
    code = flat.operatorCodes[operator.opcodeIndex]
    return _operator_names()[max(code.builtinCode, code.deprecatedBuiltinCode)]


class Computed(NamedTuple):
    """Hold an operator that computes at run time.

    Attributes:
        operator: as the file has it.
        code: its type.
        read: numbers of the tensors that it reads.
        weights: numbers of the stored constants of two or more dimensions among them.
    """

    operator: Any
    code: str
    read: tuple[int, ...]
    weights: tuple[int, ...]


def computed(flat: Any) -> tuple[list[Computed], set[int], dict[int, Any]]:
    """Return the operators of a file without those that unpack constants.

    Args:
        flat: content of a file, as `read_flat` returns it.

    Returns:
        (operators in the order of the file, numbers of all constants, the operator that unpacks
        each unpacked one).
    """
    (graph,) = flat.subgraphs
    constants, unpacks = set(_constants(flat)), dict[int, Any]()
    weights = {number for number in constants if len(graph.tensors[number].shape) >= 2}
    nodes = []
    for operator in graph.operators:
        read = tuple(int(number) for number in operator.inputs if number >= 0)
        if constants.issuperset(read):
            for output in operator.outputs:
                constants.add(int(output))
                unpacks[int(output)] = operator
                if weights.intersection(read):
                    weights.add(int(output))
            continue
        own = tuple(_source(number, unpacks) for number in read if number in weights)
        nodes.append(Computed(operator, _code(flat, operator), read, own))
    return nodes, constants, unpacks


def operator_times(
    model: bytes | str,
    settings: SessionSettings,
    runs_of: Callable[[float], int],
) -> list[NodeTime]:
    """Time the operators of a file.

    Args:
        model: content or path of the file.
        settings: threads of the sessions.
        runs_of: returns the number of timed runs from the seconds of one.

    Returns:
        Operators in the order of the file, without those that unpack constants.
    """
    flat = read_flat(model)
    (graph,) = flat.subgraphs
    nodes, constants, unpacks = computed(flat)
    times = []
    for node in nodes:
        seconds = _timed(flat, node.operator, constants, unpacks, settings, runs_of)
        kinds = [
            [_kind(graph, number) for number in ends] for ends in (node.read, node.operator.outputs)
        ]
        times.append(
            NodeTime(
                node.code,
                _names(node.operator.outputs),
                seconds * 1e6,
                tuple(kinds[0]),
                tuple(kinds[1]),
                tuple(tensor_name(number) for number in node.weights),
            )
        )
    return times


def _source(number: int, unpacks: Mapping[int, Any]) -> int:
    """Return the stored tensor that a constant follows from."""
    while number in unpacks:
        number = int(unpacks[number].inputs[0])
    return number


def _kind(graph: Any, number: int) -> tuple[str, tuple[int, ...]]:
    tensor = graph.tensors[int(number)]
    return str(tensor.type), tuple(int(size) for size in tensor.shape)


def _timed(
    flat: Any,
    operator: Any,
    constants: set[int],
    unpacks: Mapping[int, Any],
    settings: SessionSettings,
    runs_of: Callable[[float], int],
) -> float:
    """Return the seconds of one operator, from memory if an equal one was timed."""
    key = _key(flat, operator, constants, unpacks, settings)
    known = _known()
    if key not in known:
        known[key] = _measured(_alone(flat, operator, constants, unpacks), settings, runs_of)
    return known[key]


@cache
def _known() -> dict[str, float]:
    """Return the seconds of the operators that this process has timed."""
    return {}


def _key(
    flat: Any,
    operator: Any,
    constants: set[int],
    unpacks: Mapping[int, Any],
    settings: SessionSettings,
) -> str:
    (graph,) = flat.subgraphs
    options = operator.builtinOptions
    parts: list[Any] = [_code(flat, operator), settings.threads]
    parts.append(sorted(vars(options).items()) if options is not None else "")
    for number in (*operator.inputs, *operator.outputs):
        number = int(number)
        if number < 0:
            parts.append("none")
            continue
        stored = _source(number, unpacks)
        parts.append((_kind(graph, number), _kind(graph, stored), number in constants))
    return repr(parts)


def _alone(flat: Any, operator: Any, constants: set[int], unpacks: Mapping[int, Any]) -> bytes:
    """Return a file of one operator and of those that unpack its constants."""
    import flatbuffers

    (graph,) = flat.subgraphs
    alone, model = schema().SubGraphT(), schema().ModelT()
    alone.tensors, alone.operators, alone.inputs = [], [], []
    model.buffers, places = [schema().BufferT()], dict[int, int]()

    def placed(number: int) -> int:
        number = int(number)
        if number < 0 or number in places:
            return places.get(number, number)
        tensor = copy.copy(graph.tensors[number])
        data = flat.buffers[tensor.buffer].data
        tensor.buffer, tensor.name = 0, f"x{number}".encode()
        if data is not None:
            model.buffers.append(flat.buffers[graph.tensors[number].buffer])
            tensor.buffer = len(model.buffers) - 1
        places[number] = len(alone.tensors)
        alone.tensors.append(tensor)
        return places[number]

    for one in (*_makers(operator, unpacks), operator):
        copied = copy.copy(one)
        copied.inputs = [placed(number) for number in one.inputs]
        copied.outputs = [placed(number) for number in one.outputs]
        alone.operators.append(copied)
    read = dict.fromkeys(int(number) for number in operator.inputs if number >= 0)
    alone.inputs = [places[number] for number in read if number not in constants]
    alone.outputs = [places[int(number)] for number in operator.outputs]
    model.version, model.subgraphs, model.operatorCodes = flat.version, [alone], flat.operatorCodes
    builder = flatbuffers.Builder(1 << 12)
    builder.Finish(model.Pack(builder), file_identifier=FLAT)
    return bytes(builder.Output())


def _makers(operator: Any, unpacks: Mapping[int, Any]) -> list[Any]:
    """Return the operators that the constants of an operator follow from, the first one first."""
    makers: list[Any] = []
    for number in operator.inputs:
        own = unpacks.get(int(number))
        if own is not None:
            makers += [one for one in (*_makers(own, unpacks), own) if one not in makers]
    return makers


def _measured(content: bytes, settings: SessionSettings, runs_of: Callable[[float], int]) -> float:
    """Return the mean seconds of the faster half of the runs of a file."""
    session = LitertSession(content, settings)
    generator = np.random.default_rng(0)
    feed = {}
    for value in session.get_inputs():
        zeros = np.zeros(value.shape, _dtype(value.type))
        floats = value.type == "tensor(float)"
        feed[value.name] = (
            generator.standard_normal(zeros.shape, dtype=np.float32) if floats else zeros
        )
    session.run(None, feed)
    invoke = session.interpreter.invoke
    for _ in range(WARM_UP):
        invoke()
    once = max(_seconds(invoke, 1), 1e-7)
    repeats = int(min(50, ceil(LEAST_S / once)))
    seconds = sorted(_seconds(invoke, repeats) for _ in range(runs_of(once)))
    return float(np.mean(seconds[: max(1, len(seconds) // 2)]))


def _dtype(kind: str) -> Any:
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


def _seconds(invoke: Callable[[], None], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        invoke()
    return (time.perf_counter() - started) / repeats

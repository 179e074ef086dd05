"""LSTM, GRU and RNN, step by step in LiteRT and in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from flat_runs import (
    assert_as_torch,
    assert_same,
    flat_run,
    graph_of,
    integers,
    numbers,
    packed,
    scales,
    stored,
)
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from autocompress.errors import ExportError
from autocompress.export.litert.operators.recurrent import DIRECTIONS, GATES
from autocompress.export.litert.parts import NODE_BYTES, flat_bytes_by_module
from autocompress.export.litert.translate import owners_of
from autocompress.targets.device.litert.flat_file import schema
from autocompress.targets.device.litert.nodes import flat_nodes
from autocompress.targets.device.litert.operators import flat_graph, read_flat
from autocompress.targets.device.sessions import LITERT, open_session
from autocompress.targets.latency_model.attribution import OriginalGraph, _owners_of

STEPS, ROWS, COLUMNS, WIDTH = 5, 2, 6, 8
Array = np.ndarray[Any, Any]


def parameters(kind: str, directions: int) -> dict[str, Array]:
    wide = GATES[kind] * WIDTH
    shapes = {"w": (wide, COLUMNS), "r": (wide, WIDTH), "b": (2 * wide,)}
    return {
        name: numbers(directions, *shape, seed=i) / 2
        for i, (name, shape) in enumerate(shapes.items(), 1)
    }


def node_of(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    if kind == "GRU":
        attributes["linear_before_reset"] = 1
    return helper.make_node(kind, inputs, outputs, hidden_size=WIDTH, **attributes)


@pytest.mark.parametrize("kind", sorted(GATES))
@pytest.mark.parametrize("direction", sorted(DIRECTIONS))
def test_layers_without_a_first_state(kind: str, direction: str) -> None:
    constants = parameters(kind, len(DIRECTIONS[direction]))
    x = {"x": numbers(STEPS, ROWS, COLUMNS)}
    for inputs in (["x", "w", "r", "b"], ["x", "w", "r"]):
        used = {name: constants[name] for name in inputs[1:]}
        node = node_of(kind, inputs, ["y", "y1"], direction=direction)
        found = assert_same([node], x, used, outputs=2)
        assert found.count("FULLY_CONNECTED") == STEPS * len(DIRECTIONS[direction])


@pytest.mark.parametrize("kind", sorted(GATES))
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_layers_with_a_first_state_and_all_outputs(kind: str, direction: str) -> None:
    count = len(DIRECTIONS[direction])
    feed = {"x": numbers(STEPS, ROWS, COLUMNS), "h": numbers(count, ROWS, WIDTH, seed=7)}
    inputs, outputs = ["x", "w", "r", "b", "", "h"], ["y", "y1"]
    if kind == "LSTM":
        feed["c"] = numbers(count, ROWS, WIDTH, seed=8)
        inputs.append("c")
        outputs.append("y2")
    node = node_of(kind, inputs, outputs, direction=direction)
    assert_same([node], feed, parameters(kind, count), outputs=len(outputs))


def test_a_file_starts_each_run_from_the_same_state() -> None:
    x = {"x": numbers(STEPS, ROWS, COLUMNS)}
    node = node_of("LSTM", ["x", "w", "r", "b"], ["y"])
    flat, (first,) = flat_run(graph_of([node], x, parameters("LSTM", 1)), x)
    session = open_session(flat.content, LITERT)
    for _ in range(3):
        np.testing.assert_array_equal(session.run(None, x)[0], first)


def test_outputs_that_nothing_reads_are_not_written() -> None:
    x = {"x": numbers(STEPS, ROWS, COLUMNS)}
    node = node_of("LSTM", ["x", "w", "r", "b"], ["all", "y"])
    assert assert_same([node], x, parameters("LSTM", 1)).count("PACK") == 1


def gates(kind: str, name: str, weight: str) -> list[Any]:
    """Return the nodes by which an exporter puts gates in the order of the operator."""
    if kind == "RNN":
        return [helper.make_node("Unsqueeze", [weight, "zero"], [name])]
    count = GATES[kind]
    parts = [f"{name}{i}" for i in range(count)]
    order = [0, 3, 1, 2] if kind == "LSTM" else [1, 0, 2]
    return [
        helper.make_node("Split", [weight], parts, axis=0, num_outputs=count),
        helper.make_node("Concat", [parts[i] for i in order], [f"{name}j"], axis=0),
        helper.make_node("Unsqueeze", [f"{name}j", "zero"], [name]),
    ]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", sorted(GATES))
@pytest.mark.parametrize("directions", [1, 2])
def test_integers_of_the_weights_stay_integers_in_the_file(
    kind: str, bits: int, directions: int
) -> None:
    wide, x = GATES[kind] * WIDTH, {"x": numbers(STEPS, ROWS, COLUMNS)}
    nodes: list[Any] = []
    tensors: list[TensorProto] = []
    ends: dict[str, list[str]] = {"w": [], "r": []}
    for side in range(directions):
        for name, columns in (("w", COLUMNS), ("r", WIDTH)):
            values = np.roll(integers(wide, columns, bits=bits), side)
            scale = np.roll(scales(wide), side) * (1 if bits == 8 else 2) / 4
            of_weight, more = packed(f"{name}{side}_", values, scale, bits)
            nodes += [*of_weight, *gates(kind, f"{name}_{side}", f"{name}{side}_")]
            tensors += more
            ends[name].append(f"{name}_{side}")
    for name, parts in ends.items():
        nodes.append(helper.make_node("Concat", parts, [name], axis=0))
    direction = "bidirectional" if directions == 2 else "forward"
    nodes.append(node_of(kind, ["x", "w", "r"], ["y"], direction=direction))
    proto = graph_of(nodes, x, {"zero": np.array([0])})
    proto.graph.initializer.extend(tensors)
    flat, (output,) = flat_run(proto, x)
    (wanted,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, x)
    np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-4)
    kinds = schema().TensorType
    found = stored(flat.content, kinds.INT4 if bits == 4 else kinds.INT8)
    assert sorted(len(data) for data, _ in found) == sorted(
        [wide * COLUMNS * bits // 8, wide * WIDTH * bits // 8] * directions
    )
    assert all(len(rows) == wide for _, rows in found), "a scale per row"
    codes = {node.operator for node in flat_graph(flat.content).nodes}
    assert not codes & {"CONCATENATION", "STRIDED_SLICE"}, "gates are ordered before the file"


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
@pytest.mark.parametrize("kind", sorted(GATES))
@pytest.mark.parametrize("sides", [("",), ("", "_reverse")])
def test_each_matrix_has_its_own_bytes_and_times(
    kind: str, bits: int, sides: tuple[str, ...]
) -> None:
    wide, x = GATES[kind] * WIDTH, {"x": numbers(STEPS, ROWS, COLUMNS)}
    nodes: list[Any] = []
    tensors: list[TensorProto] = []
    ends: dict[str, list[str]] = {"ih": [], "hh": []}
    elements = {}
    for side in sides:
        for name, columns in (("ih", COLUMNS), ("hh", WIDTH)):
            module = f"{name}_l0{side}"
            weight, elements[module] = f"{module}.weight", wide * columns
            if bits >= 16:
                values = numbers(wide, columns).astype(f"float{bits}")
                tensors.append(numpy_helper.from_array(values, f"{module}/gates"))
                nodes.append(
                    helper.make_node("Cast", [f"{module}/gates"], [weight], to=TensorProto.FLOAT)
                )
            else:
                more, packs = packed(weight, integers(wide, columns, bits=bits), scales(wide), bits)
                nodes += more
                tensors += packs
            nodes += gates(kind, module, weight)
            ends[name].append(module)
    for name, parts in ends.items():
        nodes.append(helper.make_node("Concat", parts, [name], axis=0))
    direction = "bidirectional" if sides[1:] else "forward"
    nodes.append(node_of(kind, ["x", "ih", "hh"], ["y"], direction=direction))
    proto = graph_of(nodes, x, {"zero": np.array([0])})
    proto.graph.initializer.extend(tensors)
    flat, _ = flat_run(proto, x)
    # As a graph is written: the operator belongs to the last of its matrices.
    owners = {**{f"{module}.weight": module for module in elements}, "y": [*elements][-1]}
    owners = owners_of(flat, owners)
    sizes = flat_bytes_by_module(flat.content, owners, elements)
    for module, count in elements.items():
        stored_size = count * bits // 8
        assert stored_size <= sizes[module] < stored_size + 4 * wide + 100 * NODE_BYTES
    original = OriginalGraph(flat_graph(flat.content), owners, frozenset(elements))
    profile = flat_nodes(flat.content)
    products = [_owners_of(node, original, frozenset()) for node in profile if node.weights]
    assert set(products) == {(module,) for module in elements}
    assert products.count((f"ih_l0{sides[-1]}",)) == 1
    assert products.count((f"hh_l0{sides[-1]}",)) == STEPS - 1
    steps = [_owners_of(one, original, frozenset()) for one in profile if one.operator == "TANH"]
    assert {one for (one,) in steps} == {module for module in elements if "hh" in module}


def test_weights_of_16_bits_of_two_directions_are_two() -> None:
    x, constants = {"x": numbers(STEPS, ROWS, COLUMNS)}, parameters("LSTM", 2)
    halves = {f"{name}16": constants[name].astype(np.float16) for name in "wr"}
    nodes = [helper.make_node("Cast", [f"{n}16"], [n], to=TensorProto.FLOAT) for n in "wr"]
    nodes.append(node_of("LSTM", ["x", "w", "r", "b"], ["y"], direction="bidirectional"))
    proto = graph_of(nodes, x, {**halves, "b": constants["b"]})
    flat, (output,) = flat_run(proto, x)
    (wanted,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, x)
    np.testing.assert_allclose(output, wanted, rtol=1e-3, atol=1e-3)
    found = stored_bytes(flat.content, schema().TensorType.FLOAT16)
    wide = GATES["LSTM"] * WIDTH
    assert sorted(found) == sorted([2 * wide * COLUMNS, 2 * wide * WIDTH] * 2)


def stored_bytes(content: bytes, kind: int) -> list[int]:
    """Return the bytes of the constants of a type in a file."""
    flat = read_flat(content)
    data = [flat.buffers[t.buffer].data for t in flat.subgraphs[0].tensors if t.type == kind]
    return [len(one) for one in data if one is not None]


def test_joined_weights_that_no_layer_reads_are_floats() -> None:
    x = {"x": numbers(2, 3, 4)}
    nodes: list[Any] = []
    tensors: list[TensorProto] = []
    for i in range(2):
        more, packs = packed(f"p{i}", integers(3, 4, bits=8), scales(3) * (i + 1), 8)
        nodes += [*more, helper.make_node("Unsqueeze", [f"p{i}", "zero"], [f"u{i}"])]
        tensors += packs
    nodes += [
        helper.make_node("Concat", ["u0", "u1"], ["j"], axis=0),
        helper.make_node("Add", ["x", "j"], ["y"]),
    ]
    proto = graph_of(nodes, x, {"zero": np.array([0])})
    proto.graph.initializer.extend(tensors)
    _, (output,) = flat_run(proto, x)
    (wanted,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, x)
    np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=1e-5)


class TwoLayers(nn.Module):
    """Join the last states of both directions of the second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (state, _) = self.memory(x)
        return self.head(torch.cat([state[-2], state[-1]], 1))


class LearnedState(nn.Module):
    """Start a GRU from a parameter, and read its largest state."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.first = nn.GRU(6, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.memory(x, self.first.expand(1, x.shape[1], 8))
        return self.head(states.amax(0))


class Convolved(nn.Module):
    """Read the places of a picture's rows as steps, behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.memory = nn.Conv1d(6, 8, 3), nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.memory(self.conv(x).transpose(1, 2))[0]


def test_an_rnn_of_relus() -> None:
    x = {"x": numbers(STEPS, ROWS, COLUMNS)}
    options = {"direction": "bidirectional", "activations": ["Relu", "Relu"]}
    node = node_of("RNN", ["x", "w", "r", "b"], ["y", "y1"], **options)
    assert assert_same([node], x, parameters("RNN", 2), outputs=2).count("RELU") == 2 * STEPS


@pytest.mark.parametrize(
    ("model", "shape"), [(TwoLayers, (2, 5, 6)), (LearnedState, (5, 2, 6)), (Convolved, (2, 6, 7))]
)
def test_layers_of_pytorch(model: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    found = assert_as_torch(model(), torch.randn(*shape))
    assert {"FULLY_CONNECTED", "LOGISTIC", "TANH"} <= set(found)


@pytest.mark.parametrize(
    ("kind", "attributes", "reason"),
    [
        ("LSTM", {"clip": 2.0}, "its clip is 2.0"),
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}, "activations are Sigmoid, Relu"),
        ("RNN", {"activations": ["Sigmoid"]}, "activations are Sigmoid"),
        ("GRU", {"linear_before_reset": 0}, "it resets the state before the product"),
    ],
)
def test_forms_that_are_not_written_are_named(
    kind: str, attributes: dict[str, Any], reason: str
) -> None:
    x = {"x": numbers(STEPS, ROWS, COLUMNS)}
    given = {"linear_before_reset": 1, **attributes} if kind == "GRU" else attributes
    node = helper.make_node(kind, ["x", "w", "r"], ["y"], hidden_size=WIDTH, **given)
    used = {name: parameters(kind, 1)[name] for name in "wr"}
    with pytest.raises(ExportError, match=f"export: {kind} in y: .*{reason}"):
        flat_run(graph_of([node], x, used), x)


def test_lengths_of_samples_are_refused() -> None:
    feed = {"x": numbers(STEPS, ROWS, COLUMNS), "n": np.array([5, 3], np.int32)}
    node = node_of("LSTM", ["x", "w", "r", "b", "n"], ["y"])
    with pytest.raises(ExportError, match="it has lengths of its samples"):
        flat_run(graph_of([node], feed, parameters("LSTM", 1)), feed)

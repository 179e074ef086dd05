"""Whole graphs as .tflite files."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from flat_runs import assert_as_torch, flat_run, graph_of, model_graph, numbers
from onnx import helper
from torch import Tensor, nn

from autocompress.errors import ExportError
from autocompress.export.litert.translate import owners_of, translated
from autocompress.targets.device.litert.operators import flat_graph
from autocompress.targets.device.sessions import LITERT, open_session


class Residual(nn.Module):
    """Add a branch to its input, and compute two outputs from two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.words, self.head = nn.Embedding(9, 8), nn.Linear(8, 4)

    def forward(self, picture: Tensor, words: Tensor) -> Tensor:
        x = self.stem(picture)
        x = torch.relu(x + self.branch(x)).mean((2, 3))
        return self.head(x * self.words(words).mean(1))


def test_pictures_and_words_are_fed_as_they_are_to_the_model() -> None:
    found = assert_as_torch(Residual(), torch.randn(2, 3, 8, 8), torch.randint(0, 9, (2, 5)))
    assert found.count("TRANSPOSE") == 1, "channels are moved once"
    assert "EMBEDDING_LOOKUP" in found


def test_names_of_inputs_and_outputs_and_owners_of_operators() -> None:
    proto = model_graph(Residual().eval(), torch.randn(1, 3, 8, 8), torch.randint(0, 9, (1, 5)))
    feed = {"picture": numbers(1, 3, 8, 8), "words": np.zeros((1, 5), np.int64)}
    assert [value.name for value in proto.graph.input] == [*feed]
    flat, _ = flat_run(proto, feed)
    session = open_session(flat.content, LITERT)
    assert [value.name for value in session.get_inputs()] == [*feed]
    names = [value.name for value in proto.graph.output]
    assert [value.name for value in session.get_outputs()] == names
    owners = owners_of(flat, {names[0]: "head"})
    last = flat_graph(flat.content).nodes[-1]
    assert owners == {last.outputs[0]: "head"}


def test_an_input_and_a_constant_can_be_outputs() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Identity", ["c"], ["y1"]),
    ]
    x, constant = numbers(2, 3), numbers(2)
    _, outputs = flat_run(graph_of(nodes, {"x": x}, {"c": constant}, 2), {"x": x})
    np.testing.assert_array_equal(outputs[0], x)
    np.testing.assert_array_equal(outputs[1], constant)


def test_equal_graphs_are_equal_bytes() -> None:
    torch.manual_seed(0)
    proto = model_graph(Residual().eval(), torch.randn(1, 3, 8, 8), torch.randint(0, 9, (1, 5)))
    feed = {"picture": numbers(1, 3, 8, 8), "words": np.zeros((1, 5), np.int64)}
    assert flat_run(proto, feed)[0].content == flat_run(proto, feed)[0].content


class Turned(nn.Module):
    """Read a square weight as it is and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x)) @ self.layer.weight


def test_a_square_weight_that_is_read_in_both_orders_is_two_tensors() -> None:
    torch.manual_seed(0)
    assert_as_torch(Turned(), torch.randn(3, 8))


def test_an_elu_of_another_alpha_is_refused() -> None:
    proto = model_graph(nn.ELU(0.3).eval(), torch.randn(2, 4))
    with pytest.raises(ExportError, match="ELU has an alpha of 1"):
        flat_run(proto, {proto.graph.input[0].name: numbers(2, 4)})
    assert_as_torch(nn.ELU(), torch.randn(2, 4))


def rounding(name: str, source: str, scale: str) -> list[Any]:
    """Nodes that round a tensor to 8 bits and unpack it."""
    return [
        helper.make_node("QuantizeLinear", [source, scale, "zero"], [f"{name}q"]),
        helper.make_node("DequantizeLinear", [f"{name}q", scale, "zero"], [name]),
    ]


STEPS = {
    "s": np.array(0.1, np.float32),
    "w": np.array(0.2, np.float32),
    "zero": np.array(128, np.uint8),
}


def ends_of(nodes: list[Any], outputs: int = 1) -> tuple[list[str], list[str]]:
    """Return the types of the inputs and of the outputs of a file with integer ends."""
    feed = {"x": numbers(1, 8)}
    proto = graph_of(nodes, feed, STEPS, outputs)
    flat = translated(proto, {"x": (1, 8)}, integer_ends=True)
    session = open_session(flat.content, LITERT)
    found = session.run(None, feed)
    wanted = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feed)
    for one, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-6)
    details = (session.interpreter.get_input_details(), session.interpreter.get_output_details())
    return tuple([np.dtype(one["dtype"]).name for one in ends] for ends in details)


def test_ends_are_integers_where_the_graph_rounds_them() -> None:
    both = [*rounding("r", "x", "s"), helper.make_node("Relu", ["r"], ["y"])]
    assert ends_of(both) == (["int8"], ["int8"])
    reads_floats = [*rounding("r", "x", "s"), helper.make_node("Add", ["r", "x"], ["y"])]
    assert ends_of(reads_floats) == (["float32"], ["float32"])
    two_steps = [*rounding("y", "x", "s"), *rounding("y1", "x", "w")]
    assert ends_of(two_steps, 2) == (["float32"], ["int8", "int8"])
    twice = [
        *rounding("r", "x", "s"),
        *rounding("t", "x", "s"),
        helper.make_node("Neg", ["r"], ["y"]),
        helper.make_node("Identity", ["t"], ["y1"]),
    ]
    assert ends_of(twice, 2) == (["int8"], ["float32", "int8"])

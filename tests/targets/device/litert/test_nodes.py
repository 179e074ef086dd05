"""Operators of .tflite files as those of ONNX files, whose operations are counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flat_runs import model_graph
from torch import nn

pytest.importorskip("ai_edge_litert")

from autocompress.export.litert.translate import translated
from autocompress.targets.analytic import analytic_times, moved_bytes, node_operations
from autocompress.targets.device.litert.flat_file import FlatFile, Rows
from autocompress.targets.device.litert.nodes import flat_nodes, profile_digest
from autocompress.targets.device.sessions import LITERT
from autocompress.targets.figures import Figures


def nodes_of(
    model: nn.Module, *inputs: torch.Tensor, is_plain: bool = True
) -> dict[str, tuple[float, bool]]:
    """Return (operations, if they are on integers) by operator."""
    proto = model_graph(model.eval(), *inputs, is_plain=is_plain)
    sizes = {value.name: tuple(x.shape) for value, x in zip(proto.graph.input, inputs, strict=True)}
    return {n.operator: node_operations(n) for n in flat_nodes(translated(proto, sizes).content)}


def test_operations_are_those_of_the_model() -> None:
    picture = torch.randn(1, 4, 8, 8)
    plain = nodes_of(nn.Conv2d(4, 6, 3, bias=False), picture)
    assert plain["Conv"] == (2 * 6 * 36 * 4 * 9, False)
    depthwise = nodes_of(nn.Conv2d(4, 8, 3, groups=4, bias=False), picture)
    assert depthwise["Conv"] == (2 * 8 * 36 * 9, False), "each filter reads one channel"
    up = nodes_of(
        nn.ConvTranspose2d(8, 16, 2, 2, bias=False), torch.randn(1, 8, 6, 6), is_plain=False
    )
    assert up["ConvTranspose"] == (2 * 8 * 16 * 12 * 12, False), "each output has one product"
    linear = nodes_of(nn.Linear(16, 5), torch.randn(3, 16))
    assert linear["Gemm"] == (2 * 3 * 16 * 5, False)


def test_integers_have_their_own_rate_and_lookups_move_what_they_take() -> None:
    file, rows = FlatFile(), Rows(np.full(5, 0.1, np.float32))
    step = Rows(np.array([0.1], np.float32))
    file.inputs = [file.tensor((3, 16), "int8", "x", step)]
    weight = file.constant(np.ones((5, 16), np.int8), "", rows)
    file.outputs = [file.tensor((3, 5), "int8", "y", step)]
    numbers = [*file.inputs, weight, -1]
    file.add("FULLY_CONNECTED", numbers, file.outputs, "FullyConnectedOptions", keepNumDims=True)
    (node,) = flat_nodes(file.content())
    assert node_operations(node) == (2 * 3 * 16 * 5, True)
    assert moved_bytes(node) == 3 * 16 + 5 * 16 + 3 * 5
    figures = Figures(float_gops=1e-4, int8_gops=1.0, bandwidth_gb_s=1e4, overhead_us=2.0)
    (timed,) = analytic_times(file.content(), {}, figures, LITERT)
    assert timed.microseconds == pytest.approx(2 + 480 / 1e3)
    assert timed.weights == ("t1",), "attribution reads it"
    table = nn.Embedding(1000, 8)
    proto = model_graph(table.eval(), torch.zeros(1, 3, dtype=torch.int64))
    flat = translated(proto, {proto.graph.input[0].name: (1, 3)}).content
    (lookup,) = [n for n in flat_nodes(flat) if n.operator == "Gather"]
    assert moved_bytes(lookup) == 3 * 4 + 3 * 8 * 4


def test_a_digest_tells_files_apart_whose_tensors_have_other_numbers() -> None:
    def content(value: float, width: int = 5, more: bool = False) -> bytes:
        file = FlatFile()
        file.inputs = [file.tensor((3, 16), "float32", "x")]
        if more:
            file.tensor((1,), "float32")
        weight = file.constant(np.full((width, 16), value, np.float32))
        file.outputs = [file.tensor((3, width), "float32", "y")]
        numbers = [*file.inputs, weight, -1]
        file.add(
            "FULLY_CONNECTED", numbers, file.outputs, "FullyConnectedOptions", keepNumDims=True
        )
        return file.content()

    digest = profile_digest(content(1.0))
    assert profile_digest(content(2.0)) == digest, "values play no part"
    others = {digest, profile_digest(content(1.0, 6)), profile_digest(content(1.0, more=True))}
    assert len(others) == 3

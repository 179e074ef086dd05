"""Activations of float graphs: their sizes, lives, makers, writers and readers."""

from __future__ import annotations

import numpy as np
from hand_made import lowered
from onnx import NodeProto, helper

from autocompress.export.lowering.lower import LoweredModel, Site
from autocompress.export.parts.activations import OTHERS, Activations, activations_of

FEED = {"x": np.zeros((1, 4, 8, 8), np.float32)}
WHOLE = 4 * 64


def node(kind: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def site(owner: str, made: NodeProto, output: str, *tail: str) -> Site:
    return Site(owner, owner, "conv", made, made.input[0], output, None, (), tail)


def residual() -> LoweredModel:
    """A stem with its ReLU, a block of two convolutions with a skip connection, and a head."""
    pads = {"kernel_shape": [3, 3], "pads": [1] * 4}
    nodes = [
        node("Conv", "x w", "c", **pads),
        node("Relu", "c", "stem"),
        node("Conv", "stem w", "a", **pads),
        node("Conv", "a w", "b", **pads),
        node("Add", "b stem", "sum"),
        node("Relu", "sum", "r"),
        node("Conv", "r u", "h", **pads),
        node("Sigmoid", "h", "g"),
        node("Concat", "g r", "y", axis=1),
    ]
    sites = {
        "stem": (site("stem", nodes[0], "stem", "stem"),),
        "a": (site("a", nodes[2], "a"),),
        "b": (site("b", nodes[3], "b"),),
        "head": (site("head", nodes[6], "h"),),
    }
    weights = {
        "w": np.zeros((4, 4, 3, 3), np.float32),
        "u": np.zeros((12, 4, 3, 3), np.float32),
    }
    return lowered(nodes, weights, {"x": [1, 4, 8, 8]}, ["y"], sites)


def by_elements(found: Activations) -> list[int]:
    return [int(count) for count in found.elements]


def test_what_is_fused_to_a_module_is_none() -> None:
    found = activations_of(residual(), FEED, flat=False)
    # x, stem, a, b (in whose place the sum and its ReLU lie), h (and its sigmoid), y
    assert by_elements(found) == [WHOLE, WHOLE, WHOLE, WHOLE, 3 * WHOLE, 4 * WHOLE]
    assert set(found.itemsize) == {4.0}
    x, stem, a, b, head, y = range(6)
    assert found.makers[stem] == {"stem": 1.0}
    assert found.writers[x] == {OTHERS}
    assert found.readers[x] == {"stem"}
    assert found.readers[stem] == {"a", "head", OTHERS}, "its sum flows on to the head"
    assert found.readers[a] == {"b"}
    assert found.readers[b] == {"head", OTHERS}
    assert found.writers[head] == {"head"}
    assert found.readers[head] == {OTHERS}, "a sigmoid is computed in floats"
    share = found.makers[y]
    assert share["head"] == 0.75
    assert np.isclose(sum(share.values()), 1.0)
    first, last = found.alive[stem]
    assert (first, last) == (0, 3), "the skip connection lives until the sum"
    assert found.alive[y][1] == found.steps - 1


def test_litert_copies_and_rounds_sums_of_one_reader_only() -> None:
    found = activations_of(residual(), FEED, flat=True)
    assert by_elements(found) == [*[WHOLE] * 6, 3 * WHOLE, 3 * WHOLE, 4 * WHOLE]
    total, relu = found.writers[4], found.writers[5]
    assert OTHERS not in total, "one operator reads the sum"
    assert OTHERS not in relu
    assert found.readers[4] == found.readers[5] == {"head", OTHERS}


def test_integers_flow_through_gates_and_sums_of_files_that_round_between_layers() -> None:
    graph = residual()
    graph.proto.graph.node.insert(8, node("Mul", "g sum", "gated"))
    graph.proto.graph.node[9].input[0] = "gated"
    plain = activations_of(graph, FEED, flat=True)
    found = activations_of(graph, FEED, flat=True, chains=True)
    assert np.array_equal(found.alive, plain.alive)
    x, _, _, _, total, relu, head, gate, gated, y = range(10)
    assert OTHERS in plain.writers[total], "two operators read the sum"
    assert OTHERS in plain.readers[head]
    assert OTHERS in plain.writers[gate]
    assert [OTHERS in writers for writers in found.writers] == [True] + [False] * 9
    assert found.writers[gated] == {"head", "b", "stem"}
    assert found.readers[head] == {OTHERS}, "the output behind the gate"
    assert found.readers[y] == {OTHERS}
    assert found.writers[x] == {OTHERS}
    assert found.writers[relu] == {"b", "stem"}
    whole = activations_of(graph, FEED, flat=True, chains=True, ends=True)
    assert not any(OTHERS in names for names in (*whole.writers, *whole.readers))
    assert whole.readers[x] == {"stem"}
    assert whole.writers[y] == found.writers[y]


def test_the_shapes_of_the_feed_count_and_unknown_ones_take_nothing() -> None:
    graph = residual()
    graph.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    twice = {"x": np.zeros((2, 4, 8, 8), np.float32)}
    assert by_elements(activations_of(graph, twice, flat=False))[0] == 2 * WHOLE
    free = lowered(
        [node("NonZero", "x", "n"), node("Cast", "n", "y", to=1)], {}, {"x": [1, 4, 8, 8]}, ["y"]
    )
    assert by_elements(activations_of(free, FEED, flat=False)) == [WHOLE, 0, 0]

"""Compare a graph with its model at the sizes that it leaves free."""

from __future__ import annotations

import numpy as np
import pytest
import sympy
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from autocompress.export.float_graph.float_graph import export_float
from autocompress.export.float_graph.same import (
    BATCHES,
    NOISE,
    TOLERANCE,
    Differs,
    Symbols,
    check_same,
    close,
)
from autocompress.export.float_graph.shared_graph import SharedGraph
from autocompress.task.free_shapes import FreeDimension

N, T = sympy.Symbol("n"), sympy.Symbol("t")


class Size:
    """A dimension of a traced program."""

    def __init__(self, expression: object) -> None:
        self.node = type("Node", (), {"expr": expression})()


def symbols(
    *shapes: tuple[object, ...], sizes: dict, names: dict, seen: dict | None = None
) -> Symbols:
    made = tuple(tuple(d if isinstance(d, int) else Size(d) for d in shape) for shape in shapes)
    return Symbols(made, names, sizes, {**dict.fromkeys(sizes, ()), **(seen or {})})


BATCH = symbols((N, 4), sizes={N: 2}, names={N: "batch"})
LENGTH = symbols((1, T), sizes={T: 6}, names={T: "length"})


@pytest.mark.parametrize(
    ("value", "expected", "same"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.0 + 1.9 * TOLERANCE], [1.0, 2.0], True),
        ([1.0, 2.0 + 2.1 * TOLERANCE], [1.0, 2.0], False),
        ([NOISE / 2], [0.0], True),
        ([NOISE * 2], [0.0], False),
        ([1.0, 2.0 + 2.1 * TOLERANCE, -1e4], [1.0, 2.0, -1e4], False),  # a mask writes -1e4
        ([1.0, 2.0, -1e4 + 1], [1.0, 2.0, -1e4], True),
        ([np.nan, 1.0], [np.nan, 1.0], True),
        ([0.0, 1.0], [np.nan, 1.0], False),
        ([np.inf, 1.0], [np.inf, 1.0], True),
        ([-np.inf, 1.0], [np.inf, 1.0], False),
        ([], [], True),
    ],
)
def test_floats_are_close_by_the_largest(
    value: list[float], expected: list[float], same: bool
) -> None:
    assert close(np.array(value), np.array(expected)) is same


def test_shapes_decide_and_noise_widens() -> None:
    assert not close(np.zeros((2, 1)), np.zeros((1, 2)))
    assert not close(np.zeros(2), np.full(2, 0.5))
    assert close(np.zeros(2), np.full(2, 0.5), noise=0.6)


def test_a_hundredth_of_integers_may_differ() -> None:
    expected = np.arange(200)
    found = expected.copy()
    found[:2] += 1
    assert close(found, expected)
    found[2] += 1
    assert not close(found, expected)
    assert close(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert not close(np.array([True]), np.array([False]))


def test_batches_have_a_few_sizes_but_the_example_s() -> None:
    assert list(BATCH.others("batch")) == [{N: size} for size in BATCHES if size != 2]


def test_lengths_of_the_users_batches_come_first() -> None:
    given = symbols((1, T), sizes={T: 6}, names={T: "length"}, seen={T: (4, 9)})
    assert [sizes[T] for sizes in given.others("length")] == [4, 9, 7, 5, 12, 3]
    assert [sizes[T] for sizes in LENGTH.others("length")] == [7, 5, 12, 3]
    one = symbols((1, T), sizes={T: 1}, names={T: "length"})
    assert [sizes[T] for sizes in one.others("length")] == [2, 1, 2, 1], "never empty"
    assert list(LENGTH.others("width")) == [{}] * 4


def test_inputs_are_repeated_or_cut_and_their_rows_shifted() -> None:
    x = torch.arange(8.0).view(2, 4)
    larger = BATCH.resized(x, {N: 3})
    assert larger.tolist() == [[0, 1, 2, 3], [7, 4, 5, 6], [2, 3, 0, 1]]
    assert BATCH.resized(x, {N: 1}).tolist() == [[0, 1, 2, 3]]
    assert x.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_masks_are_not_shifted_and_dimensions_may_be_expressions() -> None:
    given = symbols((N, 2 * T), (N,), sizes={N: 2, T: 1}, names={N: "batch", T: "length"})
    mask = torch.tensor([[1, 0], [0, 1]])
    found, ids = given.resized((mask, torch.tensor([5, 6])), {T: 2})
    assert found.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert ids.tolist() == [5, 6], "one dimension is not shifted"


class Sum(nn.Module):
    def __init__(self, accepts: int | None = None) -> None:
        super().__init__()
        self.accepts = accepts

    def forward(self, x: Tensor) -> Tensor:
        if self.accepts is not None and x.shape[1] != self.accepts:
            raise ValueError("another size")
        return x.cumsum(1)[:, -1:] * 2


def graph(factor: float, width: int | str = "t", kind: str = "ReduceSum") -> ModelProto:
    nodes = [
        helper.make_node(kind, ["x", "axis"], ["s"], keepdims=1),
        helper.make_node("Mul", ["s", "factor"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1]),
    ]
    weights = [
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.float32(factor), "factor"),
    ]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


X = torch.rand(1, 6, generator=torch.Generator().manual_seed(0))


def test_a_graph_that_computes_the_same_everywhere_passes() -> None:
    check_same(SharedGraph(graph(2.0)), Sum(), X, LENGTH, (), True)


def test_a_graph_that_differs_at_the_example_names_no_dimension() -> None:
    message = "output 0 of the ONNX graph differs from PyTorch's on inputs of 1x6"
    with pytest.raises(Differs, match=f"^{message}$") as caught:
        check_same(SharedGraph(graph(2.1)), Sum(), X, LENGTH, (), True)
    assert caught.value.name == ""


def test_a_graph_that_is_right_for_one_size_names_the_dimension() -> None:
    """The mean times twice the example's length is the sum there alone."""
    with pytest.raises(Differs, match="differs from PyTorch's on inputs of 1x7") as caught:
        check_same(SharedGraph(graph(12.0, kind="ReduceMean")), Sum(), X, LENGTH, (), True)
    assert caught.value.name == "length"


def test_a_graph_that_does_not_run_at_another_size_names_the_dimension() -> None:
    with pytest.raises(Differs, match="does not run on inputs of 1x7: ") as caught:
        check_same(SharedGraph(graph(2.0, width=6)), Sum(), X, LENGTH, (), True)
    assert caught.value.name == "length"


def test_a_dimension_of_which_the_model_takes_one_size_is_not_free() -> None:
    with pytest.raises(Differs, match=r"^the model takes no other size$") as caught:
        check_same(SharedGraph(graph(2.0)), Sum(accepts=6), X, LENGTH, (), True)
    assert caught.value.name == "length"


def test_a_graph_that_the_runtime_refuses_is_said_in_one_line() -> None:
    broken = graph(2.0)
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(
        Differs, match=r"^ONNX Runtime refuses the graph: .*NoSuchOperator"
    ) as caught:
        check_same(SharedGraph(broken), Sum(), X, LENGTH, (), True)
    assert "\n" not in str(caught.value)


def test_what_cancels_is_compared_by_the_models_own_rounding() -> None:
    """1e8 + x - 1e8 keeps eight units of x in float32, in whatever order the sums are made."""

    class Cancels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 1e8) - 1e8

    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "t"]) for name in "xy"]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    exact = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    none = symbols((1, 6), sizes={}, names={})
    check_same(SharedGraph(exact), Cancels(), X + 3, none, (), True)


@pytest.mark.parametrize("filler", [-1e4, -1e9, -torch.inf])
def test_rounding_of_a_filler_excuses_no_difference_of_other_values(filler: float) -> None:
    """float32 keeps less than 1 of -1e9."""
    mask = torch.tensor([0.0, 0, 0, 0, 0, filler])

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", mask)

        def forward(self, x: Tensor) -> Tensor:
            return x * 2 + self.mask

    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["m"]),
        helper.make_node("Add", ["m", "mask"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 6]) for name in "xy"]
    none = symbols((1, 6), sizes={}, names={})
    for factor in (2.0, 2.1):
        weights = [
            numpy_helper.from_array(np.float32(factor), "factor"),
            numpy_helper.from_array(mask.numpy(), "mask"),
        ]
        made = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
        proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        if factor == 2:
            check_same(SharedGraph(proto), Masked(), X, none, (), True)
        else:
            with pytest.raises(Differs, match="output 0 of the ONNX graph differs"):
                check_same(SharedGraph(proto), Masked(), X, none, (), True)


def test_rows_that_are_not_shifted_keep_their_columns() -> None:
    x = torch.arange(8.0).view(2, 4)
    larger = BATCH.resized(x, {N: 3}, rotated=False)
    assert larger.tolist() == [x[0].tolist(), (x[1] * 63 / 64).tolist(), (x[0] * 62 / 64).tolist()]
    assert BATCH.resized(x.long(), {N: 3}, rotated=False).tolist() == x[[0, 1, 0]].long().tolist()


class Columns(nn.Module):
    """Looks its first column up in a short table, as the number of a category."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x[:, 0].long()) + x[:, 1:]


@pytest.mark.parametrize("kind", [torch.float32, torch.int64])
def test_a_batch_is_free_where_columns_hold_other_kinds_of_values(kind: torch.dtype) -> None:
    x = torch.tensor([[2.0, 700.0, -800.0]]).to(kind)
    exported = export_float(Columns().eval(), x, (), (FreeDimension(0, 0, "x", "batch"),))
    assert exported.fixed == ()
    assert exported.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"

"""Give up dimensions and outputs until a graph agrees with its model: made-up exporters fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import onnx
import pytest
import sympy
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from autocompress.errors import ExportError
from autocompress.export.float_graph import float_graph
from autocompress.export.float_graph.float_graph import export_float, export_reference
from autocompress.export.float_graph.same import Differs
from autocompress.export.float_graph.trace import Traced
from autocompress.task.free_shapes import FreeDimension, default_dimensions

BATCH, LENGTH = FreeDimension(0, 0, "x", "batch"), FreeDimension(0, 1, "x", "length")
SYMBOLS = {"batch": sympy.Symbol("s0"), "length": sympy.Symbol("s1")}


class Net(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(x), x


X = torch.zeros(3, 5)


def graph() -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["s0", "s1"]) for name in "ab"]
    made = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", ends[:1], ends[1:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


class Exporter:
    """Trace with all free dimensions but `constant` ones; `refuse` and `differs` give errors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[list[str], bool]] = []
        self.constant: set[str] = set()
        self.refuse: Callable[[list[str], bool], Exception | None] = lambda names, further: None
        self.differs: Callable[[list[str], bool], Exception | None] = lambda names, follow: None
        self.follow: list[bool] = []
        cleaned = float_graph.cleaned

        def clean(proto, heads, free):
            self.follow.append(free)
            return cleaned(proto, heads, free)

        monkeypatch.setattr(float_graph, "trace", self.trace)
        monkeypatch.setattr(float_graph, "check_same", self.check)
        monkeypatch.setattr(float_graph, "cleaned", clean)

    def trace(self, model, inputs, names, free: Sequence[FreeDimension], further: bool) -> Traced:
        wanted = [d.name for d in free]
        self.asked.append((wanted, further))
        error = self.refuse(wanted, further)
        if error is not None:
            raise error
        size = lambda name, whole: (  # noqa: E731
            SimpleNamespace(node=SimpleNamespace(expr=SYMBOLS[name]))
            if name in wanted and name not in self.constant
            else whole
        )
        return Traced(graph(), ((size("batch", 3), size("length", 5)),), ("y",))

    def check(self, proto, model, inputs, symbols, names, further) -> None:
        error = self.differs(sorted(symbols.names.values()), self.follow[-1])
        if error is not None:
            raise error


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Exporter:
    return Exporter(monkeypatch)


def export(*free: FreeDimension) -> float_graph.FloatGraph:
    return export_float(Net(), X, (), free or (BATCH, LENGTH))


def test_what_is_free_has_its_name_and_the_example_is_noted(exporter: Exporter) -> None:
    found = export()
    assert (found.dynamic_batch, found.fixed) == (True, ())
    (value,) = found.proto.graph.input
    assert value.name == "x"
    assert [d.dim_param for d in value.type.tensor_type.shape.dim] == ["batch", "length"]
    notes = {entry.key: json.loads(entry.value) for entry in found.proto.metadata_props}
    assert notes == {"example": {"x": [3, 5]}}
    assert exporter.asked == [(["batch", "length"], True)]


def test_a_dimension_that_the_program_needs_is_fixed_and_said(exporter: Exporter) -> None:
    exporter.constant = {"length"}
    found = export()
    assert found.dynamic_batch
    assert found.fixed == ("x: dimension 1 (length) is fixed: the traced program needs exactly 5",)


def test_a_dimension_whose_other_sizes_differ_is_given_up(exporter: Exporter) -> None:
    exporter.differs = lambda names, follow: (
        Differs("length", "it differs") if "length" in names else None
    )
    found = export()
    assert exporter.asked == [(["batch", "length"], True), (["batch"], True)]
    assert exporter.follow == [True, False, True], "plain shapes are tried before"
    assert found.fixed == ("x: dimension 1 (length) is fixed: it differs",)


def test_shapes_that_follow_are_given_up_before_a_dimension(exporter: Exporter) -> None:
    exporter.differs = lambda names, follow: Differs("", "rows differ") if follow else None
    found = export()
    assert found.dynamic_batch
    assert found.fixed == (
        "shapes stay as the exporter wrote them, less can be pruned: rows differ",
    )


def test_outputs_that_nobody_reads_are_given_up_first_then_lengths_then_the_batch(
    exporter: Exporter,
) -> None:
    exporter.refuse = lambda names, further: ValueError("no") if further or names else None
    found = export()
    assert exporter.asked == [
        (["batch", "length"], True),
        (["batch", "length"], False),
        (["batch"], False),
        ([], False),
    ]
    assert not found.dynamic_batch
    assert [line.split(" (at")[0] for line in found.fixed] == [
        "outputs that no metric reads are not in the file: ValueError: no",
        "x: dimension 1 (length) is fixed: ValueError: no",
        "x: dimension 0 (batch) is fixed: ValueError: no",
    ]


def test_a_model_that_cannot_be_exported_at_all_is_an_error(exporter: Exporter) -> None:
    exporter.refuse = lambda names, further: ValueError("no\nmore")
    with pytest.raises(ExportError, match=r"^export: torch.onnx.export fails on the model: V.*no"):
        export()


def test_a_batch_stays_free_where_free_lengths_spoil_the_graph(exporter: Exporter) -> None:
    exporter.differs = lambda names, follow: (
        Differs("", "output 0 differs") if "length" in names else None
    )
    found = export()
    assert found.dynamic_batch
    assert found.fixed == ("x: dimension 1 (length) is fixed: output 0 differs",)


def test_a_graph_that_differs_at_the_example_is_an_error(exporter: Exporter) -> None:
    exporter.differs = lambda names, follow: Differs("", "output 0 differs")
    with pytest.raises(ExportError, match=r"^export: output 0 differs$"):
        export()


def test_a_dimension_in_which_the_users_batches_differ_must_be_free(exporter: Exporter) -> None:
    exporter.constant = {"length"}
    needed = FreeDimension(0, 1, "x", "length", (4, 9), "validation")
    with pytest.raises(ExportError) as caught:
        export(BATCH, needed)
    assert str(caught.value) == (
        "export: x: dimension 1 is fixed at 5 (the traced program needs exactly 5), but "
        "validation has batches of 9 there; pad all batches to 5"
    )


@pytest.mark.usefixtures("exporter")
def test_a_reference_has_the_inputs_of_the_other_model() -> None:
    found = onnx.load_from_string(
        export_reference(Net(), X, ("images",), (), (BATCH, LENGTH)).content()
    )
    assert [v.name for v in found.graph.input] == ["images"]
    assert list(found.graph.node[0].input) == ["images"]
    notes = {entry.key: json.loads(entry.value) for entry in found.metadata_props}
    assert notes == {"example": {"images": [3, 5]}}
    taken = export_reference(Net(), X, ("y",), (), (BATCH, LENGTH)).whole()
    assert [v.name for v in taken.graph.input] == ["y"]
    assert [v.name for v in taken.graph.output] == ["y_1"], "an output called so steps aside"


class Apart(nn.Module):
    """Read two inputs that nothing ties together."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(x), torch.sigmoid(y)


def test_all_inputs_have_one_name_of_the_batch() -> None:
    inputs = (torch.ones(2, 3), torch.ones(2, 4))
    found = export_float(Apart(), inputs, (), default_dimensions(Apart(), inputs))
    values = (*found.proto.graph.input, *found.proto.graph.output)
    first = [value.type.tensor_type.shape.dim[0].dim_param for value in values]
    assert first == ["batch"] * 4

"""Order the outputs of a model, and trace it by position."""

from __future__ import annotations

import logging
import sys
import warnings
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.export.float_graph.trace import (
    expression_of,
    ordered_outputs,
    quiet,
    recurrent_layers,
    trace,
)
from autocompress.model.plain.plain import plain_model
from autocompress.task.calls import primary_output
from autocompress.task.free_shapes import FreeDimension

A, B, C = (torch.full((2,), float(i)) for i in range(3))
Pair = namedtuple("Pair", "first second")


def names(result: object, *asked: str, further: bool = True) -> list[str]:
    return [output.name for output in ordered_outputs(result, asked, further)]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (A, ["output"]),
        ((A, B), ["output_0", "output_1"]),
        ({"other": A, "logits": B}, ["logits", "other"]),
        (Pair(A, B), ["first", "second"]),
        (SimpleNamespace(logits=A, state=(B, C)), ["logits", "state_0", "state_1"]),
        ({"logits": A, "cache": {"k": B, "v": [C]}}, ["logits", "cache_k", "cache_v_0"]),
        ((A, None, 3, "text", B), ["output_0", "output_4"]),
    ],
)
def test_outputs_are_named_by_their_place(result: object, expected: list[str]) -> None:
    assert names(result) == expected


@dataclass(slots=True)
class Slotted:
    logits: Tensor
    state: Any = None


@dataclass
class Held:
    scores: Tensor
    loss: Tensor | None = None
    size: int = 3


class Late:
    """Make its output when it is read."""

    @property
    def logits(self) -> Tensor:
        return A + 1


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Slotted(A), ["logits"]),
        (Slotted(A, [B, Held(C)]), ["logits", "state_0", "state_1_scores"]),
        ((Held(A, B), C), ["output_0_scores", "output_0_loss", "output_1"]),
        ({"first": Held(A), "last": Slotted(B, C)}, ["first_scores", "last_logits", "last_state"]),
        ([Slotted(Held(A))], ["output_0_logits_scores"]),
        (Held(Slotted(B)), ["scores_logits"]),
    ],
)
def test_dataclasses_are_walked_at_every_depth(result: object, expected: list[str]) -> None:
    assert sorted(names(result)) == sorted(expected)
    assert ordered_outputs(result)[0].tensor is primary_output(result)
    for output in ordered_outputs(result):
        value: Any = result
        for is_attribute, step in output.path:
            value = getattr(value, step) if is_attribute else value[step]
        assert value is output.tensor


@pytest.mark.parametrize("result", [Late(), (Late(),), {"a": SimpleNamespace(logits=A)}])
def test_an_output_that_has_no_place_is_named(result: Any) -> None:
    assert isinstance(primary_output(result), Tensor)
    with pytest.raises(TaskError) as caught:
        ordered_outputs(result)
    assert str(caught.value) == (
        f"task: the model returns its output inside of {type(result).__name__}, whose parts cannot "
        "be found; nearest: a tuple, dict or dataclass of tensors"
    )


def test_the_primary_output_is_first_then_those_that_are_asked_for() -> None:
    result = {"hidden": A, "logits": B, "boxes": C}
    assert names(result, "boxes", "logits") == ["logits", "boxes", "hidden"]
    assert names(result, "boxes", "logits", further=False) == ["logits", "boxes"]
    assert names(result, further=False) == ["logits"]


def test_a_tensor_that_is_returned_twice_has_two_places() -> None:
    assert names((A, A, B)) == ["output_0", "output_1", "output_2"]
    found = ordered_outputs({"logits": A, "again": A})
    assert [output.path for output in found] == [((False, "logits"),), ((False, "again"),)]


class Named(nn.Module):
    """Return by name, in another order than the file's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"scaled": x * scale, "logits": self.fc(x)}


def test_a_traced_graph_has_inputs_and_outputs_by_position() -> None:
    model = Named().eval()
    inputs = {"scale": torch.ones(1, 4), "x": torch.rand(1, 4)}
    free = [FreeDimension(i, 0, name, "batch") for i, name in enumerate(inputs)]
    found = trace(model, inputs, (), free, True)
    assert found.outputs == ("logits", "scaled")
    assert len(found.proto.graph.input) == 2
    assert len(found.proto.graph.output) == 2
    assert [expression_of(shape[1]) for shape in found.shapes] == [None, None]
    assert [int(shape[1]) for shape in found.shapes] == [4, 4]
    assert all(expression_of(shape[0]) is not None for shape in found.shapes), "the batch is free"
    parameters = {t.name for t in found.proto.graph.initializer}
    assert {"model.fc.weight", "model.fc.bias"} <= parameters


class Writes(nn.Module):
    """Write to parts of tensors whose returned views nobody reads, as heads of detectors do."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        boxes = x.sigmoid()
        boxes[..., 0:2] = boxes[..., 0:2] * 2 - 0.5
        boxes[..., 2:4] = boxes[..., 2:4] ** 2
        rows = x * 1
        rows[:, 0].mul_(3.0)
        rows.narrow(1, 1, 2).copy_(x[:, 2:4])
        filled = torch.zeros(x.shape[0], 10)
        filled[:, : x.shape[1]] = x
        summed = torch.empty_like(x)
        torch.add(x, 1.0, out=summed)
        return {"boxes": boxes, "rows": rows, "filled": filled, "summed": summed}


def test_what_is_written_in_place_is_in_the_graph() -> None:
    model, x = Writes().eval(), torch.randn(3, 6)
    free = [FreeDimension(0, 0, "x", "batch")]
    found = trace(model, x, (), free, True)
    session = InferenceSession(found.proto.SerializeToString())
    values = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = model(x)
    assert found.outputs == tuple(expected)
    for name, value in zip(expected, values, strict=True):
        torch.testing.assert_close(torch.from_numpy(value), expected[name], msg=name)


class Counts(nn.Module):
    """Count calls and tokens in state that this forward does not read, and add to one that it does.

    The state is a buffer, a part of a buffer, a tensor that is no buffer, and a parameter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(5))
        self.register_buffer("calls", torch.zeros(2, dtype=torch.long))
        self.register_buffer("read", torch.ones(4))
        self.register_buffer("again", torch.ones(4))
        self.last = torch.zeros(4)
        self.mean = nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        places = x[:, :4].argmax(1)
        self.seen.add_(torch.bincount(places, weights=x[:, 0], minlength=5)[:5])
        self.calls[0].add_(1).mul_(2)
        self.last.copy_(x[0])
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        self.read.add_(x[0])
        self.again.view(2, 2)[1].add_(x[0, :2])
        return x * self.read, self.again + 0


def test_writes_to_state_stay_where_it_is_read() -> None:
    model, x = Counts().eval(), torch.randn(3, 4)
    found = trace(model, x, (), [], True)
    kinds = {node.op_type for node in found.proto.graph.node}
    assert not kinds & {"ArgMax", "ReduceMean"}  # only the unread state takes these
    session = InferenceSession(found.proto.SerializeToString())
    values = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = model(x)  # tracing has run the model too: the graph holds the state after that
    assert len(values) == 2
    for value, output in zip(values, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(value), output)


def test_constants_are_no_expressions() -> None:
    import sympy

    def size(expression: object) -> object:
        return SimpleNamespace(node=SimpleNamespace(expr=expression))

    n = sympy.Symbol("n")
    assert expression_of(3) is None
    assert expression_of(size(sympy.Integer(3))) is None
    assert expression_of(size(2 * n)) == 2 * n


def test_layers_whose_length_no_tracer_leaves_open() -> None:
    model = nn.ModuleList([nn.LSTM(2, 2), nn.GRU(2, 2), nn.LSTM(2, 2), nn.Linear(2, 2)])
    assert recurrent_layers(model) == ["GRU", "LSTM"]
    assert recurrent_layers(nn.Linear(2, 2)) == []
    split = plain_model(nn.LSTM(2, 2), (torch.zeros(1, 3, 2),))
    assert recurrent_layers(split) == ["LSTM"]


def test_the_exporters_words_are_kept_back_and_levels_restored(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("torch.onnx")
    before = logger.level

    def noisy() -> None:
        with quiet():
            assert logger.level == logging.ERROR
            print("words")
            print("errors", file=sys.stderr)
            warnings.warn("a warning", stacklevel=1)
            raise KeyError("shown")

    with pytest.raises(KeyError, match="shown"):
        noisy()
    assert logger.level == before
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", "")

"""Repair and complete the exporter's table of operators, and keep it between exports.

PyTorch 2.13 has no translation of nn.RNN. It reads the source of its 500 translations in each call
of `torch.onnx.export`, which takes 0.7 s of the processor, as long as the rest of the export of a
small model.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any
from unittest import mock

import torch
from onnx import TensorProto
from onnxscript import opset21 as op

# Other names of operators. The exporter brings the operands of an operator to one type under its
# first name alone: a quotient of integers under another name would be rounded. Without a
# translation, a program takes the first name.
OTHER_NAMES = (
    *("divide", "greater", "greater_equal", "less", "less_equal", "multiply"),
    *("special_erf", "special_erfc", "special_expm1", "subtract", "true_divide"),
)


@cache
def _built(opset_version: int, has_torchvision: bool) -> Any:
    """Return the table for an operator set, which nobody changes.

    It translates no other names of operators, and has the operators of torchvision only if that
    was imported before.
    """
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    table = ONNXRegistry.from_torchlib(opset_version=opset_version)
    for target in list(table.functions):
        if str(target).removeprefix("aten::").split(".")[0] in OTHER_NAMES:
            del table.functions[target]
    return table


@contextlib.contextmanager
def kept_registry(opset_version: int) -> Iterator[None]:
    """Let exports within the context take the repaired table that the first of them built.

    PyTorch offers no public way to pass a table. Where its private one has moved, each export
    builds its own again, as PyTorch does.

    Args:
        opset_version: of the exports.
    """
    with contextlib.ExitStack() as changes:
        with contextlib.suppress(ImportError, AttributeError, TypeError):
            kept = _built(opset_version, "torchvision" in sys.modules)
            copied(kept)
            copies = staticmethod(lambda **_: copied(kept))
            changes.enter_context(mock.patch.object(type(kept), "from_torchlib", copies))
        yield


def copied(table: Any) -> Any:
    """Return a copy of a table that an export may add operators to.

    Args:
        table: not changed.
    """
    copy = type(table)()
    vars(copy).update(vars(table))
    copy.functions = {target: list(found) for target, found in table.functions.items()}
    return copy


def _layers(
    activation: str,
    input: Any,
    hx: Any,
    params: Sequence[Any],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Any, Any]:
    """Write the layers of an nn.RNN as one RNN operator each.

    Args:
        activation: of the state, as ONNX names it.
        input: (steps, n, columns), or (n, steps, columns) if `batch_first`.
        hx: (layers * directions, n, hidden) first states.
        params: weight and, if `has_biases`, bias of inputs and state, by layer and direction.
        has_biases: as in PyTorch, and so are the others.
        num_layers: at least 1.
        bidirectional: the second direction reads the steps backwards.
        batch_first: of input and output.

    Returns:
        (states of the last layer after each step, last states of all layers).
    """
    count = 2 if bidirectional else 1
    x = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
    per_direction = 4 if has_biases else 2
    parts = [params[i : i + per_direction] for i in range(0, len(params), per_direction)]
    lasts = []
    for layer in range(num_layers):
        own = parts[layer * count : (layer + 1) * count]
        weights = [_joined([op.Unsqueeze(part[i], [0]) for part in own]) for i in range(2)]
        bias = None
        if has_biases:
            rows = [op.Concat(part[2], part[3], axis=0) for part in own]
            bias = _joined([op.Unsqueeze(row, [0]) for row in rows])
        first = hx
        if num_layers > 1:
            first = op.Slice(hx, [layer * count], [(layer + 1) * count], [0])
        every, last = op.RNN(
            x,
            *weights,
            bias,
            None,
            first,
            activations=[activation] * count,
            direction="bidirectional" if bidirectional else "forward",
            hidden_size=hx.shape[2],
        )
        x = op.Reshape(op.Transpose(every, perm=[0, 2, 1, 3]), [0, 0, -1])
        lasts.append(last)
    return op.Transpose(x, perm=[1, 0, 2]) if batch_first else x, _joined(lasts)


def _joined(parts: Sequence[Any]) -> Any:
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)


def _recurrent(activation: str) -> Callable[..., tuple[Any, Any]]:
    """Return the translation of nn.RNN with an activation; the exporter reads its arguments."""

    def layers(
        input: Any,
        hx: Any,
        params: Sequence[Any],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Any, Any]:
        own = (input, hx, params, has_biases, num_layers, bidirectional, batch_first)
        return _layers(activation, *own)

    return layers


def _subtracted_from(self: Any, other: Any, alpha: Any = 1) -> Any:
    """Write other - alpha * self.

    Without a translation it becomes a difference whose first operand is a number, which the
    exporter cannot bring to one type with a tensor of integers.
    """
    floating = self.dtype.is_floating_point()
    if isinstance(other, float) and not floating:
        self, floating = op.Cast(self, to=TensorProto.FLOAT), True
    if not isinstance(other, (int, float)):  # a size of an input
        other = op.CastLike(other, self)
    elif floating:
        other = float(other)
    alpha = float(alpha) if floating else alpha
    return op.Sub(other, self if alpha == 1 else op.Mul(self, alpha))


# Translations that PyTorch lacks, for its exporter.
TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.rnn_tanh.input: _recurrent("Tanh"),
    torch.ops.aten.rnn_relu.input: _recurrent("Relu"),
    torch.ops.aten.rsub.Scalar: _subtracted_from,
}

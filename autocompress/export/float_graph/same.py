"""Whether a graph computes what its model computes: at the example, and at other sizes of every dimension that it leaves free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from torch import Tensor, nn

from autocompress.export.float_graph.trace import Traced, expression_of, ordered_outputs
from autocompress.targets.device.sessions import open_session
from autocompress.task.batches import Inputs, feed_of, input_tensors, map_inputs
from autocompress.task.calls import run_model
from autocompress.task.copies import copied
from autocompress.task.free_shapes import FreeDimension

TOLERANCE = 1e-3  # of the largest value of an output
NOISE = 1e-7  # below this, values are rounding errors
REORDERED = 10  # times the model's own rounding error: sums in another order
LOOKS = 2  # other sizes of each dimension
EQUAL_SHARE = 0.99  # of integers: ties are broken by rounding
BATCHES = (3, 5, 2)
CAST_TYPES = {
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}


class Differs(Exception):
    """Where a graph does not compute what its model computes; `name` is the free dimension whose other sizes do not work, or ""."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Symbols:
    """The free dimensions of a traced program.

    Attributes:
        shapes: of each input, integers and expressions.
        names: of the free dimension that each symbol is, by symbol.
        sizes: of each symbol in the example.
        seen: the sizes of each symbol in the user's batches, where they differ.
    """

    shapes: tuple[tuple[Any, ...], ...]
    names: Mapping[Any, str]
    sizes: Mapping[Any, int]
    seen: Mapping[Any, tuple[int, ...]]

    @classmethod
    def of(cls, traced: Traced, inputs: Inputs, free: Sequence[FreeDimension]) -> Symbols:
        """Those that the dimensions `free` became."""
        names: dict[Any, str] = {}
        sizes: dict[Any, int] = {}
        seen: dict[Any, tuple[int, ...]] = {}
        for dimension in free:
            expression = expression_of(traced.shapes[dimension.position][dimension.dimension])
            if expression is not None and expression.is_Symbol:
                names.setdefault(expression, dimension.name)
                sizes.setdefault(
                    expression, input_tensors(inputs)[dimension.position].shape[dimension.dimension]
                )
                seen[expression] = tuple(sorted({*seen.get(expression, ()), *dimension.sizes}))
        return cls(traced.shapes, names, sizes, seen)

    def others(self, name: str) -> Iterator[dict[Any, int]]:
        """Other sizes of the symbols called `name`, those of the user's batches first."""
        own = {symbol: size for symbol, size in self.sizes.items() if self.names[symbol] == name}
        if name == "batch":
            yield from (dict.fromkeys(own, size) for size in BATCHES if size not in own.values())
            return
        for end in (0, -1):
            if any(self.seen[symbol] for symbol in own):
                yield {
                    symbol: self.seen[symbol][end] if self.seen[symbol] else size
                    for symbol, size in own.items()
                }
        yield {symbol: size + 1 for symbol, size in own.items()}
        yield {symbol: max(1, size - 1) for symbol, size in own.items()}
        yield {symbol: 2 * size for symbol, size in own.items()}
        yield {symbol: max(1, size // 2) for symbol, size in own.items()}

    def resized(self, inputs: Inputs, sizes: Mapping[Any, int]) -> Inputs:
        """`inputs` repeated or cut to those sizes of the symbols, the samples not all alike."""
        whole = {**self.sizes, **sizes}
        shapes = iter(self.shapes)

        def fitted(tensor: Tensor) -> Tensor:
            for d, size in enumerate(next(shapes)):
                expression = expression_of(size)
                if expression is not None and expression.free_symbols <= whole.keys():
                    tensor = tensor.index_select(
                        d, torch.arange(int(expression.subs(whole))) % tensor.shape[d]
                    )
            if tensor.dim() > 1 and not _is_mask(tensor):
                tensor = (
                    torch.stack([row.roll(i, -1) for i, row in enumerate(tensor)])
                    if len(tensor)
                    else tensor
                )
            return tensor

        return map_inputs(inputs, fitted)


def _casts(proto: ModelProto, error: str) -> str:
    """Return the types that the model casts to, where an operator has no kernel and they may be why, and what to do."""
    targets = {
        attribute.i
        for node in proto.graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    found = sorted(name for kind, name in CAST_TYPES.items() if kind in targets)
    if "NOT_IMPLEMENTED" not in error or not found:
        return ""
    return f"; the model casts to {' and '.join(found)} in forward, for which there is no kernel; nearest: no such casts"


def check_same(
    proto: ModelProto,
    model: nn.Module,
    inputs: Inputs,
    symbols: Symbols,
    names: Sequence[str],
    further: bool,
) -> None:
    """Raise `Differs` unless the graph computes what the model computes."""
    try:
        session = open_session(proto.SerializeToString(), silent=True)
    except Exception as error:
        raise Differs(
            "", f"ONNX Runtime refuses the graph: {_first_line(error)}{_casts(proto, str(error))}"
        ) from error
    called = [value.name for value in session.get_inputs()]

    def compare(changed: Inputs, name: str) -> None:
        sizes = ", ".join("x".join(map(str, tensor.shape)) for tensor in input_tensors(changed))
        try:
            found = session.run(None, feed_of(changed, called))
        except Exception as error:
            raise Differs(
                name, f"the ONNX graph does not run on inputs of {sizes}: {_first_line(error)}"
            ) from error
        differing = [
            at
            for at, (value, wanted) in enumerate(zip(found, expected, strict=True))
            if not close(np.asarray(value), wanted)
        ]
        if not differing:
            return
        noise = _rounding_errors(model, changed, names, further, expected)
        for at in differing:
            if not close(np.asarray(found[at]), expected[at], REORDERED * noise[at]):
                raise Differs(
                    name,
                    f"output {at} of the ONNX graph differs from PyTorch's on inputs of {sizes}",
                )

    expected = _outputs(model, inputs, names, further)
    compare(inputs, "")
    for name in dict.fromkeys(symbols.names.values()):
        looked = 0
        for sizes in symbols.others(name):
            changed = symbols.resized(inputs, sizes)
            try:
                expected = _outputs(model, changed, names, further)
            except Exception:  # a size that the model itself does not take
                continue
            compare(changed, name)
            looked += 1
            if looked == LOOKS:
                break
        if not looked:
            raise Differs(name, "the model takes no other size")


def _outputs(
    model: nn.Module, inputs: Inputs, names: Sequence[str], further: bool
) -> list[NDArray[Any]]:
    with torch.no_grad():
        result = run_model(model, map_inputs(inputs, lambda tensor: tensor.clone()))
    return [
        output.tensor.detach().cpu().numpy() for output in ordered_outputs(result, names, further)
    ]


def _rounding_errors(
    model: nn.Module,
    inputs: Inputs,
    names: Sequence[str],
    further: bool,
    expected: Sequence[NDArray[Any]],
) -> list[float]:
    """By output, how far the model's own float32 results are from float64: outputs that cancel are noise; 0 where it takes no float64."""
    wide = map_inputs(
        inputs, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor
    )
    try:
        exact = _outputs(copied(model, None, torch.float64), wide, names, further)
        return [
            float(np.abs(a - b).max(initial=0.0)) if a.dtype != b.dtype else 0.0
            for a, b in zip(exact, expected, strict=True)
        ]
    except Exception:  # a program with float32 inside
        return [0.0] * len(expected)


def close(value: NDArray[Any], expected: NDArray[Any], noise: float = NOISE) -> bool:
    """Whether two arrays of one shape are equal but for rounding; of integers a few may differ, where ties are broken by rounding.

    `noise` is what rounding alone may make of a value, whatever the size of the others.
    """
    if value.shape != expected.shape:
        return False
    if not np.issubdtype(expected.dtype, np.floating):
        return not expected.size or float((value == expected).mean()) >= EQUAL_SHARE
    finite = np.abs(expected[np.isfinite(expected)])
    scale = float(finite.max(initial=0.0))
    same: bool = np.allclose(
        value, expected, rtol=0.0, atol=TOLERANCE * scale + noise, equal_nan=True
    )
    return same


def _is_mask(tensor: Tensor) -> bool:
    """Return whether a tensor says yes or no: shifted, it could leave a token nothing to attend to, which no user's mask does."""
    return (
        not tensor.is_floating_point()
        and not tensor.is_complex()
        and bool(((tensor == 0) | (tensor == 1)).all())
    )


def _first_line(error: Exception) -> str:
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )

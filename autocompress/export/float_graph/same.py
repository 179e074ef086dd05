"""Compare a graph with its model, at the example and at other sizes.

`export_float` runs this on each cleaned graph and gives up what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnxruntime import InferenceSession
from torch import Tensor, nn

from autocompress.differences import filler_size, relative_difference
from autocompress.export.float_graph.shared_graph import SharedGraph
from autocompress.export.float_graph.trace import Traced, expression_of, ordered_outputs
from autocompress.task.batches import Inputs, feed_of, input_tensors, map_inputs
from autocompress.task.calls import run_model
from autocompress.task.copies import copied
from autocompress.task.free_shapes import BATCH, FreeDimension

TOLERANCE = 1e-3  # of the largest value of an output
NOISE = 1e-7  # below this, values are rounding errors
REORDERED = 10  # times the model's own rounding error: sums in another order
LOOKS = 2  # other sizes of each dimension
EQUAL_SHARE = 0.99  # of integers: ties are broken by rounding
BATCHES = (3, 5, 2)
SHRUNK = 64  # parts of a row by which the next one is smaller
CAST_TYPES = {
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}


class Differs(Exception):
    """Report a graph whose outputs differ from its model's.

    Attributes:
        name: the free dimension whose other sizes do not work, or "" if the example does not.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Symbols:
    """Hold the free dimensions of a traced program as its symbols.

    Attributes:
        shapes: of each input, an integer or an expression of symbols per dimension.
        names: name of the free dimension, by symbol.
        sizes: size in the example, by symbol.
        seen: sizes in the user's batches, by symbol; empty where they do not differ.
    """

    shapes: tuple[tuple[Any, ...], ...]
    names: Mapping[Any, str]
    sizes: Mapping[Any, int]
    seen: Mapping[Any, tuple[int, ...]]

    @classmethod
    def of(cls, traced: Traced, inputs: Inputs, free: Sequence[FreeDimension]) -> Symbols:
        """Return the symbols that free dimensions became.

        Args:
            traced: the traced program.
            inputs: the example.
            free: dimensions that were to be free; those that became constants have no symbol.

        Returns:
            the symbols; dimensions with one symbol share the first one's name.
        """
        tensors = input_tensors(inputs)
        names: dict[Any, str] = {}
        sizes: dict[Any, int] = {}
        seen: dict[Any, tuple[int, ...]] = {}
        for dimension in free:
            position, d = dimension.position, dimension.dimension
            expression = expression_of(traced.shapes[position][d])
            if expression is not None and expression.is_Symbol:
                names.setdefault(expression, dimension.name)
                sizes.setdefault(expression, tensors[position].shape[d])
                seen[expression] = tuple(sorted({*seen.get(expression, ()), *dimension.sizes}))
        return cls(traced.shapes, names, sizes, seen)

    def others(self, name: str) -> Iterator[dict[Any, int]]:
        """Yield other sizes of a free dimension, the smallest and largest of the user's first.

        Args:
            name: of the dimension, as in `names`.

        Returns:
            sizes by symbol, of the symbols with this name.
        """
        own = {symbol: size for symbol, size in self.sizes.items() if self.names[symbol] == name}
        if name == BATCH:
            yield from (dict.fromkeys(own, size) for size in BATCHES if size not in own.values())
            return
        for end in (0, -1):
            if any(self.seen[symbol] for symbol in own):
                sizes = dict(own)
                sizes.update((s, self.seen[s][end]) for s in own if self.seen[s])
                yield sizes
        yield {symbol: size + 1 for symbol, size in own.items()}
        yield {symbol: max(1, size - 1) for symbol, size in own.items()}
        yield {symbol: 2 * size for symbol, size in own.items()}
        yield {symbol: max(1, size // 2) for symbol, size in own.items()}

    def resized(self, inputs: Inputs, sizes: Mapping[Any, int], rotated: bool = True) -> Inputs:
        """Return inputs of other sizes.

        Args:
            inputs: the example; its entries are repeated or cut.
            sizes: new size by symbol; other symbols keep the example's.
            rotated: rotate row i of a tensor by i, so that samples differ; masks are not rotated.
                Else row i is the example's, of real numbers 1 - i/64 of it: each column keeps its
                kind of values, such as the numbers of categories.

        Returns:
            new inputs.
        """
        every_size = {**self.sizes, **sizes}
        shapes = iter(self.shapes)

        def fitted(tensor: Tensor) -> Tensor:
            for d, size in enumerate(next(shapes)):
                expression = expression_of(size)
                if expression is not None and expression.free_symbols <= every_size.keys():
                    places = torch.arange(int(expression.subs(every_size))) % tensor.shape[d]
                    tensor = tensor.index_select(d, places)
            if tensor.dim() < 2 or not len(tensor) or _is_mask(tensor):
                return tensor
            if rotated:
                return torch.stack([row.roll(i, -1) for i, row in enumerate(tensor)])
            if not tensor.is_floating_point():
                return tensor
            return torch.stack([row * (1 - (i % SHRUNK) / SHRUNK) for i, row in enumerate(tensor)])

        return map_inputs(inputs, fitted)


@dataclass(frozen=True)
class _Comparison:
    """Compare a session with the model of its graph.

    Attributes:
        session: runs the graph.
        model: in eval mode, on the CPU.
        names: outputs that the task reads, behind the primary one.
        further: whether the graph has the model's other outputs too.
    """

    session: InferenceSession
    model: nn.Module
    names: Sequence[str]
    further: bool

    def expected(self, inputs: Inputs) -> list[NDArray[Any]]:
        """Return the model's outputs in the order of the graph's."""
        return _outputs(self.model, inputs, self.names, self.further)

    def check(self, inputs: Inputs, expected: Sequence[NDArray[Any]], dimension: str) -> None:
        """Raise `Differs` with the name of a dimension unless the graph gives `expected`."""
        sizes = ", ".join("x".join(map(str, tensor.shape)) for tensor in input_tensors(inputs))
        feed = feed_of(inputs, [value.name for value in self.session.get_inputs()])
        try:
            outputs = [np.asarray(output) for output in self.session.run(None, feed)]
        except Exception as error:
            message = f"the ONNX graph does not run on inputs of {sizes}: {_first_line(error)}"
            raise Differs(dimension, message) from error
        pairs = list(zip(outputs, expected, strict=True))
        differing = [i for i, pair in enumerate(pairs) if not close(*pair)]
        if not differing:
            return
        noise = self._rounding_errors(inputs, expected)
        for i in differing:
            if not close(*pairs[i], REORDERED * noise[i]):
                message = (
                    f"output {i} of the ONNX graph differs from PyTorch's on inputs of {sizes}"
                )
                raise Differs(dimension, message)

    def _rounding_errors(self, inputs: Inputs, expected: Sequence[NDArray[Any]]) -> list[float]:
        """Return by output how far the model's float32 results are from float64.

        They are large where terms cancel. They count as 0 for a model that takes no float64.
        """
        wide = map_inputs(inputs, lambda x: x.double() if x.is_floating_point() else x)
        errors: list[float] = []
        try:
            double = copied(self.model, None, torch.float64)
            exact = _outputs(double, wide, self.names, self.further)
            for a, b in zip(exact, expected, strict=True):
                if a.dtype == b.dtype:
                    errors.append(0.0)
                    continue
                # Fillers of masks are rounded by far more than what they stand beside.
                counts = (np.abs(b) < filler_size(b)) & np.isfinite(a)
                errors.append(float(np.abs(a[counts] - b[counts]).max(initial=0.0)))
        except Exception:  # a program with float32 inside
            return [0.0] * len(expected)
        return errors


def check_same(
    graph: SharedGraph,
    model: nn.Module,
    inputs: Inputs,
    symbols: Symbols,
    names: Sequence[str],
    further: bool,
) -> None:
    """Compare a graph with its model at the example, then at other sizes of each free dimension.

    Args:
        graph: the graph.
        model: in eval mode, on the CPU.
        inputs: the example.
        symbols: the free dimensions.
        names: outputs that the task reads, behind the primary one.
        further: whether the graph has the model's other outputs too.

    Raises:
        Differs: the graph does not load or does not run, an output differs, or the model takes no
            other size of a dimension.
    """
    try:
        session = graph.session(silent=True)
    except Exception as error:
        reason = f"{_first_line(error)}{_casts(graph.proto, str(error))}"
        raise Differs("", f"ONNX Runtime refuses the graph: {reason}") from error
    comparison = _Comparison(session, model, names, further)
    comparison.check(inputs, comparison.expected(inputs), "")
    for dimension in dict.fromkeys(symbols.names.values()):
        looked = 0
        for sizes in symbols.others(dimension):
            for rotated in (True, False):
                changed = symbols.resized(inputs, sizes, rotated)
                try:
                    expected = comparison.expected(changed)
                    break
                except Exception:  # values in other columns, or a size that the model does not take
                    continue
            else:
                continue
            comparison.check(changed, expected, dimension)
            looked += 1
            if looked == LOOKS:
                break
        if not looked:
            raise Differs(dimension, "the model takes no other size")


def close(value: NDArray[Any], expected: NDArray[Any], noise: float = NOISE) -> bool:
    """Return True if two arrays are equal up to rounding.

    Args:
        value: floats may differ by TOLERANCE of the largest value of `expected`, fillers of masks
            by TOLERANCE of themselves; a share of 1 - EQUAL_SHARE of integers may differ.
        expected: arrays of other shapes are never close.
        noise: absolute difference of floats that rounding alone may make.

    Returns:
        False where only one of the two is NaN or the same infinity.
    """
    if value.shape != expected.shape:
        return False
    if not np.issubdtype(expected.dtype, np.floating):
        return not expected.size or float((value == expected).mean()) >= EQUAL_SHARE
    return relative_difference(value, expected, 0.0, noise / TOLERANCE) <= TOLERANCE


def _casts(proto: ModelProto, error: str) -> str:
    """Return the types that the model casts to, and a way out, if a kernel is missing for them."""
    targets: set[int] = set()
    for node in proto.graph.node:
        if node.op_type == "Cast":
            targets.update(a.i for a in node.attribute if a.name == "to")
    types = sorted(name for kind, name in CAST_TYPES.items() if kind in targets)
    if "NOT_IMPLEMENTED" not in error or not types:
        return ""
    return (
        f"; the model casts to {' and '.join(types)} in forward, for which there is no kernel; "
        "nearest: no such casts"
    )


def _outputs(
    model: nn.Module, inputs: Inputs, names: Sequence[str], further: bool
) -> list[NDArray[Any]]:
    with torch.no_grad():
        result = run_model(model, map_inputs(inputs, lambda tensor: tensor.clone()))
    outputs = ordered_outputs(result, names, further)
    return [output.tensor.detach().cpu().numpy() for output in outputs]


def _is_mask(tensor: Tensor) -> bool:
    """Return True if a tensor holds only 0 and 1; rotated, it could hide all from a token."""
    if tensor.is_floating_point() or tensor.is_complex():
        return False
    return bool(((tensor == 0) | (tensor == 1)).all())


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines() if line.strip())
    return next(lines, type(error).__name__)

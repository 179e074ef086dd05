"""From a PyTorch model to the exporter's own ONNX graph, with inputs and outputs by position and the real cause of what fails."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn

from autocompress.batches import Inputs, input_tensors, map_inputs
from autocompress.free_shapes import FreeDimension
from autocompress.task import named_outputs, primary_output, run_model

OPSET = 21  # the first with 4-bit integers in DequantizeLinear and Cast
INSIDE = "model."  # before the names of parameters in the exporter's graph, so that none of its own names is like them


@dataclass(frozen=True)
class Traced:
    """The exporter's graph.

    Attributes:
        proto: its inputs are in calling order, its outputs as `outputs` names them.
        shapes: of each input, an integer or a symbolic expression per dimension.
        outputs: names of the outputs.
    """

    proto: ModelProto
    shapes: tuple[tuple[Any, ...], ...]
    outputs: tuple[str, ...]


class _ByPosition(nn.Module):
    """The model as a function of a tuple of tensors that returns a tuple of tensors."""

    def __init__(self, model: nn.Module, like: Inputs, outputs_of: Callable[[Any], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model = model
        self.like, self.outputs_of = like, outputs_of

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        left = iter(tensors)
        return self.outputs_of(run_model(self.model, map_inputs(self.like, lambda _: next(left))))


def ordered_outputs(result: Any, names: Sequence[str] = (), further: bool = True) -> list[tuple[str, Tensor]]:
    """(name, tensor) of what a model returned: the primary output, the others of `names`, then (if `further`) all that is left.

    Names are keys, attributes, or "output_1" for positions; what is no tensor has no place in a file.
    """
    flat = list(_labelled(result, ""))
    wanted = [primary_output(result)]
    wanted += [tensor for tensor in named_outputs(result, names).values() if tensor is not wanted[0]] if names else []
    places: list[int] = []
    for tensor in wanted:
        same = [i for i, (_, value) in enumerate(flat) if value is tensor]
        places.append(next((i for i in same if i not in places), same[0]))
    places += [i for i in range(len(flat)) if i not in places] if further else []
    return [flat[i] for i in places]


def _labelled(result: Any, label: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(result, Tensor):
        yield label or "output", result
        return
    if isinstance(result, Mapping):
        parts = [(str(key), value) for key, value in result.items()]
    elif isinstance(result, (tuple, list)):
        fields = getattr(result, "_fields", None)
        parts = (
            list(zip(fields, result, strict=True)) if fields else [(f"{label or 'output'}_{i}", value) for i, value in enumerate(result)]
        )
        label = "" if not fields else label
    else:
        parts = list(vars(result).items()) if hasattr(result, "__dict__") and not label else []
    for name, value in parts:
        yield from _labelled(value, name if not label else f"{label}_{name}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and warns about its own internals; errors still reach the caller as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def trace(model: nn.Module, inputs: Inputs, names: Sequence[str], free: Sequence[FreeDimension], further: bool) -> Traced:
    """Export `model` with the dimensions `free` open where its program allows it."""
    traced = input_tensors(inputs)
    shapes: list[dict[int, Any]] = [{} for _ in traced]
    for dimension in free:
        i, d = dimension.position, dimension.dimension
        shapes[i][d] = torch.export.Dim.AUTO
        if traced[i].shape[d] == 1:  # would be taken for a constant
            traced[i] = torch.cat([traced[i], traced[i]], d)
    labels: tuple[str, ...] = ()

    def outputs_of(result: Any) -> tuple[Tensor, ...]:
        nonlocal labels
        labels, tensors = zip(*ordered_outputs(result, names, further), strict=True)
        return tensors

    wrapped = _ByPosition(model, inputs, outputs_of)
    dynamic = (tuple(shape or None for shape in shapes),) if free else None
    with _quiet(), torch.no_grad():
        program = _program(wrapped, tuple(traced), dynamic)
        onnx_program = torch.onnx.export(program, (), dynamo=True, optimize=False, verbose=False, opset_version=OPSET)
    assert onnx_program is not None
    given = set(program.graph_signature.user_inputs)
    found = tuple(tuple(node.meta["val"].shape) for node in program.graph.nodes if node.op == "placeholder" and node.name in given)
    return Traced(onnx_program.model_proto, found, labels)


def _program(wrapped: nn.Module, tensors: tuple[Tensor, ...], dynamic: Any) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(wrapped, (tensors,), dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        try:
            return torch.export.export(wrapped, (tensors,), dynamic_shapes=dynamic, strict=True)
        except Exception:
            raise error from None


def cause_of(error: BaseException) -> str:
    """One line: what went wrong behind the exporter's own words, and where in the user's code."""
    place = ""
    while True:
        place = _place(error) or place
        deeper = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if deeper is None or not type(error).__module__.startswith("torch.onnx"):
            break
        error = deeper
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}" + (f" (at {place})" if place else "")


def _place(error: BaseException) -> str:
    """The last line of an error's traceback that is neither a library's nor ours."""
    others = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parents[1]), str(Path(io.__file__).parent), "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(others)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""

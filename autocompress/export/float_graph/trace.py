"""From a PyTorch model to the exporter's own ONNX graph, with inputs and outputs by position and the real cause of what fails."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn

from autocompress.model.plain.recurrent import SplitRecurrent
from autocompress.task.batches import Inputs, input_tensors, map_inputs
from autocompress.task.calls import named_outputs, primary_output, run_model
from autocompress.task.free_shapes import FreeDimension

CHECKS = ("_assert_scalar", "_assert_async", "_assert_tensor_metadata", "sym_constrain_range")
Path = tuple[
    tuple[bool, Any], ...
]  # (whether it is an attribute, key, position or attribute), step by step
OPSET = 21  # the first with 4-bit integers in DequantizeLinear and Cast
NOISY = (
    "torch.onnx",
    "torch.export",
    "torch.fx.experimental.symbolic_shapes",
    "onnxscript",
    "onnx_ir",
)
DATA_DEPENDENT = (
    "GuardOnDataDependentSymNode"  # the exporter's error where Python asks for a tensor's value
)
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

    def __init__(self, model: nn.Module, like: Inputs, paths: Sequence[Path]) -> None:
        super().__init__()
        self.model = model
        self.like, self.paths = like, tuple(paths)

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        left = iter(tensors)
        inputs: Any = map_inputs(self.like, lambda _: next(left))
        if isinstance(inputs, Tensor):
            result = self.model(inputs)
        else:
            result = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(*inputs)
        return tuple([_follow(result, path) for path in self.paths])


@dataclass(frozen=True)
class Output:
    """A tensor that a model returned, its name, and the way to it through keys, positions and attributes."""

    name: str
    path: Path
    tensor: Tensor


def ordered_outputs(result: Any, names: Sequence[str] = (), further: bool = True) -> list[Output]:
    """The tensors that a model returned: the primary output, the others of `names`, then (if `further`) all that is left.

    Names are keys, attributes, or "output_1" for positions; what is no tensor has no place in a file.
    """
    every = list(_leaves(result, "", ()))
    wanted = [primary_output(result)]
    wanted += (
        [tensor for tensor in named_outputs(result, names).values() if tensor is not wanted[0]]
        if names
        else []
    )
    places: list[int] = []
    for tensor in wanted:
        same = [i for i, output in enumerate(every) if output.tensor is tensor]
        places.append(next((i for i in same if i not in places), same[0]))
    places += [i for i in range(len(every)) if i not in places] if further else []
    return [every[i] for i in places]


def _leaves(result: Any, name: str, path: Path) -> Iterator[Output]:
    if isinstance(result, Tensor):
        yield Output(name or "output", path, result)
        return
    parts: list[tuple[str, tuple[bool, Any], Any]] = []
    if isinstance(result, Mapping):
        parts = [(str(key), (False, key), value) for key, value in result.items()]
    elif isinstance(result, (tuple, list)):
        fields = getattr(result, "_fields", None)
        name = name or ("" if fields else "output")
        parts = [
            (fields[i] if fields else str(i), (False, i), value) for i, value in enumerate(result)
        ]
    elif hasattr(result, "__dict__") and not path:
        parts = [(key, (True, key), value) for key, value in vars(result).items()]
    for label, step, value in parts:
        yield from _leaves(value, f"{name}_{label}" if name else label, (*path, step))


def _follow(result: Any, path: Path) -> Any:
    for is_attribute, step in path:
        result = getattr(result, step) if is_attribute else result[step]
    return result


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter prints and warns about its own internals; errors still reach the caller as exceptions."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, NOISY)}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in loggers.items():
                logger.setLevel(level)


def trace(
    model: nn.Module,
    inputs: Inputs,
    names: Sequence[str],
    free: Sequence[FreeDimension],
    further: bool,
) -> Traced:
    """Export `model` with the dimensions `free` open where its program allows it."""
    traced = input_tensors(inputs)
    shapes: list[dict[int, Any]] = [{} for _ in traced]
    for dimension in free:
        i, d = dimension.position, dimension.dimension
        shapes[i][d] = torch.export.Dim.AUTO
        if traced[i].shape[d] == 1:  # would be taken for a constant
            traced[i] = torch.cat([traced[i], traced[i]], d)
    with torch.no_grad():
        outputs = ordered_outputs(
            run_model(model, map_inputs(inputs, lambda tensor: tensor.clone())), names, further
        )
    wrapped = _ByPosition(model, inputs, [output.path for output in outputs])
    dynamic = (tuple(shape or None for shape in shapes),) if free else None
    needed = [(d.position, d.dimension) for d in free if d.is_batch or d.sizes]
    with quiet(), torch.no_grad():
        program = _without_checks(_program(wrapped, tuple(traced), dynamic, needed))
        onnx_program = torch.onnx.export(
            program, (), dynamo=True, optimize=False, verbose=False, opset_version=OPSET
        )
    assert onnx_program is not None
    return Traced(
        onnx_program.model_proto, _input_shapes(program), tuple(output.name for output in outputs)
    )


def _program(
    wrapped: nn.Module, tensors: tuple[Tensor, ...], dynamic: Any, needed: Sequence[tuple[int, int]]
) -> torch.export.ExportedProgram:
    """The program of `wrapped`, traced through its bytecode where only that leaves what is `needed` open (as behind `len` of a tensor), or
    works at all; (input, dimension) each."""
    problem: Exception | None = None
    best: tuple[int, torch.export.ExportedProgram] | None = None
    for strict in (False, True):
        try:
            program = torch.export.export(
                wrapped, (tensors,), dynamic_shapes=dynamic, strict=strict
            )
        except Exception as error:
            problem = problem or error
            continue
        shapes = _input_shapes(program)
        free = sum(expression_of(shapes[i][d]) is not None for i, d in needed)
        if best is None or free > best[0]:
            best = free, program
        if free == len(needed) or recurrent_layers(wrapped):
            break
    if best is None:
        assert problem is not None
        raise problem
    return best[1]


def _without_checks(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without what it only checks while it runs, for which ONNX has no operator."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and any(word in str(node.target) for word in CHECKS):
            graph.erase_node(node)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    program.graph_module.recompile()
    return program


def recurrent_layers(model: nn.Module) -> list[str]:
    """Kinds of layers in a model whose length no tracer leaves open."""
    return sorted(
        {
            str(module.mode)
            for module in model.modules()
            if isinstance(module, (nn.RNNBase, SplitRecurrent))
        }
    )


def expression_of(size: Any) -> Any:
    """What a dimension is in a traced program: an expression of symbols, or None for a constant."""
    return None if isinstance(size, int) or size.node.expr.is_number else size.node.expr


def _input_shapes(program: torch.export.ExportedProgram) -> tuple[tuple[Any, ...], ...]:
    given = set(program.graph_signature.user_inputs)
    return tuple(
        tuple(node.meta["val"].shape)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in given
    )


def cause_of(error: BaseException) -> str:
    """One line: what went wrong behind the exporter's own words, and where in the user's code."""
    place = ""
    while True:
        place = _place(error) or place
        frames = traceback.extract_tb(error.__traceback__)
        if "FakeTensor" in str(error) and any(
            frame.filename.endswith(f"{File('modules/rnn.py')}") for frame in frames
        ):
            where = f" (at {place})" if place else ""
            return f"it packs sequences, whose lengths no file can follow{where}; nearest: padded sequences, and a mask"
        deeper = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if deeper is None or not type(error).__module__.startswith("torch.onnx"):
            break
        error = deeper
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
    if missing:
        return f"ONNX has no operator for {missing[1]}" + (f" (at {place})" if place else "")
    places = (
        re.findall(r'File "([^"]+)", line (\d+)', str(error))
        if type(error).__name__ == DATA_DEPENDENT
        else []
    )
    if places:  # the exporter's own words hold the place, where it is a library's
        place = place or f"{File(places[-1][0]).name}:{places[-1][1]}"
    if type(error).__name__ == DATA_DEPENDENT:
        return (
            "it decides by the values of tensors (data-dependent), which no file can follow"
            + (f" (at {place})" if place else "")
            + "; nearest: torch.where, or torch.cond"
        )
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}" + (
        f" (at {place})" if place else ""
    )


def _place(error: BaseException) -> str:
    """The last line of an error's traceback that is neither a library's nor ours."""
    others = (
        str(File(__file__).parents[2]),
        str(File(torch.__file__).parents[1]),
        str(File(io.__file__).parent),
        "<",
    )
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(others)
    ]
    return f"{File(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""

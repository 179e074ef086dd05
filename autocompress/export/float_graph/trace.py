"""Trace a PyTorch model and export it as the exporter's own ONNX graph.

Inputs and outputs are taken by position, so that dicts, tuples and output classes need no names in
the exporter. The graph that comes out still has to be cleaned.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from onnx import ModelProto, TensorProto
from torch import Tensor, fx, nn

from autocompress.errors import TaskError
from autocompress.export.float_graph.operators.missing import missing_operators, translatable
from autocompress.export.float_graph.operators.registry import TRANSLATIONS, kept_registry
from autocompress.export.float_graph.shared_graph import key_of, set_aside, without_parameters
from autocompress.model.plain.attention import traceable_layers
from autocompress.model.plain.recurrent import SplitRecurrent
from autocompress.task.batches import Inputs, input_tensors, map_inputs
from autocompress.task.calls import named_outputs, primary_output, run_model
from autocompress.task.free_shapes import FreeDimension

# Operators that check while the program runs; ONNX has none for them.
CHECKS = ("_assert_scalar", "_assert_async", "_assert_tensor_metadata", "sym_constrain_range")
# Steps to an output: (True if it is an attribute, its name), or (False, key or position).
Path = tuple[tuple[bool, Any], ...]
OPSET = 21  # the first with 4-bit integers in DequantizeLinear and Cast
NOISY = (
    "torch.onnx",
    "torch.export",
    "torch.fx.experimental.symbolic_shapes",
    "onnxscript",
    "onnx_ir",
)
# The exporter's graph has this before the names of parameters, and before no name of its own.
INSIDE = "model."


@dataclass(frozen=True)
class Traced:
    """Hold the exporter's graph of a model.

    Attributes:
        proto: its inputs are in calling order, its outputs in the order of `outputs`.
        shapes: of each input, an integer or a symbolic expression per dimension.
        outputs: names of the outputs.
        weights: large parameters that `proto` does not hold, for `SharedGraph`.
    """

    proto: ModelProto
    shapes: tuple[tuple[Any, ...], ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, Tensor] = field(default_factory=dict)


class _ByPosition(nn.Module):
    """Map a tuple of tensors to a tuple of tensors by the model."""

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
    """Describe a tensor that a model returned.

    Attributes:
        name: keys, attributes and positions on the way to it, joined by "_".
        path: the steps to it from what the model returned.
        tensor: its value.
    """

    name: str
    path: Path
    tensor: Tensor


def ordered_outputs(result: Any, names: Sequence[str] = (), further: bool = True) -> list[Output]:
    """Return the tensors among a model's outputs, in the order of a file.

    Args:
        result: what the model returned; values that are no tensors are left out.
        names: further outputs that the task reads: keys, attributes, or "output_1" for positions.
        further: include the tensors that the task does not read.

    Returns:
        the primary output, then those of `names`, then the others.

    Raises:
        TaskError: the primary output is made by a property, or lies in an object inside of others.
    """
    outputs = list(_leaves(result, "", ()))
    wanted = [primary_output(result)]
    if names:
        named = named_outputs(result, names).values()
        wanted += [tensor for tensor in named if tensor is not wanted[0]]
    places: list[int] = []
    for tensor in wanted:
        same = [i for i, output in enumerate(outputs) if output.tensor is tensor]
        if not same:
            raise TaskError(
                f"task: the model returns its output inside of {type(result).__name__}, whose "
                "parts cannot be found; nearest: a tuple, dict or dataclass of tensors"
            )
        places.append(next((i for i in same if i not in places), same[0]))
    if further:
        places += [i for i in range(len(outputs)) if i not in places]
    return [outputs[i] for i in places]


def _leaves(result: Any, name: str, path: Path) -> Iterator[Output]:
    """Yield the tensors in nested mappings, sequences, dataclasses and, on top, other objects."""
    if isinstance(result, Tensor):
        yield Output(name or "output", path, result)
        return
    parts: list[tuple[str, tuple[bool, Any], Any]] = []
    if isinstance(result, Mapping):
        parts = [(str(key), (False, key), value) for key, value in result.items()]
    elif isinstance(result, (tuple, list)):
        fields = getattr(result, "_fields", None)
        name = name or ("" if fields else "output")
        for i, value in enumerate(result):
            parts.append((fields[i] if fields else str(i), (False, i), value))
    else:
        fields = dataclasses.fields(result) if dataclasses.is_dataclass(result) else ()
        labels = [field.name for field in fields]
        if hasattr(result, "__dict__") and not path:
            labels += [key for key in vars(result) if key not in labels]
        parts = [(key, (True, key), getattr(result, key, None)) for key in labels]
    for label, step, value in parts:
        yield from _leaves(value, f"{name}_{label}" if name else label, (*path, step))


def _follow(result: Any, path: Path) -> Any:
    for is_attribute, step in path:
        result = getattr(result, step) if is_attribute else result[step]
    return result


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's prints, logs and warnings; exceptions still reach the caller."""
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
    """Export a model with some dimensions free where its program allows it.

    Args:
        model: in eval mode, on the CPU.
        inputs: example to trace with; a free dimension of size 1 is traced with size 2.
        names: outputs that the task reads, behind the primary one.
        free: dimensions that should be free.
        further: export the outputs that the task does not read, too.

    Returns:
        the exporter's graph; `shapes` says which dimensions became free.
    """
    traced = input_tensors(inputs)
    shapes: list[dict[int, Any]] = [{} for _ in traced]
    for dimension in free:
        i, d = dimension.position, dimension.dimension
        shapes[i][d] = torch.export.Dim.AUTO
        if traced[i].shape[d] == 1:  # the exporter takes size 1 for a constant
            traced[i] = torch.cat([traced[i], traced[i]], d)
    with torch.no_grad():
        result = run_model(model, map_inputs(inputs, lambda tensor: tensor.clone()))
    outputs = ordered_outputs(result, names, further)
    wrapped = _ByPosition(model, inputs, [output.path for output in outputs])
    dynamic = (tuple(shape or None for shape in shapes),) if free else None
    needed = [(d.position, d.dimension) for d in free if d.is_batch or d.sizes]
    with quiet(), traceable_layers(model), torch.no_grad():
        program = _program(wrapped, tuple(traced), dynamic, needed)
        _drop_checks(program)
        program = translatable(program)
        with kept_registry(OPSET), missing_operators():
            onnx_program = torch.onnx.export(
                program,
                (),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                custom_translation_table=dict(TRANSLATIONS),
            )
    assert onnx_program is not None
    output_names = tuple(output.name for output in outputs)
    weights = without_parameters(onnx_program.model, model)
    proto = onnx_program.model_proto
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            set_aside(tensor, key_of(tensor))
    return Traced(proto, _input_shapes(program), output_names, weights)


def _program(
    wrapped: nn.Module, tensors: tuple[Tensor, ...], dynamic: Any, needed: Sequence[tuple[int, int]]
) -> torch.export.ExportedProgram:
    """Return the program that leaves most of the `needed` (input, dimension) free.

    The strict tracer reads bytecode. It is tried where the other one fails or leaves too little
    free, as behind `len` of a tensor.
    """
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


def _drop_checks(program: torch.export.ExportedProgram) -> None:
    """Drop in place what the program only checks while it runs, and what only checks read.

    Operators that write to a tensor stay, though nothing may read what they return. Writes to the
    state of the model that no later operator reads, such as counters of calls, are dropped: a file
    has no state that lasts.
    """
    graph, signature = program.graph_module.graph, program.graph_signature
    for node in list(graph.nodes):
        if node.op == "call_function" and any(word in str(node.target) for word in CHECKS):
            graph.erase_node(node)
    held = {
        *signature.inputs_to_parameters,
        *signature.inputs_to_buffers,
        *signature.inputs_to_lifted_tensor_constants,
    }
    state = {node for node in graph.nodes if node.op == "placeholder" and node.name in held}
    origins, order = _origins(graph), {node: i for i, node in enumerate(graph.nodes)}

    def has_effect(node: fx.Node) -> bool:
        if not node.is_impure(impure_random=False):
            return False
        written: set[fx.Node] = set()
        for value, is_written in _aliased(node):
            written |= origins[value] if is_written else set()
        if not written or not written <= state:
            return True
        views = [view for view, own in origins.items() if own & written]
        return any(order[user] > order[node] for view in views for user in view.users)

    graph.eliminate_dead_code(is_impure_node=has_effect)
    program.graph_module.recompile()


def _origins(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Return for each node those whose memory it may share; of one with its own memory, itself."""
    origins: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        shared = [value for value, _ in _aliased(node)]
        origins[node] = set().union(*(origins[value] for value in shared)) or {node}
    return origins


def _aliased(node: fx.Node) -> list[tuple[fx.Node, bool]]:
    """Return the arguments that share memory with a result, and whether they are written to."""
    if node.target is operator.getitem:
        return [(value, False) for value in node.args[:1] if isinstance(value, fx.Node)]
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    aliased: list[tuple[fx.Node, bool]] = []
    for i, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None:
            value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
            values = value if isinstance(value, (tuple, list)) else [value]
            written = bool(argument.alias_info.is_write)
            aliased += [(part, written) for part in values if isinstance(part, fx.Node)]
    return aliased


def recurrent_layers(model: nn.Module) -> list[str]:
    """Return the kinds of layers whose length no tracer leaves free.

    Args:
        model: with layers of torch, or the plain ones that replace them.

    Returns:
        sorted names: "GRU", "LSTM" or "RNN".
    """
    kinds = set()
    for module in model.modules():
        if isinstance(module, (nn.RNNBase, SplitRecurrent)):
            kinds.add(str(module.mode).partition("_")[0])  # RNN_TANH
    return sorted(kinds)


def expression_of(size: Any) -> Any:
    """Return the expression of symbols that a dimension is in a traced program.

    Args:
        size: an entry of `Traced.shapes`.

    Returns:
        a sympy expression, or None for a constant.
    """
    return None if isinstance(size, int) or size.node.expr.is_number else size.node.expr


def _input_shapes(program: torch.export.ExportedProgram) -> tuple[tuple[Any, ...], ...]:
    inputs = set(program.graph_signature.user_inputs)
    shapes = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in inputs:
            shapes.append(tuple(node.meta["val"].shape))
    return tuple(shapes)

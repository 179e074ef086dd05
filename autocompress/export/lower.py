"""From a PyTorch model to a float ONNX graph whose initializers keep the parameters' names and whose shapes follow their inputs."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnxscript.optimizer import fold_constants
from torch import nn

from autocompress.errors import ExportError
from autocompress.modules import ModuleMap, NormGroup
from autocompress.targets.runtime import open_session
from autocompress.task import Inputs, call_model, feed_of, input_tensors, map_inputs

NORM_OPERATORS = ("LayerNormalization", "RMSNormalization", "Mul")
OPSET = 21  # the first with 4-bit integers in DequantizeLinear and Cast


@dataclass(frozen=True)
class Site:
    """Where the graph uses a module's weight: `node` computes it, `output` is the tensor after its bias.

    Attributes:
        name: the module (the alias where weights are tied).
        owner: the module under whose name the weight is compressed.
        absorbed: nodes (by output name) that a rewritten site replaces: the weight's Transpose.
        tail: for convolutions, outputs of the BatchNormalization and Relu that follow alone.
        node: of a recurrent weight, a stand-in: whatever reads the weight reads what replaces it.
    """

    name: str
    owner: str
    kind: str
    node: NodeProto
    input: str
    output: str
    bias: str | None
    absorbed: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()


@dataclass
class LoweredModel:
    """The float graph; `sites` by owner. `input_names` are in calling order; only the primary output is left."""

    proto: ModelProto
    sites: Mapping[str, tuple[Site, ...]]
    input_names: tuple[str, ...]
    dynamic_batch: bool
    producer: dict[str, NodeProto] = field(default_factory=dict)

    def feed(self, inputs: Inputs) -> dict[str, Any]:
        """numpy feed of one batch."""
        return feed_of(inputs, self.input_names)


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


def export_float(model: nn.Module, example_inputs: Inputs) -> tuple[ModelProto, bool]:
    """(cleaned graph with the primary output only, whether the batch dimension is free)."""
    example_inputs = map_inputs(example_inputs, lambda tensor: tensor.detach().cpu())
    problem: Exception | None = None
    for dynamic in (True, False):
        # An example of size 1 would be taken for a constant, so the free dimension is traced with two samples.
        traced = map_inputs(example_inputs, _twice) if dynamic else example_inputs
        try:
            program = _export(model, traced, dynamic)
            proto = _clean(program.model_proto)
            _keep_primary_output(proto, model, traced)
        except Exception as error:
            problem = error
            continue
        return proto, dynamic
    reason = str(problem).strip().split("\n")[0]
    raise ExportError(f"export: torch.onnx.export fails on the model: {type(problem).__name__}: {reason}") from problem


def _twice(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, tensor])


def _export(model: nn.Module, inputs: Inputs, dynamic: bool) -> Any:
    free = {0: torch.export.Dim.DYNAMIC} if dynamic else None
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] | None = None
    shapes: Any
    if isinstance(inputs, Mapping):
        keywords, shapes = dict(inputs), dict.fromkeys(inputs, free)
    else:
        arguments = tuple(input_tensors(inputs))
        shapes = tuple(free for _ in arguments)
    with _quiet():
        return torch.onnx.export(
            model,
            arguments,
            kwargs=keywords,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes=shapes if dynamic else None,
        )


def _clean(proto: ModelProto) -> ModelProto:
    """Fold what depends on no input and no parameter, make Reshapes follow their input, drop metadata and dead nodes."""
    parameters = {tensor.name for tensor in proto.graph.initializer}

    def foldable(node: Any) -> bool | None:
        reads = any(value is not None and value.name in parameters for value in node.inputs)
        return False if reads and node.op_type != "Shape" else None

    intermediate = onnx_ir.from_proto(proto)
    fold_constants(intermediate, should_fold=foldable)
    proto = onnx_ir.to_proto(intermediate)
    graph = proto.graph
    _constants_to_initializers(proto)
    _plain_transposes(proto)
    _free_reshapes(proto)
    remove_dead_nodes(proto)
    del graph.value_info[:]
    for tensor in graph.initializer:  # without the exporter's optional fields, so that a replaced one takes the same bytes
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    for message in (*graph.node, *graph.initializer, *graph.input, *graph.output, graph, proto):
        del message.metadata_props[:]
        message.ClearField("doc_string")
    for node in graph.node:
        node.name = node.output[0]
    return proto


def _constants_to_initializers(proto: ModelProto) -> None:
    kept = []
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            tensor.name = node.output[0]
            proto.graph.initializer.append(tensor)
        else:
            kept.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


def _plain_transposes(proto: ModelProto) -> None:
    """Attention's swap of the last two of four dimensions, which is exported through three dimensions and their run-time
    shapes, as the one Transpose that it is; the shapes cost more than the product, and they bake the number of heads in."""
    consumers: dict[str, list[NodeProto]] = {}
    for node in proto.graph.node:
        for value in node.input:
            consumers.setdefault(value, []).append(node)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in proto.graph.value_info}
    for flatten in proto.graph.node:
        if flatten.op_type != "Reshape" or ranks.get(flatten.input[0]) != 4:
            continue
        swap = consumers.get(flatten.output[0], [])
        if len(swap) != 1 or swap[0].op_type != "Transpose" or list(swap[0].attribute[0].ints) != [0, 2, 1]:
            continue
        restore = consumers.get(swap[0].output[0], [])
        if len(restore) == 1 and restore[0].op_type == "Reshape":
            transpose = helper.make_node("Transpose", [flatten.input[0]], [restore[0].output[0]], perm=[0, 1, 3, 2])
            restore[0].CopyFrom(transpose)


def _free_reshapes(proto: ModelProto) -> None:
    """Write Reshape targets with 0 (copy) and one -1, so that neither batch size nor pruned width is baked in."""
    graph = proto.graph
    shapes = {
        value.name: [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[0] not in shapes or node.output[0] not in shapes:
            continue
        before, after = shapes[node.input[0]], shapes[node.output[0]]
        target: list[int] = []
        while len(target) < min(len(before), len(after)) and before[len(target)] == after[len(target)]:
            target.append(0)
        rest = after[len(target) :]
        free = [i for i, size in enumerate(rest) if not isinstance(size, int)] or ([0] if rest else [])
        if len(free) > 1:
            continue
        target += [-1 if i in free else int(size) for i, size in enumerate(rest)]
        name = f"{node.output[0]}/shape"
        graph.initializer.append(numpy_helper.from_array(np.array(target, dtype=np.int64), name))
        node.input[1] = name
        del node.attribute[:]


def remove_dead_nodes(proto: ModelProto) -> None:
    """Drop nodes and initializers that no output needs."""
    graph = proto.graph
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(node.input)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:]
    graph.node.extend(reversed(kept))
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def _keep_primary_output(proto: ModelProto, model: nn.Module, inputs: Inputs) -> None:
    """Only the output that `call_model` returns stays, found by its values."""
    with torch.no_grad():
        expected = call_model(model, inputs).detach().cpu().numpy()
    session = open_session(proto.SerializeToString())
    feed = feed_of(inputs, [value.name for value in session.get_inputs()])
    for output, value in zip(list(proto.graph.output), session.run(None, feed), strict=True):
        scale = max(1.0, float(np.abs(expected).max()))
        if value.shape == expected.shape and float(np.abs(value - expected).max()) <= 1e-3 * scale:
            del proto.graph.output[:]
            proto.graph.output.append(output)
            remove_dead_nodes(proto)
            return
    raise ExportError("export: no output of the ONNX graph equals the model's primary output")


def lower(model: nn.Module, example_inputs: Inputs, module_map: ModuleMap) -> LoweredModel:
    """Export `model` once and find where each compressible module is used; modules that are not found have no site."""
    proto, dynamic = export_float(model, example_inputs)
    names = tuple(value.name for value in proto.graph.input)
    consumers: dict[str, list[NodeProto]] = {}
    for node in proto.graph.node:
        for value in node.input:
            consumers.setdefault(value, []).append(node)
    initializers = {tensor.name for tensor in proto.graph.initializer}
    sites: dict[str, tuple[Site, ...]] = {}
    for module in module_map:
        if module.kind == "recurrent":
            weight = f"{module.name}.weight"
            if weight in consumers:  # its slices and transposes are constants, which the runtime folds
                whole = helper.make_node("Identity", [weight], [weight])
                sites[module.name] = (Site(module.name, module.name, "recurrent", whole, "", weight, f"{module.name}.bias"),)
            continue
        used = next((f"{n}.weight" for n in (module.name, *module.aliases) if f"{n}.weight" in consumers), None)
        uses = consumers.get(used, []) if used else []
        found = [_site(module.name, (module.name, *module.aliases), node, consumers, initializers) for node in uses]
        if found and all(found):
            sites[module.name] = tuple(site for site in found if site)
    producer = {output: node for node in proto.graph.node for output in node.output}
    return LoweredModel(proto, sites, names, dynamic, producer)


def find_norms(lowered: LoweredModel, module_map: ModuleMap) -> tuple[NormGroup, ...]:
    """Normalisations whose output only linear modules read: any operator that multiplies by a vector named NAME.weight."""
    graph = lowered.proto.graph
    vectors = {t.name for t in graph.initializer if t.name.endswith(".weight") and len(t.dims) == 1}
    uses: dict[str, int] = {}
    for node in graph.node:
        for value in node.input:
            uses[value] = uses.get(value, 0) + 1
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[str]] = {}
    for module in module_map:
        for site in lowered.sites.get(module.name, ()):
            if site.kind == "linear":
                readers.setdefault(site.input, []).append(module.name)
    found = []
    for node in graph.node:
        weights = [value for value in node.input if value in vectors and uses[value] == 1]
        read = readers.get(node.output[0], [])
        alone = bool(read) and len(read) == uses.get(node.output[0], 0) and node.output[0] not in outputs
        once = all(len(lowered.sites[name]) == 1 for name in read)
        if node.op_type in NORM_OPERATORS and len(weights) == 1 and alone and once:
            found.append(NormGroup(weights[0].removesuffix(".weight"), tuple(read)))
    return tuple(found)


def _site(
    owner: str, names: tuple[str, ...], node: NodeProto, consumers: Mapping[str, list[NodeProto]], initializers: set[str]
) -> Site | None:
    def only(value: str, op_type: str) -> NodeProto | None:
        after = consumers.get(value, [])
        return after[0] if len(after) == 1 and after[0].op_type == op_type else None

    def named(bias: str | None, default: str) -> str:
        return next((n for n in names if bias == f"{n}.bias"), default)

    if node.op_type == "Gather":
        return Site(owner, owner, "embedding", node, node.input[1], node.output[0], None)
    if node.op_type == "Gemm":
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attributes.get("transB", 0) != 1 or attributes.get("transA", 0) or {attributes.get(k, 1.0) for k in ("alpha", "beta")} != {1.0}:
            return None
        bias = node.input[2] if len(node.input) > 2 else None
        return Site(named(bias, owner), owner, "linear", node, node.input[0], node.output[0], bias)
    if node.op_type == "Transpose":
        product = only(node.output[0], "MatMul")
        if product is None or product.input[1] != node.output[0]:
            return None
        output, bias = product.output[0], None
        add = only(output, "Add")
        if add is not None and add.input[0] == output and add.input[1] in {f"{n}.bias" for n in names}:
            output, bias = add.output[0], add.input[1]
        name = named(bias, owner)
        return Site(name, owner, "linear", product, product.input[0], output, bias, (node.output[0],))
    if node.op_type == "Conv":
        tail = []
        value = node.output[0]
        for op_type in ("BatchNormalization", "Relu"):
            following = only(value, op_type)
            if following is not None:
                value = following.output[0]
                tail.append(value)
        bias = node.input[2] if len(node.input) > 2 and node.input[2] in initializers else None
        if len(node.input) > 2 and bias is None:
            return None
        return Site(owner, owner, "conv", node, node.input[0], value, bias, (), tuple(tail))
    return None

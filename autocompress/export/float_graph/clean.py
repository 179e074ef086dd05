"""Passes that turn the exporter's graph into one that other batches, lengths and widths fit: folded, plain, without numbers baked in."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx_ir
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, inliner, numpy_helper
from onnxscript.optimizer import fold_constants

from autocompress.export.float_graph.recurrent import free_recurrent
from autocompress.export.float_graph.subgraphs import (
    inner_graphs,
    reads,
    remove_dead_nodes,
    rename_values,
    unused,
    value_names,
)
from autocompress.export.float_graph.trace import quiet

Shape = list[int | str]


def cleaned(proto: ModelProto, heads: set[int], free: bool = True) -> ModelProto:
    """Fold what depends on no input and no parameter, drop metadata and dead nodes; if `free`, make shapes follow the inputs too."""
    parameters = {tensor.name for tensor in proto.graph.initializer}

    def foldable(node: Any) -> bool | None:
        read = any(value is not None and value.name in parameters for value in node.inputs)
        return False if read and node.op_type != "Shape" else None

    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    _plain_numbers(proto)
    _without_zero_biases(proto.graph)
    intermediate = onnx_ir.from_proto(proto)
    with quiet():
        fold_constants(intermediate, should_fold=foldable)
    proto = onnx_ir.to_proto(intermediate)
    _constants_to_initializers(proto)
    _infinite_masks(proto.graph)
    if free:
        shapes = known_shapes(proto.graph)
        _plain_transposes(proto, shapes)
        _free_repeats(proto.graph, shapes, heads)
        _free_reshapes(proto, shapes, heads)
        free_recurrent(proto)
    remove_dead_nodes(proto)
    del proto.graph.value_info[:]
    for tensor in (
        proto.graph.initializer
    ):  # without the exporter's optional fields, so that a replaced one takes the same bytes
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    del proto.metadata_props[:]
    proto.ClearField("doc_string")
    _without_notes(proto.graph)
    return proto


def _without_notes(graph: GraphProto) -> None:
    for message in (*graph.node, *graph.initializer, *graph.input, *graph.output, graph):
        del message.metadata_props[:]
        message.ClearField("doc_string")
    for node in graph.node:
        node.name = node.output[0]
        for inner in inner_graphs(node):
            _without_notes(inner)


def _plain_numbers(proto: ModelProto) -> None:
    """Dimensions that the exporter writes as texts, as the numbers that they are."""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param.isdigit():
                dimension.dim_value = int(dimension.dim_param)


def _without_zero_biases(graph: GraphProto) -> None:
    """Convolutions in three dimensions without a bias as they are: the exporter makes zeros of a shape that does not run."""
    producer = {output: node for node in graph.node for output in node.output}
    solid = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 5}
    for node in graph.node:
        source = (
            producer.get(node.input[2])
            if node.op_type == "Conv" and len(node.input) == 3 and node.input[1] in solid
            else None
        )
        while source is not None and source.op_type in ("Expand", "CastLike", "Cast"):
            source = producer.get(source.input[0])
        value = _constant(source) if source is not None else None
        if value is not None and not np.any(value):
            del node.input[2]


def known_shapes(graph: GraphProto) -> dict[str, Shape]:
    """The shapes that are known, by tensor: numbers, and symbols, of which an unknown one is like no other."""
    shapes: dict[str, Shape] = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
            continue  # an unknown shape is not an empty one
        shapes[value.name] = [
            d.dim_value if d.HasField("dim_value") else d.dim_param or f"?{value.name}/{i}"
            for i, d in enumerate(tensor.shape.dim)
        ]
    return shapes


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


def _infinite_masks(graph: GraphProto) -> None:
    """Mask attention by minus infinity where the exporter takes the lowest float32: a row that may attend to nothing then gives zeros,
    as PyTorch gives, since the exporter puts zeros where a softmax is not a number."""
    makers = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    lowest = np.float32(np.finfo(np.float32).min)
    for node in graph.node:
        softmax = makers.get(node.input[0]) if node.op_type == "IsNaN" else None
        scores = (
            makers.get(softmax.input[0])
            if softmax is not None and softmax.op_type == "Softmax"
            else None
        )
        for name in scores.input if scores is not None and scores.op_type == "Add" else ():
            mask = makers.get(name)
            if mask is None or mask.op_type != "Where":
                continue
            for i, part in enumerate(mask.input):
                tensor = tensors.get(part)
                if (
                    tensor is not None
                    and tensor.data_type == TensorProto.FLOAT
                    and np.all(numpy_helper.to_array(tensor) == lowest)
                ):
                    infinite = tensors.get(f"{part}_infinite")
                    if infinite is None:
                        infinite = numpy_helper.from_array(
                            np.full(tuple(tensor.dims), -np.inf, np.float32), f"{part}_infinite"
                        )
                        graph.initializer.append(infinite)
                        tensors[infinite.name] = infinite
                    mask.input[i] = infinite.name


def _plain_transposes(proto: ModelProto, shapes: dict[str, Shape]) -> None:
    """Attention's swap of the last two of four dimensions, which is exported through three dimensions and their run-time
    shapes, as the one Transpose that it is; the shapes cost more than the product, and they bake the number of heads in."""
    consumers: dict[str, list[NodeProto]] = {}
    for node in proto.graph.node:
        for value in reads(node):
            consumers.setdefault(value, []).append(node)
    for flatten in proto.graph.node:
        whole = shapes.get(flatten.input[0]) if flatten.op_type == "Reshape" else None
        if (
            whole is None
            or len(whole) != 4
            or shapes.get(flatten.output[0], [0, *whole[2:]])[1:] != whole[2:]
        ):
            continue
        swap = consumers.get(flatten.output[0], [])
        if (
            len(swap) != 1
            or swap[0].op_type != "Transpose"
            or list(swap[0].attribute[0].ints) != [0, 2, 1]
        ):
            continue
        restore = consumers.get(swap[0].output[0], [])
        swapped = [*whole[:2], whole[3], whole[2]]
        if (
            len(restore) == 1
            and restore[0].op_type == "Reshape"
            and shapes.get(restore[0].output[0], swapped) == swapped
        ):
            transpose = helper.make_node(
                "Transpose", [flatten.input[0]], [restore[0].output[0]], perm=[0, 1, 3, 2]
            )
            restore[0].CopyFrom(transpose)


def _free_repeats(graph: GraphProto, shapes: dict[str, Shape], heads: set[int]) -> None:
    """Repeat keys and values of grouped-query attention, (n, shared heads, length, size) to (n, heads, length, size), however many shared
    heads there are; `shapes` forgets what follows the inputs then."""
    producer = {output: node for node in graph.node for output in node.output}
    taken = set(value_names(graph))
    nodes: list[NodeProto] = []
    for node in graph.node:
        repeat = producer.get(node.input[0]) if node.op_type == "Reshape" else None
        before, after = (
            (shapes.get(name, []) for name in (node.input[0], node.output[0]))
            if repeat is not None
            else ([], [])
        )
        if repeat is not None and repeat.op_type == "Expand" and _repeats(before, after, heads):
            name = str(node.output[0])
            repeat.input[1] = _int64(
                graph, f"{repeat.output[0]}/shape", [1, 1, int(before[2]), 1, 1], taken
            )
            length, target = unused(f"{name}/length", taken), unused(f"{name}/shape", taken)
            taken |= {length, target}
            first, last = (
                _int64(graph, f"{name}/first", [0, -1], taken),
                _int64(graph, f"{name}/last", [int(before[4])], taken),
            )
            nodes.append(helper.make_node("Shape", [repeat.input[0]], [length], start=3, end=4))
            nodes.append(helper.make_node("Concat", [first, length, last], [target], axis=0))
            node.input[1] = target
            del node.attribute[:]
            del shapes[name]
        nodes.append(node)
    kept = [copy.deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _repeats(before: Shape, after: Shape, heads: set[int]) -> bool:
    if len(before) != 5 or len(after) != 4 or (before[0], *before[3:]) != (after[0], *after[2:]):
        return False
    shared, repeats = before[1:3]
    whole = isinstance(shared, int) and isinstance(repeats, int) and isinstance(before[4], int)
    return whole and shared in heads and after[1] == shared * repeats


def _free_reshapes(proto: ModelProto, shapes: dict[str, Shape], heads: set[int]) -> None:
    """Write Reshape targets with 0 (copy) and one -1, so that neither batch size nor pruned width is baked in.

    Where a width is split in constant parts, the part that is a number of `heads` is the free one, else the first. Where several
    dimensions follow the inputs they stay computed, and a constant one beside them is the free one.
    """
    graph = proto.graph
    producer = {output: node for node in graph.node for output in node.output}
    taken = set(value_names(graph))
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[0] not in shapes or node.output[0] not in shapes:
            continue
        before, after = shapes[node.input[0]], shapes[node.output[0]]
        if (
            len(after) == 2
            and len(before) > 2
            and isinstance(after[1], int)
            and before[-1] == after[1]
        ):  # to rows of that width
            node.CopyFrom(
                helper.make_node("Flatten", [node.input[0]], [node.output[0]], axis=len(before) - 1)
            )
            continue
        target: list[int] = []
        while (
            len(target) < min(len(before), len(after)) and before[len(target)] == after[len(target)]
        ):
            target.append(0)
        rest = after[len(target) :]
        free = [i for i, size in enumerate(rest) if not isinstance(size, int)]
        free = (
            free
            or [i for i, size in enumerate(rest[:-1]) if size in heads][-1:]
            or ([0] if rest else [])
        )
        if len(free) > 1:
            _free_computed(proto, node, after, producer, taken)
            continue
        target += [-1 if i in free else int(size) for i, size in enumerate(rest)]
        node.input[1] = _int64(graph, f"{node.output[0]}/shape", target, taken)
        del node.attribute[:]


def _free_computed(
    proto: ModelProto,
    node: NodeProto,
    after: Shape,
    producer: dict[str, NodeProto],
    taken: set[str],
) -> None:
    """A target that is joined from one-element parts, of which the last constant one becomes -1: a pruned width fits then."""
    join = producer.get(node.input[1])
    constants = [i for i, size in enumerate(after) if isinstance(size, int)]
    if join is None or join.op_type != "Concat" or len(join.input) != len(after) or not constants:
        return
    inputs = list(join.input)
    numbers = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in proto.graph.initializer
        if tensor.name in inputs
    }
    numbers.update({name: _constant(producer[name]) for name in inputs if name in producer})
    if any(
        value.size != 1 or value.item() == -1 for value in numbers.values() if value is not None
    ):
        return  # not one part per dimension, or one of them is the free one already
    inputs[constants[-1]] = _int64(proto.graph, f"{node.output[0]}/rest", [-1], taken)
    target = unused(f"{node.output[0]}/shape", taken)
    taken.add(target)
    nodes = list(proto.graph.node)
    nodes.insert(nodes.index(node), helper.make_node("Concat", inputs, [target], axis=0))
    node.input[1] = target
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _constant(node: NodeProto) -> Any:
    """The value of a Constant node, else None."""
    if node.op_type != "Constant":
        return None
    value = helper.get_attribute_value(node.attribute[0])
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.array(value)


def _int64(graph: GraphProto, name: str, values: list[int], taken: set[str]) -> str:
    name = unused(name, taken)
    taken.add(name)
    graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
    return name


def named(
    proto: ModelProto,
    inside: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    symbols: dict[str, str],
) -> None:
    """Give parameters, inputs, outputs and free dimensions the model's own names, and other names to whatever is called like them.

    The exporter calls parameters by the model's names behind `inside`; those stay first, then inputs and outputs, all different.
    """
    graph = proto.graph
    _own_outputs(graph)
    new = {
        tensor.name: tensor.name.removeprefix(inside)
        for tensor in graph.initializer
        if tensor.name.startswith(inside)
    }
    taken = set(new.values())
    for values, names in ((graph.input, inputs), (graph.output, outputs)):
        for value, name in zip(values, names, strict=True):
            new[value.name] = unused(name, taken)
            taken.add(new[value.name])
    others = dict.fromkeys(name for name in value_names(graph) if name not in new)
    everything = taken | set(others)
    for name in others:
        if name in taken:
            new[name] = unused(name, everything)
            everything.add(new[name])
    rename_values(graph, new)
    for node in graph.node:
        node.name = node.output[0]
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                name = symbols.get(dimension.dim_param, "")
                dimension.ClearField("dim_param")
                if name:
                    dimension.dim_param = name


def _own_outputs(graph: GraphProto) -> None:
    """A tensor of its own for each output: one that is also an input, a parameter or another output is passed through a node."""
    taken = set(value_names(graph))
    seen = {value.name for value in (*graph.input, *graph.initializer)}
    for output in graph.output:
        if output.name in seen:
            own = unused(f"{output.name}/output", taken)
            graph.node.append(helper.make_node("Identity", [output.name], [own], name=own))
            output.name = own
        seen.add(output.name)
        taken.add(output.name)

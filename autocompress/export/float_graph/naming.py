"""Give the tensors of a cleaned graph the names that the user's model has for them."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, ModelProto, helper

from autocompress.export.float_graph.subgraphs import rename_values, unused, value_names


def use_model_names(
    proto: ModelProto,
    prefix: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    symbols: Mapping[str, str],
) -> None:
    """Name parameters, inputs, outputs and free dimensions as the model does.

    Parameters get their names first, then inputs, then outputs; a name that is taken gets a number
    behind it. Other tensors with one of these names step aside. An output that is also an input, a
    parameter or another output gets a tensor of its own.

    Args:
        proto: changed in place.
        prefix: text that the exporter puts before the names of parameters.
        inputs: names in calling order.
        outputs: names in the order of the graph's outputs.
        symbols: name of each free dimension by the exporter's symbol; other symbols are dropped.
    """
    graph = proto.graph
    _separate_outputs(graph)
    new = {}
    for tensor in graph.initializer:
        if tensor.name.startswith(prefix):
            new[tensor.name] = tensor.name.removeprefix(prefix)
    taken = set(new.values())
    for values, names in ((graph.input, inputs), (graph.output, outputs)):
        for value, name in zip(values, names, strict=True):
            new[value.name] = unused(name, taken)
            taken.add(new[value.name])
    others = dict.fromkeys(name for name in value_names(graph) if name not in new)
    every_name = taken | set(others)
    for name in others:
        if name in taken:
            new[name] = unused(name, every_name)
            every_name.add(new[name])
    rename_values(graph, new)
    for node in graph.node:
        node.name = node.output[0]
    _name_dimensions(graph, symbols)


def _name_dimensions(graph: GraphProto, symbols: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                name = symbols.get(dimension.dim_param, "")
                dimension.ClearField("dim_param")
                if name:
                    dimension.dim_param = name


def _separate_outputs(graph: GraphProto) -> None:
    """Pass an output through an Identity if it is also an input, a parameter or another output."""
    taken = set(value_names(graph))
    seen = {value.name for value in (*graph.input, *graph.initializer)}
    for output in graph.output:
        if output.name in seen:
            own = unused(f"{output.name}/output", taken)
            graph.node.append(helper.make_node("Identity", [output.name], [own], name=own))
            output.name = own
        seen.add(output.name)
        taken.add(output.name)

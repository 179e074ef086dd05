"""Give the builder's graph the form of an exported one: weights under their names in the model.

A linear module becomes Transpose(NAME.weight) -> MatMul -> Add(NAME.bias), as the exporter of torch
writes it, so that the lowering takes both. Tensors are recognised by their values: the builder ran
on random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from autocompress.errors import ExportError
from autocompress.export.float_graph.subgraphs import (
    constant_value,
    producers,
    remove_dead_nodes,
)
from autocompress.export.genai.joining import join_products
from autocompress.export.genai.noise import Arrays

Array = NDArray[np.float32]
ArrayOf = Callable[[TensorProto], NDArray[Any]]
SEEN = 4  # values by which a tensor is recognised
ROUNDED = 0.0051  # largest error of a factor that is rounded to two digits


def with_model_names(proto: ModelProto, parameters: Arrays, array_of: ArrayOf) -> ModelProto:
    """Return the graph with its weights under the names that they have in the model.

    Args:
        proto: the builder's graph; it is changed.
        parameters: of the model that the builder was given, no two of which begin alike.
        array_of: returns the value of an initializer of `proto`.

    Returns:
        `proto`. Weights have the shapes of the model's parameters, and no content.

    Raises:
        ExportError: the graph does not show a parameter as it is.
    """
    known = {}
    for name, parameter in parameters.items():
        known[_mark(parameter)] = name, ""
        if parameter.ndim == 2:
            known[_mark(parameter.T)] = name, "transposed"
        if parameter.ndim == 1:  # norms of Gemma multiply by 1 + weight
            known[_mark(parameter + np.float32(1))] = name, "plus one"
    renaming = _Renaming(parameters, _matches(proto, known, array_of))
    missing = renaming.missing()
    if missing:
        joined = join_products(proto, missing, array_of)
        renaming.uses.update({whole: (name, "transposed") for whole, name in joined.items()})
    _check_shown(renaming)
    nodes = list(renaming.nodes(list(proto.graph.node)))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    others = [
        numpy_helper.from_array(np.array(array_of(tensor)), tensor.name)
        for tensor in proto.graph.initializer
        if tensor.name not in renaming.uses
    ]
    tensors = [*others, *renaming.initializers()]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(tensors)
    del proto.graph.value_info[:]
    remove_dead_nodes(proto)
    return proto


def _mark(array: Array) -> tuple[tuple[int, ...], bytes]:
    """Return what a tensor is recognised by: its shape and its first values."""
    first = array[(0,) * (array.ndim - 1)] if array.ndim else array.reshape(1)
    return array.shape, np.ascontiguousarray(first[:SEEN]).tobytes()


def _matches(
    proto: ModelProto,
    known: Mapping[tuple[tuple[int, ...], bytes], tuple[str, str]],
    array_of: ArrayOf,
) -> dict[str, tuple[str, str]]:
    """Return (parameter, form) by initializer."""
    matches = {}
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.dims:
            match = known.get(_mark(array_of(tensor)))
            if match is not None:
                matches[tensor.name] = match
    return matches


def _check_shown(renaming: _Renaming) -> None:
    """Raise ExportError for a parameter that the graph does not hold."""
    missing = [*renaming.missing()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ExportError(
            "export: the graph of onnxruntime-genai's model builder does not show "
            f"{missing[0]}{more} as the model has it; nearest: --target onnxruntime-cpu"
        )


@dataclass
class _Renaming:
    """Rewrite the readers of weights.

    Attributes:
        parameters: of the model.
        uses: (parameter, form) by initializer of the builder. The form is "", "transposed" or
            "plus one".
    """

    parameters: Arrays
    uses: dict[str, tuple[str, str]] = field(default_factory=dict)

    def missing(self) -> dict[str, Array]:
        """Return the parameters that the graph does not hold as a whole."""
        shown = {name for name, _ in self.uses.values()}
        return {name: value for name, value in self.parameters.items() if name not in shown}

    def nodes(self, nodes: list[NodeProto]) -> Iterator[NodeProto]:
        """Yield the graph's nodes, with those that turn weights into the builder's form."""
        same: dict[str, str] = {}  # outputs of dropped nodes
        made: set[str] = set()
        for node in nodes:
            parameter, form = self.uses.get(node.input[0] if node.input else "", ("", ""))
            if node.op_type == "Transpose" and form == "transposed":
                same[node.output[0]] = parameter  # of a tied table, which the model has as it is
                continue
            for i, name in enumerate(node.input):
                if name in same:
                    node.input[i] = same[name]
                if name not in self.uses:
                    continue
                parameter, form = self.uses[name]
                node.input[i] = parameter
                if form:
                    node.input[i] = changed = f"{parameter}/{form}"
                    if changed not in made:
                        made.add(changed)
                        yield _changed(parameter, form, changed)
            yield node

    def initializers(self) -> Iterator[TensorProto]:
        """Yield the parameters of the model without content, and the one that is added to some."""
        for name in dict.fromkeys(name for name, _ in self.uses.values()):
            dims = self.parameters[name].shape
            yield TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
        if any(form == "plus one" for _, form in self.uses.values()):
            yield numpy_helper.from_array(np.ones((), np.float32), ONE)


ONE = "one"


def _changed(parameter: str, form: str, output: str) -> NodeProto:
    """Return the node that makes the builder's form of a parameter."""
    if form == "plus one":
        return helper.make_node("Add", [parameter, ONE], [output], name=output)
    return helper.make_node("Transpose", [parameter], [output], name=output, perm=[1, 0])


def unround_factor(proto: ModelProto, table: str) -> None:
    """Give the factor of embeddings, which is the root of their width, all of its digits.

    The builder writes two digits behind the point for Gemma. Other factors stay as they are.

    Args:
        proto: a graph with the names of the model; it is changed.
        table: name of the weight in which words are looked up.
    """
    graph = proto.graph
    made = producers(graph)
    widths = [tensor.dims[1] for tensor in graph.initializer if tensor.name == table]
    for node in graph.node:
        lookup = made.get(node.input[0]) if node.op_type == "Mul" else None
        if lookup is None or lookup.op_type != "Gather" or lookup.input[0] != table:
            continue
        factor, root = constant_value(made.get(node.input[1])), np.sqrt(np.float32(widths[0]))
        if factor is not None and factor.size == 1 and abs(factor.item() - root) <= ROUNDED:
            node.input[1] = f"{table}/factor"
            graph.initializer.append(numpy_helper.from_array(np.array(root), node.input[1]))
    remove_dead_nodes(proto)

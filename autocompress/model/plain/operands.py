"""Read the operands of a program's operators: which are constant, their values and their names.

`operators` uses this to find out which operators are plain modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.task.copies import TABLES

WEIGHT_ENDINGS = ("weight", "in_proj_weight", "kernel", "W")
MOST_FOLDED = 100  # operators, one behind the other, between a weight and its parameters
# Operators that make a tensor of numbers alone.
FACTORIES = (
    *("aten.eye.", "aten.arange.", "aten.zeros."),
    *("aten.ones.", "aten.full.", "aten.scalar_tensor."),
)
Names = Mapping[int, Mapping[str, type[nn.Module]]]


class Reader:
    """Read the arguments of one node by their names in the operator's schema."""

    def __init__(self, module: fx.GraphModule, node: fx.Node, names: Names) -> None:
        self.module, self.node, self.names = module, node, names
        schema = getattr(node.target, "_schema", None)
        self.values: dict[str, Any] = {}
        for i, argument in enumerate(schema.arguments if schema is not None else ()):
            value: Any = node.kwargs.get(argument.name, argument.default_value)
            self.values[argument.name] = node.args[i] if i < len(node.args) else value

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def constant(self, name: str) -> Tensor | None:
        """Return the value of an argument that depends on no input.

        Args:
            name: of the argument.

        Returns:
            The value; None if it depends on an input.
        """
        value = self.values.get(name)
        return constant_of(self.module, value) if isinstance(value, fx.Node) else None

    def path(self, name: str, looked_up: bool = False) -> str:
        """Return the name of the parameter that an argument is made of.

        Args:
            name: of the argument.
            looked_up: of a tied weight, prefer the name in an embedding.

        Returns:
            The name in the model.
        """
        path = place_of(self.values[name])
        names = self.names.get(id(_attribute(self.module, path)), {})
        for own, kind in names.items():
            if issubclass(kind, TABLES) == looked_up:
                return own
        return next(iter(names), path)

    def owner(self, name: str, looked_up: bool = False) -> str:
        """Return the name of the module whose weight an argument is.

        Args:
            name: of the argument.
            looked_up: of a tied weight, prefer the name in an embedding.

        Returns:
            The name in the model; a matrix of a stack gets its position in it.
        """
        *above, leaf = self.path(name, looked_up).split(".")
        if "parametrizations" in above:
            above = above[: above.index("parametrizations")]
        elif leaf in ("weight_g", "weight_v", "weight_orig", "weight_u"):
            pass  # of the older parametrizations
        elif leaf in ("weight_ih", "weight_hh"):  # of a recurrent cell
            above = [*above, leaf.removeprefix("weight_")]
        elif leaf not in WEIGHT_ENDINGS and not (leaf.endswith("_weight") and not above):
            above = [*above, leaf.removesuffix("_weight")]
        elif leaf == "in_proj_weight":
            above = [*above, "in_proj"]
        taken = _taken(self.values[name])
        if taken is not None:  # of a stack of matrices, as experts have
            above = [*above[:-1], str(taken), above[-1]] if above else [leaf, str(taken)]
        return ".".join(above) or leaf.removesuffix("_weight") + "_module"


def place_of(node: fx.Node) -> str:
    """Return the attribute that a constant operand is made of.

    Args:
        node: the operand.

    Returns:
        Its name in the program; the first one of several.
    """
    return str(next(_attributes(node)).target)


def _attributes(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the attributes that a node is made of, those of the first operand first."""
    if node.op == "get_attr":
        yield node
    for source in node.all_input_nodes:
        yield from _attributes(source)


def _taken(node: fx.Node) -> int | None:
    """Return which matrix of a stack a weight is, or None."""
    while node.op != "get_attr":
        if str(node.target) == "aten.select.int" and node.args[1] == 0:
            index: Any = node.args[2]
            return int(index)
        if not node.all_input_nodes:
            return None
        node = node.all_input_nodes[0]
    return None


def constant_of(
    module: fx.GraphModule,
    node: fx.Node,
    depth: int = MOST_FOLDED,
    known: dict[fx.Node, Any] | None = None,
) -> Tensor | None:
    """Return the value of a node that depends on parameters, buffers and numbers alone.

    Args:
        module: the program.
        node: the node.
        depth: most operators behind each other to fold.
        known: values of nodes that were met on the way.

    Returns:
        The value; None if it depends on an input, or on numbers alone.
    """
    met = {} if known is None else known
    if node not in met:
        met[node] = _folded(module, node, depth, met)
    value: Tensor | None = met[node]
    if known is None and value is not None and next(_attributes(node), None) is None:
        return None  # numbers alone are no weight
    return value


def _folded(module: fx.GraphModule, node: fx.Node, depth: int, known: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        value = _attribute(module, str(node.target))
        return value if isinstance(value, Tensor) else None
    if node.op != "call_function" or depth == 0:
        return None
    if not node.all_input_nodes and not str(node.target).startswith(FACTORIES):
        return None
    values: dict[fx.Node, Any] = {}
    for source in node.all_input_nodes:
        values[source] = constant_of(module, source, depth - 1, known)
        if values[source] is None:
            return None
    arguments = fx.node.map_arg((node.args, node.kwargs), lambda source: values[source])
    try:
        with torch.no_grad():
            result = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
    except Exception:
        return None
    return result if isinstance(result, (Tensor, tuple, list)) else None


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def weight_names(module: fx.GraphModule, model: nn.Module) -> Names:
    """Return the names of each parameter and buffer that a program reads.

    Args:
        module: the program.
        model: the model that it was exported from.

    Returns:
        Identity -> name -> class of the module that holds it. A weight may have several names;
        those of the model come first.
    """
    names: dict[int, dict[str, type[nn.Module]]] = {}
    for owner in (model, module):
        for path, part in owner.named_modules(remove_duplicate=False):
            buffers = part.named_buffers(recurse=False)
            for leaf, value in (*part.named_parameters(recurse=False), *buffers):
                name = f"{path}.{leaf}" if path else leaf
                names.setdefault(id(value), {}).setdefault(name, type(part))
    return names

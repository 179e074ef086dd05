"""Which operators of an exported program are plain modules: products with constant matrices, convolutions, lookups, norms, gates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.recurrent import SplitRecurrent

WEIGHT_ENDINGS = ("weight", "in_proj_weight", "kernel", "W")
MOST_FOLDED = 8  # operators between a weight and its parameters


@dataclass(frozen=True, eq=False)
class Operator:
    """A module that computes what an operator of a program computes.

    Attributes:
        module: with the program's own parameters.
        inputs: what the module is called with.
        name: where it belongs, after its weight.
        key: equal for calls that share a module.
        nested: whether it gives (output, (hidden, cell)) for an operator's three tensors.
    """

    module: nn.Module
    inputs: tuple[Any, ...]
    name: str
    key: tuple[Any, ...]
    nested: bool = False


class _Reader:
    """Arguments of one node: by position or by name, and what is constant in them."""

    def __init__(self, module: fx.GraphModule, node: fx.Node, names: Names) -> None:
        self.module, self.node, self.names = module, node, names
        schema = getattr(node.target, "_schema", None)
        self.values: dict[str, Any] = {}
        for i, argument in enumerate(schema.arguments if schema is not None else ()):
            given = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
            self.values[argument.name] = given

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def constant(self, name: str) -> Tensor | None:
        """The value of an argument that depends on no input, or None."""
        value = self.values.get(name)
        return constant_of(self.module, value) if isinstance(value, fx.Node) else None

    def path(self, name: str, looked_up: bool = False) -> str:
        """Where the parameter is that an argument is made of: of a tied one where it is looked up, or where it multiplies."""
        path = _path(self.values[name])
        names = self.names.get(id(_attribute(self.module, path)), {})
        return next((found for found, kind in names.items() if issubclass(kind, nn.Embedding) == looked_up), next(iter(names), path))

    def owner(self, name: str, looked_up: bool = False) -> str:
        """The name of the module whose weight an argument is."""
        *above, leaf = self.path(name, looked_up).split(".")
        if "parametrizations" in above:
            above = above[: above.index("parametrizations")]
        elif leaf in ("weight_g", "weight_v", "weight_orig", "weight_u"):
            pass  # of the older parametrizations
        elif leaf not in WEIGHT_ENDINGS and not (leaf.endswith("_weight") and not above):
            above = [*above, leaf.removesuffix("_weight")]
        elif leaf == "in_proj_weight":
            above = [*above, "in_proj"]
        taken = _taken(self.values[name])
        if taken is not None:  # of a stack of matrices, as experts have
            above = [*above[:-1], str(taken), above[-1]] if above else [leaf, str(taken)]
        return ".".join(above) or leaf.removesuffix("_weight") + "_module"


def _path(node: fx.Node) -> str:
    while node.op != "get_attr":
        node = next(found for found in node.all_input_nodes)
    return str(node.target)


def _taken(node: fx.Node) -> int | None:
    """Which matrix of a stack a weight is, or None."""
    while node.op != "get_attr":
        if str(node.target) == "aten.select.int" and node.args[1] == 0:
            return int(node.args[2])  # type: ignore[call-overload,no-any-return]
        node = node.all_input_nodes[0]
    return None


def constant_of(module: fx.GraphModule, node: fx.Node, depth: int = MOST_FOLDED) -> Tensor | None:
    """The value of a node that depends on parameters and buffers alone, through few operators; None where it depends on an input."""
    if node.op == "get_attr":
        value = _attribute(module, str(node.target))
        return value if isinstance(value, Tensor) else None
    if node.op != "call_function" or depth == 0 or not node.all_input_nodes:
        return None
    values: dict[fx.Node, Any] = {}
    for source in node.all_input_nodes:
        values[source] = constant_of(module, source, depth - 1)
        if values[source] is None:
            return None
    arguments = fx.node.map_arg((node.args, node.kwargs), lambda source: values[source])
    try:
        with torch.no_grad():
            result = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
    except Exception:
        return None
    return result if isinstance(result, (Tensor, tuple, list)) else None  # type: ignore[return-value]


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


Names = Mapping[int, Mapping[str, type[nn.Module]]]


def weight_names(module: fx.GraphModule, model: nn.Module) -> Names:
    """Map each parameter and buffer that a program reads, by identity, to its names and, for each, the kind of module that it is in.

    One weight may have several names; those of the model come first.
    """
    found: dict[int, dict[str, type[nn.Module]]] = {}
    for owner in (model, module):
        for path, part in owner.named_modules(remove_duplicate=False):
            for leaf, value in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
                found.setdefault(id(value), {}).setdefault(f"{path}.{leaf}" if path else leaf, type(part))
    return found


def operator_of(module: fx.GraphModule, node: fx.Node, names: Names) -> Operator | None:
    """The plain module of a node, or None where there is none: its weight depends on an input, or it is another operator.

    `names` are those that `weight_names` found before any node was replaced.
    """
    if node.op != "call_function":
        return None
    make = MAKERS.get(str(node.target))
    if make is None:
        return None
    try:
        return make(_Reader(module, node, names))
    except _NotPlain:
        return None


class _NotPlain(Exception):
    pass


def _weight(read: _Reader, name: str, dims: Sequence[int], transposed: bool = False) -> nn.Parameter:
    value = read.constant(name)
    if value is None or value.dim() not in dims or not value.is_floating_point():
        raise _NotPlain
    if isinstance(value, nn.Parameter) and not transposed:
        return value
    value = value.detach()
    return nn.Parameter((value.t() if transposed else value).contiguous(), requires_grad=False)


def _bias(read: _Reader, name: str, width: int) -> nn.Parameter | None:
    if read[name] is None:
        return None
    value = read.constant(name)
    if value is None or value.shape != (width,):
        raise _NotPlain
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone(), requires_grad=False)


def _key(read: _Reader, kind: str, *arguments: str) -> tuple[Any, ...]:
    """Calls with the same constants and numbers share a module."""
    parts: list[Any] = [kind]
    for name in arguments:
        value = read[name]
        # A folded constant is a new tensor for each node.
        own = isinstance(value, fx.Node) and value.op == "get_attr"
        parts.append(id(read.constant(name)) if own else repr(value))
    return tuple(parts)


def _linear(read: _Reader) -> Operator:
    weight = _weight(read, "weight", (2,))
    return _product(read, weight, _bias(read, "bias", len(weight)), "input", "weight", ("weight", "bias"))


def _addmm(read: _Reader) -> Operator:
    if (read["beta"], read["alpha"]) != (1, 1):
        raise _NotPlain
    weight = _weight(read, "mat2", (2,), transposed=True)
    return _product(read, weight, _bias(read, "self", len(weight)), "mat1", "mat2", ("mat2", "self"))


def _matmul(read: _Reader) -> Operator:
    second = "mat2" if "mat2" in read.values else "other"
    if isinstance(read["self"], fx.Node) and read.constant("self") is not None:
        raise _NotPlain  # a product of constants
    return _product(read, _weight(read, second, (2,), transposed=True), None, "self", second, (second,))


def _product(read: _Reader, weight: nn.Parameter, bias: nn.Parameter | None, inputs: str, named: str, keys: tuple[str, ...]) -> Operator:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    return Operator(_holding(module, weight, bias), (read[inputs],), read.owner(named), _key(read, "linear", *keys))


def _holding(module: Any, weight: nn.Parameter | None, bias: nn.Parameter | None) -> nn.Module:
    if weight is not None:
        module.weight = weight
    if bias is not None:
        module.bias = bias
    result: nn.Module = module
    return result


def _convolution(read: _Reader) -> Operator:
    axes = 1 if "conv1d" in str(read.node.target) else 2
    weight = _weight(read, "weight", (axes + 2,))

    def each(name: str) -> Any:
        value = read[name]
        return value if isinstance(value, str) else tuple(value) * (axes if len(value) == 1 else 1)

    kind: Any = nn.Conv1d if axes == 1 else nn.Conv2d
    bias = _bias(read, "bias", len(weight))
    numbers = (each("stride"), each("padding"), each("dilation"))
    module = kind(
        weight.shape[1] * read["groups"], len(weight), tuple(weight.shape[2:]), *numbers, read["groups"], bias is not None, device="meta"
    )
    arguments = ("weight", "bias", "stride", "padding", "dilation", "groups")
    return Operator(_holding(module, weight, bias), (read["input"],), read.owner("weight"), _key(read, "conv", *arguments))


def _embedding(read: _Reader) -> Operator:
    weight = _weight(read, "weight", (2,))
    module = nn.Embedding(weight.shape[0], weight.shape[1], device="meta")
    return Operator(_holding(module, weight, None), (read["indices"],), read.owner("weight", True), _key(read, "embedding", "weight"))


def _batch_norm(read: _Reader) -> Operator:
    mean, variance = read.constant("running_mean"), read.constant("running_var")
    value = read["input"].meta.get("val")
    if mean is None or variance is None or value is None or read["training"]:
        raise _NotPlain
    affine = read["weight"] is not None
    kinds: dict[int, Callable[..., nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    module: Any = kinds[value.dim()](len(mean), eps=read["eps"], momentum=read["momentum"], affine=affine, device="meta")
    module.running_mean, module.running_var = mean, variance
    module.num_batches_tracked = torch.zeros((), dtype=torch.long)
    weight = _weight(read, "weight", (1,)) if affine else None
    bias = _bias(read, "bias", len(mean)) if affine else None
    if affine and bias is None:
        raise _NotPlain
    keys = ("weight", "bias", "running_mean", "running_var", "eps")
    return Operator(
        _holding(module, weight, bias), (read["input"],), read.path("running_mean").rpartition(".")[0], _key(read, "norm", *keys)
    )


def _layer_norm(read: _Reader) -> Operator:
    if read["weight"] is None:
        raise _NotPlain
    weight = _weight(read, "weight", (1, 2, 3))
    if read["bias"] is not None and read.constant("bias") is None:
        raise _NotPlain
    bias: Any = read.constant("bias")
    shape = tuple(read["normalized_shape"])
    if not all(isinstance(size, int) for size in shape):
        raise _NotPlain
    module = nn.LayerNorm(shape, read["eps"], bias=bias is not None, device="meta")
    if bias is not None and not isinstance(bias, nn.Parameter):
        bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return Operator(
        _holding(module, weight, bias), (read["input"],), read.owner("weight"), _key(read, "layer norm", "weight", "bias", "eps")
    )


def _recurrent(read: _Reader) -> Operator:
    mode = "LSTM" if "lstm" in str(read.node.target) else "GRU"
    states, nodes = read["hx"], read["params"]
    values = [constant_of(read.module, node) for node in nodes]
    if any(value is None for value in values) or read["train"]:
        raise _NotPlain
    directions = 2 if read["bidirectional"] else 1
    per_layer = 4 if read["has_biases"] else 2
    if len(values) != per_layer * directions * read["num_layers"]:
        raise _NotPlain  # projections
    inputs, hidden = values[0].shape[1], values[1].shape[1]  # type: ignore[union-attr]
    options = {"bias": read["has_biases"], "batch_first": read["batch_first"], "bidirectional": read["bidirectional"]}
    kind = nn.LSTM if mode == "LSTM" else nn.GRU
    source = kind(inputs, hidden, read["num_layers"], device="meta", **options)
    for name, value in zip(source._flat_weights_names, values, strict=True):
        setattr(source, name, nn.Parameter(value.detach(), requires_grad=False))  # type: ignore[union-attr]
    state: Any = tuple(states) if mode == "LSTM" else states
    name = _path(nodes[0]).rpartition(".")[0] or "recurrent"
    key = ("recurrent", *(_path(node) for node in nodes))
    return Operator(SplitRecurrent(source), (read["input"], state), name, key, nested=mode == "LSTM")


MAKERS: dict[str, Callable[[_Reader], Operator]] = {
    "aten.linear.default": _linear,
    "aten.addmm.default": _addmm,
    "aten.mm.default": _matmul,
    "aten.matmul.default": _matmul,
    "aten.conv1d.default": _convolution,
    "aten.conv1d.padding": _convolution,
    "aten.conv2d.default": _convolution,
    "aten.conv2d.padding": _convolution,
    "aten.embedding.default": _embedding,
    "aten.batch_norm.default": _batch_norm,
    "aten.layer_norm.default": _layer_norm,
    "aten.lstm.input": _recurrent,
    "aten.gru.input": _recurrent,
}

"""Find the operators of an exported program that are plain modules.

These are products with constant matrices, convolutions, lookups, normalisations and recurrent
operators. `program` puts the modules in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.model.plain.operands import Names, Reader, constant_of, place_of
from autocompress.model.plain.recurrent import SplitRecurrent
from autocompress.model.plain.transposed import SplitTransposed


@dataclass(frozen=True, eq=False)
class Operator:
    """Describe a module with the same result as an operator of a program.

    Attributes:
        module: with the program's own parameters.
        inputs: nodes that the module is called with.
        name: its place in the program, after its weight.
        key: equal for calls that share a module.
        nested: True if it gives (output, (hidden, cell)) for an operator's three tensors.
    """

    module: nn.Module
    inputs: tuple[Any, ...]
    name: str
    key: tuple[Any, ...]
    nested: bool = False


def operator_of(module: fx.GraphModule, node: fx.Node, names: Names) -> Operator | None:
    """Return the plain module of a node.

    Args:
        module: the program.
        node: the node.
        names: as `weight_names` gave them before any node was replaced.

    Returns:
        The operator; None if its weight depends on an input, or it is another operator.
    """
    if node.op != "call_function":
        return None
    make = MAKERS.get(str(node.target))
    if make is None:
        return None
    try:
        return make(Reader(module, node, names))
    except _NotPlain:
        return None


class _NotPlain(Exception):
    """Say that an operator is no plain module."""


def _weight(read: Reader, name: str, dims: Sequence[int], transposed: bool = False) -> nn.Parameter:
    value = read.constant(name)
    if value is None or value.dim() not in dims or not value.is_floating_point():
        raise _NotPlain
    value = value.t() if transposed else value
    own = _own(read, value)
    return _made(read, value.contiguous()) if own is None else own


def _own(read: Reader, value: Tensor) -> nn.Parameter | None:
    """Return the parameter of the program that a value is, or shows unchanged.

    A tied table that is transposed for a product is transposed once more here.
    """
    if isinstance(value, nn.Parameter):
        return value
    # The memory that is read, and how it is read.
    place = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
    for own in read.module.parameters():
        shown = (own.data_ptr(), own.shape, own.stride(), own.dtype, own.device)
        if own.numel() and shown == place:
            return own
    return None


def _made(read: Reader, value: Tensor) -> nn.Parameter:
    """Return a new parameter, frozen if those of the program are."""
    learns = any(parameter.requires_grad for parameter in read.module.parameters())
    return nn.Parameter(value.detach(), requires_grad=learns)


def _bias(read: Reader, name: str, width: int) -> nn.Parameter | None:
    if read[name] is None:
        return None
    value = read.constant(name)
    if value is None or value.shape != (width,):
        raise _NotPlain
    own = _own(read, value)
    return _made(read, value.clone()) if own is None else own


def _key(read: Reader, kind: str, *arguments: str) -> tuple[Any, ...]:
    """Return a key that is equal for calls with the same constants and numbers."""
    parts: list[Any] = [kind]
    for name in arguments:
        constant = read.constant(name)
        parts.append(repr(read[name]) if constant is None else _constant_key(read, name, constant))
    return tuple(parts)


def _constant_key(read: Reader, name: str, constant: Tensor) -> Any:
    node = read[name]
    if node.op == "get_attr":
        return id(constant)
    for turned in (False, True) if constant.dim() == 2 else (False,):
        own = _own(read, constant.t() if turned else constant)
        if own is not None:
            return turned, id(own)
    return repr(node)  # a folded constant is a new tensor for each node


def _linear(read: Reader) -> Operator:
    weight = _weight(read, "weight", (2,))
    bias = _bias(read, "bias", len(weight))
    return _product(read, weight, bias, "input", "weight", ("linear", "weight", "bias"))


def _addmm(read: Reader) -> Operator:
    if (read["beta"], read["alpha"]) != (1, 1):
        raise _NotPlain
    weight = _weight(read, "mat2", (2,), transposed=True)
    bias = _bias(read, "self", len(weight))
    return _product(read, weight, bias, "mat1", "mat2", ("product", "mat2", "self"))


def _matmul(read: Reader) -> Operator:
    second = "mat2" if "mat2" in read.values else "other"
    if isinstance(read["self"], fx.Node) and read.constant("self") is not None:
        raise _NotPlain  # a product of constants
    weight = _weight(read, second, (2,), transposed=True)
    return _product(read, weight, None, "self", second, ("product", second))


def _product(
    read: Reader,
    weight: nn.Parameter,
    bias: nn.Parameter | None,
    inputs: str,
    named: str,
    key: tuple[str, ...],
) -> Operator:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    return Operator(
        _holding(module, weight, bias),
        (read[inputs],),
        read.owner(named),
        _key(read, *key),
    )


def _holding(module: Any, weight: nn.Parameter | None, bias: nn.Parameter | None) -> nn.Module:
    if weight is not None:
        module.weight = weight
    if bias is not None:
        module.bias = bias
    result: nn.Module = module
    return result


def _convolution(read: Reader) -> Operator:
    axes = 1 if "conv1d" in str(read.node.target) else 2
    weight = _weight(read, "weight", (axes + 2,))

    def each(name: str) -> Any:
        value = read[name]
        return value if isinstance(value, str) else tuple(value) * (axes if len(value) == 1 else 1)

    kind: Any = nn.Conv1d if axes == 1 else nn.Conv2d
    bias = _bias(read, "bias", len(weight))
    numbers = (each("stride"), each("padding"), each("dilation"))
    module = kind(
        weight.shape[1] * read["groups"],
        len(weight),
        tuple(weight.shape[2:]),
        *numbers,
        read["groups"],
        bias is not None,
        device="meta",
    )
    arguments = ("weight", "bias", "stride", "padding", "dilation", "groups")
    return Operator(
        _holding(module, weight, bias),
        (read["input"],),
        read.owner("weight"),
        _key(read, "conv", *arguments),
    )


def _transposed(read: Reader) -> Operator:
    axes = 1 if "transpose1d" in str(read.node.target) else 2
    weight = _weight(read, "weight", (axes + 2,))
    numbers = {}
    for name in ("stride", "padding", "output_padding", "dilation"):
        value = tuple(read[name]) * (axes if len(read[name]) == 1 else 1)
        if not all(isinstance(part, int) for part in value):
            raise _NotPlain  # a size of the output that depends on an input
        numbers[name] = value
    groups, outputs = read["groups"], weight.shape[1] * read["groups"]
    bias = _bias(read, "bias", outputs)
    kind: Any = nn.ConvTranspose1d if axes == 1 else nn.ConvTranspose2d
    source: Any = kind(
        weight.shape[0],
        outputs,
        tuple(weight.shape[2:]),
        groups=groups,
        bias=bias is not None,
        device="meta",
        **numbers,
    )
    try:
        module = SplitTransposed(_holding(source, weight, bias))  # type: ignore[arg-type]
    except ValueError as error:
        raise _NotPlain from error
    key = _key(read, "transposed", "weight", "bias", *numbers, "groups")
    return Operator(module, (read["input"],), read.owner("weight"), key)


def _embedding(read: Reader) -> Operator:
    weight = _weight(read, "weight", (2,))
    module = nn.Embedding(weight.shape[0], weight.shape[1], device="meta")
    return Operator(
        _holding(module, weight, None),
        (read["indices"],),
        read.owner("weight", True),
        _key(read, "embedding", "weight"),
    )


def _batch_norm(read: Reader) -> Operator:
    mean, variance = read.constant("running_mean"), read.constant("running_var")
    value = read["input"].meta.get("val")
    if mean is None or variance is None or value is None or read["training"]:
        raise _NotPlain
    affine = read["weight"] is not None
    kinds: dict[int, Callable[..., nn.Module]] = {
        2: nn.BatchNorm1d,
        3: nn.BatchNorm1d,
        4: nn.BatchNorm2d,
        5: nn.BatchNorm3d,
    }
    module: Any = kinds[value.dim()](
        len(mean), eps=read["eps"], momentum=read["momentum"], affine=affine, device="meta"
    )
    module.running_mean, module.running_var = mean, variance
    module.num_batches_tracked = torch.zeros((), dtype=torch.long)
    weight = _weight(read, "weight", (1,)) if affine else None
    bias = _bias(read, "bias", len(mean)) if affine else None
    if affine and bias is None:
        raise _NotPlain
    keys = ("weight", "bias", "running_mean", "running_var", "eps")
    return Operator(
        _holding(module, weight, bias),
        (read["input"],),
        read.path("running_mean").rpartition(".")[0],
        _key(read, "norm", *keys),
    )


def _layer_norm(read: Reader) -> Operator:
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
        bias = _made(read, bias.clone())
    return Operator(
        _holding(module, weight, bias),
        (read["input"],),
        read.owner("weight"),
        _key(read, "layer norm", "weight", "bias", "eps"),
    )


def _recurrent(read: Reader) -> Operator:
    mode, kind = LAYERS[str(read.node.target).split(".")[1]]  # aten.NAME.input
    states, nodes = read["hx"], read["params"]
    values = [constant_of(read.module, node) for node in nodes]
    if any(value is None for value in values) or read["train"]:
        raise _NotPlain
    directions = 2 if read["bidirectional"] else 1
    per_layer = 4 if read["has_biases"] else 2
    if len(values) != per_layer * directions * read["num_layers"]:
        raise _NotPlain  # projections
    inputs, hidden = values[0].shape[1], values[1].shape[1]  # type: ignore[union-attr]
    options = {
        "bias": read["has_biases"],
        "batch_first": read["batch_first"],
        "bidirectional": read["bidirectional"],
    }
    source = kind(inputs, hidden, read["num_layers"], device="meta", **options)
    for name, value in zip(source._flat_weights_names, values, strict=True):
        assert value is not None
        setattr(source, name, _made(read, value))
    state: Any = tuple(states) if mode == "LSTM" else states
    name = place_of(nodes[0]).partition(".parametrizations.")[0]
    name = (name if name != place_of(nodes[0]) else name.rpartition(".")[0]) or "recurrent"
    key = ("recurrent", *(place_of(node) for node in nodes))
    inputs_and_state = (read["input"], state)
    return Operator(SplitRecurrent(source), inputs_and_state, name, key, nested=mode == "LSTM")


LAYERS: dict[str, tuple[str, Callable[..., nn.RNNBase]]] = {
    "lstm": ("LSTM", nn.LSTM),
    "gru": ("GRU", nn.GRU),
    "rnn_tanh": ("RNN_TANH", nn.RNN),
    "rnn_relu": ("RNN_RELU", partial(nn.RNN, nonlinearity="relu")),
}
MAKERS: dict[str, Callable[[Reader], Operator]] = {
    "aten.linear.default": _linear,
    "aten.addmm.default": _addmm,
    "aten.mm.default": _matmul,
    "aten.matmul.default": _matmul,
    "aten.conv1d.default": _convolution,
    "aten.conv1d.padding": _convolution,
    "aten.conv2d.default": _convolution,
    "aten.conv2d.padding": _convolution,
    "aten.conv_transpose1d.default": _transposed,
    "aten.conv_transpose2d.input": _transposed,
    "aten.embedding.default": _embedding,
    "aten.batch_norm.default": _batch_norm,
    "aten.layer_norm.default": _layer_norm,
    **{f"aten.{operator}.input": _recurrent for operator in LAYERS},
}

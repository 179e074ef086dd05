"""Rewrite products with stacks of matrices in a program as products with single matrices.

Each matrix of a mixture of experts, say, then becomes a module of its own. Bilinear layers,
recurrent cells and convolutions of patches side by side become products too. `program` calls this
before it looks for plain modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from autocompress.model.plain.operands import constant_of
from autocompress.model.plain.recurrent import CELLS, cell_products

MOST_PAIRS = 16  # of two inputs, as a multiple of the values of both
MOST_MATRICES = 256  # more would be more modules than a search can tell apart
aten = torch.ops.aten


def single_matrices(module: fx.GraphModule) -> None:
    """Rewrite products of a program with a constant stack of matrices, in place.

    Each becomes one product per matrix. A three-dimensional convolution whose patches lie side by
    side becomes one product of flattened patches, a bilinear layer one of the products of inputs.

    Args:
        module: the program.
    """
    graph = module.graph
    for node in list(graph.nodes):
        make = REWRITES.get(str(node.target)) if node.op == "call_function" else None
        if make is None:
            continue
        with graph.inserting_before(node):
            new = make(module, node)
        if new is not None:
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _call(graph: fx.Graph, target: Callable[..., Any], *arguments: Any) -> fx.Node:
    return graph.call_function(target, arguments)


def _stack(module: fx.GraphModule, node: Any) -> Tensor | None:
    """Return the value of an operand that is a constant stack of matrices, else None."""
    value = constant_of(module, node) if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor) or value.dim() != 3 or len(value) > MOST_MATRICES:
        return None  # operators such as split give a tuple
    return value


def _batched(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Rewrite bmm or matmul of an input and a constant stack.

    The shapes are (..., n, rows, in) and (n, in, out), or (n, out, in) and (..., n, in, columns).
    """
    left, right = node.args[:2]
    weights, transposed = _stack(module, right), False
    if weights is None:
        weights, transposed = _stack(module, left), True
        left, right = right, left
    like: Any = getattr(left, "meta", {}).get("val")
    if weights is None or like is None or _stack(module, left) is not None or like.dim() < 2:
        return None
    graph, outputs = module.graph, []
    shared = like.dim() == 2 or like.shape[-3] != len(weights)  # the same rows for every matrix
    if shared and like.dim() > 2 and like.shape[-3] != 1:
        return None
    for i in range(len(weights)):
        rows: Any = left
        if like.dim() > 2:
            rows = _call(graph, aten.select.int, left, -3, 0 if shared else i)
        matrix = _call(graph, aten.select.int, right, 0, i)
        if transposed:  # (out, in) @ (in, columns)
            rows = _call(graph, aten.transpose.int, rows, -1, -2)
            product = _call(graph, aten.linear.default, rows, matrix)
            outputs.append(_call(graph, aten.transpose.int, product, -1, -2))
        else:
            matrix = _call(graph, aten.transpose.int, matrix, 0, 1)
            outputs.append(_call(graph, aten.linear.default, rows, matrix))
    return _call(graph, aten.stack.default, outputs, -3)


def _batched_with_bias(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Rewrite baddbmm, which adds something to a product with a stack."""
    if any(node.kwargs.get(name, 1) != 1 for name in ("beta", "alpha")) or len(node.args) != 3:
        return None
    bias, left, right = node.args
    product = _call(module.graph, aten.bmm.default, left, right)
    rewritten = _batched(module, product)
    module.graph.erase_node(product)
    return None if rewritten is None else _call(module.graph, aten.add.Tensor, rewritten, bias)


def _patches(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Rewrite a conv3d whose kernel is its stride, as in the patch embeddings of video models."""
    defaults = (None, 1, 0, 1, 1)[len(node.args) - 2 :]
    inputs, weight, bias, stride, padding, dilation, groups = (*node.args, *defaults)[:7]
    if node.kwargs or not isinstance(weight, fx.Node):
        return None
    value, like = constant_of(module, weight), getattr(inputs, "meta", {}).get("val")
    if value is None or like is None or like.dim() != 5:
        return None
    kernel = tuple(value.shape[2:])
    side_by_side = _each(stride) == kernel and _each(padding) == (0, 0, 0)
    if not side_by_side or _each(dilation) != (1, 1, 1) or groups != 1:
        return None
    graph = module.graph
    matrix = _call(graph, aten.flatten.using_ints, weight, 1)
    patches = _call(graph, _as_patches, inputs, kernel)
    product = _call(graph, aten.linear.default, patches, matrix, bias)
    return _call(graph, aten.permute.default, product, [0, 4, 1, 2, 3])


def _bilinear(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Rewrite x1 @ W[o] @ x2 for each o as one product with all pairs of x1 and x2.

    Layers with so many pairs that they would fill the memory stay as they are.
    """
    left, right, weight, bias = (*node.args, None)[:4]
    value = constant_of(module, weight) if isinstance(weight, fx.Node) else None
    if value is None:
        return None
    _, first, second = value.shape
    if first * second > MOST_PAIRS * (first + second):
        return None
    graph = module.graph
    columns = _call(graph, aten.unsqueeze.default, left, -1)
    rows = _call(graph, aten.unsqueeze.default, right, -2)
    pairs = _call(graph, aten.flatten.using_ints, _call(graph, aten.mul.Tensor, columns, rows), -2)
    matrix = _call(graph, aten.flatten.using_ints, weight, 1)
    return _call(graph, aten.linear.default, pairs, matrix, bias)


@dataclass(frozen=True)
class _Einsum:
    """Describe an einsum of one input and one constant.

    Attributes:
        x: the input.
        weight: the constant.
        of_x: indices of the input's dimensions.
        of_weight: indices of the constant's dimensions.
        result: indices of the result's dimensions.
        sizes: size of each index of the constant.
    """

    x: Any
    weight: Any
    of_x: str
    of_weight: str
    result: str
    sizes: dict[str, int]

    @property
    def each(self) -> list[str]:
        """Return the indices with one product each."""
        return [i for i in self.of_weight if i in self.of_x and i in self.result]

    @property
    def summed(self) -> list[str]:
        """Return the indices that products sum over."""
        return [i for i in self.of_weight if i in self.of_x and i not in self.result]

    @property
    def columns(self) -> list[str]:
        """Return the indices of the constant alone."""
        return [i for i in self.of_weight if i not in self.of_x]


def _read_einsum(module: fx.GraphModule, node: fx.Node) -> _Einsum | None:
    """Return the einsum of a node if it is a product of an input with matrices, else None."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    if not isinstance(operands, (tuple, list)) or len(operands) != 2:
        return None
    if "->" not in equation or "." in equation:
        return None
    sources, result = equation.split("->")
    first, second = sources.split(",")
    values = [constant_of(module, part) if isinstance(part, fx.Node) else None for part in operands]
    if (values[0] is None) == (values[1] is None):
        return None
    (x, of_x), (weight, of_weight) = (operands[0], first), (operands[1], second)
    if values[1] is None:
        (x, of_x), (weight, of_weight) = (weight, of_weight), (x, of_x)
    value = values[0] if values[1] is None else values[1]
    assert value is not None
    if any(len(set(part)) != len(part) for part in (of_x, of_weight, result)):
        return None
    if not set(of_x) - set(of_weight) <= set(result):
        return None
    sizes = dict(zip(of_weight, value.shape, strict=True))
    product = _Einsum(x, weight, of_x, of_weight, result, sizes)
    if len(product.each) > 1 or not product.summed or not product.columns:
        return None
    if not set(product.columns) <= set(result):
        return None
    if product.each and sizes[product.each[0]] > MOST_MATRICES:
        return None
    return product


def _einsum(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Rewrite an einsum of an input and a constant as products with single matrices.

    Indices of the constant alone become columns. An index that both and the result have gives one
    product for each of its values.
    """
    e = _read_einsum(module, node)
    if e is None:
        return None
    graph, outputs = module.graph, []
    each, summed, columns = e.each, e.summed, e.columns
    rows = [i for i in e.of_x if i not in summed and i not in each]
    for number in range(e.sizes[each[0]]) if each else (None,):
        left, matrix, of_left, of_matrix = e.x, e.weight, e.of_x, e.of_weight
        if number is not None:
            left = _call(graph, aten.select.int, left, of_left.index(each[0]), number)
            matrix = _call(graph, aten.select.int, matrix, of_matrix.index(each[0]), number)
            of_left, of_matrix = of_left.replace(each[0], ""), of_matrix.replace(each[0], "")
        order = [of_left.index(i) for i in (*rows, *summed)]
        left = _call(graph, aten.permute.default, left, order)
        left = _call(graph, aten.flatten.using_ints, left, len(rows), -1)
        order = [of_matrix.index(i) for i in (*columns, *summed)]
        matrix = _call(graph, aten.permute.default, matrix, order)
        matrix = _call(graph, aten.flatten.using_ints, matrix, len(columns), -1)
        matrix = _call(graph, aten.flatten.using_ints, matrix, 0, len(columns) - 1)
        product = _call(graph, aten.linear.default, left, matrix)
        sizes = [e.sizes[i] for i in columns]
        outputs.append(_call(graph, aten.unflatten.int, product, -1, sizes))
    whole = _call(graph, aten.stack.default, outputs) if each else outputs[0]
    order = [[*each, *rows, *columns].index(i) for i in e.result]
    return _call(graph, aten.permute.default, whole, order)


def _each(value: Any) -> tuple[int, ...]:
    return (value,) * 3 if isinstance(value, int) else tuple(value) * (3 if len(value) == 1 else 1)


def _as_patches(x: Tensor, kernel: tuple[int, int, int]) -> Tensor:
    """Reshape (n, channels, T, H, W) to (n, T / t, H / h, W / w, channels * t * h * w).

    Positions that fill no patch are left out.
    """
    counts = [size // part for size, part in zip(x.shape[2:], kernel, strict=True)]
    for dim, (count, part) in enumerate(zip(counts, kernel, strict=True), 2):
        x = x.narrow(dim, 0, count * part)
    (t, h, w), channels = kernel, x.shape[1]
    x = x.reshape(x.shape[0], channels, counts[0], t, counts[1], h, counts[2], w)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(x.shape[0], *counts, channels * prod(kernel))


REWRITES: dict[str, Callable[[fx.GraphModule, fx.Node], fx.Node | None]] = {
    "aten.bmm.default": _batched,
    "aten.matmul.default": _batched,
    "aten.baddbmm.default": _batched_with_bias,
    "aten.conv3d.default": _patches,
    "aten.einsum.default": _einsum,
    "aten.bilinear.default": _bilinear,
    **dict.fromkeys(CELLS, cell_products),
}

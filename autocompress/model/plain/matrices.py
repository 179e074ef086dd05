"""Products with stacks of matrices, and convolutions of patches side by side, as products with single matrices in a program."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from autocompress.model.plain.operands import constant_of

MOST_MATRICES = 256  # more would be more modules than a search can tell apart
aten = torch.ops.aten


def single_matrices(module: fx.GraphModule) -> None:
    """Rewrite, in place, each product of a program with a constant stack of matrices into one product per matrix, and each
    three-dimensional convolution whose patches lie side by side into one product of flattened patches."""
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
    """The value of an operand that is a constant stack of matrices."""
    value = constant_of(module, node) if isinstance(node, fx.Node) else None
    return (
        value
        if isinstance(value, Tensor) and value.dim() == 3 and len(value) <= MOST_MATRICES
        else None
    )


def _batched(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """bmm or matmul of (..., n, rows, in) and a constant (n, in, out), or of a constant (n, out, in) and (..., n, in, columns)."""
    left, right = node.args[:2]
    weights, transposed = _stack(module, right), False
    if weights is None:
        weights, transposed = _stack(module, left), True
        left, right = right, left
    found: Any = getattr(left, "meta", {}).get("val")
    if weights is None or found is None or _stack(module, left) is not None or found.dim() < 2:
        return None
    graph, outputs = module.graph, []
    shared = found.dim() == 2 or found.shape[-3] != len(weights)  # the same rows for every matrix
    if shared and found.dim() > 2 and found.shape[-3] != 1:
        return None
    for i in range(len(weights)):
        rows: Any = (
            left
            if found.dim() == 2
            else _call(graph, aten.select.int, left, -3, 0 if shared else i)
        )
        matrix = _call(graph, aten.select.int, right, 0, i)
        if transposed:  # (out, in) @ (in, columns)
            rows = _call(graph, aten.transpose.int, rows, -1, -2)
            outputs.append(
                _call(
                    graph,
                    aten.transpose.int,
                    _call(graph, aten.linear.default, rows, matrix),
                    -1,
                    -2,
                )
            )
        else:
            outputs.append(
                _call(
                    graph, aten.linear.default, rows, _call(graph, aten.transpose.int, matrix, 0, 1)
                )
            )
    return _call(graph, aten.stack.default, outputs, -3)


def _batched_with_bias(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """baddbmm: a product with a stack, and something added to it."""
    if any(node.kwargs.get(name, 1) != 1 for name in ("beta", "alpha")) or len(node.args) != 3:
        return None
    bias, left, right = node.args
    product = _call(module.graph, aten.bmm.default, left, right)
    made = _batched(module, product)
    module.graph.erase_node(product)
    return None if made is None else _call(module.graph, aten.add.Tensor, made, bias)


def _patches(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """conv3d whose kernel is its stride, as the patch embeddings of video models have it."""
    inputs, weight, bias, stride, padding, dilation, groups = (
        *node.args,
        *(None, 1, 0, 1, 1)[len(node.args) - 2 :],
    )[:7]
    if node.kwargs or not isinstance(weight, fx.Node):
        return None
    value, found = constant_of(module, weight), getattr(inputs, "meta", {}).get("val")
    if value is None or found is None or found.dim() != 5:
        return None
    kernel = tuple(value.shape[2:])
    if (
        _each(stride) != kernel
        or _each(padding) != (0, 0, 0)
        or _each(dilation) != (1, 1, 1)
        or groups != 1
    ):
        return None
    graph = module.graph
    matrix = _call(graph, aten.flatten.using_ints, weight, 1)
    product = _call(
        graph, aten.linear.default, _call(graph, _as_patches, inputs, kernel), matrix, bias
    )
    return _call(graph, aten.permute.default, product, [0, 4, 1, 2, 3])


def _einsum(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """einsum of an input and a constant: indices of the constant alone become columns, shared ones rows of one product or several."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    if (
        not isinstance(operands, (tuple, list))
        or len(operands) != 2
        or "->" not in equation
        or "." in equation
    ):
        return None
    sources, result = equation.split("->")
    parts = list(zip(operands, sources.split(","), strict=True))
    values = [
        constant_of(module, operand) if isinstance(operand, fx.Node) else None
        for operand, _ in parts
    ]
    if sum(value is not None for value in values) != 1:
        return None
    (x, of_x), (weight, of_weight) = parts if values[1] is not None else parts[::-1]
    sizes = dict(
        zip(of_weight, next(value for value in values if value is not None).shape, strict=True)
    )
    if any(len(set(part)) != len(part) for part in (of_x, of_weight, result)) or not set(
        of_x
    ) - set(of_weight) <= set(result):
        return None
    each = [i for i in of_weight if i in of_x and i in result]
    summed = [i for i in of_weight if i in of_x and i not in result]
    columns = [i for i in of_weight if i not in of_x]
    if (
        len(each) > 1
        or not summed
        or not columns
        or not set(columns) <= set(result)
        or (each and sizes[each[0]] > MOST_MATRICES)
    ):
        return None
    graph, rows, outputs = module.graph, [i for i in of_x if i not in summed and i not in each], []
    for number in range(sizes[each[0]]) if each else (None,):
        picked, matrix, left, held = x, weight, of_x, of_weight
        if number is not None:
            picked = _call(graph, aten.select.int, x, of_x.index(each[0]), number)
            matrix = _call(graph, aten.select.int, weight, of_weight.index(each[0]), number)
            left, held = of_x.replace(each[0], ""), of_weight.replace(each[0], "")
        picked = _call(
            graph, aten.permute.default, picked, [left.index(i) for i in (*rows, *summed)]
        )
        picked = _call(graph, aten.flatten.using_ints, picked, len(rows), -1)
        matrix = _call(
            graph, aten.permute.default, matrix, [held.index(i) for i in (*columns, *summed)]
        )
        matrix = _call(
            graph,
            aten.flatten.using_ints,
            _call(graph, aten.flatten.using_ints, matrix, len(columns), -1),
            0,
            len(columns) - 1,
        )
        product = _call(graph, aten.linear.default, picked, matrix)
        outputs.append(_call(graph, aten.unflatten.int, product, -1, [sizes[i] for i in columns]))
    made = [*each, *rows, *columns]
    whole = _call(graph, aten.stack.default, outputs) if each else outputs[0]
    return _call(graph, aten.permute.default, whole, [made.index(i) for i in result])


def _each(value: Any) -> tuple[int, ...]:
    return (value,) * 3 if isinstance(value, int) else tuple(value) * (3 if len(value) == 1 else 1)


def _as_patches(x: Tensor, kernel: tuple[int, int, int]) -> Tensor:
    """(n, channels, T, H, W) to (n, T / t, H / h, W / w, channels * t * h * w); what fills no patch is left out."""
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
}

"""Rewrite pooled lookups in a program as lookups and a sum, a mean or a maximum.

The table of an nn.EmbeddingBag then becomes an nn.Embedding. `program` calls this before it looks
for plain modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from autocompress.model.plain.operands import constant_of

BAGS = ("aten.embedding_bag.default", "aten.embedding_bag.padding_idx")
FLATTENING = ("aten.reshape.default", "aten.view.default")
SUM, MEAN, MAX = 0, 1, 2  # of the operator's argument `mode`
aten = torch.ops.aten


def plain_lookups(module: fx.GraphModule) -> None:
    """Rewrite pooled lookups of a program in place.

    Those of ids (n, length) are rewritten, with weights per id and a padding id. Bags that offsets
    cut from one row of ids stay: their lengths are values.

    Args:
        module: the program.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or str(node.target) not in BAGS:
            continue
        parts = list(node.users)
        if any(part.users and part.args[1] != 0 for part in parts):
            continue  # something reads the sizes of bags
        with graph.inserting_before(node):
            pooled = _pooled_lookup(module, node)
        if pooled is None:
            continue
        for part in parts:
            if part.users:
                pooled.meta = dict(part.meta)
                part.replace_all_uses_with(pooled)
            graph.erase_node(part)
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _pooled_lookup(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    defaults = (False, SUM, False, None, False, None)
    args: Any = (*node.args, *defaults[len(node.args) - 3 :])
    table, flat, offsets, by_frequency, mode, _, weights, includes_last, padding = args
    value = constant_of(module, table) if isinstance(table, fx.Node) else None
    ids = _rows_of(flat)
    # A table whose gradients are divided by frequencies would be trained otherwise.
    if node.kwargs or value is None or ids is None or includes_last or by_frequency:
        return None
    if not _one_bag_per_row(offsets, ids.meta["val"]):
        return None
    if weights is not None:
        weights = _rows_of(weights)
        if weights is None:
            return None
    if padding is not None:
        padding %= len(value)
    rows = module.graph.call_function(aten.embedding.default, (table, ids))
    return module.graph.call_function(_pooled, (rows, ids, weights, mode, padding))


def _rows_of(flat: fx.Node) -> fx.Node | None:
    """Return the matrix that is flattened, or None."""
    if str(flat.target) not in FLATTENING or flat.args[1] not in ([-1], (-1,)):
        return None
    source: Any = flat.args[0]
    like = source.meta.get("val")
    return source if isinstance(like, Tensor) and like.dim() == 2 else None


def _one_bag_per_row(offsets: fx.Node, ids: Tensor) -> bool:
    """Return True if offsets are the places where the rows of ids begin."""
    if str(offsets.target) != "aten.arange.start_step":
        return False
    start, end, step = offsets.args if len(offsets.args) == 3 else (*offsets.args, 1)

    def expression(size: Any) -> str:  # of symbols; sizes without a node are numbers
        return str(size.meta.get("val") if isinstance(size, fx.Node) else size)

    wanted = map(str, (0, ids.numel(), ids.shape[1]))
    return list(map(expression, (start, end, step))) == list(wanted)


def _pooled(
    rows: Tensor, ids: Tensor, weights: Tensor | None, mode: int, padding: int | None
) -> Tensor:
    """Return one vector per row of ids, zeros for a row of padding alone.

    Args:
        rows: (n, length, width), what was looked up.
        ids: (n, length).
        weights: (n, length), by which what was looked up is multiplied.
        mode: SUM, MEAN or MAX.
        padding: the id that does not count; None if all do.

    Returns:
        (n, width).
    """
    rows = rows if weights is None else rows * weights.unsqueeze(-1)
    if padding is None:
        return rows.amax(1) if mode == MAX else rows.mean(1) if mode == MEAN else rows.sum(1)
    counts = (ids != padding).unsqueeze(-1)
    number = counts.to(rows.dtype).sum(1)
    if mode == MAX:
        return torch.where(number > 0, rows.masked_fill(~counts, -torch.inf).amax(1), 0.0)
    total = (rows * counts).sum(1)
    return total / number.clamp(min=1) if mode == MEAN else total

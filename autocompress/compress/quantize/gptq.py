"""GPTQ: round one column at a time, the others compensate (Frantar et al. 2023, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.compress.calibrate.linear_algebra import inverse_factor
from autocompress.compress.quantize.affine import Grid

BLOCK = 128
ROWS = 4096  # rounded at once; a table of many rows would be held several times in double precision


def gptq(weight: Tensor, gram: Tensor, grid: Grid) -> Tensor:
    """Round to the points of a grid so that ||(W - Q) X||^2 is nearly minimal.

    Columns are taken in descending order of the gram's diagonal ("act-order"). The error of each is
    spread over the columns that follow, by the Cholesky factor of H^-1. Scales are not changed.
    Columns of inputs that were never seen are rounded to the nearest point.

    Args:
        weight: (rows, columns) W.
        gram: (columns, columns) proportional to X X^T of the layer's inputs.
        grid: steps and zero points (rows, columns), bounds, and mask of elements that are not 0.

    Returns:
        (rows, columns) integers as floats.
    """
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    upper = inverse_factor(gram.double()[order][:, order])
    result = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        result[rows] = _rounded(weight[rows], grid.of_rows(rows), order, upper)
    return result


def _rounded(weight: Tensor, grid: Grid, order: Tensor, upper: Tensor) -> Tensor:
    """Round some rows, which do not depend on the others.

    Args:
        weight: (rows, columns).
        grid: of these rows.
        order: (columns,) in which columns are taken.
        upper: (columns, columns) Cholesky factor of H^-1 in this order.

    Returns:
        (rows, columns) integers as floats.
    """
    columns = weight.shape[1]
    # A column lies in one piece of memory in the transposed weight.
    w, step, zero = (part.T[order].double() for part in (weight, grid.step, grid.zero_point))
    nonzero = None if grid.kept is None else grid.kept.T[order]
    pivots = upper.diagonal().tolist()
    integers = torch.empty_like(w)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors, factor = torch.empty_like(w[start:end]), upper[start:end, start:end]
        for i in range(end - start):
            at = start + i
            column = torch.addmv(w[at], errors[:i].T, factor[:i, i], alpha=-1)
            q = (column / step[at]).add_(zero[at]).round_().clamp_(grid.quant_min, grid.quant_max)
            if nonzero is not None:
                q = torch.where(nonzero[at], q, zero[at])
            integers[at] = q
            errors[i] = column.sub_(q.sub_(zero[at]).mul_(step[at])).div_(pivots[at])
        w[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    result = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    result.T[order] = integers.to(weight.dtype)
    return result

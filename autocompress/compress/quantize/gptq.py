"""GPTQ: round one column at a time, the others compensate (Frantar et al. 2023, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.compress.calibrate.linear_algebra import inverse_factor
from autocompress.compress.quantize.affine import Grid

BLOCK = 128


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
    columns = weight.shape[1]
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    w = weight.double()[:, order]
    step, zero = grid.step.double()[:, order], grid.zero_point.double()[:, order]
    nonzero = None if grid.kept is None else grid.kept[:, order]
    upper = inverse_factor(gram.double()[order][:, order])
    integers = torch.empty_like(w)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        block = w[:, start:end].clone()
        errors = torch.empty_like(block)
        factor = upper[start:end, start:end]
        for i in range(end - start):
            at = start + i
            q = (block[:, i] / step[:, at] + zero[:, at]).round()
            q = q.clamp(grid.quant_min, grid.quant_max)
            if nonzero is not None:
                q = torch.where(nonzero[:, at], q, zero[:, at])
            integers[:, at] = q
            errors[:, i] = (block[:, i] - (q - zero[:, at]) * step[:, at]) / factor[i, i]
            block[:, i + 1 :] -= errors[:, i : i + 1] * factor[i, i + 1 :]
        w[:, end:] -= errors @ upper[start:end, end:]
    result = torch.empty_like(integers)
    result[:, order] = integers
    return result.to(weight.dtype)

"""GPTQ: round one column at a time and let the columns that are left make up for the error (Frantar et al. 2023, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.compress.calibrate.linear_algebra import inverse_factor
from autocompress.compress.quantize.affine import Grid

BLOCK = 128


def gptq(weight: Tensor, gram: Tensor, grid: Grid) -> Tensor:
    """Integers (rows, columns), as floats, near the minimum of ||(W - Q) X||^2 on the points of `grid`.

    weight (rows, columns); gram (columns, columns) proportional to X X^T of the layer's inputs. Columns are taken in the order of
    falling diagonal ("act-order"); groups keep the scales that they were given. Inputs that were never seen are rounded to
    the nearest point.
    """
    columns = weight.shape[1]
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    w = weight.double()[:, order]
    step, zero = grid.step.double()[:, order], grid.zero_point.double()[:, order]
    kept = None if grid.kept is None else grid.kept[:, order]
    upper = inverse_factor(gram.double()[order][:, order])
    integers = torch.empty_like(w)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        block = w[:, start:end].clone()
        errors = torch.empty_like(block)
        factor = upper[start:end, start:end]
        for i in range(end - start):
            at = start + i
            q = (
                (block[:, i] / step[:, at] + zero[:, at])
                .round()
                .clamp(grid.quant_min, grid.quant_max)
            )
            if kept is not None:
                q = torch.where(kept[:, at], q, zero[:, at])
            integers[:, at] = q
            errors[:, i] = (block[:, i] - (q - zero[:, at]) * step[:, at]) / factor[i, i]
            block[:, i + 1 :] -= errors[:, i : i + 1] * factor[i, i + 1 :]
        w[:, end:] -= errors @ upper[start:end, end:]
    result = torch.empty_like(integers)
    result[:, order] = integers
    return result.to(weight.dtype)

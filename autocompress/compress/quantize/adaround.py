"""AdaRound: learn to round each weight up or down (Nagel et al. 2020, equations 21 to 25)."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.compress.quantize.affine import Grid

ITERATIONS = 500
LEARNING_RATE = 0.1
ZETA, GAMMA = 1.1, -0.1
REGULARISATION = 0.02
WARM_UP = 0.2


def adaround(weight: Tensor, gram: Tensor, grid: Grid, iterations: int = ITERATIONS) -> Tensor:
    """Round each weight up or down so that ||(W - Q) X||^2 is minimal.

    A rectified sigmoid h(V) in [0, 1] is added to the floor and trained by Adam. The regulariser
    1 - |2 h(V) - 1|^beta drives it to 0 or 1, while beta falls from 20 to 2. Rows for which the
    nearest integers lose less, as some of few columns, get those.

    Args:
        weight: (rows, columns) W.
        gram: (columns, columns) proportional to X X^T of the layer's inputs.
        grid: steps and zero points (rows, columns), bounds, and mask of elements that are not 0.
        iterations: optimizer steps.

    Returns:
        (rows, columns) integers as floats.
    """
    gram = (gram / gram.diagonal().mean().clamp_min(1e-30)).float()
    exact = weight.float() / grid.step + grid.zero_point
    floor = exact.floor()
    rest = (exact - floor).clamp(0.01, 0.99)
    v = (-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1)).requires_grad_(True)
    # Divide every row's loss by its own rounding noise, so that one REGULARISATION fits all layers.
    unit = (grid.step.square() / 12).sum(1, keepdim=True).clamp_min(1e-30)
    optimizer = torch.optim.Adam([v], lr=LEARNING_RATE)
    for i in range(iterations):
        h = (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
        points = ((floor + h).clamp(grid.quant_min, grid.quant_max) - grid.zero_point) * grid.step
        if grid.kept is not None:
            points = points * grid.kept
        delta = points - weight
        loss = ((delta @ gram) * delta / unit).sum()
        if i >= WARM_UP * iterations:
            progress = (i / iterations - WARM_UP) / (1 - WARM_UP)
            beta = 2 + 9 * (1 + torch.cos(torch.tensor(progress * torch.pi)))
            loss = loss + REGULARISATION * (1 - (2 * h - 1).abs().pow(beta)).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    up = (torch.sigmoid(v.detach()) * (ZETA - GAMMA) + GAMMA) >= 0.5
    learned = (floor + up).clamp(grid.quant_min, grid.quant_max)
    if grid.kept is not None:
        learned = torch.where(grid.kept, learned, grid.zero_point)
    nearest = grid.nearest(weight)
    return torch.where(
        _loss(weight, learned, gram, grid) <= _loss(weight, nearest, gram, grid), learned, nearest
    )


def _loss(weight: Tensor, integers: Tensor, gram: Tensor, grid: Grid) -> Tensor:
    """Return (rows, 1) the squared error of each row's output."""
    delta = grid.point(integers) - weight.float()
    return ((delta @ gram) * delta).sum(1, keepdim=True)

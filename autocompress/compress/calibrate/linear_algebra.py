"""Condition and factor the Gram matrix H = X X^T of a layer's inputs.

GPTQ, SparseGPT, optimal brain surgeon and the least-squares reconstruction all invert it.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01
SMALL = 128  # columns of a triangle that is inverted at once


def damped(gram: Tensor) -> Tensor:
    """Return H + lambda I, where lambda is a share of H's mean diagonal.

    The share starts at DAMPING (Frantar et al. 2023, "GPTQ", sec. 3.3). It grows tenfold until the
    matrix has a Cholesky factor. If eight tries fail, only the diagonal is returned.

    Args:
        gram: (columns, columns) symmetric, positive semidefinite. A diagonal element of 0 marks an
            input that was never seen; it gets the mean diagonal.

    Returns:
        (columns, columns) positive definite; `gram` is not changed.
    """
    return _conditioned(gram)[0]


def damped_factor(gram: Tensor) -> Tensor:
    """Return L with L L^T = H, H the damped Gram matrix.

    Args:
        gram: (columns, columns) as for `damped`.

    Returns:
        (columns, columns) lower triangular, positive diagonal.
    """
    return _conditioned(gram)[1]


def inverse_factor(gram: Tensor) -> Tensor:
    """Return U with U^T U = H^-1, H the damped Gram matrix.

    Let P reverse the order of rows. With P H P = L L^T, U is P L^-1 P. So neither H^-1 nor its
    factor is computed.

    Args:
        gram: (columns, columns) as for `damped`.

    Returns:
        (columns, columns) upper triangular, positive diagonal.
    """
    return _inverse_of_triangle(damped_factor(gram.flip(0, 1))).flip(0, 1)


def traces_of_quotients(matrices: Tensor, moments: Tensor) -> Tensor:
    """Return tr(A^-1 M) of each pair of symmetric matrices of a batch.

    Batched LU factorisation is not used. With several threads PyTorch's returns wrong pivots for
    matrices from about 150 rows on. That ends in an error, or at some sizes in wrong results
    without one (seen in PyTorch 2.5 and 2.13 with MKL;
    github.com/pytorch/pytorch/issues/142815).

    Args:
        matrices: (count, n, n) A, positive definite but for rounding errors.
        moments: (count, n, n) M.

    Returns:
        (count,) traces.
    """
    lower, failed = torch.linalg.cholesky_ex(matrices)
    quotients = torch.cholesky_solve(moments, lower)
    for i in failed.nonzero().flatten().tolist():
        quotients[i] = torch.linalg.solve(matrices[i], moments[i])
    return quotients.diagonal(dim1=1, dim2=2).sum(1)


def _conditioned(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the damped matrix and its lower Cholesky factor."""
    gram = gram.clone()
    unseen = gram.diagonal() <= 0
    gram.diagonal()[unseen] = gram.diagonal().mean().clamp_min(1e-12)
    damping = DAMPING * gram.diagonal().mean()
    for _ in range(8):
        conditioned = gram.clone()
        conditioned.diagonal().add_(damping)
        lower, failed = torch.linalg.cholesky_ex(conditioned)
        if not failed:
            return conditioned, lower
        damping = damping * 10
    diagonal = gram.diagonal()
    return torch.diag(diagonal), torch.diag(diagonal.sqrt())


def _inverse_of_triangle(lower: Tensor) -> Tensor:
    """Return the inverse of a lower triangle, by halves: most of the work is matrix products."""
    count = len(lower)
    if count <= SMALL:
        eye = torch.eye(count, dtype=lower.dtype, device=lower.device)
        solved: Tensor = torch.linalg.solve_triangular(lower, eye, upper=False)
        return solved
    half = count // 2
    first, last = (
        _inverse_of_triangle(part) for part in (lower[:half, :half], lower[half:, half:])
    )
    inverse = torch.zeros_like(lower)
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[half:, :half] = -(last @ lower[half:, :half]) @ first
    return inverse

"""Condition and factor the Gram matrix H = X X^T of a layer's inputs.

GPTQ, SparseGPT, optimal brain surgeon and the least-squares reconstruction all invert it.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01


def damped(gram: Tensor) -> Tensor:
    """Return H + lambda I, where lambda is a share of H's mean diagonal.

    The share starts at DAMPING (Frantar et al. 2023, "GPTQ", sec. 3.3). It grows tenfold until both
    the matrix and its inverse have a Cholesky factor. If eight tries fail, only the diagonal is
    returned.

    Args:
        gram: (columns, columns) symmetric, positive semidefinite. A diagonal element of 0 marks an
            input that was never seen; it gets the mean diagonal.

    Returns:
        (columns, columns) positive definite; `gram` is not changed.
    """
    gram = gram.clone()
    unseen = gram.diagonal() <= 0
    gram.diagonal()[unseen] = gram.diagonal().mean().clamp_min(1e-12)
    damping = DAMPING * gram.diagonal().mean()
    for _ in range(8):
        conditioned = gram.clone()
        conditioned.diagonal().add_(damping)
        lower, failed = torch.linalg.cholesky_ex(conditioned)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            if not torch.linalg.cholesky_ex(inverse, upper=True)[1]:
                return conditioned
        damping = damping * 10
    return torch.diag(gram.diagonal())


def inverse_factor(gram: Tensor) -> Tensor:
    """Return U with U^T U = H^-1, H the damped Gram matrix.

    Args:
        gram: (columns, columns) as for `damped`.

    Returns:
        (columns, columns) upper triangular, positive diagonal.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(gram)))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.triu()

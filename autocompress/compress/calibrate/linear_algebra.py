"""Condition and factor the Gram matrix of a layer's inputs."""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01


def damped(gram: Tensor) -> Tensor:
    """The Gram matrix plus a share of its mean diagonal; the share grows until both it and its inverse have a Cholesky factor.

    Inputs that were never seen get the mean diagonal.
    """
    gram = gram.clone()
    unseen = gram.diagonal() <= 0
    gram.diagonal()[unseen] = gram.diagonal().mean().clamp_min(1e-12)
    damping = DAMPING * gram.diagonal().mean()
    for _ in range(8):
        found = gram.clone()
        found.diagonal().add_(damping)
        lower, failed = torch.linalg.cholesky_ex(found)
        if (
            not failed
            and not torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)[1]
        ):
            return found
        damping = damping * 10
    return torch.diag(gram.diagonal())


def inverse_factor(gram: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped Gram matrix."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(gram)))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.triu()

"""Truncated singular value decomposition of a weight matrix (Eckart and Young 1936)."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_of(rows: int, columns: int, rank_ratio: float) -> int:
    """Kept rank: `rank_ratio` of min(rows, columns), at least 1."""
    return max(1, round(rank_ratio * min(rows, columns)))


def truncated_svd(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(first, second), first (rank, columns), second (rows, rank), second @ first the best rank-`rank` fit of `weight`.

    Both get the square root of the singular values, so that neither is harder to quantise than the other.
    """
    u, s, vh = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root

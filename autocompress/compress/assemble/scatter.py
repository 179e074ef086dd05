"""Put a shrunk tensor back at its place in a tensor of the original shape."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.compress.prune.masks import Mask


def scatter(
    small: Tensor, rows: Mask | None, columns: Mask | None, shape: tuple[int, ...]
) -> Tensor:
    """Put a tensor at the kept rows and columns of zeros.

    Args:
        small: (kept rows, kept columns, ...), or (kept rows,).
        rows: (rows,) True for the rows of `small`; None for all.
        columns: (columns,) the same for dimension 1; None for all.
        shape: (rows, columns, ...), or (rows,).

    Returns:
        A tensor of `shape`; `small` itself if both masks are None.
    """
    if rows is None and columns is None:
        return small
    index_rows = _positions(rows, shape[0], small.device)
    if len(shape) == 1:
        return small.new_zeros(shape).index_copy(0, index_rows, small)
    index_columns = _positions(columns, shape[1], small.device)
    wide = small.new_zeros(small.shape[0], *shape[1:]).index_copy(1, index_columns, small)
    return small.new_zeros(shape).index_copy(0, index_rows, wide)


def _positions(mask: Mask | None, count: int, device: torch.device) -> Tensor:
    positions = torch.arange(count) if mask is None else torch.from_numpy(mask).nonzero().flatten()
    return positions.to(device)

"""Place zeros inside a weight, unstructured or N:M.

`quantize/rounding.py` calls `sparsify` before it rounds. SparseGPT (Frantar and Alistarh 2023) also
updates the elements that stay, so that they compensate for the zeros; the other criteria only mask.
"""

from __future__ import annotations

import zlib
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.candidate import ModuleConfig
from autocompress.compress.calibrate.evidence import Gradients
from autocompress.compress.calibrate.linear_algebra import damped_factor, inverse_factor
from autocompress.compress.calibrate.statistics import LayerStatistics

# Columns whose zeros are chosen at once. The paper's 128 loses up to twice as much on layers of
# some 200 columns.
MASK_BLOCK = 16
NEEDS_GRADIENTS = ("gradient", "taylor", "hessian")


def kept_count(shape: tuple[int, ...], config: ModuleConfig) -> int:
    """Return the number of elements of a weight that are not set to 0.

    It depends on no value of the weight, so that sizes are known before the weight is computed.

    Args:
        shape: (rows, ...) of the weight.
        config: gives sparsity, sparsity_pattern and sparsity_criterion.

    Returns:
        Number of elements that stay.
    """
    rows, columns = shape[0], prod(shape[1:])
    if config.sparsity_pattern != "unstructured":
        n, m = map(int, config.sparsity_pattern.split(":"))
        whole, rest = divmod(columns, m)
        return rows * (whole * n + -(-rest * n // m))
    if config.sparsity_criterion == "wanda":
        return rows * (columns - round(config.sparsity * columns))
    return rows * columns - round(config.sparsity * rows * columns)


def sparsify(
    weight: Tensor,
    config: ModuleConfig,
    statistics: LayerStatistics | None,
    gradients: Gradients | None,
) -> tuple[Tensor, Tensor]:
    """Return a weight with zeros, placed by the sparsity fields of `config`.

    A criterion whose evidence is missing falls back to magnitude |w|. Scores are compared row by
    row for Wanda and over the whole weight otherwise.

    Args:
        weight: (rows, ...) float.
        config: gives sparsity (fraction of zeros), sparsity_pattern and sparsity_criterion.
        statistics: statistics of the layer's inputs; None if unknown (an embedding).
        gradients: gradients at the weight; None if unknown (a factor).

    Returns:
        float32 weight with zeros, and bool mask of the elements that stay, both of the weight's
        shape.
    """
    flat = weight.detach().float().flatten(1)
    criterion = config.sparsity_criterion
    if criterion in ("auto", "sparsegpt") and statistics is not None:
        sparse, mask = _by_groups(flat, config, statistics)
        return sparse.view(weight.shape), mask.view(weight.shape)
    scores = _scores(flat, criterion, statistics, gradients)
    if config.sparsity_pattern != "unstructured":
        mask = n_of_m(scores, config.sparsity_pattern)
    elif criterion == "wanda":
        smallest = _order(scores)[:, : round(config.sparsity * flat.shape[1])]
        mask = torch.ones_like(flat, dtype=torch.bool).scatter_(1, smallest, False)
    else:
        mask = _largest(scores.flatten(), round(config.sparsity * flat.numel())).view(flat.shape)
    return (flat * mask).view(weight.shape), mask.view(weight.shape)


def _by_groups(
    flat: Tensor, config: ModuleConfig, statistics: LayerStatistics
) -> tuple[Tensor, Tensor]:
    """Run SparseGPT on each channel group of a convolution; rounding never changes the total."""
    weights, masks = [], []
    start = elements = 0
    for part, gram in zip(flat.chunk(len(statistics.gram)), statistics.gram, strict=True):
        elements += part.numel()
        end = round(config.sparsity * elements)
        sparse, mask = sparsegpt(part, gram.to(flat.device), end - start, config.sparsity_pattern)
        weights.append(sparse)
        masks.append(mask)
        start = end
    return torch.cat(weights), torch.cat(masks)


def _order(scores: Tensor) -> Tensor:
    """Return the indices from smallest to largest along the last dimension.

    The sort is stable, so that every machine breaks ties in the same way.
    """
    order: Tensor = torch.sort(scores, dim=-1, stable=True).indices
    return order


def _largest(scores: Tensor, removed: int) -> Tensor:
    """Return a mask over a vector that lacks the `removed` smallest elements."""
    return torch.ones_like(scores, dtype=torch.bool).scatter_(0, _order(scores)[:removed], False)


def n_of_m(scores: Tensor, pattern: str) -> Tensor:
    """Return the mask of the N largest of every M consecutive scores of a row.

    Args:
        scores: (rows, columns), at least 0.
        pattern: "N:M", for example "2:4". A last block of r < M columns keeps ceil(r N / M).

    Returns:
        (rows, columns) bool mask of the elements that stay.
    """
    n, m = map(int, pattern.split(":"))
    rows, columns = scores.shape
    blocks = F.pad(scores, (0, -columns % m), value=-1.0).view(rows, -1, m)
    mask = torch.zeros_like(blocks, dtype=torch.bool)
    mask.scatter_(2, _order(blocks)[..., m - n :], True)
    rest = columns % m
    if rest:
        mask[:, -1] = torch.arange(m, device=scores.device) >= m  # clear the last block
        best = _order(scores[:, -rest:])[:, rest - -(-rest * n // m) :]
        mask[:, -1].scatter_(1, best, True)
    return mask.flatten(1)[:, :columns]


def _scores(
    weight: Tensor, criterion: str, statistics: LayerStatistics | None, gradients: Gradients | None
) -> Tensor:
    """Return (rows, columns) scores of at least 0; a higher score is a more important weight."""
    if criterion == "random":
        seed = zlib.crc32(weight.cpu().numpy().tobytes())
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(weight.shape, generator=generator).to(weight.device)
    if criterion in ("wanda", "obs_diagonal") and statistics is not None:
        per_group = len(weight) // len(statistics.gram)
        factors = []
        for gram in statistics.gram:
            factors.append(_column_factor(gram.double(), criterion).expand(per_group, -1))
        return weight.abs() * torch.cat(factors).float().to(weight.device)
    if criterion in NEEDS_GRADIENTS and gradients is not None:
        square = gradients.square.flatten(1).to(weight.device)
        if criterion == "gradient":
            return square
        if criterion == "taylor":
            return (weight * gradients.mean.flatten(1).to(weight.device)).abs()
        return weight.square() * square / 2
    return weight.abs()


def _column_factor(gram: Tensor, criterion: str) -> Tensor:
    """Return (columns,) factors f of the scores |w_ij| f_j.

    f_j is ||x_j|| for "wanda" (Sun et al. 2024, eq. 1), else [H^-1]_jj^-1/2 (Hassibi and Stork
    1993, eq. 5).
    """
    if criterion == "wanda":
        return gram.diagonal().clamp_min(0).sqrt()
    return torch.cholesky_inverse(damped_factor(gram)).diagonal().rsqrt()


def sparsegpt(weight: Tensor, gram: Tensor, removed: int, pattern: str) -> tuple[Tensor, Tensor]:
    """Minimise ||(W - Q) X||^2 over sparse Q, one column after another.

    Each column's error is spread over the columns to its right. The mask is chosen block by block:
    the weights with the lowest w_ij^2 / U_jj^2 at that moment become 0, where U^T U = H^-1 and H is
    the damped gram. The number of zeros per block is fixed beforehand by the same measure on the
    original weights. The paper gives each block the same share instead. Source: Frantar and
    Alistarh 2023, algorithm 1.

    Args:
        weight: (rows, columns) W.
        gram: (columns, columns) proportional to X X^T.
        removed: number of zeros; not read for N:M patterns.
        pattern: "unstructured" or "N:M".

    Returns:
        (rows, columns) Q and (rows, columns) bool mask of the elements that stay.
    """
    w, upper = weight.double().clone(), inverse_factor(gram.double())
    columns = w.shape[1]
    mask = torch.ones_like(w, dtype=torch.bool)
    size = MASK_BLOCK if pattern == "unstructured" else int(pattern.split(":")[1])
    planned = ~_largest((w / upper.diagonal()).square().flatten(), removed).view(w.shape)
    for start in range(0, columns, size):
        end = min(start + size, columns)
        scores = (w[:, start:end] / upper.diagonal()[start:end]).square()
        if pattern == "unstructured":
            zeros = int(planned[:, start:end].sum())
            mask[:, start:end] = _largest(scores.flatten(), zeros).view(scores.shape)
        else:
            mask[:, start:end] = n_of_m(scores, pattern)
        block, factor = w[:, start:end], upper[start:end, start:end]
        errors = torch.zeros_like(block)
        for i in range(end - start):
            errors[:, i] = torch.where(mask[:, start + i], 0.0, block[:, i]) / factor[i, i]
            block[:, i + 1 :] -= errors[:, i : i + 1] * factor[i, i + 1 :]
        w[:, end:] -= errors @ upper[start:end, end:]
    return (w * mask).to(weight.dtype), mask

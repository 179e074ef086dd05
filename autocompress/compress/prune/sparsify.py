"""Zeros inside a weight: which elements are kept, unstructured or N:M, and what the kept ones do about it."""

from __future__ import annotations

import zlib
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.candidate import ModuleConfig
from autocompress.compress.calibrate.evidence import Gradients
from autocompress.compress.calibrate.linear_algebra import damped, inverse_factor
from autocompress.compress.calibrate.statistics import LayerStatistics

MASK_BLOCK = 16  # columns whose zeros are chosen at once; 128, as in the paper, loses up to twice as much on layers of some 200 columns
NEEDS_GRADIENTS = ("gradient", "taylor", "hessian")


def kept_count(shape: tuple[int, ...], config: ModuleConfig) -> int:
    """How many elements of a weight (rows, ...) are kept; depends on no value."""
    rows, columns = shape[0], prod(shape[1:])
    if config.sparsity_pattern != "unstructured":
        kept, group = map(int, config.sparsity_pattern.split(":"))
        whole, rest = divmod(columns, group)
        return rows * (whole * kept + -(-rest * kept // group))
    if config.sparsity_criterion == "wanda":
        return rows * (columns - round(config.sparsity * columns))
    return rows * columns - round(config.sparsity * rows * columns)


def sparsify(
    weight: Tensor,
    config: ModuleConfig,
    statistics: LayerStatistics | None,
    gradients: Gradients | None,
) -> tuple[Tensor, Tensor]:
    """(weight with zeros, mask of what is kept), both of the weight's shape (rows, ...), by the sparsity fields of `config`.

    What a criterion needs and does not have (inputs of an embedding, gradients of a factor) makes it magnitude, compared row by row
    for Wanda and over the whole weight otherwise.
    """
    flat = weight.detach().float().flatten(1)
    criterion = config.sparsity_criterion
    if criterion in ("auto", "sparsegpt") and statistics is not None:
        count = len(statistics.gram)
        parts = flat.chunk(count)
        ends = [
            round(config.sparsity * sum(p.numel() for p in parts[: i + 1])) for i in range(count)
        ]
        done = [
            sparsegpt(part, gram.to(flat.device), end - start, config.sparsity_pattern)
            for part, gram, start, end in zip(
                parts, statistics.gram, [0, *ends], ends, strict=False
            )
        ]
        return torch.cat([w for w, _ in done]).view(weight.shape), torch.cat(
            [kept for _, kept in done]
        ).view(weight.shape)
    scores = _scores(flat, criterion, statistics, gradients)
    if config.sparsity_pattern != "unstructured":
        kept = n_of_m(scores, config.sparsity_pattern)
    elif criterion == "wanda":
        removed = round(config.sparsity * flat.shape[1])
        kept = torch.ones_like(flat, dtype=torch.bool).scatter_(
            1, _order(scores)[:, :removed], False
        )
    else:
        kept = _largest(scores.flatten(), round(config.sparsity * flat.numel())).view(flat.shape)
    return (flat * kept).view(weight.shape), kept.view(weight.shape)


def _order(scores: Tensor) -> Tensor:
    """Indices from the smallest to the largest along the last dimension; the same on every machine where scores are equal."""
    order: Tensor = torch.sort(scores, dim=-1, stable=True).indices
    return order


def _largest(scores: Tensor, removed: int) -> Tensor:
    """Mask that lacks the `removed` smallest of a vector."""
    return torch.ones_like(scores, dtype=torch.bool).scatter_(0, _order(scores)[:removed], False)


def n_of_m(scores: Tensor, pattern: str) -> Tensor:
    """(rows, columns) mask of the N largest of every M consecutive scores of a row; a shorter rest keeps its share, rounded up."""
    kept, group = map(int, pattern.split(":"))
    rows, columns = scores.shape
    blocks = F.pad(scores, (0, -columns % group), value=-1.0).view(rows, -1, group)
    mask = torch.zeros_like(blocks, dtype=torch.bool).scatter_(
        2, _order(blocks)[..., group - kept :], True
    )
    rest = columns % group
    if rest:
        mask[:, -1] = (
            torch.arange(group, device=scores.device) >= group
        )  # nothing, then the rest's own share
        best = _order(scores[:, -rest:])[:, rest - -(-rest * kept // group) :]
        mask[:, -1].scatter_(1, best, True)
    return mask.flatten(1)[:, :columns]


def _scores(
    weight: Tensor, criterion: str, statistics: LayerStatistics | None, gradients: Gradients | None
) -> Tensor:
    """(rows, columns) at least 0; the higher the more a weight matters."""
    if criterion == "random":
        seed = zlib.crc32(weight.cpu().numpy().tobytes())
        return torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)).to(
            weight.device
        )
    if criterion in ("wanda", "obs_diagonal") and statistics is not None:
        per_row = len(weight) // len(statistics.gram)
        parts = [
            _column_factor(gram.double(), criterion).expand(per_row, -1) for gram in statistics.gram
        ]
        return weight.abs() * torch.cat(parts).float().to(weight.device)
    if criterion in NEEDS_GRADIENTS and gradients is not None:
        mean, square = (
            part.flatten(1).to(weight.device) for part in (gradients.mean, gradients.square)
        )
        return {
            "gradient": square,
            "taylor": (weight * mean).abs(),
            "hessian": weight.square() * square / 2,
        }[criterion]
    return weight.abs()


def _column_factor(gram: Tensor, criterion: str) -> Tensor:
    """What |w_ij| is multiplied by: ||x_j|| (Sun et al. 2024), or [H^-1]_jj^-1/2 (Hassibi and Stork 1993)."""
    if criterion == "wanda":
        return gram.diagonal().clamp_min(0).sqrt()
    return torch.cholesky_inverse(torch.linalg.cholesky(damped(gram))).diagonal().rsqrt()


def sparsegpt(weight: Tensor, gram: Tensor, removed: int, pattern: str) -> tuple[Tensor, Tensor]:
    """(weight, mask) with `removed` zeros, or N:M, where the columns that are left make up for every zero (Frantar and Alistarh 2023,
    algorithm 1).

    weight (rows, columns); gram (columns, columns) proportional to X X^T. The mask is chosen block of columns by block, by w^2 / U_jj^2 of
    the weights as they are then, U the upper Cholesky factor of the inverse of the damped gram. How many zeros each block takes is
    decided beforehand, by the same measure of the weights as they were over all blocks, where the paper gives each the same share.
    """
    w, upper = weight.double().clone(), inverse_factor(gram.double())
    columns = w.shape[1]
    mask = torch.ones_like(w, dtype=torch.bool)
    size = MASK_BLOCK if pattern == "unstructured" else int(pattern.split(":")[1])
    first = ~_largest((w / upper.diagonal()).square().flatten(), removed).view(w.shape)
    for start in range(0, columns, size):
        end = min(start + size, columns)
        scores = (w[:, start:end] / upper.diagonal()[start:end]).square()
        if pattern == "unstructured":
            mask[:, start:end] = _largest(scores.flatten(), int(first[:, start:end].sum())).view(
                scores.shape
            )
        else:
            mask[:, start:end] = n_of_m(scores, pattern)
        block, factor = w[:, start:end], upper[start:end, start:end]
        errors = torch.zeros_like(block)
        for i in range(end - start):
            errors[:, i] = torch.where(mask[:, start + i], 0.0, block[:, i]) / factor[i, i]
            block[:, i + 1 :] -= errors[:, i : i + 1] * factor[i, i + 1 :]
        w[:, end:] -= errors @ upper[start:end, end:]
    return (w * mask).to(weight.dtype), mask

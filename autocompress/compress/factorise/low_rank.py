"""Factors of a weight: truncated and whitened SVD of matrices and convolutions, Tucker-2 and spatial factors of convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from autocompress.compress.calibrate.statistics import LayerStatistics

Shape = tuple[int, ...]


def factor_shapes(
    shape: Sequence[int], rank_ratio: float, decomposition: str = "auto"
) -> tuple[Shape, ...]:
    """Shapes of the factors of a weight (out, in, *kernel), the first one applied first; (shape,) where rank_ratio is 1.

    SVD: (r, in, *kernel), (out, r, 1...). Tucker-2: (r_in, in, 1...), (r_out, r_in, *kernel), (out, r_out, 1...). Spatial:
    (r, in, kh, 1), (out, r, 1, kw). Each rank is `rank_ratio` of the largest there is, at least 1. What a weight has no second
    dimension of the kernel for, or no kernel at all, falls back to SVD.
    """
    out, into, *kernel = shape
    if rank_ratio >= 1:
        return (tuple(shape),)

    def rank(largest: int) -> int:
        return max(1, round(rank_ratio * largest))

    ones = (1,) * len(kernel)
    if decomposition == "tucker" and prod(kernel) > 1:
        r_in, r_out = rank(into), rank(out)
        return (r_in, into, *ones), (r_out, r_in, *kernel), (out, r_out, *ones)
    if decomposition == "spatial" and len(kernel) == 2 and min(kernel) > 1:
        r = rank(min(into * kernel[0], out * kernel[1]))
        return (r, into, kernel[0], 1), (out, r, 1, kernel[1])
    r = rank(min(out, into * prod(kernel)))
    return (r, into, *kernel), (out, r, *ones)


def factorise(
    weight: Tensor, rank_ratio: float, decomposition: str, statistics: LayerStatistics | None
) -> tuple[Tensor, ...]:
    """The factors of `weight`, of `factor_shapes`; `statistics` of its inputs whiten the SVD ("auto" and "whitened")."""
    shapes = factor_shapes(weight.shape, rank_ratio, decomposition)
    weight = weight.detach().float()
    if len(shapes) == 1:
        return (weight,)
    if len(shapes) == 3:
        return tucker(weight, shapes[0][0], shapes[1][0])
    first, second = shapes
    if first[2:] == (*weight.shape[2:3], 1) and second[2:] != (1,) * len(second[2:]):
        return spatial(weight, first[0])
    rows = weight.flatten(1)
    plain = decomposition == "svd" or statistics is None
    factors = (
        truncated_svd(rows, first[0])
        if plain or statistics is None
        else whitened_svd(rows, first[0], statistics.gram[0])
    )
    return factors[0].reshape(first), factors[1].reshape(second)


def truncated_svd(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(first, second), first (rank, columns), second (rows, rank), second @ first the best rank-`rank` fit of `weight` (Eckart and
    Young 1936).

    Both get the square root of the singular values, so that neither is harder to quantise than the other.
    """
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def whitened_svd(weight: Tensor, rank: int, gram: Tensor) -> tuple[Tensor, Tensor]:
    """(first, second) of shapes as `truncated_svd`, second @ first the rank-`rank` matrix that minimises ||(W - B A) X||.

    gram (columns, columns) proportional to X X^T. With S S^T = gram, the optimum U_r Sigma_r V_r^T S^-1 of SVD-LLM (Wang et al. 2024,
    eq. 4) is U_r U_r^T W, U_r the leading eigenvectors of W gram W^T: no inverse is needed, so that a singular gram does no harm.
    """
    w = weight.double()
    energies, vectors = torch.linalg.eigh(w @ gram.to(w.device).double() @ w.T)
    u = vectors.flip(1)[:, :rank]
    # The square root of the singular value on either side, as in truncated_svd; directions without energy keep theirs.
    scale = (
        energies.flip(0)[:rank].clamp_min(1e-12 * float(energies[-1].clamp_min(1e-30))).pow(0.25)
    )
    return ((u.T @ w) / scale[:, None]).to(weight.dtype), (u * scale).to(weight.dtype)


def tucker(
    weight: Tensor, rank_in: int, rank_out: int, sweeps: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """(first (rank_in, in, 1...), core (rank_out, rank_in, *kernel), last (out, rank_out, 1...)) of a convolution (Kim et al. 2016).

    Higher-order orthogonal iteration: each side's basis is the leading singular vectors of the weight projected on the other's.
    """
    out, into = weight.shape[:2]
    flat = weight.reshape(out, into, -1)
    u = _leading(flat.flatten(1), rank_out)
    v = u
    for _ in range(sweeps):
        v = _leading(torch.einsum("oik,or->irk", flat, u).flatten(1), rank_in)
        u = _leading(torch.einsum("oik,is->osk", flat, v).flatten(1), rank_out)
    core = torch.einsum("oik,or,is->rsk", flat, u, v)
    ones = (1,) * (weight.dim() - 2)
    return (
        v.T.reshape(rank_in, into, *ones).contiguous(),
        core.reshape(rank_out, rank_in, *weight.shape[2:]),
        u.reshape(out, rank_out, *ones),
    )


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """(rows, rank) orthonormal left singular vectors; completed with zeros where the matrix has fewer columns."""
    u = torch.linalg.svd(matrix, full_matrices=False)[0][:, :rank]
    return torch.cat([u, u.new_zeros(len(u), rank - u.shape[1])], 1)


def spatial(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(first (rank, in, kh, 1), second (out, rank, 1, kw)) of a convolution (Jaderberg et al. 2014, scheme 2)."""
    out, into, height, width = weight.shape
    first, second = truncated_svd(
        weight.permute(0, 3, 1, 2).reshape(out * width, into * height), rank
    )
    return first.reshape(rank, into, height, 1), second.reshape(out, width, rank).permute(
        0, 2, 1
    ).reshape(out, rank, 1, width).contiguous()


def compose(factors: Sequence[Tensor]) -> Tensor:
    """The weight (out, in, *kernel) that the factors stand for: along each axis one of them at most has more than one position."""
    product = factors[0]
    for factor in factors[1:]:
        if product.dim() == 2:
            product = factor @ product
            continue
        kernel = [a * b for a, b in zip(factor.shape[2:], product.shape[2:], strict=True)]
        axes = "abcd"[: len(kernel)]
        full = torch.einsum(
            f"or{axes},ri{axes.upper()}->oi{''.join(map(''.join, zip(axes, axes.upper(), strict=True)))}",
            factor,
            product,
        )
        product = full.reshape(factor.shape[0], product.shape[1], *kernel)
    return product


def carriers(kernels: Sequence[Sequence[int]], kernel: Sequence[int]) -> list[int]:
    """Which factor has the kernel's extent, and with it stride, padding and dilation, along each axis; the first where several do."""
    return [
        next(i for i, k in enumerate(kernels) if k[axis] == extent)
        for axis, extent in enumerate(kernel)
    ]


def factor_statistics(
    seen: LayerStatistics | None, factors: Sequence[Tensor]
) -> list[LayerStatistics | None]:
    """What each factor reads when the whole weight reads `seen`: the Gram matrix of the patches holds those of their parts."""
    if seen is None or len(factors) == 1:
        return [seen] * len(factors)
    first = factors[0].detach().cpu().float()
    into, kernel = first.shape[1], factors[1].shape[2:]
    if len(factors) == 2 and prod(kernel) == 1:
        return [seen, seen.after(first.flatten(1))]
    if len(factors) == 3:  # the first reads single positions, the core patches of what it makes
        positions = prod(kernel)
        gram, mean = (
            seen.gram[0].view(into, positions, into, positions),
            seen.mean[0].view(into, positions),
        )
        a = first.flatten(1)
        middle = positions // 2
        patches = _statistics(
            torch.einsum("rc,cpdq,sd->rpsq", a, gram, a).reshape(len(a) * positions, -1),
            (a @ mean).flatten(),
        )
        core = factors[1].detach().cpu().float().flatten(1)
        return [
            _statistics(gram[:, middle, :, middle], mean[:, middle]),
            patches,
            patches.after(core),
        ]
    height, width = first.shape[2], kernel[1]
    gram, mean = (
        seen.gram[0].view(into, height, width, into, height, width),
        seen.mean[0].view(into, height, width),
    )
    b, middle = first[..., 0], width // 2
    columns = into * height
    rows = torch.einsum("rci,cijdkl,sdk->rjsl", b, gram, b).reshape(len(b) * width, -1)
    read = _statistics(
        gram[:, :, middle, :, :, middle].reshape(columns, columns), mean[:, :, middle].flatten()
    )
    return [read, _statistics(rows, torch.einsum("rci,cij->rj", b, mean).flatten())]


def _statistics(gram: Tensor, mean: Tensor) -> LayerStatistics:
    none = torch.zeros(0)
    return LayerStatistics(gram.unsqueeze(0), mean.unsqueeze(0), none, none)

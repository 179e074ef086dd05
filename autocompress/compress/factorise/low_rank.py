"""Factorise a weight by SVD, whitened SVD, or Tucker-2 and spatial factors of a convolution.

`assemble/library.py` factorises pruned weights and hands `factor_statistics` to the rounding of
each factor. A factorised layer applies its factors one after another.
"""

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
    """Return the shapes of the factors of a weight, the first one applied first.

    SVD: (r, in, *kernel), (out, r, 1...). Tucker-2: (r_in, in, 1...), (r_out, r_in, *kernel),
    (out, r_out, 1...). Spatial: (r, in, kh, 1), (out, r, 1, kw). Tucker-2 of a kernel with one
    position and spatial factors of a kernel without two extents above 1 fall back to SVD.

    Args:
        shape: (out, in, *kernel) of the weight.
        rank_ratio: each rank as a share of the largest possible one; at least rank 1.
        decomposition: "auto", "svd", "whitened", "tucker" or "spatial".

    Returns:
        One to three shapes; `shape` alone if rank_ratio is 1.
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
    """Return the factors of a weight.

    Args:
        weight: (out, in, *kernel).
        rank_ratio: rank as a share of the largest possible one.
        decomposition: as in `factor_shapes`; "auto" and "whitened" whiten the SVD.
        statistics: statistics of the layer's inputs; without them "auto" and "whitened" are plain
            SVD.

    Returns:
        float32 factors with the shapes of `factor_shapes`.
    """
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
    if decomposition == "svd" or statistics is None:
        factors = truncated_svd(rows, first[0])
    else:
        factors = whitened_svd(rows, first[0], statistics.gram[0])
    return factors[0].reshape(first), factors[1].reshape(second)


def truncated_svd(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B that minimise ||W - B A|| at a rank (Eckart and Young 1936).

    W = U S V^T gives A = S^1/2 V^T and B = U S^1/2, cut to the rank. Both get the root of the
    singular values, so that neither is harder to quantise than the other.

    Args:
        weight: (rows, columns) W.
        rank: at most min(rows, columns).

    Returns:
        (rank, columns) A and (rows, rank) B.
    """
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def whitened_svd(weight: Tensor, rank: int, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return A and B that minimise ||(W - B A) X|| at a rank.

    With S S^T = H = X X^T and the SVD U Sigma V^T of W S, SVD-LLM's optimum is U_r Sigma_r V_r^T
    S^-1 (Wang et al. 2024, eq. 4). It equals U_r U_r^T W, U_r the leading eigenvectors of W H W^T.
    No inverse is needed, so that a singular H does no harm. With fewer columns than rows, U_r spans
    W S V_r, V_r the leading eigenvectors of the smaller (W S)^T W S.

    Args:
        weight: (rows, columns) W.
        rank: at most min(rows, columns).
        gram: (columns, columns) proportional to X X^T.

    Returns:
        (rank, columns) A and (rows, rank) B.
    """
    w, h = weight.double(), gram.to(weight.device).double()
    if w.shape[0] <= w.shape[1]:
        energies, vectors = torch.linalg.eigh(w @ h @ w.T)
        u = vectors.flip(1)[:, :rank]
    else:
        of_inputs, directions = torch.linalg.eigh(h)
        seen = w @ (directions * of_inputs.clamp_min(0).sqrt())
        energies, vectors = torch.linalg.eigh(seen.T @ seen)
        u = torch.linalg.qr(seen @ vectors.flip(1)[:, :rank])[0]
    # Either side gets the square root of the singular value, as in truncated_svd. The floor keeps
    # directions without energy from a division by 0.
    least = 1e-12 * float(energies[-1].clamp_min(1e-30))
    scale = energies.flip(0)[:rank].clamp_min(least).pow(0.25)
    return ((u.T @ w) / scale[:, None]).to(weight.dtype), (u * scale).to(weight.dtype)


def tucker(
    weight: Tensor, rank_in: int, rank_out: int, sweeps: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Tucker-2 factors of a convolution (Kim et al. 2016, sec. 3.1).

    Higher-order orthogonal iteration: the basis of one side is the leading singular vectors of the
    weight projected on the basis of the other side.

    Args:
        weight: (out, in, *kernel).
        rank_in: rank of the input channels.
        rank_out: rank of the output channels.
        sweeps: iterations over both sides.

    Returns:
        (rank_in, in, 1...) first, (rank_out, rank_in, *kernel) core, (out, rank_out, 1...) last.
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
    """Return (rows, rank) left singular vectors, filled up with zeros if columns are too few."""
    u = torch.linalg.svd(matrix, full_matrices=False)[0][:, :rank]
    return torch.cat([u, u.new_zeros(len(u), rank - u.shape[1])], 1)


def spatial(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return a vertical and a horizontal factor of a convolution (Jaderberg et al. 2014, scheme 2).

    Args:
        weight: (out, in, kh, kw).
        rank: channels between the factors, at most min(in * kh, out * kw).

    Returns:
        (rank, in, kh, 1) first and (out, rank, 1, kw) second.
    """
    out, into, height, width = weight.shape
    matrix = weight.permute(0, 3, 1, 2).reshape(out * width, into * height)
    first, second = truncated_svd(matrix, rank)
    second = second.reshape(out, width, rank).permute(0, 2, 1)
    return (
        first.reshape(rank, into, height, 1),
        second.reshape(out, rank, 1, width).contiguous(),
    )


def compose(factors: Sequence[Tensor]) -> Tensor:
    """Return the weight that factors compute together.

    Args:
        factors: (out, in, *kernel) each, the first one applied first. Along each axis of the kernel
            at most one factor has more than one position.

    Returns:
        (out, in, *kernel).
    """
    product = factors[0]
    for factor in factors[1:]:
        if product.dim() == 2:
            product = factor @ product
            continue
        kernel = [a * b for a, b in zip(factor.shape[2:], product.shape[2:], strict=True)]
        axes = "abcd"[: len(kernel)]
        joined = "".join(axis + axis.upper() for axis in axes)
        full = torch.einsum(f"or{axes},ri{axes.upper()}->oi{joined}", factor, product)
        product = full.reshape(factor.shape[0], product.shape[1], *kernel)
    return product


def carriers(kernels: Sequence[Sequence[int]], kernel: Sequence[int]) -> list[int]:
    """Return the factor that has the whole kernel's extent along each axis.

    This factor carries stride, padding and dilation along the axis.

    Args:
        kernels: kernel size of each factor.
        kernel: kernel size of the whole convolution.

    Returns:
        Index of a factor per axis; the first one if several have the extent.
    """
    indices: list[int] = []
    for axis, extent in enumerate(kernel):
        indices.append(next(i for i, sizes in enumerate(kernels) if sizes[axis] == extent))
    return indices


def factor_statistics(
    seen: LayerStatistics | None, factors: Sequence[Tensor]
) -> list[LayerStatistics | None]:
    """Return the input statistics of each factor from those of the whole weight.

    The Gram matrix of whole patches holds the Gram matrices of parts of them. For a factor that
    reads single positions the middle of the patch is taken.

    Args:
        seen: statistics of the layer's inputs; None if unknown.
        factors: factors of the weight, as `factorise` returns them.

    Returns:
        Statistics per factor; None for each if `seen` is None.
    """
    if seen is None or len(factors) == 1:
        return [seen] * len(factors)
    first = factors[0].detach().cpu().float()
    kernel = factors[1].shape[2:]
    if len(factors) == 2 and prod(kernel) == 1:
        return [seen, seen.after(first.flatten(1))]
    if len(factors) == 3:
        core = factors[1].detach().cpu().float().flatten(1)
        return _tucker_statistics(seen, first.flatten(1), core, prod(kernel))
    return _spatial_statistics(seen, first[..., 0], kernel[1])


def _tucker_statistics(
    seen: LayerStatistics, first: Tensor, core: Tensor, positions: int
) -> list[LayerStatistics | None]:
    """Return the statistics of single positions, of patches of first @ x, and of core @ patches."""
    into, middle = first.shape[1], positions // 2
    gram = seen.gram[0].view(into, positions, into, positions)
    mean = seen.mean[0].view(into, positions)
    projected = torch.einsum("rc,cpdq,sd->rpsq", first, gram, first)
    patches = _statistics(projected.reshape(len(first) * positions, -1), (first @ mean).flatten())
    single = _statistics(gram[:, middle, :, middle], mean[:, middle])
    return [single, patches, patches.after(core)]


def _spatial_statistics(
    seen: LayerStatistics, first: Tensor, width: int
) -> list[LayerStatistics | None]:
    """Return the statistics of columns of patches, and of rows of the first factor's output."""
    into, height = first.shape[1:]
    middle, columns = width // 2, into * height
    gram = seen.gram[0].view(into, height, width, into, height, width)
    mean = seen.mean[0].view(into, height, width)
    rows = torch.einsum("rci,cijdkl,sdk->rjsl", first, gram, first)
    vertical = _statistics(
        gram[:, :, middle, :, :, middle].reshape(columns, columns), mean[:, :, middle].flatten()
    )
    horizontal = _statistics(
        rows.reshape(len(first) * width, -1), torch.einsum("rci,cij->rj", first, mean).flatten()
    )
    return [vertical, horizontal]


def _statistics(gram: Tensor, mean: Tensor) -> LayerStatistics:
    nothing = torch.zeros(0)
    return LayerStatistics(gram.unsqueeze(0), mean.unsqueeze(0), nothing, nothing)

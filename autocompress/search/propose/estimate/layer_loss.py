"""Compute the second-order loss of changes of one layer's weight W, in closed form.

A change D loses 1/2 tr(G D H D^T). H is the second moment of the layer's inputs, G that of the
gradients at its outputs (Martens and Grosse 2015). `curvature.py` collects both. No function here
compresses the weight: algorithms that let columns compensate for each other are judged by the
factors of H (Frantar and Alistarh 2022, "OBC"; Chee et al. 2023, "QuIP", theorem 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.candidate import ModuleConfig
from autocompress.compress.calibrate.evidence import Gradients
from autocompress.compress.calibrate.linear_algebra import damped, inverse_factor
from autocompress.compress.calibrate.statistics import LayerStatistics
from autocompress.compress.factorise.low_rank import compose, factor_shapes, spatial, tucker
from autocompress.compress.prune.sparsify import kept_count, n_of_m, sparsify
from autocompress.compress.quantize.affine import fit_scales, grid_of, to_half
from autocompress.compress.quantize.rounding import COMPENSATED_BITS
from autocompress.search.propose.estimate.slopes import Slopes

ROWS = 128  # rows of a weight that are rounded for an estimate


@dataclass(frozen=True, eq=False)
class LayerLoss:
    """Hold what the loss of a change of one layer depends on.

    Attributes:
        weight: (rows, columns, ...) W, float32 on the CPU.
        statistics: second moment, mean and extremes of the inputs.
        gradients: G.
        has_bias: True if a bias absorbs the mean of the change.
    """

    weight: Tensor
    statistics: LayerStatistics
    gradients: Slopes
    has_bias: bool

    @cached_property
    def rows(self) -> Tensor:
        """Return the weight as (rows, columns)."""
        return self.weight.flatten(1)

    @cached_property
    def gram(self) -> Tensor:
        """Return (groups, columns, columns) H, without the mean where a bias absorbs it."""
        gram, mean = self.statistics.gram.float(), self.statistics.mean.float()
        return gram - mean[:, :, None] * mean[:, None, :] if self.has_bias else gram

    @cached_property
    def input_loss(self) -> float:
        """Return the loss of independent noise of variance 1 on each input."""
        return 0.5 * float((self.gradients.times(self.rows) * self.rows).sum())

    @cached_property
    def compensated(self) -> Tensor:
        """Return (groups, columns) loss of a unit error per column when later columns make up.

        GPTQ and SparseGPT leave 1 / U_jj^2 of an error in column j, U the upper factor of H^-1 in
        the order in which GPTQ visits the columns. It is at most H_jj.
        """
        parts = []
        for whole, gram in zip(self.statistics.gram, self.gram, strict=True):
            order = torch.argsort(whole.diagonal(), descending=True, stable=True)
            upper = inverse_factor(whole.float()[order][:, order])
            part = torch.empty(len(order))
            part[order] = upper.diagonal().pow(-2)
            parts.append(part.minimum(gram.diagonal().clamp_min(0)))
        return torch.stack(parts)

    @cached_property
    def refit(self) -> tuple[Tensor, Tensor]:
        """Return (columns,) damping d and (columns, columns) inverse of A = H + d."""
        conditioned = damped(self.gram[0])
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(conditioned))
        return (conditioned - self.gram[0]).diagonal(), inverse

    @property
    def column_costs(self) -> Tensor:
        """Return (columns,) error of the output when one column goes and the others are refitted.

        Source: Hassibi and Stork 1993, eq. 5.
        """
        return self.rows.square().sum(0) / self.refit[1].diagonal()

    def of_change(self, change: Tensor) -> float:
        """Return the loss of a change of the whole weight.

        Args:
            change: (rows, columns) D.
        """
        groups = len(self.gram)
        size = len(change) // groups
        total = 0.0
        for group, part in enumerate(torch.split(change, size)):
            block = slice(group * size, (group + 1) * size)
            slopes = self.gradients.block(block)
            total += float((slopes.times(part) * (part @ self.gram[group])).sum())
        return max(0.5 * total, 0.0)

    def rounded(self, config: ModuleConfig, largest: int) -> float:
        """Return the expected loss of rounding.

        Errors of different rows are taken as independent. At most ROWS rows are rounded to nearest,
        drawn evenly in proportion to G_ii. With GPTQ an error of column j counts
        as `compensated`; AdaRound is taken to be as good.

        Args:
            config: its fields of quantization count.
            largest: largest absolute integer of an integer kernel, or 0.
        """
        slopes = self.gradients.diagonal.clamp_min(0).double()
        chosen, counts = _drawn(slopes)
        weight = self.rows[chosen]
        if config.weight_bits >= 16:
            errors = to_half(weight).float() - weight if config.weight_bits == 16 else 0 * weight
        else:
            stored = fit_scales(
                weight,
                config.weight_bits,
                config.group_size,
                config.symmetric,
                config.weight_range,
                largest,
            )
            grid = grid_of(stored, weight.shape)
            errors = grid.point(grid.nearest(weight)) - weight
        groups = chosen // (len(self.rows) // len(self.gram))
        losses = {"nearest": self._row_losses(errors, groups)}
        algorithm = config.algorithm
        compensates = config.weight_bits <= COMPENSATED_BITS
        if config.weight_bits < 16 and (compensates or algorithm in ("gptq", "adaround")):
            losses["gptq"] = (errors.square() * self.compensated[groups]).sum(1)
        totals = {}
        for name, loss in losses.items():
            mean = (loss.double().clamp_min(0) * counts).sum() / counts.sum()
            totals[name] = 0.5 * float(mean * slopes.sum())
        if algorithm == "auto":
            return min(totals.values())
        return totals.get("gptq" if algorithm == "adaround" else algorithm, totals["nearest"])

    def _row_losses(self, errors: Tensor, groups: Tensor) -> Tensor:
        """Return (rows,) D_i H D_i^T."""
        if len(self.gram) == 1:
            return ((errors @ self.gram[0]) * errors).sum(1)
        return torch.einsum("ri,rij,rj->r", errors, self.gram[groups], errors)

    def factorised(self, decomposition: str) -> NDArray[np.float64]:
        """Return the loss of every rank of a factorised matrix, from one spectrum.

        With P_r on the r leading left singular vectors of W (whitened by H, or not) the change is
        (P_r - 1) W.

        Args:
            decomposition: "svd", or "auto" or "whitened" for the whitened one.

        Returns:
            (min(rows, columns) + 1,) losses by rank, from rank 0 on.
        """
        weight, gram = self.rows.double(), self.statistics.gram[0].double()
        basis = None
        if len(weight) > weight.shape[1]:  # W = Q R has the same left singular vectors, by Q
            basis, weight = torch.linalg.qr(weight)
        whitened = weight @ gram @ weight.T
        of_basis = weight @ weight.T if decomposition == "svd" else whitened
        vectors = torch.linalg.eigh(of_basis)[1].flip(1)
        left = vectors if basis is None else basis @ vectors
        if self.has_bias:
            mean = weight @ self.statistics.mean[0].double()
            whitened = whitened - mean[:, None] * mean
        outputs = vectors.T @ whitened @ vectors
        slopes = left.T @ self.gradients.times(left)
        by_rank = _leading((outputs * slopes).flip(0, 1)).flip(0)
        tails = by_rank.flip(0).cumsum(0).flip(0).clamp_min(0)
        return np.append(0.5 * tails.numpy(), 0.0)

    def folded(self, rank_ratio: float, decomposition: str) -> float:
        """Return the loss of a convolution in Tucker-2 or spatial factors, after one sweep.

        Args:
            rank_ratio: each rank as a share of the largest possible one.
            decomposition: "tucker" or "spatial".
        """
        shapes = factor_shapes(self.weight.shape, rank_ratio, decomposition)
        factors: tuple[Tensor, ...]
        if len(shapes) == 3:
            factors = tucker(self.weight, shapes[0][0], shapes[1][0], sweeps=1)
        else:
            factors = spatial(self.weight, shapes[0][0])
        return self.of_change((compose(factors) - self.weight).flatten(1))

    def sparsified(self, config: ModuleConfig, gradients: Gradients | None) -> float:
        """Return the loss of zeros.

        A criterion that compensates leaves w_ij^2 times `compensated` of each zero (Frantar and
        Alistarh 2023); the smallest of these become 0.

        Args:
            config: its fields of sparsity count.
            gradients: for the criteria that need them.
        """
        if config.sparsity_criterion not in ("auto", "sparsegpt"):
            sparse, _ = sparsify(self.weight, config, self.statistics, gradients)
            return self.of_change((sparse - self.weight).flatten(1))
        of_row = torch.arange(len(self.rows)) // (len(self.rows) // len(self.gram))
        lost = self.rows.square() * self.compensated[of_row]
        if config.sparsity_pattern != "unstructured":
            zeros = ~n_of_m(lost, config.sparsity_pattern)
        else:
            removed = lost.numel() - kept_count(tuple(lost.shape), config)
            zeros = lost <= lost.flatten().kthvalue(removed).values if removed else lost < 0
        return 0.5 * float(((lost * zeros).sum(1) * self.gradients.diagonal).sum())

    def pruned(self, steps: NDArray[np.int64], count: int) -> NDArray[np.float64]:
        """Return the loss of removing columns one after another, the others refitted.

        With the damped moment A = H + d the refit that `masks.reconstructed` makes changes W by
        D = -W_R [A^-1]_RR^-1 [A^-1]_R, R the removed columns (Hassibi and Stork 1993). With
        [A^-1]_RR = L L^T in the order of removal, it is -Z^T Y for Z = L^-1 W_R^T and
        Y = L^-1 [A^-1]_R. Earlier rows of both do not depend on later ones, so the leading blocks
        of (Z G Z^T) * (1 - Y d Y^T) sum up to tr(G D H D^T) after every step.

        Args:
            steps: (columns,) step at which each column is removed, from 0; -1 for never.
            count: number of steps.

        Returns:
            (count + 1,) losses after 0, 1, ... steps.
        """
        order = np.argsort(steps, kind="stable")
        order = order[steps[order] >= 0]
        removed, (damping, inverse) = torch.from_numpy(order), self.refit
        inverse = inverse[removed]
        factor = torch.linalg.cholesky(inverse[:, removed])
        columns = torch.cat([self.rows[:, removed].T, inverse], 1)
        solved = torch.linalg.solve_triangular(factor, columns, upper=False)
        added, moved = torch.split(solved, [len(self.rows), len(damping)], 1)
        scaled = moved * damping
        products = added @ self.gradients.times(added.T)
        parts = products.diagonal() - _leading(products * (scaled @ moved.T))
        by_step = np.bincount(steps[order], weights=0.5 * parts.double().numpy(), minlength=count)
        return np.concatenate([[0.0], np.cumsum(by_step)]).clip(0.0)


def _drawn(slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows, how often each counts), drawn evenly in proportion to their slopes."""
    if len(slopes) <= ROWS or float(slopes.sum()) <= 0:
        chosen = torch.arange(len(slopes))
        return chosen, slopes if float(slopes.sum()) > 0 else torch.ones_like(slopes)
    places = (torch.arange(ROWS) + 0.5) / ROWS * slopes.sum()
    drawn = torch.searchsorted(slopes.cumsum(0), places).clamp_max(len(slopes) - 1)
    chosen, counts = torch.unique(drawn, return_counts=True)
    return chosen, counts.double()


def _leading(products: Tensor) -> Tensor:
    """Return (n,) what row and column r add to the sum of products[:r, :r], for r = 0 to n - 1."""
    return (products + products.T).tril().sum(1) - products.diagonal()

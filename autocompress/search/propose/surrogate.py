"""Predict the divergence and the loss of quality of allocations from finished trials.

The sampler ranks its proposals by them: `DivergenceModel` corrects the sensitivity table,
`LossModel` maps a divergence to a loss of quality, and `expected_improvement` is the acquisition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import isotonic_regression
from scipy.special import ndtr

Array = NDArray[np.float64]
# Prior deviation of a feature's factor from 1: its own, and one that the features of a tower and
# part share.
OWN, SHARED = 0.5, 0.5
NOISE = 0.3  # relative error of a sum of losses, until there are residuals
LEAST_NOISE, MOST_NOISE = 0.05, 1.0
BAND = 0.5  # bandwidth for the spread of residuals, in the logarithm of the divergence
KNOTS = 64  # points at which the spread is computed
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True, eq=False)
class DivergenceModel:
    """Predict a divergence as a weighted sum of the table's losses.

    y = s * sum_f x_f (1 + u_g(f) + v_f) + error, with u ~ N(0, SHARED^2) per tower and part,
    v ~ N(0, OWN^2) per feature, and errors in proportion to y: Bayesian linear regression with a
    hierarchical prior (Bishop 2006, section 3.3).

    The model is linear because losses of modules add up to first order. Its posterior is exact and
    takes milliseconds for hundreds of features. Without trials it is the table itself.

    Attributes:
        scale: s, the divergence on the validation split per unit of the table.
        mean: (features,) posterior mean of 1 + u + v.
        noise: relative error of a prediction that the weights do not explain.
        active: (features,) True for features that some trial has.
        groups: (features,) number of the u of each feature.
        cholesky: lower factor of the posterior precision of the active u and v.
        coefficients: posterior mean of the active v, then of the u.
    """

    scale: float
    mean: Array
    noise: float
    active: NDArray[Any]
    groups: NDArray[np.intp]
    cholesky: Array
    coefficients: Array

    @classmethod
    def fitted(
        cls,
        losses: Array,
        groups: NDArray[np.intp],
        divergence: Array,
        reliability: Array,
        reference: float,
    ) -> DivergenceModel:
        """Fit the model to trials.

        Args:
            losses: (n, features) losses of the table; float32 halves the time.
            groups: (features,) features with the same number share u.
            divergence: (n,) of the trials; values that are not finite and positive do not count.
            reliability: (n,) in (0, 1], the share of the split that each trial has seen.
            reference: trials that diverge far more than this count less.
        """
        total = losses.sum(1)
        valid = (total > 0) & (divergence > 0) & np.isfinite(divergence)
        losses, divergence = losses[valid], divergence[valid]
        total, reliability = total[valid], reliability[valid]
        scale = float(np.exp(np.median(np.log(divergence / total)))) if len(total) else 1.0
        active: NDArray[Any] = np.asarray(losses.any(0))
        design = _design(losses[:, active] * scale, groups[active])
        own = int(active.sum())
        shared = design.shape[1] - own
        prior = np.concatenate([np.full(own, OWN**-2), np.full(shared, SHARED**-2)])
        least = 1e-3 * float(np.median(divergence)) if len(divergence) else 1.0
        relative = (
            (least + divergence) * (1 + divergence / max(reference, least)) / np.sqrt(reliability)
        )
        weighted = design / relative[:, None].astype(np.float32)
        squares = (weighted.T @ weighted).astype(np.float64)
        gap = weighted.T @ ((divergence - total * scale) / relative).astype(np.float32)
        noise, factor = NOISE, np.diag(np.sqrt(prior))
        coefficients = np.zeros(design.shape[1])
        for _ in range(2):
            precision = squares / noise**2
            precision.flat[:: len(prior) + 1] += prior
            factor = cho_factor(precision, lower=True, overwrite_a=True, check_finite=False)[0]
            coefficients = cho_solve((factor, True), gap / noise**2, check_finite=False)
            if len(divergence) < 4:
                break
            correction = design @ coefficients.astype(np.float32)
            residual = np.abs(divergence - total * scale - correction) / relative
            noise = float(np.clip(1.4826 * np.median(residual), LEAST_NOISE, MOST_NOISE))
        mean = np.ones(len(groups))
        mean[active] += _factors(coefficients, groups[active])
        return cls(scale, np.maximum(mean, 0.05), noise, active, groups, factor, coefficients)

    def predict(self, losses: Array) -> tuple[Array, Array]:
        """Return (mean, standard deviation) of the divergence, each (n,).

        Args:
            losses: (n, features) losses of the table.
        """
        mean = self.scale * losses @ self.mean
        design = _design(losses[:, self.active] * self.scale, self.groups[self.active])
        spread = (
            solve_triangular(self.cholesky, design.T, lower=True)
            if design.shape[1]
            else np.zeros((0, len(losses)))
        )
        return mean, np.sqrt((spread**2).sum(0) + (self.noise * mean) ** 2)

    def draws(self, count: int, generator: np.random.Generator) -> Array:
        """Return (count, features) weights drawn from the posterior (Thompson 1933).

        Args:
            count: number of draws.
            generator: determines them.
        """
        noise = generator.standard_normal((len(self.coefficients), count))
        drawn = self.coefficients[:, None] + (
            solve_triangular(self.cholesky.T, noise, lower=False) if len(noise) else noise
        )
        weights = np.repeat(self.mean[None], count, axis=0)
        weights[:, self.active] = 1 + _factors(drawn.T, self.groups[self.active])
        return np.maximum(weights, 0.05)


def _design(losses: Array, groups: NDArray[np.intp]) -> Array:
    """Return (n, features + groups): each feature's loss, and the sums over groups."""
    member = (groups[:, None] == np.unique(groups)).astype(losses.dtype)
    return np.concatenate([losses, losses @ member], axis=1)


def _factors(coefficients: Array, groups: NDArray[np.intp]) -> Array:
    """Return (..., features): u + v of each feature."""
    _, place = np.unique(groups, return_inverse=True)
    own, shared = coefficients[..., : len(groups)], coefficients[..., len(groups) :]
    return own + shared[..., place] if len(groups) else own


@dataclass(frozen=True, eq=False)
class LossModel:
    """Predict the loss of a quality from the divergence of the outputs.

    The mean is a curve that never falls, through the finished trials (isotonic regression; Barlow
    et al. 1972). It fits any metric, and includes what recovery regains where trials are trained.

    Attributes:
        at: (points,) logarithms of divergences, ascending.
        level: (points,) mean loss there.
        spread: (points,) standard deviation of single trials around it.
    """

    at: Array
    level: Array
    spread: Array

    @classmethod
    def fitted(cls, divergence: Array, lost: Array, least_spread: float) -> LossModel:
        """Fit the model to trials.

        Args:
            divergence: (n,) of the trials, n >= 1.
            lost: (n,) loss of the quality, negative for a gain.
            least_spread: resolution of the metric, the lowest deviation of a prediction.
        """
        order = np.argsort(divergence, kind="stable")
        at, losses = np.log(np.maximum(divergence[order], 1e-12)), lost[order]
        level = np.asarray(isotonic_regression(losses).x)
        grid = np.linspace(at[0], at[-1], KNOTS)
        near = np.exp(-0.5 * ((grid[:, None] - at[None]) / BAND) ** 2)
        spread = np.sqrt(
            (near @ (losses - level) ** 2 + least_spread**2) / np.maximum(near.sum(1), 1.0)
        )
        return cls(at, level, np.maximum(np.interp(at, grid, spread), least_spread))

    def predict(
        self, divergence: Array, deviation: Array, luck: bool = True
    ) -> tuple[Array, Array]:
        """Return (mean, standard deviation) of the loss, each (n,), at uncertain divergences.

        Gauss-Hermite quadrature over the logarithm of the divergence.

        Args:
            divergence: (n,) means.
            deviation: (n,) standard deviations.
            luck: include the spread of single trials; without it the deviation is that of the
                expected loss.
        """
        relative = np.sqrt(np.log1p((deviation / np.maximum(divergence, 1e-12)) ** 2))
        at = (
            np.log(np.maximum(divergence, 1e-12))[:, None]
            - relative[:, None] ** 2 / 2
            + relative[:, None] * NODES
        )
        level, spread = np.interp(at, self.at, self.level), np.interp(at, self.at, self.spread)
        # Beyond the largest divergence of a trial, the loss grows with the divergence.
        beyond = np.exp(np.maximum(at - self.at[-1], 0.0))
        extended = np.maximum(level, 0.0) * beyond + spread * (beyond - 1)
        level = np.where(at > self.at[-1], extended, level)
        mean = level @ WEIGHTS
        spread = spread if luck else np.zeros_like(spread)
        return mean, np.sqrt(((level - mean[:, None]) ** 2 + spread**2) @ WEIGHTS)

    def divergence_at(self, lost: float) -> float:
        """Return the least divergence whose mean loss exceeds `lost`, or the largest one known.

        Args:
            lost: a loss of the quality.
        """
        above = np.flatnonzero(self.level > lost)
        return float(np.exp(self.at[above[0]] if len(above) else self.at[-1]))


def expected_improvement(
    costs: Array, mean: Array, deviation: Array, front: Array, reference: Sequence[float]
) -> Array:
    """Return the expected hypervolume improvement of points whose third objective is uncertain.

    It is exact: the front cuts the plane of the two known objectives into cells. Over a cell a
    point gains the expected amount by which its third objective is below the least of the front's
    there (Emmerich et al. 2011, with one uncertain objective). A third objective below 0 counts as
    0, so that the search does not look for the same lucky trial again and again.

    Args:
        costs: (n, 2) known objectives, minimised.
        mean: (n,) of the third objective, normal and minimised.
        deviation: (n,) its standard deviation, above 0.
        front: (m, 3) objectives, minimised; m may be 0.
        reference: (3,) the worst corner of the box in which volume counts.

    Returns:
        (n,) volumes, not negative.
    """
    front = front[(front < np.asarray(reference)).all(1)] if len(front) else np.zeros((0, 3))
    edges = [np.unique(np.append(front[:, i], reference[i])) for i in (0, 1)]
    # least[i, j]: the front's least third objective over the cell that ends at edges i and j.
    rows, columns = (np.searchsorted(edges[i], front[:, i]) + 1 for i in (0, 1))
    padded = np.full((len(edges[0]) + 1, len(edges[1]) + 1), float(reference[2]))
    np.minimum.at(padded, (rows, columns), front[:, 2])
    padded = np.minimum.accumulate(np.minimum.accumulate(padded, axis=0), axis=1)
    least = padded[:-1, :-1]
    levels, rank = np.unique(least, return_inverse=True)
    widths = []
    for i in (0, 1):
        lower = np.concatenate([[-np.inf], edges[i][:-1]])
        begin = np.maximum(lower[None], costs[:, i, None])
        widths.append(np.clip(edges[i][None] - begin, 0.0, None))
    areas = np.zeros((len(costs), len(levels)))
    flat = rank.reshape(-1)
    for k in range(len(costs)):
        cells = np.outer(widths[0][k], widths[1][k]).reshape(-1)
        areas[k] = np.bincount(flat, cells, minlength=len(levels))
    gain = _expected_below(levels[None], mean[:, None], deviation[:, None])
    below_zero = _expected_below(np.zeros((1, 1)), mean[:, None], deviation[:, None])
    return np.asarray((areas * (gain - below_zero)).sum(1))


def _expected_below(level: Array, mean: Array, deviation: Array) -> Array:
    """Return E[max(level - x, 0)] of normal x."""
    z = (level - mean) / deviation
    density = deviation * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    expected: Array = (level - mean) * ndtr(z) + density
    return expected

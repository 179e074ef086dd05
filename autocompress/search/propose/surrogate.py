"""What told trials say about trials to come: the sensitivity table corrected, and what its loss means for a metric."""

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
OWN, SHARED = (
    0.5,
    0.5,
)  # prior deviation of a feature's factor from 1: its own, and what all of a tower's and part's features share
NOISE = 0.3  # relative error of a sum of losses before there are residuals
LEAST_NOISE, MOST_NOISE = 0.05, 1.0
BAND = 0.5  # of the logarithm of the divergence, within which residuals are alike
KNOTS = 64  # at which their spread is computed
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True, eq=False)
class DivergenceModel:
    """Divergence of the outputs as a weighted sum of the table's losses: y = s * sum_f x_f (1 + u_g(f) + v_f) + error, with
    u ~ N(0, SHARED^2) per tower and part, v ~ N(0, OWN^2) per feature, and errors in proportion to y (Bayesian linear regression with
    a hierarchical prior; Bishop 2006, section 3.3).

    A linear model, since losses of modules add up to first order (the table's own assumption), so that its posterior is exact, takes
    milliseconds for hundreds of features, and is the table itself where nothing was told.

    Attributes:
        scale: s, what a unit of the table is on the validation split.
        mean: (features,) posterior mean of 1 + u + v.
        noise: relative error of a prediction that the weights do not explain.
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
        """From `losses` (n, features; float32 halves the time) and the `divergence` (n,) of told trials; `groups` (features,) shares u.

        `reliability` (n,) in (0, 1] is the share of the split that a trial has seen; what diverges far beyond `reference` counts less.
        """
        total = losses.sum(1)
        seen = (total > 0) & (divergence > 0) & np.isfinite(divergence)
        losses, divergence, total, reliability = (
            losses[seen],
            divergence[seen],
            total[seen],
            reliability[seen],
        )
        scale = float(np.exp(np.median(np.log(divergence / total)))) if len(total) else 1.0
        active: NDArray[Any] = np.asarray(losses.any(0))
        design = _design(losses[:, active] * scale, groups[active])
        prior = np.concatenate(
            [
                np.full(int(active.sum()), OWN**-2),
                np.full(design.shape[1] - int(active.sum()), SHARED**-2),
            ]
        )
        least = 1e-3 * float(np.median(divergence)) if len(divergence) else 1.0
        relative = (
            (least + divergence) * (1 + divergence / max(reference, least)) / np.sqrt(reliability)
        )
        weighted = design / relative[:, None].astype(np.float32)
        squares = (weighted.T @ weighted).astype(np.float64)
        gap = weighted.T @ ((divergence - total * scale) / relative).astype(np.float32)
        noise, found, factor = NOISE, np.zeros(design.shape[1]), np.diag(np.sqrt(prior))
        for _ in range(2):
            precision = squares / noise**2
            precision.flat[:: len(prior) + 1] += prior
            factor = cho_factor(precision, lower=True, overwrite_a=True, check_finite=False)[0]
            found = cho_solve((factor, True), gap / noise**2, check_finite=False)
            if len(divergence) < 4:
                break
            left = np.abs(divergence - total * scale - design @ found.astype(np.float32)) / relative
            noise = float(np.clip(1.4826 * np.median(left), LEAST_NOISE, MOST_NOISE))
        mean = np.ones(len(groups))
        mean[active] += _factors(found, groups[active])
        return cls(scale, np.maximum(mean, 0.05), noise, active, groups, factor, found)

    def predict(self, losses: Array) -> tuple[Array, Array]:
        """(mean, standard deviation) of the divergence, each (n,)."""
        mean = self.scale * losses @ self.mean
        design = _design(losses[:, self.active] * self.scale, self.groups[self.active])
        spread = (
            solve_triangular(self.cholesky, design.T, lower=True)
            if design.shape[1]
            else np.zeros((0, len(losses)))
        )
        return mean, np.sqrt((spread**2).sum(0) + (self.noise * mean) ** 2)

    def draws(self, count: int, generator: np.random.Generator) -> Array:
        """(count, features) weights drawn from the posterior (Thompson 1933)."""
        noise = generator.standard_normal((len(self.coefficients), count))
        drawn = self.coefficients[:, None] + (
            solve_triangular(self.cholesky.T, noise, lower=False) if len(noise) else noise
        )
        weights = np.repeat(self.mean[None], count, axis=0)
        weights[:, self.active] = 1 + _factors(drawn.T, self.groups[self.active])
        return np.maximum(weights, 0.05)


def _design(losses: Array, groups: NDArray[np.intp]) -> Array:
    """(n, features + groups): each feature's loss, and the sums over groups."""
    return np.concatenate(
        [losses, losses @ (groups[:, None] == np.unique(groups)).astype(losses.dtype)], axis=1
    )


def _factors(coefficients: Array, groups: NDArray[np.intp]) -> Array:
    """(..., features) own and shared parts added up."""
    _, place = np.unique(groups, return_inverse=True)
    own, shared = coefficients[..., : len(groups)], coefficients[..., len(groups) :]
    return own + shared[..., place] if len(groups) else own


@dataclass(frozen=True, eq=False)
class LossModel:
    """What a divergence costs in a metric: a curve that never falls, through the trials that were told (isotonic regression; Barlow et
    al. 1972), and the spread around it. It holds whatever the metric is, and what recovery mends where trials are trained.

    Attributes:
        at: (points,) logarithms of divergences, ascending; `level` and `spread` (points,) the loss there.
    """

    at: Array
    level: Array
    spread: Array

    @classmethod
    def fitted(cls, divergence: Array, lost: Array, least_spread: float) -> LossModel:
        """From the `divergence` (n,) and what was `lost` (n,), n >= 1; `least_spread` is the metric's own resolution."""
        order = np.argsort(divergence, kind="stable")
        at, found = np.log(np.maximum(divergence[order], 1e-12)), lost[order]
        level = np.asarray(isotonic_regression(found).x)
        grid = np.linspace(at[0], at[-1], KNOTS)
        near = np.exp(-0.5 * ((grid[:, None] - at[None]) / BAND) ** 2)
        spread = np.sqrt(
            (near @ (found - level) ** 2 + least_spread**2) / np.maximum(near.sum(1), 1.0)
        )
        return cls(at, level, np.maximum(np.interp(at, grid, spread), least_spread))

    def predict(
        self, divergence: Array, deviation: Array, luck: bool = True
    ) -> tuple[Array, Array]:
        """(mean, standard deviation) of the loss at uncertain divergences (n,), by Gauss-Hermite quadrature over their logarithm.

        Without `luck` it is the loss that is expected there, without the spread of single trials around it.
        """
        relative = np.sqrt(np.log1p((deviation / np.maximum(divergence, 1e-12)) ** 2))
        at = (
            np.log(np.maximum(divergence, 1e-12))[:, None]
            - relative[:, None] ** 2 / 2
            + relative[:, None] * NODES
        )
        level, spread = np.interp(at, self.at, self.level), np.interp(at, self.at, self.spread)
        beyond = np.exp(
            np.maximum(at - self.at[-1], 0.0)
        )  # farther out than anything that was told, the loss grows with the divergence
        level = np.where(
            at > self.at[-1], np.maximum(level, 0.0) * beyond + spread * (beyond - 1), level
        )
        mean = level @ WEIGHTS
        spread = spread if luck else np.zeros_like(spread)
        return mean, np.sqrt(((level - mean[:, None]) ** 2 + spread**2) @ WEIGHTS)

    def divergence_at(self, lost: float) -> float:
        """The divergence from which on more than `lost` is lost."""
        above = np.flatnonzero(self.level > lost)
        return float(np.exp(self.at[above[0]] if len(above) else self.at[-1]))


def expected_improvement(
    costs: Array, mean: Array, deviation: Array, front: Array, reference: Sequence[float]
) -> Array:
    """(n,) expected hypervolume improvement over `front` (m, 3; all minimised) of points with known `costs` (n, 2) and a normal third
    objective, of which less than 0 is no better than 0: luck there would be looked for again and again.

    Exact: the plane of the two known objectives is cut into cells by the front; over a cell a point gains as much as its third objective
    is expected to be below the least of the front's there (Emmerich et al. 2011, with one uncertain objective).
    """
    front = front[(front < np.asarray(reference)).all(1)] if len(front) else np.zeros((0, 3))
    edges = [np.unique(np.append(front[:, i], reference[i])) for i in (0, 1)]
    # least[i, j]: the front's third objective over the cell from edge i to i + 1 and from j to j + 1; index 0 lies left of all.
    rows, columns = (np.searchsorted(edges[i], front[:, i]) + 1 for i in (0, 1))
    padded = np.full((len(edges[0]) + 1, len(edges[1]) + 1), float(reference[2]))
    np.minimum.at(padded, (rows, columns), front[:, 2])
    padded = np.minimum.accumulate(np.minimum.accumulate(padded, axis=0), axis=1)
    least = padded[:-1, :-1]
    levels, rank = np.unique(least, return_inverse=True)
    widths = []
    for i in (0, 1):
        lower = np.concatenate([[-np.inf], edges[i][:-1]])
        widths.append(
            np.clip(edges[i][None] - np.maximum(lower[None], costs[:, i, None]), 0.0, None)
        )
    areas = np.zeros((len(costs), len(levels)))
    flat = rank.reshape(-1)
    for k in range(len(costs)):
        areas[k] = np.bincount(
            flat, np.outer(widths[0][k], widths[1][k]).reshape(-1), minlength=len(levels)
        )
    gain = _expected_below(levels[None], mean[:, None], deviation[:, None])
    return np.asarray(
        (areas * (gain - _expected_below(np.zeros((1, 1)), mean[:, None], deviation[:, None]))).sum(
            1
        )
    )


def _expected_below(level: Array, mean: Array, deviation: Array) -> Array:
    """E[max(level - x, 0)] of normal x."""
    z = (level - mean) / deviation
    found: Array = (level - mean) * ndtr(z) + deviation * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return found

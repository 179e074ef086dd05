"""Remove units by optimal brain surgeon (Hassibi and Stork 1993; Kurtic et al. 2023, "ZipLM").

A unit owns k columns of the weight of every layer that reads it. `importance.obs` finds these
layers and uses the order of removal as scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.compress.calibrate.linear_algebra import damped_factor, traces_of_quotients

BLOCK = 64  # columns whose removal changes the matrices at once


class Reader:
    """Track one layer that reads a group while units are removed.

    H is the damped Gram matrix of the layer's inputs, W its weight. The removal of a unit U changes
    both W -= W_U [H^-1]_UU^-1 [H^-1]_U and H^-1 in the same way. These changes wait until BLOCK
    columns are gone, and are then made at once; only the blocks [H^-1]_UU and W_U^T W_U that the
    costs need are kept up to date (lazy batch updates, Frantar et al. 2023, "GPTQ", sec. 3.3).

    Args:
        weight: (rows, columns) W, double precision; not changed.
        gram: (columns, columns) Gram matrix of the inputs, double precision.
        columns: (units, k) indices of the columns of each unit.
    """

    def __init__(self, weight: Tensor, gram: Tensor, columns: Tensor) -> None:
        units, self._width = columns.shape
        self.energy = float(((weight @ gram) * weight).sum().clamp_min(1e-30))
        stays = torch.ones(len(gram), dtype=torch.bool)
        stays[columns.flatten()] = False
        order = torch.cat([columns.flatten(), stays.nonzero().flatten()])
        inverse = torch.cholesky_inverse(damped_factor(gram))
        self._weight, self._inverse = weight[:, order], inverse[order][:, order]
        self._count = units
        self._units = torch.arange(units)  # that are in the matrices, in the order of their columns
        self._removed: list[int] = []  # places of those that wait
        self._begin()

    def _begin(self) -> None:
        """Compute the blocks of the costs, with no change waiting."""
        k, n = self._width, len(self._units)
        most = max(1, BLOCK // k) * k
        self._rows = self._inverse.new_empty(most, len(self._inverse))  # [H^-1]_U
        self._solved = torch.empty_like(self._rows)  # [H^-1]_UU^-1 [H^-1]_U
        self._own = self._weight.new_empty(len(self._weight), most)  # W_U
        at = torch.arange(n * k).view(n, k)
        self._blocks = self._inverse[at[:, :, None], at[:, None, :]]
        parts = self._weight[:, : n * k].reshape(len(self._weight), n, k).transpose(0, 1)
        self._moments = parts.transpose(1, 2) @ parts

    def costs(self) -> NDArray[np.float64]:
        """Return the output error of the removal of each unit.

        For a unit with columns U it is tr(W_U [H^-1]_UU^-1 W_U^T) / tr(W H W^T).

        Returns:
            (units,) shares of the output's energy; infinite for units that were removed.
        """
        if self._width == 1:
            own = (self._moments / self._blocks).flatten()
        else:
            own = traces_of_quotients(self._blocks, self._moments)
        own[self._removed] = torch.inf
        costs = own.new_full((self._count,), torch.inf)
        costs[self._units] = own / self.energy
        return np.asarray(costs.numpy())

    def remove(self, unit: int) -> None:
        """Remove one unit and let the other columns compensate.

        Args:
            unit: row of `columns`, not removed before.
        """
        k, n = self._width, len(self._units)
        place = int((self._units == unit).nonzero())
        at, waiting = slice(place * k, place * k + k), len(self._removed) * k
        known = slice(0, waiting)
        solved, own = self._solved[known], self._own[:, known]
        row = self._inverse[at] - self._rows[known, at].T @ solved
        weight = self._weight[:, at] - own @ solved[:, at]
        change = torch.linalg.solve(row[:, at], row)
        cross = weight.T @ self._weight - (weight.T @ own) @ solved
        rows, changes, crosses = (
            part[:, : n * k].reshape(k, n, k).transpose(0, 1) for part in (row, change, cross)
        )
        self._blocks -= rows.transpose(1, 2) @ changes
        both = changes.transpose(1, 2) @ (crosses - (weight.T @ weight) @ changes / 2)
        self._moments -= both + both.transpose(1, 2)
        self._blocks[place] = torch.eye(k)  # it is 0 now, which has no inverse
        new = slice(waiting, waiting + k)
        self._rows[new], self._solved[new], self._own[:, new] = row, change, weight
        self._removed.append(place)
        if waiting + k == len(self._rows):
            self._make_changes()

    def _make_changes(self) -> None:
        """Change the matrices as the waiting removals ask, and take the units out of them."""
        stays = torch.ones(len(self._inverse), dtype=torch.bool)
        left = torch.ones(len(self._units), dtype=torch.bool)
        left[self._removed] = False
        stays[: len(left) * self._width] = left.repeat_interleave(self._width)
        solved = self._solved[:, stays]
        inverse = self._inverse[stays][:, stays]
        self._inverse = torch.addmm(inverse, self._rows[:, stays].T, solved, alpha=-1)
        self._weight = torch.addmm(self._weight[:, stays], self._own, solved, alpha=-1)
        self._units, self._removed = self._units[left], []
        self._begin()


def removal_steps(readers: Sequence[Reader], units: int) -> NDArray[np.float64]:
    """Return the step at which each unit is removed if the cheapest is removed first, one by one.

    The costs of several readers are added as shares of their outputs' energy. At every step the
    readers' weights are the least-squares reconstruction from the columns that are left (ZipLM, eq.
    3 and 4).

    Args:
        readers: the layers that read the units, at least one; changed in place.
        units: number of units.

    Returns:
        (units,) steps 0 to units - 1 as floats; a higher step is a more important unit.
    """
    steps = np.zeros(units)
    for step in range(units):
        cheapest = int(np.argmin(np.sum([reader.costs() for reader in readers], axis=0)))
        steps[cheapest] = step
        for reader in readers:
            reader.remove(cheapest)
    return steps

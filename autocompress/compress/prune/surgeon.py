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

from autocompress.compress.calibrate.linear_algebra import damped


class Reader:
    """Track one layer that reads a group while units are removed.

    H is the damped Gram matrix of the layer's inputs, W its weight.

    Args:
        weight: (rows, columns) W, double precision; not changed.
        gram: (columns, columns) Gram matrix of the inputs, double precision.
        columns: (units, k) indices of the columns of each unit.
    """

    def __init__(self, weight: Tensor, gram: Tensor, columns: Tensor) -> None:
        self.weight, self.columns = weight.clone(), columns
        self.energy = float(((weight @ gram) * weight).sum().clamp_min(1e-30))
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(gram)))

    def costs(self) -> NDArray[np.float64]:
        """Return the output error of the removal of each unit.

        For a unit with columns U it is tr(W_U [H^-1]_UU^-1 W_U^T) / tr(W H W^T).

        Returns:
            (units,) shares of the output's energy; units that were removed have a meaningless cost.
        """
        own = self.weight[:, self.columns].transpose(0, 1)  # (units, rows, k)
        if self.columns.shape[1] == 1:
            costs = own.square().sum((1, 2)) / self.inverse.diagonal()[self.columns[:, 0]]
        else:
            blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
            own = own.transpose(1, 2)
            costs = (torch.linalg.solve(blocks, own) * own).sum((1, 2))
        return np.asarray((costs / self.energy).numpy())

    def remove(self, unit: int) -> None:
        """Remove one unit U and let the other columns compensate.

        W -= W_U [H^-1]_UU^-1 [H^-1]_U, and U leaves H^-1. The unit's columns become 0, and 1 on the
        diagonal of the inverse, so that `costs` stays finite.

        Args:
            unit: row of `columns`.
        """
        at = self.columns[unit]
        solved = torch.linalg.solve(self.inverse[at][:, at], self.inverse[at])
        self.weight -= self.weight[:, at] @ solved
        self.inverse -= self.inverse[:, at] @ solved
        self.weight[:, at] = 0
        self.inverse[at] = 0
        self.inverse[:, at] = 0
        self.inverse[at, at] = 1


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
    removed = np.zeros(units, dtype=bool)
    steps = np.zeros(units)
    for step in range(units):
        costs = np.sum([reader.costs() for reader in readers], axis=0)
        cheapest = int(np.argmin(np.where(removed, np.inf, costs)))
        removed[cheapest], steps[cheapest] = True, step
        for reader in readers:
            reader.remove(cheapest)
    return steps

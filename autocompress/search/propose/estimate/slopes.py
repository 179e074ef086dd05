"""Hold the second moment G of the gradients at the outputs of a layer.

G has a number for each pair of outputs: 10 GB for a head of 49,152 words. Beyond LARGEST outputs it
is therefore sketched: R = S (the gradients) with random signs S, whose R^T R is G in expectation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 4096  # outputs whose pairs are all held
SKETCH = 256  # rows of R; a trace is then right within 1 / sqrt(SKETCH / 2), about 9 %


@dataclass(frozen=True, eq=False)
class Slopes:
    """Hold G of one layer.

    Attributes:
        matrix: (out, out) G; (SKETCH, out) R if it is sketched.
        diagonal: (out,) that of G, which is exact in both cases.
        sketched: False if `matrix` is G itself.
    """

    matrix: Tensor
    diagonal: Tensor
    sketched: bool = False

    @classmethod
    def of(cls, rows: Tensor, generator: torch.Generator) -> Slopes:
        """Return the second moment of gradients.

        Args:
            rows: (positions, out) gradients on the CPU.
            generator: draws the signs of a sketch.
        """
        if rows.shape[1] <= LARGEST:
            return cls.exact(rows.T @ rows)
        signs = torch.randint(0, 2, (SKETCH, len(rows)), generator=generator).float() * 2 - 1
        return cls(signs @ rows / math.sqrt(SKETCH), rows.square().sum(0), True)

    @classmethod
    def exact(cls, moments: Tensor) -> Slopes:
        """Return slopes that hold all pairs.

        Args:
            moments: (out, out) G.
        """
        return cls(moments, moments.diagonal().clone())  # a view would keep the matrix

    def __add__(self, other: Slopes) -> Slopes:
        """Return the sum of the second moments of other positions of the layer."""
        diagonal = self.diagonal + other.diagonal
        return Slopes(self.matrix + other.matrix, diagonal, self.sketched)

    def scaled(self, factor: float) -> Slopes:
        """Return the second moment times a factor.

        Args:
            factor: not negative if the slopes are sketched.
        """
        of_matrix = math.sqrt(max(factor, 0.0)) if self.sketched else factor
        return Slopes(self.matrix * of_matrix, self.diagonal * factor, self.sketched)

    def block(self, part: slice) -> Slopes:
        """Return the second moment of some neighbouring outputs.

        Args:
            part: of the outputs.
        """
        matrix = self.matrix[:, part] if self.sketched else self.matrix[part, part]
        return Slopes(matrix, self.diagonal[part], self.sketched)

    def times(self, columns: Tensor) -> Tensor:
        """Return G times some columns, computed in their type.

        Args:
            columns: (out, n).
        """
        matrix = self.matrix.to(columns.dtype)
        return matrix.T @ (matrix @ columns) if self.sketched else matrix @ columns

    def is_finite(self) -> bool:
        """Return True if all numbers are finite."""
        return bool(self.matrix.isfinite().all()) and bool(self.diagonal.isfinite().all())

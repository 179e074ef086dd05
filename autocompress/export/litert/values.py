"""Describe the tensors of a graph while it becomes a .tflite file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from autocompress.targets.device.litert.flat_file import Array, Rows

FIRST, LAST = "first", "last"  # layouts: channels behind the batch as in the graph, or at the end


class Step(NamedTuple):
    """Hold what the integers of a rounded tensor stand for: (q - zero) * scale, q in [-128, 127].

    Attributes:
        scale: positive.
        zero: integer that stands for 0.
    """

    scale: float
    zero: int

    @property
    def rows(self) -> Rows:
        """Return it as the file stores it."""
        return Rows(np.array([self.scale], np.float32), 0, self.zero)


@dataclass
class Value:
    """Describe a tensor that is computed when the file runs.

    A rounded tensor has a step. Its integers are there at least; its floats once something reads
    them.

    Attributes:
        shape: in the graph's order.
        kind: of its elements, a key of `flat_file.TYPES`; "float32" for a rounded tensor.
        forms: number of the file's tensor by layout; one is there unless the tensor is rounded.
        step: of a rounded tensor, else None.
        integers: number of the file's int8 tensor by layout; empty unless the tensor is rounded.
    """

    shape: tuple[int, ...]
    kind: str
    forms: dict[str, int] = field(default_factory=dict)
    step: Step | None = None
    integers: dict[str, int] = field(default_factory=dict)

    @property
    def stored(self) -> dict[str, int]:
        """Return the tensors from which the others follow: integers where there are any."""
        return self.integers or self.forms

    @property
    def layout(self) -> str:
        """Return the layout in which it is read without a transposition."""
        return FIRST if FIRST in self.stored else LAST


class Weight(NamedTuple):
    """Hold a constant that the file stores in another type than float32.

    Attributes:
        values: integers, or float16.
        scale: (n,) one per index of `axis`; None for float16, and for integers before their scales.
        axis: dimension of the scales.
        bits: stored width; 32 for the bias of an integer kernel.
        name: for the file.
    """

    values: Array
    scale: Array | None
    axis: int
    bits: int
    name: str = ""

    def transposed(self, order: Sequence[int]) -> Weight:
        """Return the weight with its dimensions in another order.

        Args:
            order: old dimension of each new one.
        """
        return self._replace(values=self.values.transpose(order), axis=list(order).index(self.axis))

    def floats(self) -> Array:
        """Return what the weight stands for, as float32."""
        wide: Array = self.values.astype("float32")
        if self.scale is None:
            return wide
        shape = [1] * wide.ndim
        shape[self.axis] = -1
        product: Array = wide * self.scale.reshape(shape)
        return product


class Stack(NamedTuple):
    """Stand for weights that are joined along their first dimension, each with its own scales.

    Attributes:
        parts: weights with one element in that dimension, or constants.
    """

    parts: tuple[Weight | Array, ...]

    def floats(self) -> Array:
        """Return what the weights stand for, as float32."""
        arrays = [one.floats() if isinstance(one, Weight) else one for one in self.parts]
        return np.concatenate(arrays)


class Rounded(NamedTuple):
    """Stand for a tensor that is rounded to 8 bits by the range that it has at run time.

    Attributes:
        name: of the float tensor.
        part: "values", "scale" or "zero".
    """

    name: str
    part: str


class Sums(NamedTuple):
    """Stand for products of rounded inputs with integers, before their scales.

    Attributes:
        name: of the float tensor that is rounded.
        weight: the integers.
    """

    name: str
    weight: Weight


class Scales(NamedTuple):
    """Stand for the scale of rounded inputs times those of a weight.

    Attributes:
        name: of the float tensor that is rounded.
        scale: of the weight.
    """

    name: str
    scale: Array


Known = Value | Weight | Stack | Rounded | Sums | Scales | Array


def last_order(rank: int) -> list[int]:
    """Return the dimensions of a graph's tensor in the order with channels last.

    Args:
        rank: number of dimensions.
    """
    return [0, *range(2, rank), 1] if rank >= 3 else [*range(rank)]


def place_in_last(axis: int, rank: int) -> int:
    """Return where a dimension of the graph's order is with channels last.

    Args:
        axis: in the graph's order, not negative.
        rank: number of dimensions.
    """
    return last_order(rank).index(axis)

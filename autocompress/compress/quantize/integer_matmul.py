"""Compute linear layers with the processor's 8-bit integer products.

The results are those of the runtime's integer kernels, in half the time of float products.
`assemble/fake_quant.py` uses it for large layers outside of training.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.compress.quantize.activation import UINT8, dynamic_affine
from autocompress.compress.quantize.affine import StoredTensor

MIDDLE = 128  # shift from unsigned integers to the signed ones that torch multiplies
PART, ROWS = 1 << 16, 256  # numbers per pass, and the least number of rows per pass
WORTH = 1 << 24  # with this many products integers are faster, conversions included


@functools.cache
def has_integer_products() -> bool:
    """Return True if this processor multiplies 8-bit integers exactly and fast: x86 with VNNI.

    Older processors add pairs of products in 16 bits, which overflow, or lack the instruction.
    """
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(fast and (capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")))


@dataclass(frozen=True, eq=False)
class Rounded:
    """Hold a rounded input x ~ (values + MIDDLE - zero_point) * scale.

    Attributes:
        values: (rows, columns) int8.
        scale: step, positive.
        zero_point: integer in [0, 255] that stands for 0.
    """

    values: Tensor
    scale: float
    zero_point: int


def rounded(x: Tensor) -> Rounded | None:
    """Return the integers that `activation.dynamic` rounds x to.

    Args:
        x: (..., columns).

    Returns:
        The integers, leading dimensions flattened; None if x is empty or holds NaN or infinity.
    """
    if x.numel() == 0:
        return None
    step, zero, high = dynamic_affine(x)
    if not bool(torch.isfinite(step + zero + high)):
        return None
    # If both ends of the range round away from 0, the largest integer is 256 and must be clipped.
    clipped = float((high / step).round() + zero) > UINT8[1]
    x = x.reshape(-1, x.shape[-1])
    values = torch.empty(x.shape, dtype=torch.int8)
    for part, into in zip(*_in_parts(x, values), strict=True):
        integers = (part / step).round_().add_(zero - MIDDLE)
        into.copy_(integers.clamp_(max=UINT8[1] - MIDDLE) if clipped else integers)
    return Rounded(values, float(step), int(zero))


def _in_parts(x: Tensor, other: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Split both into views of some rows, so that each pass stays in the processor's cache."""
    rows = max(ROWS, PART // x.shape[1])
    return torch.split(x, rows), torch.split(other, rows)


def worth_integers(x: Tensor, weight: IntegerFactor) -> bool:
    """Return True if x @ weight^T is large enough to be faster in integers.

    Args:
        x: (..., columns).
        weight: (rows, columns).
    """
    return x.numel() * len(weight.values) >= WORTH


class Rounding:
    """Cache the last rounded tensor, because an attention's projections read the same one.

    Attributes:
        rows: True if each row has a range of its own, for which there are no integer products here.
    """

    def __init__(self, rows: bool = False) -> None:
        self.rows = rows
        self._source: Tensor | None = None
        self._version = -1
        self._rounded: Rounded | None = None

    def __call__(self, x: Tensor) -> Rounded | None:
        """Return `rounded(x)`, from the cache if x was not written to since.

        Args:
            x: (..., columns).
        """
        if x.is_inference():  # has no version counter, so that a write to it would go unnoticed
            return rounded(x)
        if self._source is not x or self._version != x._version:
            self._source, self._version, self._rounded = x, x._version, rounded(x)
        return self._rounded


@dataclass(frozen=True, eq=False)
class IntegerFactor:
    """Hold a stored weight in the form of integer products.

    Attributes:
        values: (rows, columns) int8.
        scale: (rows,) step of each row.
        sums: (rows,) float sums of the values; they undo the shift of the inputs by MIDDLE.
    """

    values: Tensor
    scale: Tensor
    sums: Tensor

    @classmethod
    def of(cls, stored: StoredTensor) -> IntegerFactor | None:
        """Return the integer form of a stored weight.

        Args:
            stored: a weight of any shape and width.

        Returns:
            None for float weights, and for integers that no kernel multiplies with one scale per
            row.
        """
        if stored.scale is None or stored.scale.shape[1] != 1 or stored.values.dim() != 2:
            return None
        if stored.values.shape[1] == 1:  # torch 2.13 returns uninitialised memory
            return None
        if stored.zero_apart:
            return None  # values - zero_point does not fit int8
        values = stored.int8()
        return cls(
            values, stored.scale.flatten().expand(len(values)), values.sum(1, dtype=torch.float32)
        )

    def product(self, x: Rounded, bias: Tensor | None) -> Tensor:
        """Return x @ weight^T + bias.

        Args:
            x: (n, columns) rounded input.
            bias: (rows,), or None.

        Returns:
            (n, rows) float32.
        """
        scale = self.scale * x.scale
        shift = scale * self.sums * (MIDDLE - x.zero_point)
        shift = shift if bias is None else shift + bias
        result = torch.empty(len(x.values), len(self.values))
        for into, part in zip(*_in_parts(result, x.values), strict=True):
            torch.addcmul(shift, torch._int_mm(part, self.values.t()).float(), scale, out=into)
        return result

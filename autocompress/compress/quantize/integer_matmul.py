"""Linear layers on the processor's own 8-bit integer products: what the runtime's integer kernels compute, in half the time of floats."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.compress.quantize.activation import UINT8, dynamic_affine
from autocompress.compress.quantize.affine import StoredTensor

MIDDLE = 128  # from unsigned to signed integers, which torch multiplies
PART, ROWS = 1 << 16, 256  # numbers that are computed at a time, and the least rows
WORTH = 1 << 24  # products of a layer from which on integers are faster, conversions included


@functools.cache
def has_integer_products() -> bool:
    """Whether this processor multiplies 8-bit integers exactly and fast: x86 with VNNI (others add pairs of products in 16 bits, which
    overflow, or have no instruction for it)."""
    found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(fast and (found.get("avx512_vnni") or found.get("avx_vnni")))


@dataclass(frozen=True, eq=False)
class Rounded:
    """x (rows, columns) as a runtime rounds it: (values + MIDDLE - zero_point) * scale, values int8."""

    values: Tensor
    scale: float
    zero_point: int


def rounded(x: Tensor) -> Rounded | None:
    """The integers of `activation.dynamic` for x (..., columns); None where x is empty, or holds NaN or infinity, which no integer is."""
    if x.numel() == 0:
        return None
    step, zero, high = dynamic_affine(x)
    if not bool(torch.isfinite(step + zero + high)):
        return None
    # A tie that both ends of the range round away from 0 is cut off.
    clipped = float((high / step).round() + zero) > UINT8[1]
    x = x.reshape(-1, x.shape[-1])
    values = torch.empty(x.shape, dtype=torch.int8)
    for part, into in zip(*_in_parts(x, values), strict=True):
        integers = (part / step).round_().add_(zero - MIDDLE)
        into.copy_(integers.clamp_(max=UINT8[1] - MIDDLE) if clipped else integers)
    return Rounded(values, float(step), int(zero))


def _in_parts(x: Tensor, other: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Views of both of some rows each, so that what is computed of them one after the other stays in the processor's cache."""
    rows = max(ROWS, PART // x.shape[1])
    return torch.split(x, rows), torch.split(other, rows)


def worth_integers(x: Tensor, weight: IntegerFactor) -> bool:
    """Whether x @ weight^T is large enough."""
    return x.numel() * len(weight.values) >= WORTH


class Rounding:
    """Remembers the last tensor that was rounded: the projections of an attention read the same one."""

    def __init__(self) -> None:
        self._of: Tensor | None = None
        self._version = -1
        self._found: Rounded | None = None

    def __call__(self, x: Tensor) -> Rounded | None:
        """`rounded(x)`."""
        if x.is_inference():  # it has no version, so that it may have been written to
            return rounded(x)
        if self._of is not x or self._version != x._version:
            self._of, self._version, self._found = x, x._version, rounded(x)
        return self._found


@dataclass(frozen=True, eq=False)
class IntegerFactor:
    """A stored weight for integer products: `values` (rows, columns) int8, `scale` (rows,), and `sums` (rows,) of the values."""

    values: Tensor
    scale: Tensor
    sums: Tensor

    @classmethod
    def of(cls, stored: StoredTensor) -> IntegerFactor | None:
        """None for float weights and for those that no kernel multiplies as integers with one scale per row."""
        if stored.scale is None or stored.scale.shape[1] != 1 or stored.values.dim() != 2:
            return None
        if stored.values.shape[1] == 1:  # torch 2.13 returns memory that nobody wrote to
            return None
        if stored.zero_apart:
            return None  # without their zero-points the integers do not fit int8
        values = stored.int8()
        return cls(
            values, stored.scale.flatten().expand(len(values)), values.sum(1, dtype=torch.float32)
        )

    def product(self, x: Rounded, bias: Tensor | None) -> Tensor:
        """(n, rows): x @ weight^T + bias."""
        scale = self.scale * x.scale
        shift = scale * self.sums * (MIDDLE - x.zero_point)
        shift = shift if bias is None else shift + bias
        found = torch.empty(len(x.values), len(self.values))
        for into, part in zip(*_in_parts(found, x.values), strict=True):
            torch.addcmul(shift, torch._int_mm(part, self.values.t()).float(), scale, out=into)
        return found

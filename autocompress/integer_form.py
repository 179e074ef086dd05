"""Name the integers of an integer kernel's weights for which its products are exact."""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class IntegerForm(StrEnum):
    """Name the integer weights of an 8-bit kernel with unsigned 8-bit inputs.

    x86 processors without VNNI add two products in signed 16 bits and saturate: 255 * (127 + 127) =
    64770 becomes 32767 (Intel SDM, PMADDUBSW). Weights in [-64, 63] are exact, since 255 * (64 +
    64) = 32640 fits. Unsigned weights take another kernel, which widens them to 16 bits first: it
    is exact, and slower.

    Attributes:
        SIGNED: int8 in [-128, 127]; exact only if the processor sums products in 32 bits.
        REDUCED: int8 in [-64, 63]; exact everywhere.
        UNSIGNED: uint8, int8 in [-128, 127] plus 128; exact everywhere.
    """

    SIGNED = "signed"
    REDUCED = "reduced"
    UNSIGNED = "unsigned"

    @property
    def bits(self) -> int:
        """Return the bits of the widest weight."""
        return 7 if self is IntegerForm.REDUCED else 8

    @property
    def largest(self) -> int:
        """Return the largest absolute value of symmetric weights, 63 or 127."""
        return int(2 ** (self.bits - 1) - 1)

    def holds(self, integers: Any) -> bool:
        """Return True if all elements lie in the form's range.

        Args:
            integers: an int8 tensor or array of any shape.
        """
        return not integers.numel() or (
            int(integers.min()) >= -self.largest - 1 and int(integers.max()) <= self.largest
        )

    @property
    def portable(self) -> bool:
        """Return True if the products are exact on every processor."""
        return self is not IntegerForm.SIGNED

"""Which integers the weights of an integer kernel may be, so that its products are exact."""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class IntegerForm(StrEnum):
    """The integers that an 8-bit kernel multiplies with unsigned 8-bit inputs.

    x86 processors without VNNI add two products in signed 16 bits and saturate: 255 * (127 + 127) = 64770 becomes 32767
    (Intel SDM, PMADDUBSW). Weights in [-64, 63] cannot do that, since 255 * (64 + 64) = 32640 fits. Unsigned weights take another
    kernel, which widens them to 16 bits first: exact, and slower.

    Attributes:
        SIGNED: int8 in [-128, 127]; exact only where the processor sums products in 32 bits.
        REDUCED: int8 in [-64, 63]; exact everywhere.
        UNSIGNED: uint8, int8 in [-128, 127] plus 128; exact everywhere.
    """

    SIGNED = "signed"
    REDUCED = "reduced"
    UNSIGNED = "unsigned"

    @property
    def bits(self) -> int:
        """Bits of the widest weight that the form holds."""
        return 7 if self is IntegerForm.REDUCED else 8

    @property
    def largest(self) -> int:
        """Largest absolute value of symmetric weights, 63 or 127."""
        return int(2 ** (self.bits - 1) - 1)

    def holds(self, integers: Any) -> bool:
        """Return whether all of an int8 tensor lie in the form's range."""
        return not integers.numel() or (
            int(integers.min()) >= -self.largest - 1 and int(integers.max()) <= self.largest
        )

    @property
    def portable(self) -> bool:
        """Whether the products are exact on every processor."""
        return self is not IntegerForm.SIGNED

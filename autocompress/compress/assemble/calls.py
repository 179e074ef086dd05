"""Which call of a module this is: a module that is called several times has calibrated ranges for each call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from autocompress.compress.quantize.activation import RangeQuantizer


@dataclass(frozen=True)
class Call:
    """The tensors of the exported graph around one call of a linear or convolutional module.

    Attributes:
        reads: the tensor that it reads.
        writes: the tensor that an integer convolution rounds, behind what is folded into it; "" for a linear module.
        norm: the normalisation that is folded into the convolution, or "".
    """

    reads: str
    writes: str = ""
    norm: str = ""


class CallRanges(nn.Module):
    """The ranges of one call: of what it reads, and of what a convolution writes, itself or (`folded`) by the normalisation behind it."""

    def __init__(self, read: RangeQuantizer, written: RangeQuantizer | None, folded: bool) -> None:
        super().__init__()
        self.read, self.written, self.folded = read, written, folded


class Calls:
    """Counts the calls of each module within one pass of a model; they come in the order of the exported graph."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def restart(self, *_: object) -> None:
        """Begin another pass; as a hook in front of the model."""
        self._seen.clear()

    def next(self, owner: str, planned: int) -> int | None:
        """Count a call of `owner` and return which of the `planned` ones it is, None where none is.

        A module with one plan follows it in all its calls.
        """
        at = self._seen.get(owner, 0)
        self._seen[owner] = at + 1
        return min(at, planned - 1) if planned else None

    def recomputing(
        self,
    ) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        """Contexts of a block and of its recomputation in the backward pass, which makes the same calls once more."""
        return contextlib.nullcontext(), self._again(dict(self._seen))

    @contextlib.contextmanager
    def _again(self, seen: dict[str, int]) -> Iterator[None]:
        now, self._seen = self._seen, dict(seen)
        try:
            yield
        finally:
            self._seen = now

"""Tell the calls of a module apart: each call has calibrated ranges of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from autocompress.compress.quantize.activation import RangeQuantizer


@dataclass(frozen=True)
class Call:
    """Name the tensors of the exported graph around one call of a linear or convolutional module.

    Attributes:
        reads: the input tensor.
        writes: the tensor that an integer convolution rounds, behind what is folded into it; "" for
            a linear module.
        norm: the normalisation that is folded into the convolution, or "".
    """

    reads: str
    writes: str = ""
    norm: str = ""


class CallRanges(nn.Module):
    """Hold the activation ranges of one call.

    Attributes:
        read: range of the input.
        written: range of a convolution's output, or None.
        folded: True if the normalisation behind the convolution writes the output.
    """

    def __init__(self, read: RangeQuantizer, written: RangeQuantizer | None, folded: bool) -> None:
        super().__init__()
        self.read, self.written, self.folded = read, written, folded


class Calls:
    """Count the calls of each module within one pass of a model.

    Calls come in the order of the exported graph.

    Attributes:
        again: makes a context of what is computed once more in the backward pass.
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self.again: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext

    def restart(self, *_: object) -> None:
        """Begin another pass; a forward pre-hook of the model."""
        self._seen.clear()

    def next(self, owner: str, planned: int) -> int | None:
        """Count a call of a module.

        Args:
            owner: name for counting calls; that of the tied module if weights are tied.
            planned: number of calls in the exported graph; further calls repeat the last one.

        Returns:
            Index of the planned call, None if there are none.
        """
        at = self._seen.get(owner, 0)
        self._seen[owner] = at + 1
        return min(at, planned - 1) if planned else None

    def recomputing(
        self,
    ) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        """Return contexts of a block and of its recomputation in the backward pass.

        The recomputation makes the calls of the block once more.
        """
        return contextlib.nullcontext(), self._repeated(self.seen)

    @contextlib.contextmanager
    def _repeated(self, seen: Mapping[str, int]) -> Iterator[None]:
        with self.replaying(seen), self.again():
            yield

    @property
    def seen(self) -> dict[str, int]:
        """Return the number of calls of each module in the pass so far, as a copy."""
        return dict(self._seen)

    @contextlib.contextmanager
    def replaying(self, seen: Mapping[str, int]) -> Iterator[None]:
        """Count from another place of the pass inside the context.

        Args:
            seen: calls of each module up to that place.
        """
        now, self._seen = self._seen, dict(seen)
        try:
            yield
        finally:
            self._seen = now

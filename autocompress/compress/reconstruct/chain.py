"""Find the inputs of a block in the outputs of the one before it, without a pass of the model.

Most blocks read what the one before has returned, and masks or positions that it has read too. A
pass of both models for each block and batch would grow with the square of the number of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.compress.reconstruct.hidden import BlockCall


@dataclass(frozen=True, eq=False)
class Link:
    """Say where the inputs of a block come from.

    Attributes:
        sources: for each tensor of the inputs (kind, position): an "output" or an "input" of the
            block before; None for values that are no tensors.
        after: a call of the block, which gives their structure, values and place in the pass.
    """

    sources: tuple[tuple[str, int] | None, ...]
    after: BlockCall

    @classmethod
    def between(cls, before: BlockCall, after: BlockCall) -> Link | None:
        """Return the link of two calls in one pass, or None if an input comes from elsewhere.

        Args:
            before: a call of one block.
            after: the call of the next one, in the pass of the same model on the same batch.
        """
        sources: list[tuple[str, int] | None] = []
        for value in after.inputs:
            source = _source(before, value) if isinstance(value, Tensor) else None
            if source is None and isinstance(value, Tensor):
                return None
            sources.append(source)
        return cls(tuple(sources), after)

    def agrees(self, other: Link | None) -> bool:
        """Return True if another link finds all inputs at the same places, with equal values.

        Args:
            other: of another batch or model.
        """
        if other is None or self.sources != other.sources:
            return False
        mine, theirs = self.after, other.after
        if mine.structure != theirs.structure or mine.seen.keys() != theirs.seen.keys():
            return False
        values = zip(mine.inputs, theirs.inputs, strict=True)
        return all(isinstance(a, Tensor) or a == b for a, b in values)

    def followed(self, before: BlockCall, outputs: Sequence[Tensor]) -> BlockCall:
        """Return the call of the block that follows a call of the one before; it has no outputs.

        Args:
            before: a call of the block before.
            outputs: its floating-point tensors of now.
        """
        inputs = list(self.after.inputs)
        for i, source in enumerate(self.sources):
            if source is not None:
                kind, at = source
                inputs[i] = outputs[at] if kind == "output" else before.inputs[at]
        return BlockCall(inputs, self.after.structure, self.after.seen, [])


def _source(before: BlockCall, value: Tensor) -> tuple[str, int] | None:
    """Return where a tensor is found in a call: among its outputs, then among its inputs."""
    for kind, tensors in (("output", before.outputs), ("input", before.inputs)):
        for i, tensor in enumerate(tensors):
            if isinstance(tensor, Tensor) and _is_same(tensor, value):
                return kind, i
    return None


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)

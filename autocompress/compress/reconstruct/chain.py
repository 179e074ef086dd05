"""Find the inputs of a block in the outputs of the one before it, without a pass of the model.

Most blocks read what the one before has returned, and masks or positions that it has read too. A
pass of both models for each block and batch would grow with the square of the number of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compress.assemble.calls import Calls
from autocompress.compress.reconstruct.blocks import Block
from autocompress.compress.reconstruct.hidden import BlockCall, watched
from autocompress.task.batches import Inputs
from autocompress.task.calls import run_model

PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)


@dataclass(frozen=True, eq=False)
class Link:
    """Say where the inputs of a block come from in the pass of one batch.

    Attributes:
        sources: for each tensor of the inputs (kind, position): an "output" or an "input" of the
            block before; None for values that are no tensors.
        after: a call of the block, which gives their structure, values and place in the pass. It
            holds no tensors.
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
        values: list[Any] = []
        for value in after.inputs:
            source = _source(before, value) if isinstance(value, Tensor) else None
            if source is None and not isinstance(value, PLAIN):
                return None
            sources.append(source)
            values.append(value if source is None else None)
        return cls(tuple(sources), BlockCall(values, after.structure, after.seen, []))

    def agrees(self, other: Link | None) -> bool:
        """Return True if another link finds all inputs at the same places, with equal values.

        A value that follows from what the model computes is another one in another model.

        Args:
            other: of the same batch in another model.
        """
        if other is None or self.sources != other.sources:
            return False
        mine, theirs = self.after, other.after
        if mine.structure != theirs.structure:
            return False
        return all(a == b for a, b in zip(mine.inputs, theirs.inputs, strict=True))

    def followed(self, before: BlockCall, outputs: Sequence[Tensor]) -> BlockCall:
        """Return the call of the block that follows a call of the one before; it has no outputs.

        Args:
            before: a call of the block before, in the pass of the same batch.
            outputs: its floating-point tensors of now.
        """
        inputs = list(self.after.inputs)
        for i, source in enumerate(self.sources):
            if source is not None:
                kind, at = source
                inputs[i] = outputs[at] if kind == "output" else before.inputs[at]
        return BlockCall(inputs, self.after.structure, self.after.seen, [])


def links_of(
    model: nn.Module, blocks: Sequence[Block], inputs: Inputs, calls: Calls | None = None
) -> dict[str, Link]:
    """Return the links of blocks with the ones before them, by name, from one pass of a model.

    Args:
        model: holds the blocks.
        blocks: in the order of execution; those of several calls have no links.
        inputs: one batch of inputs on the model's device.
        calls: counts the calls of compressible modules of a simulated model; None for others.

    Returns:
        A block that reads a tensor from elsewhere has none.
    """
    before = {
        after.name: block.name
        for block, after in pairwise(blocks)
        if block.calls == after.calls == 1
    }
    links: dict[str, Link] = {}
    latest: dict[str, BlockCall] = {}  # the last block that has ended

    def begun(name: str, call: BlockCall) -> None:
        earlier = latest.get(before.get(name, ""))
        link = None if earlier is None else Link.between(earlier, call)
        if link is not None:
            links[name] = link

    def ended(name: str, call: BlockCall) -> None:
        latest.clear()
        latest[name] = call

    names = dict.fromkeys([*before, *before.values()])
    with watched(model, names, begun, ended, calls), torch.no_grad():
        run_model(model, inputs)
    return links


def _source(before: BlockCall, value: Tensor) -> tuple[str, int] | None:
    """Return where a tensor is found in a call: among its outputs, then among its inputs."""
    for kind, tensors in (("output", before.outputs), ("input", before.inputs)):
        for i, tensor in enumerate(tensors):
            if isinstance(tensor, Tensor) and _is_same(tensor, value):
                return kind, i
    return None


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)

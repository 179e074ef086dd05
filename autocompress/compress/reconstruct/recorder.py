"""Give the calls of one block after another in the compressed and in the float model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from autocompress.compress.assemble.calls import Calls
from autocompress.compress.reconstruct.blocks import Block
from autocompress.compress.reconstruct.chain import Link, links_of
from autocompress.compress.reconstruct.hidden import BlockCall, again, record
from autocompress.compress.reconstruct.training import Pair
from autocompress.task.batches import Inputs

CACHE_BYTES = 1 << 30  # of recorded inputs and outputs; they limit the number of samples


@dataclass
class Recorder:
    """Record what blocks read, in the order of execution.

    A block that reads what the one before has returned gets it from there (`Link`), if a pass of
    both models on each batch shows that it does. Else the models run up to the block on all
    batches. What a block gets does not depend on the blocks that were recorded before.

    Attributes:
        original: the float model.
        blocks: all blocks, in the order of execution.
        batches: inputs on the device of the models.
        calls: counts the calls of compressible modules of the compressed model.
        followed: number of blocks whose calls were found without passes up to them.
    """

    original: nn.Module
    blocks: list[Block]
    batches: list[Inputs]
    calls: Calls
    followed: int = 0
    _block: Block | None = None
    _pairs: dict[int, Pair] = field(default_factory=dict)  # of that block, by batch
    _links: dict[int, dict[str, Link]] = field(default_factory=dict)  # by batch

    def record(self, model: nn.Module, block: Block) -> list[Pair]:
        """Return the calls of the next block in both models, as many as CACHE_BYTES hold.

        Args:
            model: the compressed one, with the blocks so far as they are trained.
            block: the next block.
        """
        found = self._follow(model, block)
        self.followed += bool(found)
        room = CACHE_BYTES - sum(_nbytes(pair) for _, pair in found)
        found += self._run(model, block, len(found), room)
        batches = [i for i, _ in found]
        # After a batch that did not fit, the next block is recorded from the start.
        is_whole = block.calls == 1 and batches == list(range(len(batches)))
        self._block = block if is_whole else None
        self._pairs = dict(found) if is_whole else {}
        return [pair for _, pair in found]

    def _run(self, model: nn.Module, block: Block, first: int, room: int) -> list[tuple[int, Pair]]:
        """Return calls of a block with the numbers of their batches, by passes of both models.

        Args:
            model: the compressed one.
            block: the block.
            first: number of the first batch.
            room: bytes from which on no further batch is begun.
        """
        found: list[tuple[int, Pair]] = []
        for i in range(first, len(self.batches)):
            if room <= 0:
                break
            for pair in self._passes(model, block, self.batches[i]):
                found.append((i, pair))
                room -= _nbytes(pair)
        return found

    def _passes(self, model: nn.Module, block: Block, inputs: Inputs) -> list[Pair]:
        """Run both models on a batch up to the last call of a block."""
        pairs = []
        ours = record(model, block, inputs, self.calls)
        theirs = record(self.original, block, inputs)
        for compressed, wanted in zip(ours, theirs, strict=False):
            # An expert may get other tokens in the two models.
            if compressed.outputs and compressed.fits(wanted):
                pairs.append(Pair(replace(compressed, outputs=[]), wanted))
        return pairs

    def _follow(self, model: nn.Module, block: Block) -> list[tuple[int, Pair]]:
        """Return what `_run` does as it follows from the block before; [] if it does not."""
        before, pairs, at = self._block, self._pairs, self.blocks.index(block)
        links = {i: self._link(model, i, block) for i in pairs}
        if before is None or None in links.values() or before != self.blocks[at - 1]:
            return []
        part, own = model.get_submodule(before.name), self.original.get_submodule(block.name)
        found: list[tuple[int, Pair]] = []
        room = CACHE_BYTES
        for i, link in links.items():
            if room <= 0:
                break
            assert link is not None
            pair = pairs.pop(i)  # both blocks would take the memory of two
            ours = link.followed(pair.compressed, self._outputs(part, pair.compressed))
            theirs = link.followed(pair.original, pair.original.outputs)
            # The float model counts no calls.
            with torch.no_grad():
                wanted = again(own, theirs, theirs.inputs, Calls())
            followed = Pair(ours, replace(theirs, outputs=[out.detach() for out in wanted]))
            found.append((i, followed))
            room -= _nbytes(followed)
        return found

    def _link(self, model: nn.Module, i: int, block: Block) -> Link | None:
        """Return where both models take the block's inputs from in the pass of batch i."""
        if block.calls != 1:
            return None
        if i not in self._links:
            ours = links_of(model, self.blocks, self.batches[i], self.calls)
            theirs = links_of(self.original, self.blocks, self.batches[i])
            self._links[i] = {n: link for n, link in ours.items() if link.agrees(theirs.get(n))}
        return self._links[i].get(block.name)

    def _outputs(self, part: nn.Module, call: BlockCall) -> list[Tensor]:
        """Return what a block of the compressed model gives for a call's inputs."""
        with torch.no_grad():
            return [out.detach() for out in again(part, call, call.inputs, self.calls)]


def _nbytes(pair: Pair) -> int:
    return pair.compressed.nbytes() + pair.original.nbytes()

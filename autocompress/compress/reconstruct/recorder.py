"""Give the calls of one block after another in the compressed and in the float model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from autocompress.compress.assemble.calls import Calls
from autocompress.compress.reconstruct.blocks import Block
from autocompress.compress.reconstruct.chain import Link
from autocompress.compress.reconstruct.hidden import BlockCall, again, record
from autocompress.compress.reconstruct.training import Pair
from autocompress.task.batches import Inputs

CACHE_BYTES = 1 << 30  # of recorded inputs and outputs; they limit the number of samples


@dataclass
class Recorder:
    """Record what blocks read, in the order of execution.

    A block that reads what the one before has returned gets it from there (`Link`). Passes of both
    models on the first and on the last batch show whether it does. Else the models run up to the
    block on all batches.

    Attributes:
        original: the float model.
        batches: inputs on the device of the models.
        calls: counts the calls of compressible modules of the compressed model.
        followed: number of blocks that were found without passes on all batches.
    """

    original: nn.Module
    batches: list[Inputs]
    calls: Calls
    followed: int = 0
    _block: Block | None = None
    _pairs: dict[int, Pair] = field(default_factory=dict)  # of that block, by batch

    def record(self, model: nn.Module, block: Block) -> list[Pair]:
        """Return the calls of the next block in both models, as many as CACHE_BYTES hold.

        Args:
            model: the compressed one, with the blocks so far as they are trained.
            block: the next block.
        """
        found = self._follow(model, block)
        if found is None:
            found = self._run(model, block)
        else:
            self.followed += 1
        self._block = block if block.calls == 1 else None
        self._pairs = dict(found) if block.calls == 1 else {}
        return [pair for _, pair in found]

    def _run(self, model: nn.Module, block: Block) -> list[tuple[int, Pair]]:
        """Return the number of a batch and a call of a block in its pass, in the order of both."""
        found: list[tuple[int, Pair]] = []
        room = CACHE_BYTES
        for i, inputs in enumerate(self.batches):
            for pair in self._passes(model, block, inputs):
                found.append((i, pair))
                room -= _nbytes(pair)
            if room <= 0:
                break
        return found

    def _passes(self, model: nn.Module, block: Block, inputs: Inputs) -> list[Pair]:
        """Run both models on a batch up to the last call of a block."""
        pairs = []
        ours = record(model, block, inputs, self.calls)
        theirs = record(self.original, block, inputs)
        for compressed, wanted in zip(ours, theirs, strict=False):
            # An expert may get other tokens in the two models.
            if compressed.outputs and compressed.fits(wanted):
                pairs.append(Pair(compressed, wanted))
        return pairs

    def _follow(self, model: nn.Module, block: Block) -> list[tuple[int, Pair]] | None:
        """Return what `_run` does as it follows from the block before; None if it does not."""
        before = self._block
        if before is None or block.calls != 1 or not self._pairs:
            return None
        parts = model.get_submodule(before.name), self.original.get_submodule(block.name)
        links = self._links(model, block, parts[0])
        if links is None:
            return None
        found: list[tuple[int, Pair]] = []
        room = CACHE_BYTES
        for i, pair in self._pairs.items():
            ours = links[0].followed(pair.compressed, self._outputs(parts[0], pair.compressed))
            theirs = links[1].followed(pair.original, pair.original.outputs)
            # The float model counts no calls.
            with torch.no_grad():
                wanted = again(parts[1], theirs, theirs.inputs, Calls())
            followed = Pair(ours, replace(theirs, outputs=[out.detach() for out in wanted]))
            found.append((i, followed))
            room -= _nbytes(followed)
            if room <= 0:
                break
        return found

    def _links(self, model: nn.Module, block: Block, part: nn.Module) -> tuple[Link, Link] | None:
        """Return where both models take the block's inputs from; None if it is not always so."""
        found: list[tuple[Link, Link]] = []
        for i in sorted({min(self._pairs), max(self._pairs)}):
            pair = self._pairs[i]
            now = replace(pair.compressed, outputs=self._outputs(part, pair.compressed))
            passes = self._passes(model, block, self.batches[i])
            if len(passes) != 1:
                return None
            ours = Link.between(now, passes[0].compressed)
            theirs = Link.between(pair.original, passes[0].original)
            if ours is None or theirs is None:
                return None
            found.append((ours, theirs))
        for ours, theirs in found[1:]:
            if not found[0][0].agrees(ours) or not found[0][1].agrees(theirs):
                return None
        return found[0]

    def _outputs(self, part: nn.Module, call: BlockCall) -> list[Tensor]:
        """Return what a block of the compressed model gives for a call's inputs."""
        with torch.no_grad():
            return [out.detach() for out in again(part, call, call.inputs, self.calls)]


def _nbytes(pair: Pair) -> int:
    return pair.compressed.nbytes() + pair.original.nbytes()

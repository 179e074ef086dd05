"""Check that blocks which follow one another are recorded as passes of the model show them."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

from autocompress.compress.assemble.calls import Calls
from autocompress.compress.reconstruct.blocks import Block
from autocompress.compress.reconstruct.hidden import record
from autocompress.compress.reconstruct.recorder import Recorder
from autocompress.compress.reconstruct.training import Pair

BATCHES = [torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, *, mask: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        return x + scale * self.fc(x).relu() * mask, mask


class Net(nn.Module):
    def __init__(self, between: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(8, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        mask = (x > 0).float()
        for i, layer in enumerate(self.layers):
            x, _ = layer(x, mask=mask, scale=self.scale(x, i))
            if self.between == "doubled" and i == 0:
                x = 2 * x
            if self.between == "some" and i == 0 and torch.equal(mask, (BATCHES[-1] > 0).float()):
                x = 2 * x
        return self.head(x)

    def scale(self, x: Tensor, i: int) -> float:
        return float(x.mean()) if self.between == "scaled" and i == 1 else 0.5


def blocks() -> list[Block]:
    return [
        *(Block(f"layers.{i}", (f"layers.{i}.fc",), 1) for i in range(3)),
        Block("head", ("head",), 1),
    ]


def check(pairs: list[Pair], model: Net, original: Net, block: Block) -> None:
    assert len(pairs) == len(BATCHES)
    for pair, inputs in zip(pairs, BATCHES, strict=True):
        (ours,), (theirs,) = record(model, block, inputs), record(original, block, inputs)
        for found, wanted in ((pair.compressed, ours), (pair.original, theirs)):
            assert found.structure == wanted.structure
            for mine, other in zip(found.inputs, wanted.inputs, strict=True):
                same = torch.equal(mine, other) if isinstance(mine, Tensor) else mine == other
                assert same
        for mine, other in zip(pair.original.outputs, theirs.outputs, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("between", "followed"),
    [("", 3), ("doubled", 2), ("some", 2), ("scaled", 2)],
)
def test_the_calls_are_those_of_passes_whether_blocks_follow_or_not(
    between: str, followed: int
) -> None:
    original = Net(between).eval().requires_grad_(False)
    model = copy.deepcopy(original)
    recorder = Recorder(original, blocks(), BATCHES, Calls())
    for block in blocks():
        with torch.no_grad():
            for name in block.modules:  # a block that was trained before it is recorded
                model.get_submodule(name).weight.mul_(1.25)
        check(recorder.record(model, block), model, original, block)
    assert recorder.followed == followed


def test_blocks_of_several_calls_are_run_and_end_the_chain() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(self.a(x)))

    original = Twice().eval().requires_grad_(False)
    twice, once = Block("a", ("a",), 2), Block("b", ("b",), 1)
    recorder = Recorder(original, [twice, once], BATCHES, Calls())
    pairs = recorder.record(copy.deepcopy(original), twice)
    assert len(pairs) == 2 * len(BATCHES)
    assert len(recorder.record(copy.deepcopy(original), once)) == len(BATCHES)
    assert recorder.followed == 0


def test_the_first_batches_are_kept_where_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Net().eval().requires_grad_(False)
    first, second, *_ = blocks()
    recorder = Recorder(original, blocks(), BATCHES, Calls())
    # x and mask, read by both models and returned by the float one
    bytes_of_one = 3 * 2 * (BATCHES[0].numel() * 4)
    monkeypatch.setattr(sys.modules[Recorder.__module__], "CACHE_BYTES", 2 * bytes_of_one)
    model = copy.deepcopy(original)
    assert len(recorder.record(model, first)) == 2
    assert len(recorder.record(model, second)) == 2
    assert recorder.followed == 1


class Uneven(nn.Module):
    """Hold a large block in front of small ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 512), nn.Linear(512, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


def test_small_blocks_behind_a_large_one_get_all_batches_also_after_a_resume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Uneven().eval().requires_grad_(False)
    model = copy.deepcopy(original)
    with torch.no_grad():
        model.a.weight.mul_(0.9)
    monkeypatch.setattr(sys.modules[Recorder.__module__], "CACHE_BYTES", 60_000)
    order = [Block(name, (name,), 1) for name in "abc"]
    recorder = Recorder(original, order, BATCHES, Calls())
    found = [recorder.record(model, block) for block in order]
    assert [len(pairs) for pairs in found] == [3, 2, 4]
    for i, block in enumerate(order):
        resumed = Recorder(original, order, BATCHES, Calls()).record(model, block)
        for one, other in zip(found[i], resumed, strict=True):
            for a, b in ((one.compressed, other.compressed), (one.original, other.original)):
                for mine, theirs in zip(
                    [*a.inputs, *a.outputs], [*b.inputs, *b.outputs], strict=True
                ):
                    assert torch.equal(mine, theirs)


def test_a_mask_that_is_missing_for_the_first_and_last_batch_is_there_for_the_others() -> None:
    class Masked(nn.Module):
        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(8, 8)

            def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
                y = self.fc(x)
                return y if mask is None else y * mask

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(Masked.Block() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            mask = (x != 0).float() if bool((x == 0).any()) else None
            for block in self.blocks:
                x = block(x, mask)
            return x

    padded = BATCHES[1].clone()
    padded[:, 3:] = 0
    batches = [BATCHES[0], padded, BATCHES[2]]
    original = Masked().eval().requires_grad_(False)
    model = copy.deepcopy(original)
    order = [Block(f"blocks.{i}", (f"blocks.{i}.fc",), 1) for i in range(3)]
    recorder = Recorder(original, order, batches, Calls())
    for block in order:
        pairs = recorder.record(model, block)
        for pair, inputs in zip(pairs, batches, strict=True):
            (wanted,) = record(original, block, inputs)
            assert (pair.compressed.inputs[1] is None) == (wanted.inputs[1] is None)
            assert torch.equal(pair.original.outputs[0], wanted.outputs[0])
    assert recorder.followed == 2

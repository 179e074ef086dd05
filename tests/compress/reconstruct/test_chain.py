"""Check where the inputs of a block are found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autocompress.compress.reconstruct.blocks import Block
from autocompress.compress.reconstruct.chain import Link, links_of
from autocompress.compress.reconstruct.hidden import BlockCall

MASK = torch.tensor([True, False])


def call(
    inputs: list[object], outputs: list[Tensor], seen: dict[str, int] | None = None
) -> BlockCall:
    structure = pytree.tree_flatten((tuple(inputs), {}))[1]
    return BlockCall(inputs, structure, seen or {}, outputs)


def test_inputs_are_outputs_or_inputs_of_the_block_before() -> None:
    x, y = torch.ones(2, 3), torch.zeros(2, 3)
    before = call([x, MASK, None], [y])
    link = Link.between(before, call([y.clone(), MASK.clone(), None], [], {"a": 1}))
    assert link is not None
    assert link.sources == (("output", 0), ("input", 1), None)
    other = call([x, ~MASK, None], [y + 5])
    followed = link.followed(other, [y + 7])
    assert torch.equal(followed.inputs[0], y + 7), "the outputs of now"
    assert torch.equal(followed.inputs[1], ~MASK)
    assert followed.inputs[2] is None
    assert followed.seen == {"a": 1}


def test_a_tensor_from_elsewhere_ends_the_chain() -> None:
    x, y = torch.ones(2, 3), torch.zeros(2, 3)
    before = call([x], [y])
    assert Link.between(before, call([2 * x], [])) is None
    assert Link.between(before, call([y.double()], [])) is None
    assert Link.between(before, call([y[:1]], [])) is None
    assert Link.between(before, call([y, torch.tensor(3.0)], [])) is None


def test_links_of_two_models_agree_if_places_and_values_do() -> None:
    x, y = torch.ones(2, 3), torch.zeros(2, 3)
    before = call([x], [y])
    one = Link.between(before, call([y, 3], [], {"a": 1}))
    assert one is not None
    assert one.agrees(Link.between(call([y], [x]), call([x, 3], []))), "a float model counts none"
    assert not one.agrees(Link.between(before, call([y, 4], [])))
    assert not one.agrees(Link.between(before, call([x, 3], [])))
    assert not one.agrees(None)


def test_a_value_that_cannot_be_compared_ends_the_chain() -> None:
    before = call([torch.ones(2, 3)], [torch.zeros(2, 3)])
    for value in (np.zeros(3), object(), {1, 2}):
        assert Link.between(before, call([torch.zeros(2, 3), value], [])) is None


def test_a_link_holds_no_tensors() -> None:
    x, y = torch.ones(2, 3), torch.zeros(2, 3)
    link = Link.between(call([x], [y]), call([y, x, 7], []))
    assert link is not None
    assert link.after.inputs == [None, None, 7]


class Sizes(nn.Module):
    """Call blocks with the height and the width of an image, as PVT and MiT do."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor, height: int, width: int, mask: Tensor | None) -> Tensor:
            image = self.fc(x).view(len(x), height, width, -1)
            return image.flatten(1, 2) if mask is None else image.flatten(1, 2) * mask

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Sizes.Block() for _ in range(3))

    def forward(self, image: Tensor) -> Tensor:
        _, _, height, width = image.shape
        x = image.flatten(2).transpose(1, 2)
        mask = (x > 0).float() if height > width else None
        for block in self.blocks:
            x = block(x, height, width, mask)
        return x


def test_each_batch_has_the_values_of_its_own_pass() -> None:
    model = Sizes().eval()
    blocks = [Block(f"blocks.{i}", (f"blocks.{i}.fc",), 1) for i in range(3)]
    for height, width in ((4, 4), (6, 2), (3, 3)):
        links = links_of(model, blocks, torch.randn(2, 4, height, width))
        assert set(links) == {"blocks.1", "blocks.2"}
        for link in links.values():
            assert link.after.inputs[1:3] == [height, width]
            assert link.sources[0] == ("output", 0)
            assert link.sources[3] == (("input", 3) if height > width else None)


def test_blocks_that_run_in_another_order_or_several_times_have_no_link() -> None:
    model = Sizes().eval()
    first, second, third = (Block(f"blocks.{i}", (f"blocks.{i}.fc",), 1) for i in range(3))
    image = torch.randn(2, 4, 3, 3)
    assert set(links_of(model, [second, first, third], image)) == set()
    assert set(links_of(model, [first, replace(second, calls=2), third], image)) == set()

"""Check where the inputs of a block are found."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from autocompress.compress.reconstruct.chain import Link
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


def test_links_agree_if_places_and_other_values_do() -> None:
    x, y = torch.ones(2, 3), torch.zeros(2, 3)
    before = call([x], [y])
    one = Link.between(before, call([y, 3], []))
    assert one is not None
    assert one.agrees(Link.between(call([y], [x]), call([x, 3], [])))
    assert not one.agrees(Link.between(before, call([y, 4], [])))
    assert not one.agrees(Link.between(before, call([x, 3], [])))
    assert not one.agrees(Link.between(before, call([y, 3], [], {"a": 1})))
    assert not one.agrees(None)

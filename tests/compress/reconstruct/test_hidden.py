"""Record what a block reads and writes, and call it again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.compress.assemble.calls import Calls
from autocompress.compress.reconstruct.blocks import Block
from autocompress.compress.reconstruct.hidden import BlockCall, again, mixed, record

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """Changes its input in place, and returns a nested result."""

    def __init__(self, calls: Calls | None = None) -> None:
        super().__init__()
        self.fc, self.calls, self.at = nn.Linear(4, 4), calls, []

    def forward(self, x: Tensor, *, mask: Tensor, unused: Any = None) -> dict[str, Any]:
        if self.calls is not None:
            self.at.append(self.calls.next("fc", 9))
        x.mul_(2)
        return {"states": self.fc(x), "rest": (mask, x.sum(1))}


class Net(nn.Module):
    def __init__(self, calls: Calls | None = None) -> None:
        super().__init__()
        self.layer, self.passed = Layer(calls), 0

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(len(x), dtype=torch.int64)
        for _ in range(2):
            x = self.layer(x, mask=mask, unused=None)["states"].add_(1)
        self.passed += 1
        return x


def test_a_block_called_again_gives_what_it_gave() -> None:
    calls = Calls()
    model = Net(calls)
    before = X.clone()
    recorded = record(model, Block("layer", ("layer.fc",), 2), X, calls)
    assert torch.equal(before, X), "the inputs of the model are not changed"
    assert model.passed == 0, "the pass ends behind the last call"
    assert len(recorded) == 2
    assert torch.equal(recorded[0].inputs[0], X)
    for call in recorded:
        outputs = again(model.layer, call, call.inputs, calls)
        assert [len(output.shape) for output in outputs] == [2, 1], "the mask is no float"
        for output, wanted in zip(outputs, call.outputs, strict=True):
            assert torch.equal(output, wanted)
    assert model.layer.at == [0, 1, 0, 1], "calls are counted from their places"
    assert not model.layer._forward_hooks
    assert not model.layer._forward_pre_hooks


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_elements_is_the_originals(share: float) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.zeros(100, 100), torch.ones(100, 100)
    tokens = torch.zeros(3, dtype=torch.int64)
    x, same, nothing = mixed([ours, tokens, None], [theirs, tokens + 1, None], share)
    assert float(x.mean()) == pytest.approx(share, abs=0.02)
    assert torch.equal(same, tokens)
    assert nothing is None


def test_calls_fit_if_all_shapes_are_the_same() -> None:
    one = record(Net(), Block("layer", ("layer.fc",), 1), X)[0]
    other = record(Net(), Block("layer", ("layer.fc",), 1), X + 1)[0]
    fewer = record(Net(), Block("layer", ("layer.fc",), 1), X[:2])[0]
    assert one.fits(other)
    assert not one.fits(fewer)
    assert one.nbytes() == (12 + 12 + 3) * 4 + 3 * 8
    assert not one.fits(BlockCall(one.inputs, one.structure, {}, one.outputs[:1]))

"""Check that the weights of split layers come back in the place of their stand-ins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autocompress.model.channel_group import ChannelGroup
from autocompress.model.dependency_graph import find_channel_groups
from autocompress.model.plain.split import split_modules


def groups_of(model: nn.Module, inputs: Tensor) -> dict[str, ChannelGroup]:
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding))
    ]
    found = find_channel_groups(model, inputs, names)
    return {group.name: group for group in found}


def members(group: ChannelGroup) -> dict[tuple[str, str], tuple[list[int], list[int]]]:
    return {(m.name, m.side): (m.index.tolist(), m.root.tolist()) for m in group.members}


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(3, 5), nn.Linear(4, 2)
        self.rnn = nn.GRU(5, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.enter(x))[0])


class ReaderByName(Reader):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(input=self.enter(x), hx=None)[0])


@pytest.mark.parametrize("kind", [Reader, ReaderByName])
def test_gates_of_a_recurrent_layer_go_with_its_readers_and_read_their_inputs(
    kind: type[nn.Module],
) -> None:
    model = split_modules(kind())
    found = groups_of(model, torch.rand(2, 6, 3))
    hidden = found["rnn.ih_l0"]
    assert (hidden.kind, hidden.units, hidden.reason) == ("hidden units", 4, None)
    assert members(hidden) == {
        ("rnn.ih_l0", "out"): (list(range(12)), [0, 1, 2, 3] * 3),
        ("rnn.hh_l0", "out"): (list(range(12)), [0, 1, 2, 3] * 3),
        ("rnn.hh_l0", "in"): ([0, 1, 2, 3], [0, 1, 2, 3]),
        ("out", "in"): ([0, 1, 2, 3], [0, 1, 2, 3]),
    }
    assert members(found["enter"])[("rnn.ih_l0", "in")] == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])


class Upwards(nn.Module):
    def __init__(self, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, 4, 1)
        self.up = nn.ConvTranspose2d(4, 6, (1, 2), stride=2, groups=groups, bias=bias)
        self.norm, self.out = nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.up(self.enter(x))).relu())


@pytest.mark.parametrize("bias", [False, True])
def test_a_channel_of_a_transposed_convolution_is_all_rows_of_its_kernel(bias: bool) -> None:
    found = groups_of(split_modules(Upwards(bias=bias).eval()), torch.rand(1, 2, 4, 4))
    columns = list(range(4))
    assert members(found["enter"])[("up.product", "in")] == (columns, columns)
    filters = found["up.product"]
    assert (filters.kind, filters.units, filters.reason) == ("filters", 6, None)
    channels = list(range(6))
    expected = {
        ("up.product", "out"): (list(range(12)), [i // 2 for i in range(12)]),
        ("norm", "channel"): (channels, channels),
        ("out.product", "in"): (channels, channels),
    }
    assert members(filters) == expected | (
        {("up", "channel"): (channels, channels)} if bias else {}
    )
    assert found["out.product"].reason == "its channels are the model's output"


def test_transposed_convolutions_in_groups_keep_their_channels() -> None:
    found = groups_of(split_modules(Upwards(groups=2).eval()), torch.rand(1, 2, 4, 4))
    for name in ("enter", "up.product"):
        assert found[name].reason == "a grouped convolution is in the group"

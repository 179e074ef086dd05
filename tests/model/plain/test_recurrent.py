"""Check the names and weights of a split recurrent layer, and what it does not cover."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from autocompress.model.plain.recurrent import GateWeights, SplitRecurrent


def test_children_hold_the_weights_in_the_order_of_the_kernel() -> None:
    source = nn.LSTM(3, 2, num_layers=2, bidirectional=True)
    split = SplitRecurrent(source)
    names = ["ih_l0", "hh_l0", "ih_l0_reverse", "hh_l0_reverse"]
    names += ["ih_l1", "hh_l1", "ih_l1_reverse", "hh_l1_reverse"]
    assert split.gate_names() == [name for name, _ in split.named_children()] == names
    for name in names:
        gates = split.get_submodule(name)
        assert isinstance(gates, GateWeights)
        assert torch.equal(gates.weight, getattr(source, f"weight_{name}"))
        assert torch.equal(gates.bias, getattr(source, f"bias_{name}"))
        assert (gates.out_features, gates.in_features) == tuple(gates.weight.shape)


def test_the_weights_are_copies() -> None:
    source = nn.GRU(3, 2, bias=False)
    split = SplitRecurrent(source)
    assert split.get_submodule("ih_l0").bias is None
    x = torch.randn(4, 1, 3)
    before = source(x)[0]
    with torch.no_grad():
        split.get_submodule("hh_l0").weight.zero_()
        split.get_submodule("ih_l0").weight.zero_()
    assert torch.equal(source(x)[0], before)
    assert float(split(x)[0].detach().abs().max()) == 0.0, "without weights a GRU stays at 0"


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, partial(nn.RNN, nonlinearity="relu")])
def test_one_sequence_without_a_batch_takes_a_state(
    kind: Callable[..., nn.RNNBase], batch_first: bool
) -> None:
    torch.manual_seed(0)
    source = kind(3, 2, num_layers=2, batch_first=batch_first)
    x, state = torch.randn(5, 3), torch.randn(2, 2)
    given = (state, state + 1) if kind is nn.LSTM else state
    found, last = SplitRecurrent(source)(x, given)
    expected, expected_last = source(x, given)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(last, expected_last)
    named, _ = SplitRecurrent(source)(input=x, hx=given)
    torch.testing.assert_close(named, expected)


def test_gradients_reach_the_gates() -> None:
    split = SplitRecurrent(nn.GRU(3, 2))
    split(torch.randn(4, 1, 3))[0].sum().backward()
    for parameter in split.parameters():
        assert parameter.grad is not None


def test_projections_are_not_covered() -> None:
    with pytest.raises(ValueError, match=r"^only LSTM, GRU and RNN without projections are"):
        SplitRecurrent(nn.LSTM(3, 4, proj_size=2))


def test_packed_sequences_are_refused() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    with pytest.raises(
        NotImplementedError, match=r"^packed sequences are not covered; pad the batch$"
    ):
        SplitRecurrent(nn.GRU(3, 2))(packed)

"""Check that a split model is a copy in eval mode, and that what is not covered stays whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.model.plain.attention import SplitAttention
from autocompress.model.plain.recurrent import SplitRecurrent
from autocompress.model.plain.split import fused_modules, split_modules


def test_fused_modules_are_split_at_any_depth_in_a_copy() -> None:
    model = nn.ModuleDict(
        {"deep": nn.ModuleList([nn.GRU(3, 2), nn.MultiheadAttention(4, 2)]), "fc": nn.Linear(2, 2)}
    ).train()
    split = split_modules(model)
    assert isinstance(split["deep"][0], SplitRecurrent)
    assert isinstance(split["deep"][1], SplitAttention)
    assert not any(module.training for module in split.modules())
    assert split["fc"].weight is not model["fc"].weight
    assert torch.equal(split["fc"].weight, model["fc"].weight)
    assert isinstance(model["deep"][0], nn.GRU), "the model itself stays"
    assert model.training


def test_the_model_itself_may_be_a_fused_module() -> None:
    assert isinstance(split_modules(nn.LSTM(3, 2)), SplitRecurrent)


@pytest.mark.parametrize(
    "module",
    [nn.RNN(3, 2), nn.LSTM(3, 4, proj_size=2), nn.MultiheadAttention(4, 2, add_zero_attn=True)],
)
def test_what_a_split_does_not_cover_stays(module: nn.Module) -> None:
    model = nn.Sequential(module)
    assert type(split_modules(model)[0]) is type(module)
    assert not fused_modules(model)
    assert fused_modules(nn.Sequential(module, nn.GRU(3, 2)))


def test_a_model_without_fused_modules_has_nothing_to_split() -> None:
    assert not fused_modules(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert fused_modules(nn.MultiheadAttention(4, 2))

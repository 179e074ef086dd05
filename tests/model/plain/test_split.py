"""Check that a split model is a copy in eval mode, and that what is not covered stays whole."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, fx, nn

from autocompress.model.plain.attention import SplitAttention
from autocompress.model.plain.recurrent import SplitRecurrent
from autocompress.model.plain.split import fused_modules, split_modules, with_others
from autocompress.model.plain.transposed import SplitTransposed


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


def test_split_modules_learn_as_their_sources_do() -> None:
    model = nn.ModuleList([nn.GRU(3, 2), nn.MultiheadAttention(4, 2)])
    assert all(p.requires_grad for p in split_modules(model).parameters())
    model.requires_grad_(False)
    assert not any(p.requires_grad for p in split_modules(model).parameters())


def test_the_model_itself_may_be_a_fused_module() -> None:
    assert isinstance(split_modules(nn.LSTM(3, 2)), SplitRecurrent)


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(3, 4, proj_size=2),
        nn.MultiheadAttention(4, 2, add_zero_attn=True),
        nn.ConvTranspose3d(3, 2, 2),
    ],
)
def test_what_a_split_does_not_cover_stays(module: nn.Module) -> None:
    model = nn.Sequential(module)
    assert type(split_modules(model)[0]) is type(module)
    assert not fused_modules(model)
    assert fused_modules(nn.Sequential(module, nn.GRU(3, 2)))


def test_a_model_without_fused_modules_has_nothing_to_split() -> None:
    assert not fused_modules(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert fused_modules(nn.MultiheadAttention(4, 2))


class Held(nn.Module):
    """Hold its modules a second time, where a parent's attribute does not reach them."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.held = []
        for i, module in enumerate(modules):
            self.add_module(f"part{i}", module)
            self.held.append({"module": module})
        self.last = partial(modules[-1])
        self.bound = modules[-1].__call__

    def forward(self, x: Tensor) -> Tensor:
        for part in self.held[:-1]:
            x = part["module"](x)
        return self.bound(self.last(x))


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_other_modules_are_in_every_place_of_the_old_ones() -> None:
    model = Held(nn.Linear(2, 2), nn.ReLU(), nn.Tanh())
    doubled = Doubled()
    other = with_others(model, dict.fromkeys(("part0", "part1", "part2"), doubled))
    assert other(torch.ones(1, 2)).tolist() == [[16.0, 16.0]]
    assert type(model.part0) is nn.Linear, "the model itself stays"
    assert with_others(model, {}) is model
    some = with_others(model, {"part2": doubled})
    assert some.part0.weight is model.part0.weight
    assert some.part0 is not model.part0


def test_other_modules_are_called_by_a_program() -> None:
    program = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    other = with_others(program, {"0": Doubled()})
    assert other(torch.ones(1, 2)).tolist() == [[2.0, 2.0]]


def test_a_fused_module_in_a_list_is_split_there_too() -> None:
    class Listed(Held):
        def forward(self, x: Tensor) -> Tensor:
            return self.held[0]["module"](x)[0]

    split = split_modules(Listed(nn.GRU(3, 2), nn.ReLU()))
    assert isinstance(split.held[0]["module"], SplitRecurrent)


def test_a_transposed_convolution_with_a_tied_weight_stays_whole() -> None:
    tied, alone = nn.ConvTranspose2d(6, 2, 3), nn.ConvTranspose2d(2, 4, 2)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), tied, alone)
    tied.weight = model[0].weight
    kinds = [type(module) for module in split_modules(model)]
    assert kinds == [nn.Conv2d, nn.ConvTranspose2d, SplitTransposed]

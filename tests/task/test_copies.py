"""Copy models."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from autocompress.task.copies import copied, named_state, set_state, shortened_rows


class Mixed(nn.Module):
    """Has floating-point, complex and integer tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
        self.register_buffer("count", torch.ones(2, dtype=torch.int64))


def test_a_copy_is_in_eval_mode_and_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    other = copied(model)
    assert model.training
    assert not any(module.training for module in other.modules())
    before = model[0].weight.clone()
    with torch.no_grad():
        other[0].weight.zero_()
    assert torch.equal(model[0].weight, before)


def test_only_floating_point_numbers_change_their_type() -> None:
    other = copied(Mixed(), None, torch.float64)
    assert other.linear.weight.dtype == torch.float64
    assert other.phase.dtype == torch.complex64
    assert other.count.dtype == torch.int64


def test_a_copy_of_a_parametrized_model_can_be_copied_again() -> None:
    model = weight_norm(nn.Linear(2, 2))
    twice = copied(copied(model))
    assert torch.equal(twice.weight, model.weight)


def test_a_copy_that_shares_weights_has_its_own_parameters_and_buffers() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model[1].weight = model[0].bias  # tied
    other = copied(model, shares_weights=True)
    assert other[0].weight.data_ptr() == model[0].weight.data_ptr()
    assert other[1].weight is other[0].bias
    assert other[0].weight is not model[0].weight
    other.requires_grad_(False)
    assert model[0].weight.requires_grad
    other[1].running_mean.fill_(1.0)
    assert not model[1].running_mean.any()


def test_a_copy_of_another_type_shares_nothing() -> None:
    model = nn.Linear(2, 3)
    before = model.weight.clone()
    other = copied(model, None, torch.float64, shares_weights=True)
    assert other.weight.dtype == torch.float64
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight, before)


def test_weights_that_a_lookup_writes_to_are_copied() -> None:
    model = nn.Embedding(4, 3, max_norm=0.1)
    before = model.weight.clone()
    copied(model, shares_weights=True)(torch.arange(4))
    assert torch.equal(model.weight, before)


def test_weights_made_in_inference_mode_are_copied() -> None:
    with torch.inference_mode():
        model = nn.Linear(2, 3)
    other = copied(model, shares_weights=True)
    assert torch.equal(other.weight, model.weight)


class Tied(nn.Module):
    """Reads one table in a lookup and in a product."""

    def __init__(self, **options: float) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 3, **options)
        self.head = nn.Linear(3, 8)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x))


IDS = torch.arange(8)
TABLES = [
    lambda: nn.Sequential(nn.Embedding(8, 3, max_norm=0.1)),
    lambda: nn.Sequential(nn.Embedding(8, 3, max_norm=0.5, norm_type=1.0, padding_idx=2)),
    lambda: nn.Sequential(nn.EmbeddingBag(8, 3, max_norm=0.1, mode="sum"), nn.Linear(3, 2)),
    lambda: Tied(max_norm=0.2),
]


@pytest.mark.parametrize("make", TABLES)
def test_a_copy_has_tables_as_lookups_of_all_ids_leave_them(make) -> None:
    torch.manual_seed(0)
    model = make().requires_grad_(False)
    weights = copy.deepcopy(model.state_dict())
    bags = any(isinstance(module, nn.EmbeddingBag) for module in model.modules())
    x = IDS[:, None] if bags else IDS
    expected = copy.deepcopy(model)
    expected(x)
    for shares in (False, True):
        own = copied(model, shares_weights=shares)
        assert not any(getattr(module, "max_norm", None) for module in own.modules())
        assert torch.equal(own(x), expected(x))
        for name, value in expected.state_dict().items():
            assert torch.equal(own.state_dict()[name], value)
        assert not any(parameter.requires_grad for parameter in own.parameters())
    assert any(getattr(module, "max_norm", None) for module in model.modules())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_tables_are_as_they_were_behind_the_block() -> None:
    model = Tied(max_norm=0.2)
    table = model.table.weight
    before = table.detach().clone()
    with contextlib.suppress(KeyError), shortened_rows(model):
        assert model.table.max_norm is None
        assert model.head.weight is model.table.weight is not table
        assert float(model.table.weight.detach().norm(dim=1).max()) < 0.2001
        model(IDS)
        raise KeyError
    assert model.head.weight is model.table.weight is table
    assert torch.equal(table, before)
    assert model.table.max_norm == 0.2


def test_tables_with_a_forward_or_a_weight_of_their_own_stay() -> None:
    class Own(nn.Embedding):
        def forward(self, x: Tensor) -> Tensor:
            return self.weight.renorm(2, 0, self.max_norm)[x]

    for table in (Own(8, 3, max_norm=0.1), weight_norm(nn.Embedding(8, 3, max_norm=0.1))):
        assert copied(nn.Sequential(table))[0].max_norm == 0.1


class WithMore(nn.Sequential):
    """Saves more than tensors, and less than its own."""

    def get_extra_state(self) -> dict[str, str]:
        return {"version": "2"}

    def set_extra_state(self, state: dict[str, str]) -> None:
        raise AssertionError


def test_the_state_of_a_model_is_its_tensors() -> None:
    plain = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    plain.register_buffer("passing", torch.zeros(1), persistent=False)
    state = named_state(plain)
    assert list(state) == list(plain.state_dict())
    model = WithMore(*plain.children())
    model._register_state_dict_hook(lambda module, state, prefix, local: state.clear())
    assert list(named_state(model)) == list(state)
    values = {name: value + 1 for name, value in state.items()}
    set_state(model, values)
    assert all(torch.equal(value, values[name]) for name, value in named_state(model).items())
    with pytest.raises(ValueError, match=r"no 0\.weight of shape \(1,\)"):
        set_state(model, {"0.weight": torch.zeros(1)})


class Merging(nn.Linear):
    """Adds a branch to its weight in eval mode and takes it out in training mode."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.branch = nn.Parameter(torch.ones(3, 3))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if self.merged is mode:
            self.weight.data += -self.branch if mode else self.branch
            self.merged = not mode
        return self


class Holding(nn.Module):
    """Writes to the weights below it in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def eval(self) -> Holding:
        if self.training:
            self.inner.weight.data *= 2.0
        super().eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("kind", [Merging, Holding])
def test_switching_a_copy_to_eval_mode_leaves_the_weights_of_the_model(
    kind: type[nn.Module],
) -> None:
    model = kind()
    before = {name: value.clone() for name, value in named_state(model).items()}
    first, second = (copied(model, shares_weights=True) for _ in range(2))
    assert all(torch.equal(before[name], value) for name, value in named_state(model).items())
    x = torch.randn(4, 3)
    assert torch.equal(first(x), second(x))
    assert torch.equal(first(x), copied(model)(x))


def test_a_copy_has_what_was_compiled_in_place_of_its_wrappers() -> None:
    layer = nn.Linear(3, 3)
    inner = torch.compile(layer, backend="eager")
    model = torch.compile(nn.Sequential(inner, nn.ReLU(), inner), backend="eager")
    own = copied(model, shares_weights=True)
    assert list(named_state(own)) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert type(own) is nn.Sequential
    assert own[0] is own[2]
    assert own[0].weight.data_ptr() == layer.weight.data_ptr()
    x = torch.randn(2, 3)
    assert torch.equal(own(x), layer(layer(x).relu()))

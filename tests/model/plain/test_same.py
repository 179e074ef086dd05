"""Check how two forms of a model are compared, and where they are said to differ."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.model.plain.same import check_same, first_difference, same_outputs

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def own_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Own(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()


def changed(model: nn.Module, *names: str) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            other.get_parameter(name).add_(0.5)
    return other


def test_the_first_module_that_differs_is_named() -> None:
    model = own_model()
    assert first_difference(model, copy.deepcopy(model), X) == ""
    assert first_difference(model, changed(model, "2.bias"), X) == " at module 2"
    assert first_difference(model, changed(model, "2.bias", "0.weight"), X) == " at module 0"
    assert not any(module._forward_hooks for module in model.modules()), "no hook is left"


def test_a_difference_is_told_by_its_module_or_by_the_size_of_inputs() -> None:
    model = own_model()
    other = changed(model, "2.bias")
    check_same(model, copy.deepcopy(model), [(X, None)], X)
    with pytest.raises(
        TaskError, match=r"what would be compressed differs from the model at module 2; please"
    ):
        check_same(model, other, [(X, None)], X)
    with pytest.raises(
        TaskError,
        match=r"with inputs of \[\(3, 4\)\] \(validation\) than with those of \[\(1, 4\)\] "
        r"\(example",
    ):
        check_same(model, other, [(X, None)], X[:1])


def test_only_the_first_batches_are_compared() -> None:
    model, read = own_model(), []

    def batches():
        for i in range(5):
            read.append(i)
            yield X, None

    check_same(model, copy.deepcopy(model), batches(), X, count=1)
    assert read == [0, 1]
    check_same(model, changed(model, "0.weight"), [], X)


class Filled(nn.Module):
    """Write -1e9 beside the answer, as a mask of classes does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return torch.cat([y, torch.full_like(y, -1e9)], 1)


def test_fillers_of_a_mask_hide_no_difference() -> None:
    model = own_model()
    assert same_outputs(Filled(model), Filled(copy.deepcopy(model)), X)
    assert not same_outputs(Filled(model), Filled(changed(model, "2.bias")), X)

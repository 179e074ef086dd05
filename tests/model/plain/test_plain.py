"""Check which modules are plain, the forms of a model, and where two models are said to differ."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from autocompress import Task
from autocompress.model.plain.plain import (
    form_of,
    in_form,
    is_plain,
    plain_model,
    plain_task,
)

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OwnConv(nn.Conv1d):
    def _conv_forward(self, *arguments: Tensor) -> Tensor:
        return super()._conv_forward(*arguments) * 2


class Renamed(nn.Linear):
    """A subclass that changes nothing."""


def hooked(pre: bool) -> nn.Module:
    module = nn.Linear(4, 4)
    if pre:
        module.register_forward_pre_hook(lambda *_: None)
    else:
        module.register_forward_hook(lambda *_: None)
    return module


def patched() -> nn.Module:
    module = nn.Linear(4, 4)
    module.forward = lambda x: x  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Linear(4, 4), True),
        (lambda: Renamed(4, 4), True),
        (lambda: nn.ReLU(), True),
        (lambda: Own(4, 4), False),
        (lambda: OwnConv(4, 4, 1), False),
        (lambda: hooked(pre=True), False),
        (lambda: hooked(pre=False), False),
        (patched, False),
        (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), False),
    ],
)
def test_a_plain_module_does_what_its_class_does(
    make: Callable[[], nn.Module], expected: bool
) -> None:
    assert is_plain(make()) is expected


def own_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Own(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()


def test_a_tree_of_plain_modules_stays_a_tree_and_others_become_a_program() -> None:
    tree = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).train()
    found = plain_model(tree, X)
    assert form_of(found) == "whole"
    assert not found.training
    assert tree.training
    assert found[0].weight is not tree[0].weight
    model = own_model()
    program = plain_model(model, X)
    assert form_of(program) == "program"
    assert all(is_plain(module) for module in program.modules())
    assert {name for name, _ in program.named_parameters()} >= {"0.weight", "2.weight"}
    torch.testing.assert_close(program(X), model(X))


def test_a_form_is_made_again() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    model = Recurrent().eval()
    split = plain_model(model, X)
    assert form_of(split) == "split"
    assert form_of(in_form("split", model, X)) == "split"
    assert form_of(in_form("whole", model, X)) == "whole"
    torch.testing.assert_close(in_form("split", model, X)(X), model(X))
    assert isinstance(in_form("program", own_model(), X), fx.GraphModule)


def test_a_module_in_two_places_is_not_left_in_a_tree() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    found = plain_model(model, X)
    assert form_of(found) == "program"
    torch.testing.assert_close(found(X), model(X))


def test_a_task_gets_programs_for_its_model_and_its_student() -> None:
    tree = nn.Sequential(nn.Linear(4, 2)).eval()
    task = Task("t", own_model(), X, [(X, None)], lambda o, t: 0.0, student=tree)
    found = plain_task(task)
    assert isinstance(found.model, fx.GraphModule)
    assert found.student is tree
    same = Task("t", tree, X, [(X, None)], lambda o, t: 0.0)
    assert plain_task(same).model is tree

"""Check gradients against those of a linear model by hand, and the losses that a task gives."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from autocompress import Task
from autocompress.compress.calibrate.evidence import (
    GRADIENT_BATCH,
    GRADIENT_SAMPLES,
    ROUNDED_AWAY,
    Evidence,
    collect_gradients,
    task_losses,
)
from autocompress.errors import NotComputableError

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2, bias=False)


def two_losses(model: nn.Module) -> Iterator[Tensor]:
    """Losses whose gradients at the weight are FIRST and SECOND."""
    yield (model.weight * FIRST).sum()
    yield (model.weight * SECOND).sum()


FIRST = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
SECOND = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, 0.0]])


def test_gradients_are_means_over_the_losses() -> None:
    model = linear()
    found = collect_gradients(model, two_losses)[""]
    torch.testing.assert_close(found.mean, (FIRST + SECOND) / 2)
    torch.testing.assert_close(found.square, (FIRST.square() + SECOND.square()) / 2)
    products = [model.weight.detach() * gradient for gradient in (FIRST, SECOND)]
    torch.testing.assert_close(found.rows, sum(p.sum(1).square() for p in products) / 2)
    torch.testing.assert_close(found.columns, sum(p.sum(0).square() for p in products) / 2)
    torch.testing.assert_close(found.whole, sum(p.sum().square() for p in products) / 2)


def test_tied_weights_have_the_same_means() -> None:
    model = nn.Sequential(linear(), linear())
    model[1].weight = model[0].weight

    def losses(model: nn.Module) -> Iterator[Tensor]:
        for factor in (FIRST, SECOND, FIRST):
            yield (model[0].weight * factor).sum()

    found = collect_gradients(model, losses)
    for name in ("0", "1"):
        torch.testing.assert_close(found[name].mean, (2 * FIRST + SECOND) / 3)


def test_kernels_are_summed_with_their_rows_and_channels() -> None:
    torch.manual_seed(0)
    model = nn.Conv1d(2, 3, 4)
    factor = torch.randn(3, 2, 4)
    found = collect_gradients(model, lambda m: [(m.weight * factor).sum()])[""]
    product = model.weight.detach() * factor
    torch.testing.assert_close(found.rows, product.sum((1, 2)).square())
    torch.testing.assert_close(found.columns, product.sum((0, 2)).square())


def test_a_vector_of_weights_has_rows_for_columns() -> None:
    model = nn.BatchNorm1d(3)
    factor = torch.tensor([1.0, 2.0, 3.0])
    found = collect_gradients(model, lambda m: [(m.weight * factor).sum()])[""]
    assert found.rows.tolist() == found.columns.tolist() == [1.0, 4.0, 9.0]


def test_the_model_is_not_changed_and_frozen_weights_have_gradients() -> None:
    model = nn.Sequential(linear(), nn.Linear(2, 2), nn.ReLU()).requires_grad_(False).train()
    found = collect_gradients(model, lambda m: [m[0].weight.sum()])
    assert list(found) == ["0"], "a weight without part in the loss is left out"
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_no_number_is_said(value: str) -> None:
    with pytest.raises(
        NotComputableError, match=rf"^calibration: the loss is {value}; check the calibration data$"
    ):
        collect_gradients(linear(), lambda m: [m.weight.abs().sum() * float(value)])


def test_evidence_without_data_has_no_gradients() -> None:
    bare = Evidence(linear())
    assert bare.gradients == {}
    with_data = Evidence(linear(), losses=two_losses)
    again = Evidence(linear(), losses=two_losses)
    other = Evidence(linear(), losses=lambda m: [m.weight.sum()])
    assert with_data.gradient_digest == again.gradient_digest
    assert len({e.gradient_digest for e in (bare, with_data, other)}) == 3


def test_gradients_are_computed_when_first_asked_for_and_once() -> None:
    calls = []

    def losses(model: nn.Module) -> list[Tensor]:
        calls.append(model)
        return [model.weight.sum()]

    evidence = Evidence(linear(), losses=losses)
    assert calls == []
    assert evidence.gradients is evidence.gradients
    assert evidence.gradient_digest
    assert len(calls) == 1


def task_of(target: object, count: int = 20, **settings: object) -> Task:
    x = X.repeat(1 + count // 20, 1)[:count]
    data = [(x, target)]
    return Task("t", linear(), x, data, lambda o, t: 0.0, train=data, **settings)


def test_losses_are_those_of_training_in_small_batches() -> None:
    labels = torch.arange(20) % 2
    task = task_of(labels)
    found = list(task_losses(task)(task.model))
    sizes = [GRADIENT_BATCH, GRADIENT_BATCH, 20 - 2 * GRADIENT_BATCH]
    expected = [
        nn.functional.cross_entropy(task.model(x), y)
        for x, y in zip(X.split(sizes), labels.split(sizes), strict=True)
    ]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))


def test_few_samples_are_used_and_batches_that_cannot_be_cut_stay_whole() -> None:
    task = task_of(torch.zeros(300, dtype=torch.int64), 300)
    assert len(list(task_losses(task)(task.model))) == GRADIENT_SAMPLES // GRADIENT_BATCH
    whole = task_of(torch.arange(20) % 2, batch_first=False)
    (loss,) = task_losses(whole)(whole.model)
    torch.testing.assert_close(
        loss, whole.training_loss({"": whole.model(X)}, torch.arange(20) % 2)
    )


def test_without_targets_losses_are_random_projections_that_are_the_same_again() -> None:
    task = task_of(None)
    first, second = (list(task_losses(task)(task.model)) for _ in range(2))
    assert len(first) == 3
    torch.testing.assert_close(first, second)
    generator = torch.Generator().manual_seed(0)
    outputs = task.model(X[:GRADIENT_BATCH])
    noise = torch.randn(outputs.shape, generator=generator)
    torch.testing.assert_close(first[0], (outputs * noise).sum() / GRADIENT_BATCH)


def test_layers_of_wide_inputs_are_named() -> None:
    narrow = SimpleNamespace(rounded_away=lambda bits: 0.5 * ROUNDED_AWAY * bits / 8)
    wide = SimpleNamespace(rounded_away=lambda bits: 2.0 * ROUNDED_AWAY * bits / 8)
    assert Evidence(nn.Linear(1, 1), {"a": narrow, "b": wide}).wide == {"b"}
    assert Evidence(nn.Linear(1, 1)).wide == set()

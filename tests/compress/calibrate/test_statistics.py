"""Statistics are those of the vectors that a layer multiplies, whatever its geometry and however
the data is cut into batches.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress import find_modules
from autocompress.compress.calibrate import statistics
from autocompress.compress.calibrate.statistics import (
    calibration_samples,
    collect_statistics,
    input_vectors,
    output_error,
)
from autocompress.errors import NotComputableError
from autocompress.model.modules import ModuleMap

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (3, 5, 6)),
        (nn.Conv2d(6, 4, 3, padding=1), (2, 6, 7, 5)),
        (
            nn.Conv2d(6, 4, (3, 1), stride=2, dilation=(2, 1), padding=(2, 0), bias=False),
            (2, 6, 9, 5),
        ),
        (nn.Conv2d(6, 4, 3, groups=2, padding="same"), (2, 6, 7, 5)),
        (nn.Conv2d(6, 12, 3, groups=6, padding=1, padding_mode="reflect"), (2, 6, 7, 5)),
        (nn.Conv1d(6, 4, 3, padding=1, padding_mode="circular"), (2, 6, 9)),
    ],
)
def test_vectors_times_weight_are_the_output(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    vectors, low, high = input_vectors(layer, x)
    groups = vectors.shape[1]
    weight = layer.weight.detach().flatten(1).view(groups, -1, vectors.shape[2])
    found = torch.einsum("ngc,goc->ngo", vectors, weight).flatten(1)
    found = found + (0 if layer.bias is None else layer.bias.detach())
    output = layer(x).detach()
    expected = (
        output.reshape(-1, output.shape[-1])
        if isinstance(layer, nn.Linear)
        else output.transpose(0, 1).flatten(1).T
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    channels = (
        x.reshape(-1, x.shape[-1]).T
        if isinstance(layer, nn.Linear)
        else x.transpose(0, 1).flatten(1)
    )
    torch.testing.assert_close(low, channels.amin(1))
    torch.testing.assert_close(high, channels.amax(1))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.mark.parametrize("limit", [1, 7, 20, 100])
def test_patches_are_thinned_as_those_of_a_whole_batch(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = nn.Conv2d(2, 4, 3), torch.randn(5, 2, 6, 5)
    whole = nn.functional.unfold(x, 3).transpose(1, 2).flatten(0, 1)
    monkeypatch.setattr(statistics, "POSITIONS", limit)
    unfold, seen = nn.functional.unfold, []
    monkeypatch.setattr(
        nn.functional, "unfold", lambda x, *a: (seen.append(len(x)), unfold(x, *a))[1]
    )
    vectors, *_ = input_vectors(layer, x)
    assert torch.equal(vectors[:, 0], whole[:: -(-len(whole) // limit)])
    assert set(seen) == {1}, "a sample at a time"


def test_batches_add_up_and_predict_the_output_error() -> None:
    torch.manual_seed(0)
    model, x = Two().eval(), torch.randn(64, 4)
    found = find_modules(model, x[:1])
    whole, parts = (
        collect_statistics(model, found, batches, CPU) for batches in ([x], list(x.split(10)))
    )
    for name in ("first", "second"):
        torch.testing.assert_close(whole[name].gram, parts[name].gram)
        torch.testing.assert_close(whole[name].mean, parts[name].mean)
    torch.testing.assert_close(whole["first"].gram[0], x.T @ x / 64)
    difference = torch.randn(8, 4)
    outputs = x @ difference.T
    assert output_error(difference, whole["first"], False) == pytest.approx(
        float(outputs.square().sum(1).mean()), rel=1e-4
    )
    centred = outputs - outputs.mean(0)
    assert output_error(difference, whole["first"], True) == pytest.approx(
        float(centred.square().sum(1).mean()), rel=1e-4
    )


def test_kept_columns_factors_and_the_second_of_two_factors() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 4)
    seen = collect_statistics(Two().eval(), find_modules(Two(), x[:1]), [x], CPU)["first"]
    keep, factors = torch.tensor([True, False, True, True]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    smaller = seen.of(keep, factors)
    y = (x / factors)[:, keep]
    torch.testing.assert_close(smaller.gram[0], y.T @ y / 50)
    torch.testing.assert_close(smaller.highest, y.amax(0))
    first = torch.randn(2, 4)
    torch.testing.assert_close(
        seen.after(first).gram[0], first @ x.T @ x @ first.T / 50, rtol=1e-4, atol=1e-4
    )


def test_no_batches_and_bad_values_are_said() -> None:
    model = Two().eval()
    found = find_modules(model, torch.zeros(1, 4))
    with pytest.raises(
        NotComputableError, match="calibration: there are no batches; give the task calibration"
    ):
        collect_statistics(model, found, [], CPU)
    with pytest.raises(
        NotComputableError, match="calibration: inputs of first hold NaN or infinity"
    ):
        collect_statistics(model, found, [torch.full((2, 4), float("nan"))], CPU)


@pytest.mark.parametrize(
    ("macs", "batch", "samples"),
    [(0, 1, 128), (10**6, 1, 128), (10**10, 1, 50), (10**10, 2, 100), (10**12, 1, 32)],
)
def test_large_models_are_calibrated_on_fewer_samples(macs: int, batch: int, samples: int) -> None:
    found = ModuleMap((), (), (), 1, macs)
    assert calibration_samples(found, batch) == samples


def test_a_few_large_inputs_take_the_precision_of_the_others() -> None:
    torch.manual_seed(0)
    x = torch.randn(4096, 16)
    layer = nn.Sequential(nn.Linear(16, 4))
    modules = find_modules(layer, x[:1])
    for largest, low, high in ((None, 1e-5, 1e-3), (300.0, 0.02, 0.2)):
        if largest is not None:
            x[0, 0] = largest
        found = collect_statistics(layer, modules, [x], torch.device("cpu"))["0"].rounded_away(8)
        step = (x.max() - x.min()) / 255
        rounded = (x / step).round() * step
        lost = float((x - rounded).square().mean() / x.square().mean())
        assert low < found < high
        assert found == pytest.approx(lost, rel=0.1)


class ByName(Two):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(input=torch.relu(self.first(input=x)))


class ConvolutionByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(input=torch.relu(self.first(input=x)).mean(2))


class TiedByName(nn.Module):
    """A head that shares the table of an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(input=self.table(input=ids))


@pytest.mark.parametrize(
    ("model", "x", "name"),
    [
        (ByName(), torch.randn(6, 4), "second"),
        (ConvolutionByName(), torch.randn(6, 4, 5), "first"),
        (TiedByName(), torch.arange(9).view(3, 3), "head"),
    ],
)
def test_inputs_that_are_given_by_name_are_seen(
    model: nn.Module, x: torch.Tensor, name: str
) -> None:
    seen: list[torch.Tensor] = []
    module = model.eval().get_submodule(name)
    handle = module.register_forward_pre_hook(
        lambda module, args, named: seen.append(named["input"]), with_kwargs=True
    )
    with torch.no_grad():
        model(x)
    handle.remove()
    found = collect_statistics(model, find_modules(model, x), [x], CPU)[name]
    vectors, low, high = input_vectors(module, seen[0])
    torch.testing.assert_close(found.mean, vectors.mean(0))
    torch.testing.assert_close((found.lowest, found.highest), (low, high))

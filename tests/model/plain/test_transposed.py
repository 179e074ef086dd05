"""Tests for split transposed convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from autocompress.model.plain.plain import form_of, plain_model
from autocompress.model.plain.split import split_modules
from autocompress.model.plain.transposed import SplitTransposed

LAYERS: list[tuple[type[nn.Module], tuple[Any, ...], dict[str, Any]]] = [
    (nn.ConvTranspose2d, (4, 6, 2), {"stride": 2}),
    (nn.ConvTranspose2d, (4, 6, 4), {"stride": 2, "padding": 1, "bias": False}),
    (nn.ConvTranspose2d, (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    (nn.ConvTranspose2d, (4, 6, (3, 2)), {"stride": (2, 3), "padding": (1, 0), "groups": 2}),
    (nn.ConvTranspose2d, (4, 4, 3), {"groups": 4, "dilation": (2, 1)}),
    (nn.ConvTranspose2d, (4, 6, 2), {"stride": 3}),  # positions that no kernel reaches
    (nn.ConvTranspose1d, (4, 3, 8), {"stride": 4, "padding": 2}),
    (nn.ConvTranspose1d, (4, 6, 5), {"groups": 2, "dilation": 2, "padding": 3}),
]


@pytest.mark.parametrize(("kind", "sizes", "options"), LAYERS)
def test_it_computes_the_same_in_float(
    kind: type[nn.Module], sizes: tuple[Any, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    source: Any = kind(*sizes, **options)
    split = SplitTransposed(source)
    places = (5, 7) if kind is nn.ConvTranspose2d else (9,)
    for shape in ((3, 4, *places), (4, *places)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(split(x), source(x), rtol=1e-4, atol=1e-5)
    whole: Any = split.whole()
    assert type(whole) is kind
    assert torch.equal(whole.weight, source.weight)
    assert (whole.bias is None) == (source.bias is None)
    x = torch.randn(2, 4, *places)
    assert torch.equal(whole(x), source(x))


def test_it_takes_the_size_of_its_output() -> None:
    source = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1)
    split, x = SplitTransposed(source), torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        for sizes in ([10, 9], [2, 6, 9, 10]):
            torch.testing.assert_close(split(x, sizes), source(x, sizes), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="sliding blocks"):
        split(x, [12, 9])


def test_it_is_frozen_if_the_original_is() -> None:
    source = nn.ConvTranspose1d(2, 3, 2)
    assert all(parameter.requires_grad for parameter in SplitTransposed(source).parameters())
    split = SplitTransposed(source.requires_grad_(False))
    assert not any(parameter.requires_grad for parameter in split.parameters())


def test_an_output_padding_as_large_as_the_stride_stays_whole() -> None:
    source = nn.ConvTranspose1d(2, 3, 3, dilation=2, output_padding=1)
    with pytest.raises(ValueError, match="output_padding"):
        SplitTransposed(source)
    model = nn.Sequential(source, nn.Conv1d(3, 2, 1))
    assert split_modules(model)[0].__class__ is nn.ConvTranspose1d


class Normed(nn.Module):
    def __init__(self, kind: Any = nn.ConvTranspose1d) -> None:
        super().__init__()
        self.up = torch.nn.utils.parametrizations.weight_norm(kind(4, 3, 4, 2, 1), dim=1)
        self.end = nn.Conv1d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.up(x).relu())


@pytest.mark.parametrize("hooked", [False, True])
def test_layers_that_are_not_plain_are_found_in_the_program(hooked: bool) -> None:
    torch.manual_seed(0)
    model: nn.Module = Normed().eval()
    if hooked:
        model = nn.Sequential(nn.ConvTranspose2d(4, 3, 3, 2, bias=False), nn.Conv2d(3, 2, 1)).eval()
        model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    x = torch.randn(2, 4, 6) if not hooked else torch.randn(2, 4, 6, 5)
    plain = plain_model(model, x)
    assert form_of(plain) == "program"
    layer = plain.get_submodule("0" if hooked else "up")
    assert isinstance(layer, SplitTransposed)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)

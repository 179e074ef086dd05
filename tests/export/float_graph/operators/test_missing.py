"""Compare functions for operators without translation with PyTorch's own operators."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.export.float_graph.float_graph import export_float
from autocompress.export.float_graph.operators import missing
from autocompress.export.float_graph.operators.missing import (
    BEFORE_TRANSLATION,
    WITHOUT_TRANSLATION,
    _table,
    translatable,
)

aten = torch.ops.aten


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def steps(*shape: int) -> Tensor:
    """Return few different values, so that many are equal."""
    return values(*shape).mul(2).round()


SORTED = values(3, 7).sort(-1).values
UNKNOWN = torch.tensor([1.0, float("nan"), float("nan"), -2.0])
MATRIX = values(2, 5, 5) + 3 * torch.eye(5)
CALLS: dict[str, tuple[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]]] = {
    "pool 2d": (
        missing._adaptive_max_pool,
        aten.adaptive_max_pool2d,
        (steps(2, 3, 13, 7), (5, 3)),
        {},
    ),
    "pool 3d": (
        missing._adaptive_max_pool,
        aten.adaptive_max_pool3d,
        (steps(3, 5, 7, 6), (3, 2, 4)),
        {},
    ),
    "even windows": (
        missing._adaptive_max_pool,
        aten.adaptive_max_pool2d,
        (steps(2, 3, 12, 8), (4, 2)),
        {},
    ),
    "one window": (
        missing._adaptive_max_pool,
        aten.adaptive_max_pool3d,
        (values(3, 5, 7, 6), (1, 1, 1)),
        {},
    ),
    "larger": (missing._adaptive_max_pool, aten.adaptive_max_pool2d, (values(1, 3, 3), (4, 7)), {}),
    "means 3d": (
        missing._adaptive_avg_pool,
        aten._adaptive_avg_pool3d,
        (values(3, 5, 7, 6), (3, 2, 4)),
        {},
    ),
    "frequencies": (missing._fftfreq, torch.fft.fftfreq, (7, 0.5), {}),
    "even frequencies": (missing._fftfreq, torch.fft.fftfreq, (6,), {"dtype": torch.float32}),
    "real frequencies": (missing._rfftfreq, torch.fft.rfftfreq, (7, 0.5), {}),
    "cdist": (
        missing._cdist,
        aten._cdist_forward,
        (values(2, 5, 4), values(2, 6, 4), 2.0, None),
        {},
    ),
    "cdist 1": (missing._cdist, aten._cdist_forward, (values(5, 4), values(6, 4), 1.0, None), {}),
    "cdist 0": (missing._cdist, aten._cdist_forward, (steps(5, 4), steps(6, 4), 0.0, None), {}),
    "cdist inf": (
        missing._cdist,
        aten._cdist_forward,
        (values(5, 4), values(6, 4), float("inf"), None),
        {},
    ),
    "many rows": (
        missing._cdist,
        aten._cdist_forward,
        (values(40, 4), values(30, 4, seed=1), 2.0, None),
        {},
    ),
    "pdist": (missing._pdist, aten._pdist_forward, (values(6, 4),), {}),
    "cummax": (missing._cummax, aten.cummax, (steps(3, 11, 2), 1), {}),
    "cummin": (missing._cummin, aten.cummin, (steps(3, 11, 2), -2), {}),
    "one": (missing._cummax, aten.cummax, (values(3, 1), 1), {}),
    "below": (missing._searchsorted, aten.searchsorted.Tensor, (SORTED, SORTED[:, ::2]), {}),
    "not above": (
        missing._searchsorted,
        aten.searchsorted.Tensor,
        (SORTED[0], SORTED[:2, ::2]),
        {"right": True, "out_int32": True},
    ),
    "one value": (
        missing._searchsorted,
        aten.searchsorted.Scalar,
        (SORTED[0], 0.1),
        {"side": "right"},
    ),
    "sorter": (
        missing._searchsorted,
        aten.searchsorted.Tensor,
        (SORTED.flip(-1), values(3, 2)),
        {"sorter": torch.arange(7).flip(0).expand(3, 7)},
    ),
    "kthvalue": (missing._kthvalue, aten.kthvalue, (values(3, 7, 2), 3, 1, True), {}),
    "median": (missing._median, aten.median.dim, (values(3, 8, 2), 1), {}),
    "median of all": (missing._median_of_all, aten.median, (values(3, 8),), {}),
    "mode": (missing._mode, aten.mode, (steps(4, 9),), {"keepdim": True}),
    "inverse": (missing._inverse, aten.linalg_inv, (MATRIX,), {}),
    "pivots": (missing._inverse, aten.inverse, (torch.eye(4).flip(0) + 0.0,), {}),
    "solve": (missing._solve, aten.linalg_solve, (MATRIX, values(2, 5, 3)), {}),
    "solve a vector": (missing._solve, aten.linalg_solve, (MATRIX, values(2, 5)), {}),
    "from the right": (
        missing._solve,
        aten.linalg_solve,
        (MATRIX, values(2, 3, 5)),
        {"left": False},
    ),
    "mean": (
        missing._scatter_mean,
        aten.scatter_reduce.two,
        (values(4, 3), 0, torch.tensor([[0, 2, 1], [0, 1, 1]]), values(2, 3), "mean"),
        {},
    ),
    "mean without self": (
        missing._scatter_mean,
        aten.scatter_reduce.two,
        (values(4, 3), 0, torch.tensor([[0, 2, 1], [0, 1, 1]]), values(2, 3), "mean"),
        {"include_self": False},
    ),
    "divisor": (
        missing._avg_pool2d,
        aten.avg_pool2d,
        (values(1, 2, 8, 8), (3, 2), (2, 2), (1, 1), False, True, 5),
        {},
    ),
    "one size": (
        missing._avg_pool2d,
        aten.avg_pool2d,
        (values(2, 8, 8), (2,), (), (0,), False, False, 3),
        {},
    ),
    "fmax": (missing._fmax, torch.fmax, (UNKNOWN, UNKNOWN.roll(1)), {}),
    "fmin": (missing._fmin, torch.fmin, (UNKNOWN, UNKNOWN.roll(2)), {}),
    "hypot": (missing._hypot, torch.hypot, (values(5), values(5, seed=1)), {}),
    "signbit": (missing._signbit, torch.signbit, (torch.tensor([-1.0, -0.0, 0.0, 2.0]),), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_function_computes_its_operator(name: str) -> None:
    own, operator, args, named = CALLS[name]
    found, expected = own(*args, **named), operator(*args, **named)
    if isinstance(expected, Tensor):
        found, expected = (found,), (expected,)
    # Of equal elements any may be the mode or the median that has a place.
    count = 1 if name in ("kthvalue", "median", "mode") else len(expected)
    torch.testing.assert_close(found[:count], tuple(expected)[:count], equal_nan=True)
    if count < len(expected):
        dim = args[1] if name == "median" else args[2] if name == "kthvalue" else -1
        places = found[1] if named or name == "kthvalue" else found[1].unsqueeze(dim)
        wanted = expected[0] if named or name == "kthvalue" else expected[0].unsqueeze(dim)
        torch.testing.assert_close(args[0].gather(dim, places), wanted)


@pytest.mark.parametrize("which", [(True, True), (True, False), (False, True)])
def test_complex_tensors_are_multiplied_by_parts(which: tuple[bool, bool]) -> None:
    shapes = ((2, 3, 4), (3, 5, 4))
    pair = [
        torch.complex(values(*shape), values(*shape, seed=1)) if is_complex else values(*shape)
        for shape, is_complex in zip(shapes, which, strict=True)
    ]
    both = [x.to(torch.cfloat) for x in pair]
    expected = torch.einsum("bix,iox->box", *both)
    torch.testing.assert_close(missing._complex_einsum("bix,iox->box", pair), expected)
    assert missing._complex_einsum("bix,iox->box", [x.real for x in both]) is NotImplemented


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "sum"},
        {"mode": "mean", "padding_idx": 1},
        {"mode": "max"},
        {"mode": "max", "padding_idx": 4},
        {"mode": "sum", "per_sample_weights": values(6)},
        {"mode": "mean", "include_last_offset": True},
    ],
)
def test_bags_are_those_of_pytorch(options: dict[str, Any]) -> None:
    table, ids, offsets = values(5, 3), torch.tensor([4, 1, 1, 0, 2, 4]), torch.tensor([0, 2, 2, 5])
    if "include_last_offset" in options:
        offsets = torch.tensor([0, 2, 2, 5, 6])
    expected = F.embedding_bag(ids, table, offsets, **options)
    mode = ("sum", "mean", "max").index(options["mode"])
    found = missing._embedding_bag(
        table,
        ids,
        offsets,
        mode=mode,
        **{name: options[name] for name in options if name != "mode"},
    )
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hop_length": 4, "length": 50},
        {"hop_length": 4, "length": 64, "win_length": 12},
        {"hop_length": 6, "normalized": True},
        {"hop_length": 3, "center": False, "window": torch.hamming_window(16)},
    ],
)
def test_signals_are_those_of_their_spectra(options: dict[str, Any]) -> None:
    size = options.get("win_length", 16)
    options = {"window": torch.hann_window(size) + 0.1, **options}
    with_length = {name: value for name, value in options.items() if name != "length"}
    spectrum = torch.stft(values(2, 64), 16, return_complex=True, **with_length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a signal that is shorter than its length
        expected = torch.istft(spectrum, 16, **options)
    torch.testing.assert_close(missing._istft(spectrum, 16, **options), expected)
    torch.testing.assert_close(missing._istft(spectrum[0], 16, **options), expected[0])
    assert missing._istft(spectrum, 16, onesided=False) is NotImplemented


def test_rrelu_has_its_mean_slope() -> None:
    x = values(9)
    torch.testing.assert_close(missing._rrelu(x, x, 0.1, 0.3, False)[0], F.rrelu(x, 0.1, 0.3))
    assert missing._rrelu(x, x, 0.1, 0.3, True) is NotImplemented


def test_what_is_not_meant_stays_as_it_is() -> None:
    assert missing._inverse(torch.eye(17)) is NotImplemented
    assert missing._solve(torch.eye(17), torch.ones(17)) is NotImplemented
    x, index = torch.zeros(3), torch.tensor([0, 1])
    assert missing._scatter_mean(x, 0, index, x[:2], "amax") is NotImplemented
    assert missing._avg_pool2d(x.view(1, 1, 3), [2]) is NotImplemented


def test_all_operators_are_there() -> None:
    functions = {**WITHOUT_TRANSLATION, **BEFORE_TRANSLATION}
    assert len(_table(functions)) == len(functions)
    assert _table({"aten.not_there.default": missing._hypot}) == {}


def test_a_program_without_them_is_left_alone() -> None:
    program = torch.export.export(nn.Linear(2, 3), (torch.rand(1, 2),))
    assert translatable(program) is program


class Many(nn.Module):
    """Use the operators behind a layer, with a free batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        pooled = F.adaptive_max_pool1d(x, 4)
        far = torch.cdist(x, torch.arange(12.0).view(2, 6)).flatten(1)
        square = x[:, :3, :3] + 4 * torch.eye(3)
        parts = [pooled.flatten(1), far, torch.linalg.inv(square).flatten(1)]
        parts += [x.cummax(2).values.flatten(1), x.median(2).values, x.cumprod(2).flatten(1)]
        means = torch.zeros_like(x).scatter_reduce(1, (x > 0).long(), x, "mean")
        place = torch.searchsorted(torch.linspace(-1, 1, 5), x).float()
        return torch.cat([*parts, means.flatten(1), place.flatten(1)], 1)


@pytest.mark.slow
def test_models_with_them_are_exported_with_a_free_batch() -> None:
    torch.manual_seed(0)
    graph = export_float(Many().eval(), values(2, 4, 6))
    assert graph.dynamic_batch
    assert graph.fixed == ()

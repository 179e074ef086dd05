"""Compute operators that the exporter has no right translation for by others that it has.

PyTorch 2.13 translates no adaptive max pooling over windows of unequal sizes, distances of rows,
running maxima, medians, searches in sorted rows or inverses. Each function takes the arguments of
its operator, and may return NotImplemented.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any
from unittest import mock

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
LARGEST_INVERSE = 16  # rows; larger ones would be thousands of operators
FEW_ROWS = 25  # up to as many PyTorch subtracts rows, with more it multiplies matrices


def _adaptive_max_pool(x: Tensor, output_size: Sequence[int]) -> Pair:
    """Return the largest elements of windows that cover the last dimensions, and their places.

    Args:
        x: (..., *sizes).
        output_size: windows per dimension.

    Returns:
        Values and places in the flat dimensions, both (..., *output_size).
    """
    count = len(output_size)
    sizes = x.shape[-count:]
    if all(n == 1 for n in output_size):
        place = x.flatten(-count).argmax(-1)
        return x.amax(tuple(range(-count, 0)), keepdim=True), place[(..., *[None] * count)]
    if all(size % n == 0 for size, n in zip(sizes, output_size, strict=True)):
        aten = torch.ops.aten
        pool = aten.max_pool2d_with_indices if count == 2 else aten.max_pool3d_with_indices
        even: Pair = pool(x, [size // n for size, n in zip(sizes, output_size, strict=True)])
        return even
    windows = _windows(x, output_size)
    values = _pooled(x, windows, torch.amax)
    places = [_place(x, sizes, window) for window in product(*windows)]
    return values, torch.stack(places, -1).view(*x.shape[:-count], *output_size)


def _adaptive_avg_pool(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Return the means (..., *output_size) of windows that cover the last dimensions."""
    return _pooled(x, _windows(x, output_size), torch.mean)


def _windows(x: Tensor, output_size: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Return begin and end of the windows of each dimension.

    Window i of n begins at floor(i * size / n) and ends at ceil((i + 1) * size / n).
    """
    return [
        [(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]
        for size, n in zip(x.shape[-len(output_size) :], output_size, strict=True)
    ]


def _pooled(
    x: Tensor, windows: Sequence[Sequence[tuple[int, int]]], reduced: Callable[..., Tensor]
) -> Tensor:
    """Reduce windows, one dimension after another."""
    for dim, own in zip(range(-len(windows), 0), windows, strict=True):
        parts = [reduced(x.narrow(dim, a, b - a), dim, keepdim=True) for a, b in own]
        x = torch.cat(parts, dim)
    return x


def _place(x: Tensor, sizes: Sequence[int], window: Sequence[tuple[int, int]]) -> Tensor:
    """Return the place of the largest element of one window in the flat dimensions."""
    count = len(sizes)
    for dim, (a, b) in zip(range(-count, 0), window, strict=True):
        x = x.narrow(dim, a, b - a)
    rest, place = x.flatten(-count).argmax(-1), torch.zeros((), dtype=torch.int64)
    for i, (size, (a, _)) in enumerate(zip(sizes, window, strict=True)):
        inner = math.prod(b - a for a, b in window[i + 1 :])
        place = place * size + a + rest // inner
        rest = rest % inner
    return place


def _cdist(x1: Tensor, x2: Tensor, p: float, compute_mode: int | None) -> Tensor:
    """Return the distances (..., n, m) between rows (..., n, k) and (..., m, k) in the p-norm."""
    few = all(isinstance(rows, int) and rows <= FEW_ROWS for rows in (x1.shape[-2], x2.shape[-2]))
    if p != 2 or compute_mode == 2 or (few and compute_mode != 1):
        distances: Tensor = torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)
        return distances
    squares = x1.square().sum(-1).unsqueeze(-1) + x2.square().sum(-1).unsqueeze(-2)
    return (squares - 2 * (x1 @ x2.mT)).clamp_min(0).sqrt()


def _pdist(x: Tensor, p: float = 2.0) -> Tensor:
    """Return the distances of all pairs of rows, those of a row to later ones."""
    rows = x.shape[0]
    pairs = torch.triu_indices(rows, rows, 1)
    distances: Tensor = torch.linalg.vector_norm(x[pairs[0]] - x[pairs[1]], p, -1)
    return distances


def _cummax(x: Tensor, dim: int) -> Pair:
    """Return running maxima along a dimension, and the last places where they are reached."""
    moved = x.movedim(dim, -1)
    size = moved.shape[-1]
    places = torch.arange(size, device=x.device).expand(moved.shape)
    if isinstance(size, int):
        step = 1
        while step < size:  # behind it, a maximum is of 2 * step elements
            before, own = moved[..., :-step], moved[..., step:]
            place = torch.where(own >= before, places[..., step:], places[..., :-step])
            moved = torch.cat([moved[..., :step], torch.maximum(own, before)], -1)
            places = torch.cat([places[..., :step], place], -1)
            step *= 2
        return moved.movedim(-1, dim), places.movedim(-1, dim)
    later = places.unsqueeze(-2) > places.unsqueeze(-1)
    lowest = moved.amin(-1, keepdim=True).unsqueeze(-1)
    values = torch.where(later, lowest, moved.unsqueeze(-2)).amax(-1)
    reached = (moved.unsqueeze(-2) == values.unsqueeze(-1)) & ~later
    last = torch.where(reached, places.unsqueeze(-2), -1).amax(-1)
    return values.movedim(-1, dim), last.movedim(-1, dim)


def _cummin(x: Tensor, dim: int) -> Pair:
    """Return running minima along a dimension, and the last places where they are reached."""
    values, places = _cummax(-x, dim)
    return -values, places


def _prod(x: Tensor, dims: Sequence[int] | None, *, output_dtype: Any = None) -> Tensor:
    """Return the product over dimensions."""
    for dim in sorted(range(x.dim()) if dims is None else dims, reverse=True):
        x = torch.prod(x, dim, dtype=output_dtype)
    return x


def _searchsorted(
    rows: Tensor,
    values: Tensor | float,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """Return how many elements of sorted rows are below each value, or not above it."""
    if sorter is not None:
        rows = rows.gather(-1, sorter)
    if isinstance(values, Tensor):
        values = values.unsqueeze(-1)
        rows = rows if rows.dim() == 1 else rows.unsqueeze(-2)
    below = rows <= values if right or side == "right" else rows < values
    return below.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def _kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Pair:
    """Return the k-th smallest elements of a dimension, and their places."""
    return _at(*x.topk(k, dim, largest=False, sorted=True), k - 1, dim, keepdim)


def _median(x: Tensor, dim: int = -1, keepdim: bool = False) -> Pair:
    """Return the medians of a dimension, the lower ones of two, and their places."""
    middle = (x.shape[dim] - 1) // 2
    return _at(*x.sort(dim), middle, dim, keepdim)


def _median_of_all(x: Tensor) -> Tensor:
    """Return the median of all elements."""
    return _median(x.flatten())[0]


def _at(values: Tensor, places: Tensor, at: int, dim: int, keepdim: bool) -> Pair:
    """Return one element of each dimension, and its place."""
    values, places = values.narrow(dim, at, 1), places.narrow(dim, at, 1)
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


def _mode(x: Tensor, dim: int = -1, keepdim: bool = False) -> Pair:
    """Return the most frequent elements of a dimension, the smallest of several, and a place."""
    moved = x.movedim(dim, -1)
    counts = (moved.unsqueeze(-1) == moved.unsqueeze(-2)).sum(-1)
    often = counts == counts.amax(-1, keepdim=True)
    values = torch.where(often, moved, moved.amax(-1, keepdim=True)).amin(-1, keepdim=True)
    places = torch.where(moved == values, torch.arange(moved.shape[-1]), -1).amax(-1, keepdim=True)
    values, places = values.movedim(-1, dim), places.movedim(-1, dim)
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


def _inverse(matrix: Tensor) -> Any:
    """Return the inverses of small square matrices.

    It is the elimination of Gauss and Jordan with the largest pivot of each column.
    """
    size = matrix.shape[-1]
    if not isinstance(size, int) or size > LARGEST_INVERSE:
        return NotImplemented
    rows = torch.arange(size, device=matrix.device)
    unit = torch.eye(size, dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    both = torch.cat([matrix, unit], -1)
    for k in range(size):
        free = both[..., k].abs().masked_fill(rows < k, -1.0)
        pivot = free.argmax(-1, keepdim=True)
        order = torch.where(rows == k, pivot, torch.where(rows == pivot, k, rows))
        both = both.gather(-2, order.unsqueeze(-1).expand_as(both))
        row = both[..., k : k + 1, :] / both[..., k : k + 1, k : k + 1]
        others = both - both[..., k : k + 1] * row
        both = torch.where((rows == k).unsqueeze(-1), row, others)
    return both[..., size:]


def _solve(matrix: Tensor, right: Tensor, *, left: bool = True) -> Any:
    """Return the solutions of small systems of equations."""
    inverted = _inverse(matrix)
    if inverted is NotImplemented:
        return inverted
    is_vector = right.dim() == 1 or right.shape == matrix.shape[:-1]
    column = right.unsqueeze(-1) if is_vector else right
    result = inverted @ column if left else column @ inverted
    return result.squeeze(-1) if is_vector else result


def _scatter_mean(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    """Return x with means of what is scattered to each place; other reductions stay as they are.

    The exporter takes a mean for a sum.
    """
    if reduce != "mean" or not x.is_floating_point():
        return NotImplemented
    total = torch.zeros_like(x).scatter_add(dim, index, source)
    count = torch.zeros_like(x).scatter_add(dim, index, torch.ones_like(source))
    if include_self:
        return (x + total) / (1 + count)
    return torch.where(count > 0, total / count.clamp_min(1), x)


def _avg_pool2d(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """Return sums of windows by a divisor of the user, which the exporter leaves out."""
    if divisor_override is None or ceil_mode:
        return NotImplemented
    kernel = tuple(kernel_size) * (2 // len(kernel_size))
    means = torch.nn.functional.avg_pool2d(x, kernel, tuple(stride) or kernel, tuple(padding))
    return means * (math.prod(kernel) / divisor_override)


def _complex_einsum(equation: str, operands: Sequence[Tensor], *, path: Any = None) -> Any:
    """Return a sum of products of two complex tensors; the exporter knows it for real ones."""
    if len(operands) != 2 or not any(x.is_complex() for x in operands):
        return NotImplemented
    (a, b), (c, d) = ((x.real, x.imag) if x.is_complex() else (x, None) for x in operands)
    real, imaginary = torch.einsum(equation, a, c), torch.zeros(())
    if b is not None and d is not None:
        real = real - torch.einsum(equation, b, d)
    if b is not None:
        imaginary = imaginary + torch.einsum(equation, b, c)
    if d is not None:
        imaginary = imaginary + torch.einsum(equation, a, d)
    return torch.complex(real, imaginary)


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sums (mode 0), means (1) or maxima (2) of looked up rows; empty bags are 0.

    ONNX Runtime crashes on what the exporter makes of it.

    Args:
        weight: (rows, width) table.
        indices: (n,) rows that are looked up.
        offsets: (bags,) where each bag begins; the others are those of `F.embedding_bag`.

    Returns:
        (bags, width), and three tensors that no model reads.
    """
    places, kept = torch.arange(indices.shape[0]), torch.ones_like(indices, dtype=weight.dtype)
    if padding_idx is not None and padding_idx >= 0:
        kept = (indices != padding_idx).to(weight.dtype)
    offsets = offsets[:-1] if include_last_offset else offsets
    bags = offsets.shape[0]
    bag = (places.unsqueeze(1) >= offsets).sum(1) - 1
    rows = weight[indices]
    count = weight.new_zeros(bags).index_add(0, bag, kept)
    if mode == 2:
        lowest = torch.finfo(weight.dtype).min
        rows = torch.where(kept.unsqueeze(1) > 0, rows, lowest)
        own = bag.unsqueeze(1).expand_as(rows)
        found = weight.new_full((bags, weight.shape[1]), lowest)
        found = found.scatter_reduce(0, own, rows, "amax")
        return torch.where(count.unsqueeze(1) > 0, found, 0.0), bag, count, bag
    factor = kept if per_sample_weights is None else kept * per_sample_weights
    rows = rows * factor.unsqueeze(1)
    found = weight.new_zeros(bags, weight.shape[1]).index_add(0, bag, rows)
    if mode == 1:
        found = found / count.clamp_min(1).unsqueeze(1)
    return found, bag, count, bag


def _istft(
    spectrum: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Any:
    """Return the signal of a spectrum; PyTorch's own function adds up sample by sample.

    Args:
        spectrum: (..., frequencies, frames) complex.
        n_fft: samples of a frame; the others are those of `torch.istft`.

    Returns:
        (..., samples).
    """
    if return_complex or onesided is False:
        return NotImplemented
    hop, own = hop_length or n_fft // 4, win_length or n_fft
    window = torch.ones(own) if window is None else window
    left = (n_fft - own) // 2
    window = torch.nn.functional.pad(window, (left, n_fft - own - left))
    batched = spectrum if spectrum.dim() == 3 else spectrum.unsqueeze(0)
    norm = "ortho" if normalized else "backward"
    frames = torch.fft.irfft(batched.transpose(1, 2), n_fft, norm=norm) * window
    weights = window.square().expand(1, frames.shape[1], n_fft)
    end = n_fft + hop * (frames.shape[1] - 1)
    start = n_fft // 2 if center else 0
    end = start + length if length is not None else end - start
    signal, weight = (_overlapped(x, hop)[:, start:end] for x in (frames, weights))
    signal = signal / weight
    if length is not None:
        signal = torch.nn.functional.pad(signal, (0, length - signal.shape[1]))
    return signal if spectrum.dim() == 3 else signal.squeeze(0)


def _overlapped(frames: Tensor, hop: int) -> Tensor:
    """Return the sums (n, samples) of frames (n, frames, samples) that begin `hop` apart."""
    size, count = frames.shape[2], frames.shape[1]
    if size % hop:
        whole = (1, size + hop * (count - 1))
        folded = torch.nn.functional.fold(frames.mT, whole, (1, size), stride=(1, hop))
        return folded.flatten(1)
    parts = size // hop
    moved = [
        torch.nn.functional.pad(part, (0, 0, i, parts - 1 - i))
        for i, part in enumerate(torch.split(frames, hop, 2))
    ]
    return torch.stack(moved).sum(0).flatten(1)


def _rrelu(
    x: Tensor,
    noise: Tensor,
    lower: float = 0.125,
    upper: float = 1 / 3,
    training: bool = False,
    generator: Any = None,
) -> Any:
    """Return x, its negative elements times the mean slope, as outside of training."""
    if training:
        return NotImplemented
    return torch.where(x >= 0, x, x * ((lower + upper) / 2)), noise


def _fftfreq(n: int, d: float = 1.0, **options: Any) -> Tensor:
    """Return the frequencies (n,) of a Fourier transform of n samples that are d apart."""
    numbers = torch.cat([torch.arange((n + 1) // 2), torch.arange(-(n // 2), 0)])
    return (numbers / (n * d)).to(options.get("dtype") or torch.get_default_dtype())


def _rfftfreq(n: int, d: float = 1.0, **options: Any) -> Tensor:
    """Return the frequencies (n // 2 + 1,) of a transform of n real samples."""
    numbers = torch.arange(n // 2 + 1)
    return (numbers / (n * d)).to(options.get("dtype") or torch.get_default_dtype())


def _hypot(x: Tensor, y: Tensor) -> Tensor:
    """Return the square root of x^2 + y^2."""
    return (x.square() + y.square()).sqrt()


def _fmax(x: Tensor, y: Tensor) -> Tensor:
    """Return the larger elements of both; NaN gives way to a number."""
    return torch.where(x.isnan(), y, torch.where(y.isnan(), x, torch.maximum(x, y)))


def _fmin(x: Tensor, y: Tensor) -> Tensor:
    """Return the smaller elements of both; NaN gives way to a number."""
    return -_fmax(-x, -y)


def _signbit(x: Tensor) -> Tensor:
    """Return True for elements below 0, and for -0."""
    return (x < 0) | ((x == 0) & (1 / x < 0))


WITHOUT_TRANSLATION: Mapping[str, Callable[..., Any]] = {
    "aten.adaptive_max_pool2d.default": _adaptive_max_pool,
    "aten.adaptive_max_pool3d.default": _adaptive_max_pool,
    "aten._adaptive_avg_pool3d.default": _adaptive_avg_pool,
    "aten._cdist_forward.default": _cdist,
    "aten._pdist_forward.default": _pdist,
    "aten.cummax.default": _cummax,
    "aten.cummin.default": _cummin,
    "aten.searchsorted.Tensor": _searchsorted,
    "aten.searchsorted.Scalar": _searchsorted,
    "aten.kthvalue.default": _kthvalue,
    "aten.median.dim": _median,
    "aten.median.default": _median_of_all,
    "aten.mode.default": _mode,
    "aten.fft_fftfreq.default": _fftfreq,
    "aten.fft_rfftfreq.default": _rfftfreq,
    "aten.rrelu_with_noise_functional.default": _rrelu,
    "prims.fmax.default": _fmax,
    "prims.fmin.default": _fmin,
    "prims.prod.default": _prod,
    "prims.hypot.default": _hypot,
    "prims.signbit.default": _signbit,
}
BEFORE_TRANSLATION: Mapping[str, Callable[..., Any]] = {
    "aten.avg_pool2d.default": _avg_pool2d,
    "aten.einsum.default": _complex_einsum,
    "aten.embedding_bag.default": _embedding_bag,
    "aten.embedding_bag.padding_idx": _embedding_bag,
    "aten.istft.default": _istft,
    "aten.scatter_reduce.two": _scatter_mean,
    "aten.inverse.default": _inverse,
    "aten.linalg_inv.default": _inverse,
    "aten.linalg_solve.default": _solve,
}


def _table(functions: Mapping[str, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """Return functions by operator; those that this version of PyTorch lacks are left out."""
    table = {}
    for name, function in functions.items():
        with contextlib.suppress(AttributeError):
            operator: Any = torch.ops
            for part in name.split("."):
                operator = getattr(operator, part)
            table[operator] = function
    return table


@contextlib.contextmanager
def missing_operators() -> Iterator[None]:
    """Let exports within the context take these functions for operators without translation.

    The exporter reads the table of PyTorch's own such functions, which has no public way in.
    """
    known: Any = getattr(torch._decomp, "decomposition_table", {})
    with mock.patch.dict(known, _table(WITHOUT_TRANSLATION)):
        yield


def translatable(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return a program without operators that the exporter gets wrong, or splits into others.

    For these it would not ask for another function: it translates them wrongly, or takes PyTorch's
    own function, whose parts it does not know.

    Args:
        program: of a model; it is not changed.

    Returns:
        A program that computes the same; `program` itself where there is nothing to do.
    """
    table = _table(BEFORE_TRANSLATION)
    if not any(node.target in table for node in program.graph.nodes):
        return program
    changed: torch.export.ExportedProgram = program.run_decompositions(table)
    return changed

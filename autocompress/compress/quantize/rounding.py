"""Round one weight to its stored form.

Zeros are placed first (`prune/sparsify.py`), then scales are chosen (`affine.fit_scales`), then the
integers by nearest rounding, GPTQ or AdaRound. `assemble/library.py` calls `store` for every factor
of a module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from autocompress.candidate import ModuleConfig
from autocompress.compress.calibrate.evidence import Gradients
from autocompress.compress.calibrate.statistics import LayerStatistics, output_error
from autocompress.compress.prune.sparsify import sparsify
from autocompress.compress.quantize.adaround import adaround
from autocompress.compress.quantize.affine import (
    PARTS,
    Grid,
    StoredTensor,
    fit_scales,
    grid_of,
    to_half,
)
from autocompress.compress.quantize.gptq import ROWS, gptq

COMPENSATED_BITS = 6  # at more bits "auto" does not try GPTQ, because little is lost
ALGORITHMS: dict[str, Callable[[Tensor, Tensor, Grid], Tensor]] = {
    "nearest": lambda weight, gram, grid: grid.nearest(weight),
    "gptq": gptq,
    "adaround": adaround,
}


def store(
    weight: Tensor,
    config: ModuleConfig,
    largest: int,
    statistics: LayerStatistics | None,
    has_bias: bool = False,
    gradients: Gradients | None = None,
) -> StoredTensor:
    """Return a weight with the zeros, bits, scales and rounding of a config.

    Args:
        weight: (rows, ...) float, finite.
        config: gives the fields of sparsity and quantization.
        largest: largest absolute integer that an integer kernel may multiply; groups then share one
            scale per row. 0 for float kernels.
        statistics: statistics of the layer's inputs; None rounds to nearest (embeddings, recurrent
            weights).
        has_bias: True if a bias absorbs the mean error of the output.
        gradients: gradients at the weight for the criteria of zeros; None if unknown.

    Returns:
        The stored form, on the CPU.

    Raises:
        ValueError: if the weight holds NaN or infinity.
    """
    weight, mask = weight.detach().float(), None
    if config.sparsity > 0:
        weight, mask = sparsify(weight, config, statistics, gradients)
    if config.weight_bits >= 16:
        values = weight if config.weight_bits == 32 else to_half(weight)
        mask = None if mask is None else mask.cpu()
        return StoredTensor(values.contiguous().cpu(), config.weight_bits, kept=mask)
    stored = fit_scales(
        weight,
        config.weight_bits,
        config.group_size,
        config.symmetric,
        config.weight_range,
        largest,
    )
    stored = replace(stored, kept=mask)
    grid = grid_of(stored, weight.shape)
    values = _best(weight, grid, config, statistics, has_bias)
    parts: dict[str, Any] = {}
    for name in PARTS:
        part = getattr(stored, name)
        if part is not None:
            parts[name] = part.cpu()
    return replace(stored, values=values.to(torch.int8).contiguous().cpu(), **parts)


def _best(
    weight: Tensor,
    grid: Grid,
    config: ModuleConfig,
    statistics: LayerStatistics | None,
    has_bias: bool,
) -> Tensor:
    """Return the integers of the config's algorithm; "auto" takes the smaller output error."""
    if statistics is None:
        return grid.nearest(weight)
    if config.algorithm != "auto":
        return _rounded(config.algorithm, weight, grid, statistics)
    names = ("nearest", "gptq") if config.weight_bits <= COMPENSATED_BITS else ("nearest",)
    # Four bytes per integer would be as much as the weight, for each of the roundings.
    roundings = [_rounded(n, weight, grid, statistics).to(torch.int8) for n in names]
    errors = [_error(weight, grid, integers, statistics, has_bias) for integers in roundings]
    return roundings[errors.index(min(errors))]


def _error(
    weight: Tensor, grid: Grid, integers: Tensor, statistics: LayerStatistics, has_bias: bool
) -> float:
    """Return `output_error` of a rounded weight, ROWS rows at a time where groups allow it."""
    step = ROWS if len(statistics.gram) == 1 else len(weight)
    total = 0.0
    for start in range(0, len(weight), max(1, step)):
        rows = slice(start, start + step)
        difference = weight[rows] - grid.of_rows(rows).point(integers[rows].float())
        total += output_error(difference.flatten(1).cpu(), statistics, has_bias)
    return total


def _rounded(algorithm: str, weight: Tensor, grid: Grid, statistics: LayerStatistics) -> Tensor:
    """Round the channel groups of a grouped convolution one by one; return the weight's shape."""
    round_weight = ALGORITHMS[algorithm]
    count = len(statistics.gram)
    parts = [t.flatten(1).chunk(count) for t in (weight, grid.step, grid.zero_point)]
    masks = [None] * count if grid.kept is None else grid.kept.flatten(1).chunk(count)
    integers: list[Tensor] = []
    for w, step, zero, mask, gram in zip(*parts, masks, statistics.gram, strict=True):
        part = Grid(step, zero, grid.quant_min, grid.quant_max, mask)
        integers.append(round_weight(w, gram.to(w.device), part))
    return torch.cat(integers).view(weight.shape)

"""Which rounding of one weight loses least of its layer's output, and the integers that it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from autocompress.candidate import ModuleConfig
from autocompress.compress.calibrate.evidence import Gradients
from autocompress.compress.calibrate.statistics import LayerStatistics, output_error
from autocompress.compress.prune.sparsify import sparsify
from autocompress.compress.quantize.adaround import adaround
from autocompress.compress.quantize.affine import PARTS, Grid, StoredTensor, blank, grid_of, to_half
from autocompress.compress.quantize.gptq import gptq

COMPENSATED_BITS = 6  # wider weights lose too little for "auto" to compensate
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
    """`weight` (rows, ...) with the zeros, bits, scales and algorithm of `config`, on the CPU.

    `largest` is the largest absolute integer that an integer kernel may multiply, which then sees one scale per row behind the
    groups; 0 for float kernels. Without statistics of the layer's inputs (embeddings, recurrent weights) it is rounded to nearest.
    """
    weight, kept = weight.detach().float(), None
    if config.sparsity > 0:
        weight, kept = sparsify(weight, config, statistics, gradients)
    if config.weight_bits >= 16:
        values = weight if config.weight_bits == 32 else to_half(weight)
        return StoredTensor(
            values.contiguous().cpu(), config.weight_bits, kept=None if kept is None else kept.cpu()
        )
    stored = blank(
        weight,
        config.weight_bits,
        config.group_size,
        config.symmetric,
        config.weight_range,
        largest,
    )
    stored = replace(stored, kept=kept)
    grid = grid_of(stored, weight.shape)
    values = _best(weight, grid, config, statistics, has_bias)
    parts = {name: part.cpu() for name in PARTS if (part := getattr(stored, name)) is not None}
    return replace(stored, values=values.to(torch.int8).contiguous().cpu(), **parts)


def _best(
    weight: Tensor,
    grid: Grid,
    config: ModuleConfig,
    statistics: LayerStatistics | None,
    has_bias: bool,
) -> Tensor:
    if statistics is None:
        return grid.nearest(weight)
    if config.algorithm != "auto":
        return _rounded(config.algorithm, weight, grid, statistics)
    names = ("nearest", "gptq") if config.weight_bits <= COMPENSATED_BITS else ("nearest",)
    tried = [_rounded(name, weight, grid, statistics) for name in names]
    errors = [
        output_error((weight - grid.point(values)).flatten(1).cpu(), statistics, has_bias)
        for values in tried
    ]
    return tried[errors.index(min(errors))]


def _rounded(algorithm: str, weight: Tensor, grid: Grid, statistics: LayerStatistics) -> Tensor:
    """Integers of `weight`'s shape; the channel groups of a grouped convolution are rounded one by one."""
    round_weight = ALGORITHMS[algorithm]
    count = len(statistics.gram)
    parts = [t.flatten(1).chunk(count) for t in (weight, grid.step, grid.zero_point)]
    kept = [None] * count if grid.kept is None else grid.kept.flatten(1).chunk(count)
    done = [
        round_weight(w, gram.to(w.device), Grid(step, zero, grid.quant_min, grid.quant_max, mask))
        for w, step, zero, mask, gram in zip(*parts, kept, statistics.gram, strict=True)
    ]
    return torch.cat(done).view(weight.shape)

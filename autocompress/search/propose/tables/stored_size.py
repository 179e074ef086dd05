"""Compute the bytes of one module's weights under a config, without building its file."""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter

import numpy as np

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.factorise.low_rank import factor_shapes
from autocompress.compress.prune.sparsify import kept_count
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import CompressibleModule
from autocompress.space.search_space import BoundSpace
from autocompress.targets.workload import Layout


def stored_bytes(
    module: CompressibleModule, config: ModuleConfig, form: IntegerForm, kept_out: int, kept_in: int
) -> float:
    """Return the bytes of a module's weights and scales; the graph around them is not counted.

    Args:
        module: its kind and weight shape count.
        config: bits, groups, rank and zeros.
        form: how the target's integer kernels hold weights.
        kept_out: output channels that pruning leaves.
        kept_in: input channels that pruning leaves.

    Returns:
        Bytes; a fraction where bits do not fill a byte.
    """
    config = config.for_kernel(module.kind, form)
    ratio = config.rank_ratio if module.factorisable else 1.0
    weight_shape = (kept_out, kept_in, *module.weight_shape[2:])
    total = 0.0
    for shape in factor_shapes(weight_shape, ratio, config.decomposition):
        rows, columns = shape[0], int(np.prod(shape[1:]))
        count = rows * columns
        nonzeros = kept_count(shape, config) if config.sparsity > 0 else count
        total += min(count * config.weight_bits, count + nonzeros * config.weight_bits) / 8
        if config.weight_bits < 16:
            per_row = -(-columns // config.group_size) if config.group_size > 0 else 1
            groups = 1 if config.group_size == -1 else rows * per_row
            per_group = 4 if config.group_size <= 0 else 2  # float16 shares
            total += groups * (per_group + (0 if config.symmetric else 1))
    return total


def smallest_candidate(space: BoundSpace, layout: Layout) -> Candidate:
    """Return the candidate with the fewest bytes per module and the largest pruning ratios.

    Args:
        space: the configs of each module and the pruning ratios of each group.
        layout: the modules, and how the target's integer kernels hold their weights.
    """
    configs = {}
    for module in layout.module_map:
        rows, columns = (*module.weight_shape, 1)[:2]
        form = layout.integer_form(module)
        sizes = {}
        for config in space.configs(module.name):
            sizes[config] = stored_bytes(module, config, form, rows, columns)
        smallest = min(sizes.items(), key=itemgetter(1))[0]
        ratio = max(space.numbers(module.name, "pruning_ratio"))
        configs[module.name] = replace(smallest, pruning_ratio=ratio)
    return Candidate.of(configs)

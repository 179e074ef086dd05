"""Bytes of the weights of one module under a config, without building its file."""

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
    """Bytes of the weights and scales of one module; the graph around them is counted exactly elsewhere."""
    config = config.for_kernel(module.kind, form)
    ratio = config.rank_ratio if module.factorisable else 1.0
    total = 0.0
    for shape in factor_shapes(
        (kept_out, kept_in, *module.weight_shape[2:]), ratio, config.decomposition
    ):
        rows, columns = shape[0], int(np.prod(shape[1:]))
        count = rows * columns
        kept = kept_count(shape, config) if config.sparsity > 0 else count
        total += min(count * config.weight_bits, count + kept * config.weight_bits) / 8
        if config.weight_bits < 16:
            groups = {0: rows, -1: 1}.get(config.group_size) or rows * -(
                -columns // config.group_size
            )
            per_group = 4 if config.group_size <= 0 else 2  # float16 shares
            total += groups * (per_group + (0 if config.symmetric else 1))
    return total


def smallest_candidate(space: BoundSpace, layout: Layout) -> Candidate:
    """Every module at what takes the fewest bytes, every group at its largest pruning ratio."""
    configs = {}
    for module in layout.module_map:
        rows, columns = (*module.weight_shape, 1)[:2]
        sizes = {
            c: stored_bytes(module, c, layout.integer_form(module), rows, columns)
            for c in space.configs(module.name)
        }
        ratio = max(space.numbers(module.name, "pruning_ratio"))
        configs[module.name] = replace(
            min(sizes.items(), key=itemgetter(1))[0], pruning_ratio=ratio
        )
    return Candidate.of(configs)

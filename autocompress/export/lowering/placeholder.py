"""Make weights of the right shapes and widths, but without meaning.

Files of them show size and latency before any weight is compressed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from autocompress.candidate import ModuleConfig
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.factorise.low_rank import factor_shapes
from autocompress.compress.prune.masks import Masks
from autocompress.compress.prune.sparsify import kept_count
from autocompress.compress.quantize.affine import StoredTensor, quant_bounds, to_blocks
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import CompressibleModule


def placeholder_variant(
    module: CompressibleModule, config: ModuleConfig, masks: Masks, form: IntegerForm, noise: bool
) -> Variant:
    """Return a variant of the shapes and widths that the library would make.

    Args:
        module: the module.
        config: how it would be compressed.
        masks: channels that stay.
        form: integers that its kernel multiplies.
        noise: True for random values, False for zeros, which take a tenth of the time and the same
            number of bytes.

    Returns:
        The variant; empty if all of the module is pruned.
    """
    if masks.dropped(module.name):
        return Variant((), None)
    config = config.for_kernel(module.kind, form)
    shape = list(module.weight_shape)
    for i, side in enumerate(("out", "in")):
        mask = masks.of(module.name, side)
        if mask is not None:
            shape[i] = int(mask.sum())
    shapes = factor_shapes(
        shape, config.rank_ratio if module.factorisable else 1.0, config.decomposition
    )
    factors = tuple(
        _stored(
            _noise(f"{module.name}/{i}", s) if noise else None,
            tuple(s),
            config,
            config.integer(module.kind),
        )
        for i, s in enumerate(shapes)
    )
    return Variant(factors, torch.zeros(shape[0]) if module.has_bias else None)


def _noise(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Return random numbers, on which kernels take a few percent longer than on constants.

    Each tensor has its own numbers, because a session keeps equal weights once: an encoder of 45 MB
    of equal weights ran in two thirds of the time.
    """
    pool, count = _noise_pool(), int(np.prod(shape))
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % len(pool)
    return np.resize(
        np.roll(pool, -start) if start + count > len(pool) else pool[start : start + count], shape
    )


def _stored(
    numbers: NDArray[np.float32] | None, shape: tuple[int, ...], config: ModuleConfig, integer: bool
) -> StoredTensor:
    """Standard normal `numbers` as weights that keep activations at their size; None is zeros."""
    fan_in = max(1, int(np.prod(shape[1:])))
    bits, group_size = config.weight_bits, config.group_size
    kept = None
    if config.sparsity > 0:  # only their number matters to the file's size
        kept = torch.arange(math.prod(shape)).view(shape) < kept_count(shape, config)
    if bits >= 16:
        dtype = torch.float16 if bits == 16 else torch.float32
        if numbers is None:
            return StoredTensor(torch.zeros(shape, dtype=dtype), bits, kept=kept)
        scaled = torch.from_numpy(numbers / np.float32(np.sqrt(fan_in)))
        return StoredTensor(scaled.to(dtype), bits, kept=kept)
    low, high = quant_bounds(bits, config.symmetric)
    step = 3.0 / high
    if numbers is None:
        values = torch.zeros(shape, dtype=torch.int8)
    else:
        values = torch.from_numpy(np.clip(numbers / step, low, high).astype(np.int8))
    groups = to_blocks(torch.empty(shape, device="meta"), group_size).shape[:2]
    rows_only = integer and group_size > 0
    scale = torch.full((groups[0], 1) if rows_only else groups, step / float(np.sqrt(fan_in)))
    zero = None if config.symmetric else torch.zeros(groups, dtype=torch.int8)
    multiplier = torch.ones(groups, dtype=torch.int8) if rows_only else None
    return StoredTensor(values, bits, scale, zero, multiplier, group_size, kept)


@cache
def _noise_pool() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(1_000_003, dtype=np.float32)

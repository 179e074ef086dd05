"""Find the weights that a folder need not hold: those that no answer reads, and fixed tables."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

HIDDEN = "masked_spec_embed"  # replaces parts of a sound, in training only
POSITIONS = "embed_positions.weight"
PERIOD = 10000.0  # of the slowest wave, in steps of 2 pi


def complete(model: nn.Module, missing: Iterable[str]) -> list[str]:
    """Return the missing weights that a model needs, and set the others.

    Args:
        model: as it was loaded.
        missing: names of the weights that its folder does not hold.

    Returns:
        Sorted names. Not among them are tables of positions that their class has filled with sines
        and cosines, and the vector for hidden parts of sounds. That one is drawn at random, so it
        becomes 0: each process has the same model.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    needed = []
    for name in sorted(missing):
        weight = weights.get(name)
        if weight is None:
            needed.append(name)
        elif name.endswith(HIDDEN):
            nn.init.zeros_(weight)
        elif not (name.endswith(POSITIONS) and _is_sinusoidal(weight.detach())):
            needed.append(name)
    return needed


def _is_sinusoidal(table: Tensor) -> bool:
    """Return True for sines and cosines of positions (Vaswani et al. 2017), halves side by side.

    The slowest wave is the last one (tensor2tensor, Whisper) or one behind it. A row of zeros
    belongs to padding.
    """
    filled = table[table.any(1)].double()
    if len(filled) < len(table) - 1:
        return False
    width = table.shape[1]
    places = torch.arange(len(table), dtype=torch.float64)[table.any(1), None]
    waves = torch.arange(width - width // 2, dtype=torch.float64)
    for slowest in (width / 2, max(1, width // 2 - 1)):
        angles = places * PERIOD ** (-waves / slowest)
        expected = torch.cat([angles.sin(), angles.cos()[:, : width // 2]], 1)
        if torch.allclose(filled, expected, atol=1e-3):
            return True
    return False

"""Which channels of each group are removed at a pruning ratio, by magnitude."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.candidate import Candidate
from autocompress.channels import ChannelGroup
from autocompress.modules import ModuleMap

Mask = NDArray[np.bool_]


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a Linear, Conv, Embedding or normalisation layer."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def magnitude_scores(group: ChannelGroup, model: nn.Module) -> NDArray[np.float64]:
    """(units,) L2 norm of everything that would go with each unit: rows of its producers and columns of its consumers.

    Each module's part is divided by its mean, so that no module outweighs the rest (Fang et al. 2023, sec. 3.3).
    """
    total = np.zeros(group.channels)
    for member in group.members:
        module = model.get_submodule(member.name)
        if member.side == "channel" or not hasattr(module, "weight"):
            continue
        weight = weight_of(module).detach().float()
        squares = weight.square().transpose(0, 1) if member.side == "in" else weight.square()
        norms = squares.flatten(1).sum(1).cpu().numpy()[member.index]
        part = np.bincount(member.root, weights=norms, minlength=group.channels)
        total += part / max(part.mean(), 1e-30)
    units: NDArray[np.float64] = np.sqrt(total.reshape(group.units, group.unit_size).sum(1))
    return units


@dataclass(frozen=True)
class Masks:
    """Kept channels per (module, side); a side that is not there keeps all."""

    kept: Mapping[tuple[str, str], Mask]

    def of(self, name: str, side: str) -> Mask | None:
        """Mask over the channels of one side ("out", "in" or "channel"), or None when nothing is removed."""
        return self.kept.get((name, side))


@dataclass
class Pruner:
    """Masks of any candidate on one model; scores and masks are made once per group and ratio."""

    model: nn.Module
    module_map: ModuleMap
    _scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    _cache: dict[tuple[tuple[str, float], ...], Masks] = field(default_factory=dict)

    def root_mask(self, group: ChannelGroup, pruning_ratio: float) -> Mask:
        """(channels,) the units with the highest scores are kept."""
        if group.name not in self._scores:
            self._scores[group.name] = magnitude_scores(group, self.model)
        order = np.argsort(-self._scores[group.name], kind="stable")
        units = np.zeros(group.units, dtype=bool)
        units[order[: group.kept_units(pruning_ratio)]] = True
        return units.repeat(group.unit_size)

    def masks(self, candidate: Candidate) -> Masks:
        """The masks of every module that a pruned group of `candidate` touches."""
        ratios = {name: config.pruning_ratio for name, config in candidate.modules if config.pruning_ratio > 0}
        key = tuple(sorted(ratios.items()))
        if key not in self._cache:
            if len(self._cache) > 256:
                self._cache.clear()
            kept: dict[tuple[str, str], Mask] = {}
            for group in self.module_map.groups:
                if group.reason is None and group.name in ratios:
                    root = self.root_mask(group, ratios[group.name])
                    for member in group.members:
                        at = (member.name, member.side)
                        mask = kept.setdefault(at, np.ones(self._width(member.name, member.side), dtype=bool))
                        mask[member.index] &= root[member.root]
            self._cache[key] = Masks({at: mask for at, mask in kept.items() if not mask.all()})
        return self._cache[key]

    def _width(self, name: str, side: str) -> int:
        weight = weight_of(self.model.get_submodule(name))
        return int(weight.shape[1] if side == "in" else weight.shape[0])

"""Which units of each group are removed at a pruning ratio, and what the layers that read them do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.calibrate.evidence import Evidence
from autocompress.compress.calibrate.linear_algebra import damped
from autocompress.compress.calibrate.statistics import LayerStatistics
from autocompress.compress.prune.importance import CRITERIA, Scores
from autocompress.model.channel_group import ChannelGroup
from autocompress.model.modules import ModuleMap
from autocompress.model.weights import side_dimension, weight_of

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Masks:
    """Kept channels per (module, side); a side that is not there keeps all."""

    kept: Mapping[tuple[str, str], Mask]

    def of(self, name: str, side: str) -> Mask | None:
        """Mask over the channels of one side of a module (see `Member`), or None when nothing is removed."""
        return self.kept.get((name, side))

    def dropped(self, name: str) -> bool:
        """Whether the whole module is removed."""
        return (name, "whole") in self.kept


@dataclass
class Pruner:
    """Masks of any candidate on one model; scores are made once per group and criterion, masks once per choice."""

    evidence: Evidence
    module_map: ModuleMap
    _cache: dict[tuple[tuple[str, ModuleConfig], ...], Masks] = field(default_factory=dict)

    def scores(self, group: ChannelGroup, importance: str) -> Scores:
        """(units,) importance of each unit by one criterion."""
        known = self.evidence.scores
        if (group.name, importance) not in known:
            known[group.name, importance] = CRITERIA[importance](group, self.evidence)
        return known[group.name, importance]

    def root_mask(self, group: ChannelGroup, config: ModuleConfig) -> Mask:
        """(channels,) the units with the highest scores are kept."""
        order = np.argsort(-self.scores(group, config.importance), kind="stable")
        units = np.zeros(group.units, dtype=bool)
        units[order[: group.kept_units(config.pruning_ratio)]] = True
        return units.repeat(group.unit_size)

    def masks(self, candidate: Candidate) -> Masks:
        """The masks of every module that a pruned group of `candidate` touches."""
        chosen = {
            name: config.pruned() for name, config in candidate.modules if config.pruning_ratio > 0
        }
        key = tuple(sorted(chosen.items()))
        if key not in self._cache:
            if len(self._cache) > 256:
                self._cache.clear()
            kept: dict[tuple[str, str], Mask] = {}
            for group in self.module_map.groups:
                if group.reason is None and group.name in chosen:
                    root = self.root_mask(group, chosen[group.name])
                    for member in group.members:
                        at = (member.name, member.side)
                        mask = kept.setdefault(
                            at, np.ones(self._width(member.name, member.side), dtype=bool)
                        )
                        mask[member.index] &= root[member.root]
            self._cache[key] = Masks({at: mask for at, mask in kept.items() if not mask.all()})
        return self._cache[key]

    def _width(self, name: str, side: str) -> int:
        module: Any = self.evidence.model.get_submodule(name)
        if side == "whole":
            return 1
        if (
            side == "channel" and getattr(module, "weight", None) is None
        ):  # a normalisation without parameters
            return int(getattr(module, "num_features", None) or module.num_channels)
        return int(
            weight_of(module).shape[
                0 if side in ("channel", "gate") else side_dimension(module, side)
            ]
        )


def reconstructed(
    weight: Tensor, kept: Tensor, statistics: LayerStatistics, has_bias: bool
) -> tuple[Tensor, Tensor]:
    """(weight (rows, kept columns), what the bias gains (rows,)): the least-squares fit of W x by the inputs that are left.

    weight (rows, columns); kept (columns,) mask. With X the calibration inputs, W_kept + W_gone X_gone X_kept^T (X_kept X_kept^T)^-1,
    closed form and damped towards W_kept, on deviations from the mean where a bias can take the mean's part (He et al. 2017, eq. 4;
    Luo et al. 2017, sec. 3.3).
    """
    gram, mean = (
        statistics.gram[0].to(weight.device).double(),
        statistics.mean[0].to(weight.device).double(),
    )
    if has_bias:
        gram = gram - mean[:, None] * mean
    w = weight.double()
    gone = ~kept
    factor = torch.linalg.cholesky(damped(gram[kept][:, kept]))
    solved = w[:, kept] + torch.cholesky_solve(gram[kept][:, gone] @ w[:, gone].T, factor).T
    shift = w @ mean - solved @ mean[kept] if has_bias else w.new_zeros(len(w))
    return solved.to(weight.dtype), shift.to(weight.dtype)


def global_ratios(scores: Mapping[str, Scores], ratio: float) -> dict[str, float]:
    """The removed fraction of each group when one threshold over all groups removes `ratio` of all units.

    `scores` (units,) by group, each divided by its mean first, since criteria are relative to a group. At least one unit of each stays.
    """
    relative = {name: found / max(float(found.mean()), 1e-30) for name, found in scores.items()}
    threshold = np.quantile(np.concatenate(list(relative.values())), ratio)
    return {
        name: min(ratio_below(found, float(threshold)), 1 - 1 / len(found))
        for name, found in relative.items()
    }


def ratio_below(scores: Scores, threshold: float) -> float:
    """The fraction of `scores` below an absolute threshold."""
    return float((scores < threshold).mean())

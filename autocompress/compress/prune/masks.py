"""Choose the units to remove at a pruning ratio, and refit the layers that read them.

`Pruner` turns a candidate into masks over the channels of every module that a pruned group touches.
`reconstructed` is the least-squares refit of one reader.
"""

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
from autocompress.compress.calibrate.linear_algebra import damped_factor
from autocompress.compress.calibrate.statistics import LayerStatistics
from autocompress.compress.prune.importance import CRITERIA, Scores
from autocompress.model.channel_group import ChannelGroup
from autocompress.model.modules import ModuleMap
from autocompress.model.weights import side_dimension, weight_of

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Masks:
    """Hold the channels that stay, per module and side.

    Attributes:
        kept: (channels,) bool masks by (module name, side), sides as in `Member`; a pair that is
            missing keeps all channels.
    """

    kept: Mapping[tuple[str, str], Mask]

    def of(self, name: str, side: str) -> Mask | None:
        """Return the mask over the channels of one side of a module.

        Args:
            name: qualified name of the module.
            side: side of the module, as in `Member`.

        Returns:
            (channels,) True for channels that stay; None if nothing is removed.
        """
        return self.kept.get((name, side))

    def dropped(self, name: str) -> bool:
        """Return True if the whole module is removed.

        Args:
            name: qualified name of the module.
        """
        return (name, "whole") in self.kept


@dataclass
class Pruner:
    """Make the masks of any candidate on one model.

    Scores are computed once per group and criterion, masks once per choice.

    Attributes:
        evidence: gives weights, statistics and gradients to the criteria.
        module_map: the compressible modules and channel groups of the model.
    """

    evidence: Evidence
    module_map: ModuleMap
    _cache: dict[tuple[tuple[str, ModuleConfig], ...], Masks] = field(default_factory=dict)

    def scores(self, group: ChannelGroup, importance: str) -> Scores:
        """Return the importance of each unit by one criterion.

        Args:
            group: the channel group whose units are scored.
            importance: a key of `CRITERIA`.

        Returns:
            (units,) scores; the lowest are removed first.
        """
        known = self.evidence.scores
        if (group.name, importance) not in known:
            known[group.name, importance] = CRITERIA[importance](group, self.evidence)
        return known[group.name, importance]

    def root_mask(self, group: ChannelGroup, config: ModuleConfig) -> Mask:
        """Return the channels of a group that stay: those of the units with the highest scores.

        Args:
            group: the channel group.
            config: gives pruning_ratio (removed fraction) and importance.

        Returns:
            (channels,) True for channels that stay.
        """
        order = np.argsort(-self.scores(group, config.importance), kind="stable")
        units = np.zeros(group.units, dtype=bool)
        units[order[: group.kept_units(config.pruning_ratio)]] = True
        return units.repeat(group.unit_size)

    def masks(self, candidate: Candidate) -> Masks:
        """Return the masks of every module that a pruned group of `candidate` touches.

        Args:
            candidate: configs are read from the modules at the roots of the groups.

        Returns:
            Masks, without those that remove nothing.
        """
        pruned: dict[str, ModuleConfig] = {}
        for name, config in candidate.modules:
            if config.pruning_ratio > 0:
                pruned[name] = config.pruned()
        key = tuple(sorted(pruned.items()))
        if key not in self._cache:
            if len(self._cache) > 256:
                self._cache.clear()
            self._cache[key] = self._masks(pruned)
        return self._cache[key]

    def _masks(self, pruned: Mapping[str, ModuleConfig]) -> Masks:
        masks: dict[tuple[str, str], Mask] = {}
        for group in self.module_map.groups:
            if group.reason is not None or group.name not in pruned:
                continue
            root = self.root_mask(group, pruned[group.name])
            for member in group.members:
                at = (member.name, member.side)
                if at not in masks:
                    masks[at] = np.ones(self._width(*at), dtype=bool)
                masks[at][member.index] &= root[member.root]
        return Masks({at: mask for at, mask in masks.items() if not mask.all()})

    def _width(self, name: str, side: str) -> int:
        """Return the number of channels on one side of a module."""
        module: Any = self.evidence.model.get_submodule(name)
        if side == "whole":
            return 1
        if side == "channel" and getattr(module, "weight", None) is None:
            # A normalisation without parameters.
            return int(getattr(module, "num_features", None) or module.num_channels)
        dimension = 0 if side in ("channel", "gate") else side_dimension(module, side)
        return int(weight_of(module).shape[dimension])


def reconstructed(
    weight: Tensor, stays: Tensor, statistics: LayerStatistics, has_bias: bool
) -> tuple[Tensor, Tensor]:
    """Return the least-squares fit of W x by the inputs that stay.

    With K the columns that stay, R the removed ones and X the calibration inputs, it is
    W_K + W_R X_R X_K^T (X_K X_K^T)^-1, in closed form. Damping pulls it towards W_K. If the layer
    has a bias, X holds deviations from the mean, and the bias takes the mean's part. Source: He et
    al. 2017, eq. 4; Luo et al. 2017, sec. 3.3.

    Args:
        weight: (rows, columns) W.
        stays: (columns,) bool mask K.
        statistics: statistics of all inputs of the layer; one group only.
        has_bias: True if the layer has a bias that can take the mean's part.

    Returns:
        (rows, columns that stay) weight, and (rows,) to be added to the bias (0 without a bias).
    """
    gram = statistics.gram[0].to(weight.device).double()
    mean = statistics.mean[0].to(weight.device).double()
    if has_bias:
        gram = gram - mean[:, None] * mean
    w = weight.double()
    removed = ~stays
    factor = damped_factor(gram[stays][:, stays])
    solved = w[:, stays] + torch.cholesky_solve(gram[stays][:, removed] @ w[:, removed].T, factor).T
    shift = w @ mean - solved @ mean[stays] if has_bias else w.new_zeros(len(w))
    return solved.to(weight.dtype), shift.to(weight.dtype)


def global_ratios(scores: Mapping[str, Scores], ratio: float) -> dict[str, float]:
    """Return the pruning ratio of each group for one threshold over all groups.

    The scores of a group are divided by their mean first, because criteria are relative to a group.

    Args:
        scores: (units,) scores by group.
        ratio: fraction of all units that the threshold removes.

    Returns:
        Removed fraction by group; at least one unit of each group stays.
    """
    relative = {name: units / max(float(units.mean()), 1e-30) for name, units in scores.items()}
    threshold = float(np.quantile(np.concatenate(list(relative.values())), ratio))
    ratios: dict[str, float] = {}
    for name, units in relative.items():
        ratios[name] = min(ratio_below(units, threshold), 1 - 1 / len(units))
    return ratios


def ratio_below(scores: Scores, threshold: float) -> float:
    """Return the fraction of scores below an absolute threshold.

    Args:
        scores: (units,) scores of one group.
        threshold: in the unit of the scores.

    Returns:
        Fraction in [0, 1].
    """
    return float((scores < threshold).mean())

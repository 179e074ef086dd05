"""SmoothQuant: move outliers of the activations behind a normalisation into the weights that read them (Xiao et al. 2023, eq. 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from autocompress.candidate import Candidate
from autocompress.compress.calibrate.statistics import LayerStatistics
from autocompress.compress.quantize.activation import ActivationRange
from autocompress.model.modules import ModuleMap
from autocompress.model.weights import weight_of


def smoothing_factors(activation_max: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """(channels,) s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), by which the norm is divided and each weight's columns are multiplied.

    activation_max (channels,); weights (rows, channels) of all readers of the norm. A channel that is 0 on either side keeps s_j = 1.
    """
    weight_max = weights[0].abs().amax(0)
    for weight in weights[1:]:
        weight_max = weight_max.maximum(weight.abs().amax(0))
    factors = activation_max.clamp_min(1e-12).pow(alpha) / weight_max.clamp_min(1e-12).pow(
        1 - alpha
    )
    factors = factors.clamp(1e-4, 1e4)
    factors[(activation_max == 0) | (weight_max == 0)] = 1.0
    return factors


@dataclass
class Smoother:
    """Factors of any candidate on one model; the knob of a normalisation lives on its first reader."""

    model: nn.Module
    module_map: ModuleMap
    statistics: Mapping[str, LayerStatistics]
    _cache: dict[tuple[str, float], Tensor] = field(default_factory=dict)

    def factors(self, candidate: Candidate) -> dict[str, Tensor]:
        """(channels,) factors by name of the normalisation, of those that `candidate` smooths."""
        found = {}
        for group in self.module_map.norms:
            alpha = candidate.config(group.readers[0]).smoothing
            if alpha > 0 and group.readers[0] in self.statistics:
                if (group.norm, alpha) not in self._cache:
                    seen = self.statistics[group.readers[0]]
                    weights = [
                        weight_of(self.model.get_submodule(name)).detach().float().cpu()
                        for name in group.readers
                    ]
                    largest = seen.highest.abs().maximum(seen.lowest.abs())
                    self._cache[group.norm, alpha] = smoothing_factors(largest, weights, alpha)
                found[group.norm] = self._cache[group.norm, alpha]
        return found

    def of(self, name: str, candidate: Candidate) -> Tensor | None:
        """The factors that multiply the columns of module `name`, or None."""
        norm = next((group.norm for group in self.module_map.norms if name in group.readers), None)
        return None if norm is None else self.factors(candidate).get(norm)

    def ranges(
        self, candidate: Candidate, tensors: Mapping[str, str]
    ) -> dict[str, ActivationRange]:
        """The new range of each smoothed tensor; `tensors` names what each module reads."""
        found = {}
        active = self.factors(candidate)
        for group in self.module_map.norms:
            if group.norm in active and group.readers[0] in tensors:
                seen = self.statistics[group.readers[0]]
                low, high = seen.lowest / active[group.norm], seen.highest / active[group.norm]
                found[tensors[group.readers[0]]] = ActivationRange.spanning(
                    float(low.min()), float(high.max())
                )
        return found

    def parameters(self, candidate: Candidate) -> dict[str, Tensor]:
        """The normalisations' weights and biases divided by their factors, by parameter name."""
        found = {}
        for norm, factors in self.factors(candidate).items():
            for name, parameter in self.model.get_submodule(norm).named_parameters(recurse=False):
                found[f"{norm}.{name}"] = parameter.detach() / factors.to(parameter.device)
        return found

"""Smooth activations: move their outliers into the weights (SmoothQuant, Xiao et al. 2023, eq. 4).

The outputs of a normalisation are divided by factors s, the columns of all weights that read them
are multiplied by s. The float model computes the same; its activations are easier to quantise.
"""

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
    """Return s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) of each channel j.

    Args:
        activation_max: (channels,) max|X_j|.
        weights: (rows, channels) weights of all readers of the normalisation.
        alpha: share of the difficulty that moves to the weights, in [0, 1].

    Returns:
        (channels,) in [1e-4, 1e4]; 1 for a channel whose maximum is 0 on either side.
    """
    weight_max = weights[0].abs().amax(0)
    for weight in weights[1:]:
        weight_max = weight_max.maximum(weight.abs().amax(0))
    migrated = weight_max.clamp_min(1e-12).pow(1 - alpha)
    factors = (activation_max.clamp_min(1e-12).pow(alpha) / migrated).clamp(1e-4, 1e4)
    factors[(activation_max == 0) | (weight_max == 0)] = 1.0
    return factors


@dataclass
class Smoother:
    """Compute the smoothing of any candidate on one model.

    A normalisation's alpha is the `smoothing` of its first reader.

    Attributes:
        model: the original model; not changed.
        module_map: gives the normalisations and their readers.
        statistics: input statistics by module name.
    """

    model: nn.Module
    module_map: ModuleMap
    statistics: Mapping[str, LayerStatistics]
    _cache: dict[tuple[str, float], Tensor] = field(default_factory=dict)

    def factors(self, candidate: Candidate) -> dict[str, Tensor]:
        """Return the factors of the normalisations that a candidate smooths.

        Args:
            candidate: gives alpha per normalisation.

        Returns:
            (channels,) factors by name of the normalisation.
        """
        factors: dict[str, Tensor] = {}
        for group in self.module_map.norms:
            first = group.readers[0]
            alpha = candidate.config(first).smoothing
            if alpha > 0 and first in self.statistics:
                key = (group.norm, alpha)
                if key not in self._cache:
                    inputs = self.statistics[first]
                    largest = inputs.highest.abs().maximum(inputs.lowest.abs())
                    self._cache[key] = smoothing_factors(
                        largest, self._weights(group.readers), alpha
                    )
                factors[group.norm] = self._cache[key]
        return factors

    def _weights(self, readers: Sequence[str]) -> list[Tensor]:
        modules = [self.model.get_submodule(name) for name in readers]
        return [weight_of(module).detach().float().cpu() for module in modules]

    def of(self, name: str, candidate: Candidate) -> Tensor | None:
        """Return the factors by which the columns of a module are multiplied.

        Args:
            name: qualified name of the module.
            candidate: gives alpha per normalisation.

        Returns:
            (channels,); None if the module reads no smoothed tensor.
        """
        norm = next((group.norm for group in self.module_map.norms if name in group.readers), None)
        return None if norm is None else self.factors(candidate).get(norm)

    def ranges(
        self, candidate: Candidate, tensors: Mapping[str, str]
    ) -> dict[str, ActivationRange]:
        """Return the activation range of each smoothed tensor.

        Args:
            candidate: gives alpha per normalisation.
            tensors: name of the tensor that each module reads, by module name.

        Returns:
            Range by name of the tensor, from the extremes of the calibration inputs.
        """
        ranges: dict[str, ActivationRange] = {}
        factors = self.factors(candidate)
        for group in self.module_map.norms:
            first = group.readers[0]
            if group.norm in factors and first in tensors:
                inputs = self.statistics[first]
                low = inputs.lowest / factors[group.norm]
                high = inputs.highest / factors[group.norm]
                ranges[tensors[first]] = ActivationRange.spanning(
                    float(low.min()), float(high.max())
                )
        return ranges

    def parameters(self, candidate: Candidate) -> dict[str, Tensor]:
        """Return the parameters that scale normalisations' outputs, divided by their factors.

        Args:
            candidate: gives alpha per normalisation.

        Returns:
            (channels,) tensors by name of the parameter.
        """
        parameters: dict[str, Tensor] = {}
        factors = self.factors(candidate)
        for group in self.module_map.norms:
            for name in group.parameters if group.norm in factors else ():
                value: Tensor = getattr(self.model.get_submodule(group.norm), name).detach()
                divisors = factors[group.norm].to(value.device)
                parameters[f"{group.norm}.{name}"] = value / divisors
        return parameters

"""Describe how one module is compressed: bits, scales, rank, pruning and zeros.

A search proposes configs, and the rooms that compress read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from autocompress.argument_types import set_typed
from autocompress.errors import SpaceError
from autocompress.integer_form import IntegerForm

ALGORITHMS = ("auto", "nearest", "gptq", "adaround")
WEIGHT_RANGES = ("squared_error", "golden_section", "min_max", "percentile", "entropy")
ACTIVATION_MODES = ("auto", "dynamic", "static")
DECOMPOSITIONS = ("auto", "svd", "whitened", "tucker", "spatial")
IMPORTANCES = (
    "obs",
    "obs_diagonal",
    "wanda",
    "taylor",
    "hessian",
    "gradient",
    "l2",
    "l1",
    "random",
)
SPARSITY_PATTERNS = ("unstructured", "2:4", "4:8")
SPARSITY_CRITERIA = (
    "auto",
    "magnitude",
    "random",
    "gradient",
    "taylor",
    "hessian",
    "wanda",
    "obs_diagonal",
    "sparsegpt",
)
# From this width on, zero points are stored beside the integers: their difference would not fit.
APART_BITS = 7


@dataclass(frozen=True, order=True)
class ModuleConfig:
    """Describe how one module is compressed; the defaults leave it untouched.

    Attributes:
        weight_bits: 2 to 8 (integers with scales), 16 (float16, or bfloat16 if that loses less) or
            32 (float32).
        activation_bits: 8 runs the target's integer kernel on 8-bit inputs, 16 rounds the inputs to
            16-bit integers, 32 keeps them float.
        group_size: inputs per scale: 0 for one scale per output channel, n for one per n
            consecutive inputs of a channel, -1 for one per tensor.
        rank_ratio: kept fraction of the largest rank of the (pruned) weight; 1 does not factorise.
        pruning_ratio: removed fraction of the units (filters, neurons, heads, experts) of the
            channel group with this module as root.
        symmetric: True for zero point 0, False for a zero point per scale. Symmetric integers are
            in [-quant_max, quant_max]; those of groups on float kernels have one more, which the
            sign of the scale puts on the side of the largest weight.
        weight_range: how scales are chosen: "squared_error" (grid search), "golden_section",
            "min_max", "percentile" or "entropy".
        algorithm: how weights are rounded: "nearest", "gptq", "adaround", or "auto", which takes
            the one with the smallest error of the module's output.
        activation_mode: "dynamic" (range of each tensor), "static" (calibrated range) or "auto"
            (static for convolutions, dynamic for others).
        smoothing: alpha of SmoothQuant (Xiao et al. 2023) on the normalisation in front, set on the
            first module that reads it; 0 is off.
        decomposition: how factors are made: "svd", "whitened" by the calibration Gram matrix, and
            for convolutions "tucker" (Tucker-2) or "spatial" (columns, then rows). "auto" is
            "whitened" with calibration inputs, else "svd".
        importance: criterion by which the units of the group are ranked. Criteria that need
            calibration inputs fall back to "l2" without them.
        reconstruction: refit the columns that are left by least squares when input channels are
            removed.
        sparsity: fraction of zeros among the (pruned, factorised) weights; a pattern N:M fixes it
            at 1 - N/M.
        sparsity_pattern: "unstructured", or "N:M": N of every M consecutive inputs of a row stay.
        sparsity_criterion: how zeros are chosen; "auto" is "sparsegpt" with calibration inputs,
            else "magnitude".
    """

    weight_bits: int = 32
    activation_bits: int = 32
    group_size: int = 0
    rank_ratio: float = 1.0
    pruning_ratio: float = 0.0
    symmetric: bool = True
    weight_range: str = "squared_error"
    algorithm: str = "auto"
    activation_mode: str = "auto"
    smoothing: float = 0.0
    decomposition: str = "auto"
    importance: str = "obs"
    reconstruction: bool = True
    sparsity: float = 0.0
    sparsity_pattern: str = "unstructured"
    sparsity_criterion: str = "auto"

    def __post_init__(self) -> None:
        if tuple(map(type, self.__dict__.values())) != TYPES:
            set_typed(self, SpaceError)

    def effective(self) -> ModuleConfig:
        """Return the executed config: fields without effect take their defaults.

        Integer kernels need integer weights. Float weights have no scales. Float activations have
        neither a mode nor smoothing. Zeros among integer weights need a zero point of 0.
        """
        config = self
        if config.weight_bits >= 16:
            bits = 32 if config.activation_bits == 8 else config.activation_bits
            config = replace(self, activation_bits=bits, **_without(QUANTIZATION_FIELDS))
        if config.rank_ratio >= 1:
            config = replace(config, **_without(("decomposition",)))
        if config.pruning_ratio <= 0:
            config = replace(config, **_without(("importance",)))
        if config.sparsity <= 0:
            config = replace(config, **_without(SPARSITY_FIELDS))
        else:
            config = replace(
                config,
                symmetric=True,
                sparsity=_pattern_sparsity(config.sparsity_pattern, config.sparsity),
            )
        if config.activation_bits != 8 and (config.activation_mode, config.smoothing) != (
            "auto",
            0.0,
        ):
            config = replace(config, activation_mode="auto", smoothing=0.0)
        return config

    def quantized(self) -> ModuleConfig:
        """Return only bits, scales and rounding: no rank, pruning or zeros."""
        return replace(self, reconstruction=True, **_without(SHAPE_FIELDS))

    def factorised(self) -> ModuleConfig:
        """Return only the rank and the decomposition."""
        return ModuleConfig(
            rank_ratio=self.rank_ratio, decomposition=self.decomposition
        ).effective()

    def sparsified(self) -> ModuleConfig:
        """Return only the zeros."""
        return ModuleConfig(**{name: getattr(self, name) for name in SPARSITY_FIELDS}).effective()

    def pruned(self) -> ModuleConfig:
        """Return only the removed units of the group."""
        return ModuleConfig(
            pruning_ratio=self.pruning_ratio, importance=self.importance
        ).effective()

    def integer(self, kind: str) -> bool:
        """Return True if a module runs on an integer kernel.

        Args:
            kind: of the module. Factors of a convolution run on float kernels.
        """
        return self.activation_bits == 8 and (
            kind == "linear" or (kind == "conv" and self.rank_ratio >= 1)
        )

    def executed(self, kind: str) -> ModuleConfig:
        """Return the config with float activations where no integer kernel computes the module.

        Lookups, gates and the factors of a convolution have no such kernel.

        Args:
            kind: of the module; a linear layer that shares the weight of an embedding is an
                embedding.
        """
        rounded = self.activation_bits != 32
        floats = kind not in ("linear", "conv") or (
            kind == "conv" and self.rank_ratio < 1 and self.activation_bits == 8
        )
        return replace(self, activation_bits=32).effective() if rounded and floats else self

    def for_kernel(self, kind: str, form: IntegerForm) -> ModuleConfig:
        """Return the config after the limits of a module's integer kernel.

        Weights as wide as `form` leave no room for multiples of a row's scale, so their groups
        share it. Integer convolutions have one zero point for all channels, so wide weights of
        theirs are symmetric.

        Args:
            kind: of the module.
            form: the integers that its kernel multiplies.
        """
        if not self.integer(kind):
            return self
        bits = min(self.weight_bits, form.bits)
        group_size = self.group_size if bits < form.bits else min(self.group_size, 0)
        one_zero = kind == "conv" and bits >= APART_BITS and group_size <= 0
        return replace(
            self, weight_bits=bits, group_size=group_size, symmetric=self.symmetric or one_zero
        )

    def static(self, kind: str) -> bool:
        """Return True if 8- or 16-bit inputs have a calibrated range.

        Args:
            kind: of the module.
        """
        return (
            self.activation_bits == 16
            or self.activation_mode == "static"
            or (self.activation_mode == "auto" and kind == "conv")
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from the defaults; `from_json` reverses it."""
        return {k: v for k, v in asdict(self).items() if v != getattr(UNTOUCHED, k)}

    @classmethod
    def from_json(cls, where: str, data: Mapping[str, Any]) -> ModuleConfig:
        """Read a config, the reverse of `to_json`.

        Args:
            where: names the config in errors.
            data: fields; missing ones take their defaults.

        Raises:
            ValueError: a field is unknown.
        """
        unknown = set(data) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"{where} has unknown fields {sorted(unknown)}")
        return cls(**data)


TYPES = tuple(type(field.default) for field in fields(ModuleConfig))
UNTOUCHED = ModuleConfig()
QUANTIZATION_FIELDS = (
    "group_size",
    "symmetric",
    "weight_range",
    "algorithm",
    "activation_mode",
    "smoothing",
)
SPARSITY_FIELDS = ("sparsity", "sparsity_pattern", "sparsity_criterion")
SHAPE_FIELDS = ("rank_ratio", "decomposition", "pruning_ratio", "importance", *SPARSITY_FIELDS)


def _without(names: tuple[str, ...]) -> dict[str, Any]:
    """Return the defaults of some fields."""
    return {name: getattr(UNTOUCHED, name) for name in names}


def _pattern_sparsity(pattern: str, sparsity: float) -> float:
    """Return the fraction of zeros of a pattern, `sparsity` if it is unstructured."""
    if pattern == "unstructured":
        return sparsity
    kept, group = map(int, pattern.split(":"))
    return 1 - kept / group

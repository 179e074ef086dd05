"""What is done to a model: one `ModuleConfig` per module and the distillation that recovers it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

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
SCHEDULES = ("one_shot", "linear", "cubic")
APART_BITS = 7  # widths whose zero-points stay beside the integers, since the difference of both would not fit


@dataclass(frozen=True, order=True)
class ModuleConfig:
    """What is done to one module; the defaults leave it untouched.

    Attributes:
        weight_bits: 2 to 8 (integers with scales), 16 (float16, or bfloat16 where that loses less) or 32 (float32).
        activation_bits: 8 runs the integer kernel of the target on 8-bit inputs, 16 rounds the inputs to 16-bit integers (for
            processors that compute on them), 32 keeps them float.
        group_size: 0 for one scale per output channel, n for one per n consecutive inputs of a channel, -1 for one per tensor.
        rank_ratio: kept fraction of the largest rank that the (pruned) weight can have; 1 does not factorise.
        pruning_ratio: removed fraction of the units (filters, neurons, heads, experts) of the channel group whose root this is.
        symmetric: zero-point 0 (weights in [-quant_max, quant_max]) or a zero-point per scale.
        weight_range: how the scale is chosen: "squared_error" (grid), "golden_section", "min_max", "percentile" or "entropy".
        algorithm: how weights are rounded: "nearest", "gptq", "adaround", or "auto": what loses least of the module's own output.
        activation_mode: "dynamic" (range of each tensor), "static" (calibrated) or "auto" (static for convolutions, else dynamic).
        smoothing: SmoothQuant's alpha on the normalisation in front (a knob of the first module that reads it); 0 is off.
        decomposition: what the factors are: "svd", "whitened" by the calibration Gram matrix, for convolutions also "tucker"
            (Tucker-2) and "spatial" (columns, then rows); "auto" is whitened where there are calibration inputs, else svd.
        importance: by which criterion the units of the group are ranked whose root this is; those that need the inputs of the layers
            that read the group fall back to "l2" where these are not known.
        reconstruction: when input channels are removed, the columns that are left make up for them by least squares.
        sparsity: fraction of zeros among the (pruned, factorised) weights; N:M patterns fix it at 1 - N/M.
        sparsity_pattern: "unstructured", or N:M: N of every M consecutive inputs of a row are kept.
        sparsity_criterion: how zeros are chosen; "auto" is SparseGPT where there are calibration inputs, else magnitude.
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

    def effective(self) -> ModuleConfig:
        """The config that is executed: fields that do nothing beside the others take their defaults.

        Integer kernels need integer weights, float weights have no scales, and float activations neither a mode nor outliers
        that hurt. Zeros among integer weights need a zero-point of 0.
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
        """Only bits, scales and rounding: without rank, pruning and zeros."""
        return replace(self, reconstruction=True, **_without(SHAPE_FIELDS))

    def factorised(self) -> ModuleConfig:
        """Only the rank and how it is reached."""
        return ModuleConfig(
            rank_ratio=self.rank_ratio, decomposition=self.decomposition
        ).effective()

    def sparsified(self) -> ModuleConfig:
        """Only the zeros."""
        return ModuleConfig(**{name: getattr(self, name) for name in SPARSITY_FIELDS}).effective()

    def pruned(self) -> ModuleConfig:
        """Only the units removed from the group."""
        return ModuleConfig(
            pruning_ratio=self.pruning_ratio, importance=self.importance
        ).effective()

    def integer(self, kind: str) -> bool:
        """Whether a module of that kind runs on an integer kernel; the factors of a convolution run on float ones."""
        return self.activation_bits == 8 and (
            kind == "linear" or (kind == "conv" and self.rank_ratio >= 1)
        )

    def executed(self, kind: str) -> ModuleConfig:
        """Return the same, with float activations where the module has no kernel for others: lookups, gates, factors of a convolution.

        Args:
            kind: of the module. A linear layer that shares the weight of an embedding is one of these.
        """
        rounded = self.activation_bits != 32
        floats = kind not in ("linear", "conv") or (
            kind == "conv" and self.rank_ratio < 1 and self.activation_bits == 8
        )
        return replace(self, activation_bits=32).effective() if rounded and floats else self

    def for_kernel(self, kind: str, form: IntegerForm) -> ModuleConfig:
        """Return the config whose integers the kernel of a module of that kind can hold.

        Weights as wide as `form` leave no room for multiples of a row's scale, so that their groups share it. Integer convolutions
        take one zero-point for all channels, so that wide weights of theirs are symmetric.
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
        """Whether 8- or 16-bit inputs take a calibrated range."""
        return (
            self.activation_bits == 16
            or self.activation_mode == "static"
            or (self.activation_mode == "auto" and kind == "conv")
        )

    def to_json(self) -> dict[str, Any]:
        """Only the fields that differ from the defaults."""
        return {k: v for k, v in asdict(self).items() if v != getattr(UNTOUCHED, k)}

    @classmethod
    def from_json(cls, where: str, data: Mapping[str, Any]) -> ModuleConfig:
        """Reverse of `to_json`; ValueError names unknown fields."""
        unknown = set(data) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"{where} has unknown fields {sorted(unknown)}")
        return cls(**data)


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
    """The defaults of some fields."""
    return {name: getattr(UNTOUCHED, name) for name in names}


def _pattern_sparsity(pattern: str, sparsity: float) -> float:
    """The fraction of zeros: what N:M says, else `sparsity`."""
    if pattern == "unstructured":
        return sparsity
    kept, group = map(int, pattern.split(":"))
    return 1 - kept / group


@dataclass(frozen=True)
class Distillation:
    """Recovery by `alpha * task loss + (1 - alpha) * temperature^2 * KL(teacher, student)` (Hinton et al. 2015) for `steps`.

    Attributes:
        alpha: weight of the task's own loss; without targets the other term is all there is.
        temperature: of the softmax on both sides.
        steps: optimizer steps; 0 does not train.
        schedule: other than "one_shot", pruning ratios and sparsities grow to their values over `rounds` parts of the steps.
        restarts: steps after which the cosine schedule starts anew (Loshchilov and Hutter 2017), where a search looked whether to go on.
        features: weight of the relative squared error between matched modules' outputs (Romero et al. 2015).
        sequences: share of the steps on sequences that the teacher of a causal language model continues (Kim and Rush 2016).
        learning_rate: of the weights; scales and float parts have theirs in proportion.
        accumulation: batches per optimizer step.
        checkpointing: repeated blocks are computed again in the backward pass, which takes less memory.
    """

    alpha: float = 0.5
    temperature: float = 2.0
    steps: int = 0
    schedule: str = "one_shot"
    rounds: int = 4
    restarts: tuple[int, ...] = ()
    features: float = 0.0
    sequences: float = 0.0
    learning_rate: float = 2e-4
    accumulation: int = 1
    checkpointing: bool = False

    def to_json(self) -> dict[str, Any]:
        """Alpha, temperature, steps, and what differs from the defaults; `from_json` reverses it."""
        always = ("alpha", "temperature", "steps")
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
        return {
            k: v
            for k, v in values.items()
            if k in always or getattr(self, k) != getattr(UNTRAINED, k)
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Distillation:
        """Reverse of `to_json`."""
        return cls(**{**data, "restarts": tuple(data.get("restarts", ()))})


UNTRAINED = Distillation()


@dataclass(frozen=True)
class Candidate:
    """One compressed model: (name, config) of every module that is not left untouched, sorted by name, and the distillation."""

    modules: tuple[tuple[str, ModuleConfig], ...] = ()
    distillation: Distillation = Distillation()

    @classmethod
    def of(
        cls, modules: Mapping[str, ModuleConfig], distillation: Distillation | None = None
    ) -> Candidate:
        """The candidate with the effective configs of `modules`; equal compressions give equal candidates."""
        chosen = {name: config.effective() for name, config in modules.items()}
        kept = tuple(
            sorted((name, config) for name, config in chosen.items() if config != UNTOUCHED)
        )
        return cls(kept, distillation or Distillation())

    @cached_property
    def _by_name(self) -> Mapping[str, ModuleConfig]:
        return dict(self.modules)

    def config(self, name: str) -> ModuleConfig:
        """The config of one module."""
        return self._by_name.get(name, UNTOUCHED)

    @cached_property
    def digest(self) -> str:
        """Hash of what is done; equal candidates have equal ones, in every process."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:24]

    def to_json(self) -> dict[str, Any]:
        """Plain types; `from_json` reverses it."""
        modules = {name: config.to_json() for name, config in self.modules}
        return {"modules": modules, "distillation": self.distillation.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """Reverse of `to_json`."""
        modules = {
            name: ModuleConfig.from_json(f"candidate: module {name}", config)
            for name, config in data["modules"].items()
        }
        return cls.of(modules, Distillation.from_json(data.get("distillation", {})))

"""What is done to a model: one `ModuleConfig` per module and the distillation that recovers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, order=True)
class ModuleConfig:
    """What is done to one module; the defaults leave it untouched.

    Attributes:
        weight_bits: 4 or 8 (symmetric integers, one scale per output channel), 16 (float16) or 32 (float32).
        activation_bits: 8 runs the integer kernel of the target on 8-bit activations, 32 keeps them float.
        rank_ratio: kept fraction of min(rows, columns) of the (pruned) weight matrix; 1 does not factorise.
        pruning_ratio: removed fraction of the units (filters, neurons, heads) of the channel group whose root this is.
    """

    weight_bits: int = 32
    activation_bits: int = 32
    rank_ratio: float = 1.0
    pruning_ratio: float = 0.0

    def effective(self) -> ModuleConfig:
        """The config that is executed: integer kernels need integer weights, so 16 and 32 bits keep float activations."""
        if self.weight_bits >= 16 and self.activation_bits != 32:
            return ModuleConfig(self.weight_bits, 32, self.rank_ratio, self.pruning_ratio)
        return self

    def to_json(self) -> dict[str, float]:
        """Only the fields that differ from the defaults."""
        return {k: v for k, v in asdict(self).items() if v != getattr(UNTOUCHED, k)}


UNTOUCHED = ModuleConfig()


@dataclass(frozen=True)
class Distillation:
    """Recovery by `alpha * task loss + (1 - alpha) * temperature^2 * KL(teacher, student)` (Hinton et al. 2015) for `steps`."""

    alpha: float = 0.5
    temperature: float = 2.0
    steps: int = 0


@dataclass(frozen=True)
class Candidate:
    """One compressed model: (name, config) of every module that is not left untouched, sorted by name, and the distillation."""

    modules: tuple[tuple[str, ModuleConfig], ...] = ()
    distillation: Distillation = Distillation()

    @classmethod
    def of(cls, modules: Mapping[str, ModuleConfig], distillation: Distillation | None = None) -> Candidate:
        """The candidate with the effective configs of `modules`; equal compressions give equal candidates."""
        chosen = {name: config.effective() for name, config in modules.items()}
        kept = tuple(sorted((name, config) for name, config in chosen.items() if config != UNTOUCHED))
        return cls(kept, distillation or Distillation())

    def config(self, name: str) -> ModuleConfig:
        """The config of one module."""
        return dict(self.modules).get(name, UNTOUCHED)

    def to_json(self) -> dict[str, Any]:
        """Plain types; `from_json` reverses it."""
        modules = {name: config.to_json() for name, config in self.modules}
        return {"modules": modules, "distillation": asdict(self.distillation)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """Reverse of `to_json`."""
        known = {field.name for field in fields(ModuleConfig)}
        for name, config in data["modules"].items():
            if set(config) - known:
                raise ValueError(f"candidate: module {name} has unknown fields {sorted(set(config) - known)}")
        modules = {name: ModuleConfig(**config) for name, config in data["modules"].items()}
        return cls.of(modules, Distillation(**data.get("distillation", {})))

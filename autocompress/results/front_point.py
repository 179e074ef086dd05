"""Hold one point of a front: its candidate, its numbers and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from autocompress.candidate import Candidate
from autocompress.results.measurement import Measurement

# Deployed minus simulated accuracy from which a point is marked, of a metric up to 1.
MARKED_GAP = 0.005


class ModulePart(NamedTuple):
    """Hold the part that one module has in a file.

    Attributes:
        size_bytes: of its tensors in the file.
        latency_ms: its share of the latency by the latency model; None without one.
    """

    size_bytes: int
    latency_ms: float | None = None


@dataclass(frozen=True)
class FrontPoint:
    """Hold one point of a front.

    Attributes:
        trial: number of its trial.
        candidate: what was done to each module.
        measured: numbers of its file.
        predicted: numbers that the search had predicted.
        artifact: its folder, relative to the run folder.
        deployed_gap: measured minus simulated accuracy.
        fragile: corruptions of inputs under which it loses clearly more accuracy than on clean
            inputs.
        is_uniform: True for a first file, of which no trial was chosen for the front.
        was_predicted: True if its latency was predicted before it was measured.
        parts: part of each module in the file; empty of an earlier version.
        tower_losses: accuracy that each tower loses when it alone is compressed, of recommended
            points of tasks that name their towers.
    """

    trial: int
    candidate: Candidate
    measured: Measurement
    predicted: Measurement
    artifact: str
    deployed_gap: float = 0.0
    fragile: tuple[str, ...] = ()
    is_uniform: bool = False
    was_predicted: bool = True
    parts: Mapping[str, ModulePart] = field(default_factory=dict)
    tower_losses: Mapping[str, float] = field(default_factory=dict)

    @property
    def marked(self) -> bool:
        """Return True if measured and simulated accuracy differ by more than MARKED_GAP."""
        return abs(self.deployed_gap) > MARKED_GAP * self.measured.accuracy_scale

    def to_json(self) -> dict[str, Any]:
        """Return one entry of front.json's points."""
        figures = ("size_bytes", "latency_ms", "accuracy")
        predicted = {key: getattr(self.predicted, key) for key in figures}
        return {
            "trial": self.trial,
            "candidate": self.candidate.to_json(),
            **self.measured.to_json(),
            "predicted": predicted,
            "deployed_gap": self.deployed_gap,
            "marked": self.marked,
            "fragile": list(self.fragile),
            "is_uniform": self.is_uniform,
            "was_predicted": self.was_predicted,
            "artifact": self.artifact,
            "parts": {name: list(part) for name, part in self.parts.items()},
            "tower_losses": dict(self.tower_losses),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FrontPoint:
        """Return the point that `to_json` wrote.

        Args:
            data: one entry of front.json's points.

        Returns:
            The point.
        """
        return cls(
            int(data["trial"]),
            Candidate.from_json(data["candidate"]),
            Measurement.from_json(data),
            Measurement.from_json(data["predicted"]),
            data["artifact"],
            float(data.get("deployed_gap", 0.0)),
            tuple(data.get("fragile", ())),
            bool(data.get("is_uniform", False)),
            bool(data.get("was_predicted", True)),
            {name: ModulePart(*part) for name, part in data.get("parts", {}).items()},
            dict(data.get("tower_losses", {})),
        )

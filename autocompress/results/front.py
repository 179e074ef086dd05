"""What a search returns and leaves on disk: measurements, the Pareto front, and the files of the run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate
from autocompress.errors import LimitError, RunFolderError
from autocompress.results.files import read_json
from autocompress.results.limits import TOLERANCE, Limits, are_kept, check_pick, distance
from autocompress.results.pareto import non_dominated

RUN_FILE, JOURNAL_FILE, TRIALS_FILE = "run.json", "study.journal", "trials.csv"
SENSITIVITY_FILE, FRONT_FILE, REPORT_FILE, STUDENT_FILE = (
    "sensitivity.csv",
    "front.json",
    "report.html",
    "student.safetensors",
)
TABLE_FILE = "latency_table.json"
MODEL_FILE, RECIPE_FILE, WEIGHTS_FILE, NOTES_FILE = (
    "model.onnx",
    "recipe.yaml",
    "model.safetensors",
    "README.md",
)
MARKED_GAP = 0.005  # deployed minus simulated accuracy from which a point is marked
LATENCY_WORDS = {
    "measured": "Latency is the ratio to the float file, run in turn with it, times the float file's latency at the start of the search.",
    "analytic": "Latency is computed from the operators of the file and the published figures of the device; nothing was run there.",
    "table": "Latency is predicted from a table that was measured on another machine; the file was not run there.",
}
TRIAL_COLUMNS = ("number", "state", "size_bytes", "latency_ms", "accuracy", "seconds", "cause")


@dataclass(frozen=True)
class Measurement:
    """One model's numbers; `verified` says that they were measured from its file, otherwise they are the search's predictions.

    `memory_bytes` are the weights as a session holds them: what the file packs may be unpacked when it is loaded. `latency_source` is
    "measured" (in the target's runtime on this machine), "analytic" (computed from the file for an analytic target) or "table" (predicted
    for the machine on which the latency table was measured). `left_out` says of each figure that the metric does not give, such as
    "accuracy (test)", why.
    """

    size_bytes: int
    latency_ms: float
    accuracy: float
    test_accuracy: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    verified: bool = False
    memory_bytes: int | None = None
    latency_source: str = "measured"
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "size_bytes": self.size_bytes,
            "latency_ms": self.latency_ms,
            "accuracy": self.accuracy,
            "test_accuracy": self.test_accuracy,
            "metrics": dict(self.metrics),
            "verified": self.verified,
            "memory_bytes": self.memory_bytes,
            "latency_source": self.latency_source,
            "left_out": dict(self.left_out),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Reverse of `to_json`; missing optional fields take their defaults."""
        return cls(
            int(data["size_bytes"]),
            float(data["latency_ms"]),
            float(data["accuracy"]),
            data.get("test_accuracy"),
            data.get("metrics", {}),
            bool(data.get("verified", False)),
            data.get("memory_bytes"),
            data.get("latency_source", "measured"),
            data.get("left_out", {}),
        )


def left_out_words(measurements: Sequence[Measurement]) -> list[str]:
    """A line for each reason why figures are missing, with their names."""
    figures: dict[str, list[str]] = {}
    for measured in measurements:
        for figure, reason in measured.left_out.items():
            figures.setdefault(reason, []).append(figure)
    return [
        f"left out: {', '.join(dict.fromkeys(names))}: {reason}"
        for reason, names in figures.items()
    ]


@dataclass(frozen=True)
class FrontPoint:
    """One point: its trial, what was done, what was measured, what the search had predicted, and where its files are.

    `deployed_gap` is measured minus simulated accuracy; `marked` when it is larger than MARKED_GAP. `fragile` names the corruptions of
    inputs under which it loses clearly more than on clean ones.
    """

    trial: int
    candidate: Candidate
    measured: Measurement
    predicted: Measurement
    artifact: str
    deployed_gap: float = 0.0
    fragile: tuple[str, ...] = ()

    @property
    def marked(self) -> bool:
        """Whether the deployed accuracy differs from the simulated one by more than 0.5 points."""
        return abs(self.deployed_gap) > MARKED_GAP

    def to_json(self) -> dict[str, Any]:
        """One entry of front.json's points."""
        predicted = {
            key: getattr(self.predicted, key) for key in ("size_bytes", "latency_ms", "accuracy")
        }
        return {
            "trial": self.trial,
            "candidate": self.candidate.to_json(),
            **self.measured.to_json(),
            "predicted": predicted,
            "deployed_gap": self.deployed_gap,
            "marked": self.marked,
            "fragile": list(self.fragile),
            "artifact": self.artifact,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FrontPoint:
        """Reverse of `to_json`."""
        return cls(
            int(data["trial"]),
            Candidate.from_json(data["candidate"]),
            Measurement.from_json(data),
            Measurement.from_json(data["predicted"]),
            data["artifact"],
            float(data.get("deployed_gap", 0.0)),
            tuple(data.get("fragile", ())),
        )


@dataclass(frozen=True)
class Pick:
    """A chosen point; `shortfall` is "" when it meets the limits, else it says by how much it misses them."""

    point: FrontPoint
    shortfall: str = ""


@dataclass(frozen=True)
class ParetoFront:
    """The verified points, none of which another one dominates in size, latency, accuracy and `objectives` (extra metrics that the
    search maximised), sorted by size."""

    baseline: Measurement
    points: tuple[FrontPoint, ...]
    dominated: tuple[FrontPoint, ...] = ()
    objectives: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, baseline: Measurement, points: Sequence[FrontPoint], objectives: tuple[str, ...] = ()
    ) -> ParetoFront:
        """Split `points` by dominance of what was measured."""
        ordered = sorted(points, key=lambda p: (p.measured.size_bytes, p.trial))
        keep = non_dominated(
            [
                (p.measured.size_bytes, p.measured.latency_ms, *_negated(p, objectives))
                for p in ordered
            ]
        )
        return cls(
            baseline,
            tuple(p for p, k in zip(ordered, keep, strict=True) if k),
            tuple(p for p, k in zip(ordered, keep, strict=True) if not k),
            objectives,
        )

    def __iter__(self) -> Iterator[FrontPoint]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def smallest(self, **limits: Any) -> FrontPoint:
        """The smallest point within the limits (max_size_bytes, max_latency_ms, max_accuracy_drop, floors of metrics), else the nearest."""
        return self.pick("smallest", **limits).point

    def fastest(self, **limits: Any) -> FrontPoint:
        """The fastest point within the limits, else the nearest."""
        return self.pick("fastest", **limits).point

    def most_accurate(self, **limits: Any) -> FrontPoint:
        """The most accurate point within the limits, else the nearest."""
        return self.pick("accurate", **limits).point

    def knee(self, **limits: Any) -> FrontPoint:
        """The point within the limits that is closest to the ideal of smallest, fastest and most accurate, else the nearest."""
        return self.pick("knee", **limits).point

    def pick(self, what: str, **limits: Any) -> Pick:
        """The point that `smallest`, `fastest`, `accurate` or `knee` chooses, or the nearest; never empty-handed while there is a point."""
        if not self.points:
            raise LimitError("front: there is no point; run more trials or loosen the limits")
        check_pick(limits, self.baseline.metrics)
        asked = Limits(**{name: value for name, value in limits.items() if value is not None})
        missed = {p.trial: self._violations(p, asked) for p in self.points}
        within = [p for p in self.points if are_kept(missed[p.trial], TOLERANCE)]
        key = self._key(what)
        if within:
            return Pick(min(within, key=key))
        nearest = min(self.points, key=lambda p: distance(missed[p.trial]))
        words = ", ".join(self._misses(nearest, asked, missed[nearest.trial]))
        return Pick(nearest, f"no point meets the limits; the nearest misses {words}")

    def _key(self, what: str) -> Any:
        def coordinates(p: FrontPoint) -> NDArray[np.float64]:
            return np.array(
                [
                    np.log(p.measured.size_bytes),
                    np.log(p.measured.latency_ms),
                    *_negated(p, self.objectives),
                ]
            )

        everything = np.stack([coordinates(p) for p in self.points])
        ideal, span = everything.min(0), np.maximum(np.ptp(everything, axis=0), 1e-12)

        keys = {
            "smallest": lambda p: p.measured.size_bytes,
            "fastest": lambda p: p.measured.latency_ms,
            "accurate": lambda p: (-p.measured.accuracy, p.measured.size_bytes),
            "knee": lambda p: float(np.linalg.norm((coordinates(p) - ideal) / span)),
        }
        if what not in keys:
            raise LimitError(f"front: pick {what!r} is unknown; valid: {', '.join(keys)}")
        return keys[what]

    def _violations(self, point: FrontPoint, limits: Limits) -> dict[str, float]:
        m = point.measured
        drop = self.baseline.accuracy - m.accuracy
        return limits.violations(m.size_bytes, m.latency_ms, drop, m.metrics)

    def _misses(
        self, point: FrontPoint, limits: Limits, violations: Mapping[str, float]
    ) -> list[str]:
        """Say what a point misses, and by how much."""
        m, words = point.measured, []
        for name, by in violations.items():
            if by <= TOLERANCE:
                continue
            if name == "max_size":
                over = by * (limits.max_size_bytes or 0.0)
                words.append(f"size {m.size_bytes} B by {over:.0f} B")
            elif name == "max_latency":
                over = by * (limits.max_latency_ms or 0.0)
                words.append(f"latency {m.latency_ms:.3f} ms by {over:.3f} ms")
            elif name == "max_accuracy_drop":
                drop = self.baseline.accuracy - m.accuracy
                words.append(f"accuracy drop {drop:.4f} by {by:.4f}")
            else:
                metric = name.removeprefix("min_metric ")
                if metric in m.metrics:
                    words.append(f"{metric} {m.metrics[metric]:.4f} by {by:.4f}")
                else:
                    words.append(f"{metric}, which was left out")
        return words

    def left_out(self) -> list[str]:
        """Return a line for each reason why figures of the float model or of points are missing."""
        return left_out_words([self.baseline, *(point.measured for point in self.points)])

    def to_json(self) -> dict[str, Any]:
        """Content of front.json."""
        return {
            "baseline": self.baseline.to_json(),
            "objectives": list(self.objectives),
            "points": [point.to_json() for point in self.points],
            "dominated": [point.to_json() for point in self.dominated],
        }


def _negated(point: FrontPoint, objectives: Sequence[str]) -> list[float]:
    """Accuracy and the extra metrics, minimised."""
    return [-point.measured.accuracy, *(-point.measured.metrics[name] for name in objectives)]


def read_front(folder: Path) -> ParetoFront:
    """The front of a run folder."""
    data = read_json(folder / FRONT_FILE)
    try:
        return ParetoFront(
            Measurement.from_json(data["baseline"]),
            tuple(FrontPoint.from_json(p) for p in data["points"]),
            tuple(FrontPoint.from_json(p) for p in data.get("dominated", [])),
            tuple(data.get("objectives", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{folder / FRONT_FILE}: damaged ({type(error).__name__}: {error}); run the search again to rebuild it"
        ) from error


def earlier_front(folder: Path) -> ParetoFront | None:
    """The front that a run folder holds so far; None where there is none, or its file is damaged and will be written anew."""
    try:
        return read_front(folder)
    except RunFolderError:
        return None


@dataclass(frozen=True)
class SearchResult:
    """The front of a finished search, the folder that holds everything, and the limits that were asked for."""

    front: ParetoFront
    folder: Path
    limits: Limits

    @property
    def shortfall(self) -> str:
        """By how much the nearest point misses the limits; "" when a point meets them."""
        return self.front.pick("knee", **self.limits.pick_limits()).shortfall

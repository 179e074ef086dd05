"""Describe the points of a small front, one of which is dominated, for tests."""

from __future__ import annotations

from autocompress import Candidate, FrontPoint, Measurement, ModuleConfig

BASE = Measurement(1000, 2.0, 0.9, 0.89, verified=True)


def point(trial: int, size: int, latency: float, accuracy: float, **config: float) -> FrontPoint:
    measured = Measurement(size, latency, accuracy, accuracy, verified=True)
    return FrontPoint(
        trial,
        Candidate.of({"a": ModuleConfig(**config)}),
        measured,
        measured,
        f"models/{trial:04d}",
    )


POINTS = [
    point(1, 500, 1.0, 0.9, weight_bits=8),
    point(2, 250, 0.9, 0.895, weight_bits=4),
    point(3, 200, 0.8, 0.7, weight_bits=4, pruning_ratio=0.5),
    point(4, 600, 1.5, 0.6, rank_ratio=0.5),
]

"""Check which points of a front are marked."""

from __future__ import annotations

from typing import Any

import pytest

from autocompress import Candidate, Distillation, ModuleConfig
from autocompress.results.front_point import MARKED_GAP, FrontPoint
from autocompress.results.measurement import Measurement

CANDIDATE = Candidate.of({"fc": ModuleConfig(4, 8)}, Distillation(0.5, 2.0, 10))


def point(trial: int, size: int, ms: float, accuracy: float, **more: Any) -> FrontPoint:
    measured = Measurement(size, ms, accuracy, metrics={"f1": more.pop("f1", 0.5)}, verified=True)
    return FrontPoint(trial, CANDIDATE, measured, Measurement(size, ms, accuracy), "a", **more)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [(0.0, False), (MARKED_GAP, False), (0.0051, True), (-0.0051, True)],
)
def test_points_whose_file_differs_from_the_simulation_are_marked(
    gap: float, expected: bool
) -> None:
    assert point(1, 1, 1.0, 0.5, deployed_gap=gap).marked is expected

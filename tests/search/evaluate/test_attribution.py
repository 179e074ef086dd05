"""What each tower loses alone: which points and towers are judged, and what is written."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from autocompress import Candidate, FrontPoint, Measurement, ModuleConfig
from autocompress.results.front import ParetoFront
from autocompress.search.evaluate import attribution as module
from autocompress.search.evaluate.attribution import tower_candidates, with_tower_losses

BASE = Measurement(1000, 10.0, 0.9)
TOWERS = {"a": "vision", "b": "vision", "c": "language", "d": "head"}
LOST = {"a": 0.02, "b": 0.01, "c": 0.05, "d": 0.0}


def point(trial: int, size: int, latency: float, accuracy: float, **bits: int) -> FrontPoint:
    configs = {name: ModuleConfig(number) for name, number in bits.items()}
    measured = Measurement(size, latency, accuracy)
    return FrontPoint(trial, Candidate.of(configs), measured, measured, f"models/{trial:04d}")


FRONT = ParetoFront.of(
    BASE,
    [
        point(1, 300, 5.0, 0.80, a=4, b=4, c=4, d=32),
        point(2, 500, 6.0, 0.86, a=8, b=32, c=4),
        point(3, 550, 9.0, 0.865, a=16, c=16),
        point(4, 900, 9.5, 0.89, a=8),
    ],
)


@dataclass
class MadeUpTask:
    towers: Any
    validation: Any = ()
    extra_metrics: Any = None


class MadeUpProblem:
    """Lose a fixed accuracy per changed module."""

    def __init__(self, towers: Any = TOWERS) -> None:
        self.task = MadeUpTask(towers, [], {"auc": None})
        self.float_files = SimpleNamespace(pass_s=1.0)
        modules = [SimpleNamespace(name=name, tower=tower) for name, tower in TOWERS.items()]
        self.layout = SimpleNamespace(module_map=modules)
        self.device, self.baseline, self.judged = None, BASE, list[Candidate]()
        self.stitcher = SimpleNamespace(apply=lambda candidate: candidate)

    def evaluate(self, task: Any, model: Candidate, split: Any, device: Any) -> Any:
        self.judged.append(model)
        assert task.extra_metrics == {}, "another metric may fail on a part of the split"
        lost = sum(LOST[name] for name, _ in model.modules)
        return SimpleNamespace(accuracy=BASE.accuracy - lost), None


@pytest.fixture
def problem(monkeypatch: pytest.MonkeyPatch) -> MadeUpProblem:
    made = MadeUpProblem()
    monkeypatch.setattr(module, "evaluate_model", made.evaluate)
    return made


def test_each_tower_is_judged_alone(problem: Any) -> None:
    parts = tower_candidates(FRONT.points[0].candidate, problem)
    assert {tower: set(dict(part.modules)) for tower, part in parts.items()} == {
        "vision": {"a", "b"},
        "language": {"c"},
    }


def test_recommended_points_tell_what_their_towers_lose(problem: Any) -> None:
    front = with_tower_losses(FRONT, problem, [{}])
    losses = {p.trial: dict(p.tower_losses) for p in front.points}
    assert losses[1] == pytest.approx({"vision": 0.03, "language": 0.05})
    assert losses[4] == pytest.approx({"vision": 0.02})
    knee = FRONT.knee().trial
    assert {trial for trial, lost in losses.items() if lost} == {1, 4, knee}
    assert len(problem.judged) == len(set(problem.judged))  # equal towers are judged once
    again = ParetoFront(
        front.baseline, tuple(FrontPoint.from_json(p.to_json()) for p in front.points)
    )
    assert [p.tower_losses for p in again] == [p.tower_losses for p in front]


def test_nothing_is_judged_without_towers_or_time(
    problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = with_tower_losses(FRONT, problem, [{}], lambda: 0.0)
    assert not any(point.tower_losses for point in late.points)
    guessed = MadeUpProblem(None)
    monkeypatch.setattr(module, "evaluate_model", guessed.evaluate)
    assert with_tower_losses(FRONT, guessed, [{}]) is FRONT  # type: ignore[arg-type]
    assert not problem.judged
    assert not guessed.judged

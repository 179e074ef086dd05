"""Measure what each tower of a model loses when it alone is compressed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.errors import NotComputableError
from autocompress.measure.accuracy import evaluate_model
from autocompress.results.front import ParetoFront
from autocompress.search.problem.problem import Problem
from autocompress.task.batches import Inputs, take_samples
from autocompress.task.user_code import UserCodeError

PICKS = ("smallest", "fastest", "knee", "accurate")  # the points that a user would take
SAMPLES = 512  # of the validation split, in whole batches
LONGER = 2.0  # than expected: room for an evaluation


def with_tower_losses(
    front: ParetoFront,
    problem: Problem,
    limits: Sequence[Mapping[str, Any]],
    left_s: Callable[[], float] = lambda: math.inf,
) -> ParetoFront:
    """Return a front whose recommended points tell what each tower loses.

    Each tower is compressed as in the point, without recovery, while all others stay as they are.
    Its loss is that against the float model, on the same samples of the validation split, in the
    simulation. Losses need not add up to that of the point.

    Args:
        front: verified points.
        problem: task and stitcher. Nothing is measured unless its task names its towers.
        limits: those within which points are recommended, as `ParetoFront.pick` takes them.
        left_s: seconds that are left; a tower without time is left out.

    Returns:
        The front. Losses that are known from earlier stay.
    """
    if problem.task.towers is None or not front.points:
        return front
    wanted = {front.pick(what, **one).point.trial for one in limits for what in PICKS}
    judge = _Judge(problem, left_s, problem.float_files.pass_s)
    points = []
    for point in front.points:
        losses = {}
        parts = tower_candidates(point.candidate, problem) if point.trial in wanted else {}
        for tower, candidate in parts.items():
            whole, left = judge(Candidate()), judge(candidate)
            if whole is not None and left is not None:
                losses[tower] = whole - left
        points.append(replace(point, tower_losses={**point.tower_losses, **losses}))
    problem.stitcher.apply(Candidate())  # what it holds of a candidate leaves the memory
    return replace(front, points=tuple(points))


def tower_candidates(candidate: Candidate, problem: Problem) -> dict[str, Candidate]:
    """Return what is done to each tower alone.

    Args:
        candidate: that changes some modules.
        problem: knows the tower of each module.

    Returns:
        By tower; those that stay as they are are left out.
    """
    towers = {module.name: module.tower for module in problem.layout.module_map}
    parts: dict[str, dict[str, ModuleConfig]] = {}
    for name, config in candidate.modules:
        if config.effective() != ModuleConfig().effective():
            parts.setdefault(towers[name], {})[name] = config
    return {tower: Candidate.of(configs) for tower, configs in parts.items()}


@dataclass
class _Judge:
    """Give the simulated accuracy of candidates, each once; points often share a tower.

    Attributes:
        problem: task and stitcher.
        left_s: seconds that are left.
        slowest_s: seconds of the slowest evaluation so far, at first of a pass of the float file.
    """

    problem: Problem
    left_s: Callable[[], float]
    slowest_s: float
    known: dict[Candidate, float | None] = field(default_factory=dict)

    def __call__(self, candidate: Candidate) -> float | None:
        """Return the accuracy of a candidate; None without time, or where there is none.

        A metric may fail on a part of the split, or on a tower that was not recovered.
        """
        if candidate not in self.known:
            if self.left_s() < LONGER * self.slowest_s:
                return None
            begun = time.monotonic()
            # Another metric may fail on a part of the split, and is not read here.
            task = replace(self.problem.task, extra_metrics={})
            device = self.problem.device
            model = self.problem.stitcher.apply(candidate)
            accuracy: float | None = None
            with suppress(NotComputableError, UserCodeError):
                accuracy = evaluate_model(task, model, self._samples, device)[0].accuracy
            self.known[candidate] = accuracy
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
        return self.known[candidate]

    @cached_property
    def _samples(self) -> list[tuple[Inputs, Any]]:
        return take_samples(self.problem.task.validation, SAMPLES, whole=True)

"""Hold what a search returns: the Pareto front, its points, and how to choose one of them.

The end of a search writes front.json with these classes; reports and exports read it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.argument_types import path
from autocompress.errors import LimitError, RunFolderError
from autocompress.results.files import FRONT_FILE, read_json
from autocompress.results.front_point import FrontPoint
from autocompress.results.limits import Limits, are_kept, check_pick, distance
from autocompress.results.measurement import Measurement, left_out_words, score_words
from autocompress.results.pareto import non_dominated


@dataclass(frozen=True)
class Pick:
    """Hold a chosen point.

    Attributes:
        point: the point.
        shortfall: by how much it misses the limits, in words; "" if it meets them.
    """

    point: FrontPoint
    shortfall: str = ""


@dataclass(frozen=True)
class ParetoFront:
    """Hold the verified points of a search, sorted by size.

    Attributes:
        baseline: the float model.
        points: those that no other one dominates in size, latency, accuracy and `objectives`.
        dominated: the other verified points.
        objectives: extra metrics that the search maximised.
    """

    baseline: Measurement
    points: tuple[FrontPoint, ...]
    dominated: tuple[FrontPoint, ...] = ()
    objectives: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        baseline: Measurement,
        points: Sequence[FrontPoint],
        objectives: tuple[str, ...] = (),
        aside: Collection[int] = (),
    ) -> ParetoFront:
        """Return the front of some points, split by dominance of their measured numbers.

        Args:
            baseline: the float model.
            points: verified points in any order.
            objectives: extra metrics that count too, maximised.
            aside: numbers of trials whose points dominate nothing and count as dominated.

        Returns:
            The front; of equal points the one of the earlier trial stays.
        """
        inside = [point for point in points if point.trial not in aside]
        ordered = sorted(inside, key=lambda p: (p.measured.size_bytes, p.trial))
        values = []
        for point in ordered:
            measured = point.measured
            values.append((measured.size_bytes, measured.latency_ms, *_negated(point, objectives)))
        best: list[FrontPoint] = []
        dominated: list[FrontPoint] = []
        for point, is_best in zip(ordered, non_dominated(values), strict=True):
            (best if is_best else dominated).append(point)
        dominated += [point for point in points if point.trial in aside]
        return cls(baseline, tuple(best), tuple(dominated), objectives)

    def __iter__(self) -> Iterator[FrontPoint]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def smallest(self, **limits: Any) -> FrontPoint:
        """Return the smallest point within some limits, else the nearest to them.

        Args:
            limits: as `pick`.

        Returns:
            The point.

        Raises:
            LimitError: a limit is unknown or no number, or there is no point.
        """
        return self.pick("smallest", **limits).point

    def fastest(self, **limits: Any) -> FrontPoint:
        """Return the fastest point within some limits, else the nearest to them.

        Args:
            limits: as `pick`.

        Returns:
            The point.

        Raises:
            LimitError: a limit is unknown or no number, or there is no point.
        """
        return self.pick("fastest", **limits).point

    def most_accurate(self, **limits: Any) -> FrontPoint:
        """Return the most accurate point within some limits, else the nearest to them.

        Args:
            limits: as `pick`.

        Returns:
            The point.

        Raises:
            LimitError: a limit is unknown or no number, or there is no point.
        """
        return self.pick("accurate", **limits).point

    def knee(self, **limits: Any) -> FrontPoint:
        """Return the most balanced point within some limits, else the nearest to them.

        It is the point closest to the ideal that is smallest, fastest and most accurate at once, in
        coordinates scaled to the front's range.

        Args:
            limits: as `pick`.

        Returns:
            The point.

        Raises:
            LimitError: a limit is unknown or no number, or there is no point.
        """
        return self.pick("knee", **limits).point

    def pick(self, what: str, **limits: Any) -> Pick:
        """Return one point of the front.

        Args:
            what: "smallest", "fastest", "accurate" or "knee".
            limits: max_size_bytes, max_latency_ms (ms), max_memory_bytes (of activations),
                max_accuracy_drop (units of the metric) and floors (metric name -> least value).

        Returns:
            The best point within the limits, of the front `under` them; the point of it that misses
            them least if there is none.

        Raises:
            LimitError: a limit or `what` is unknown, or there is no point.
        """
        if not self.points:
            raise LimitError("front: there is no point; run more trials or loosen the limits")
        asked = self._asked(limits)
        front = self._under(asked)
        points = front.points
        missed = {p.trial: self._violations(p, asked) for p in points}
        within = [p for p in points if are_kept(missed[p.trial])]
        key = front._key(what)
        if within:
            return Pick(min(within, key=key))
        scale = self.baseline.accuracy_scale
        nearest = min(points, key=lambda p: distance(missed[p.trial], scale))
        words = "; ".join(self._misses(nearest, asked, missed[nearest.trial]))
        return Pick(nearest, f"no point meets the limits; the nearest has {words}")

    def within(self, **limits: Any) -> tuple[FrontPoint, ...]:
        """Return the points within some limits.

        Args:
            limits: as `pick`.

        Returns:
            The points by growing size; none if no point meets the limits.

        Raises:
            LimitError: a limit is unknown or no number.
        """
        asked = self._asked(limits)
        points = self._under(asked).points
        return tuple(p for p in points if are_kept(self._violations(p, asked)))

    def under(self, **limits: Any) -> ParetoFront:
        """Return the same points, split by dominance under some limits.

        A point that misses a limit of memory, or of a metric that is no objective, hides none that
        keeps it, and counts as dominated. Other limits change nothing.

        Args:
            limits: as `pick`.

        Returns:
            The front; the same one where no point keeps such a limit.

        Raises:
            LimitError: a limit is unknown or no number.
        """
        return self._under(self._asked(limits))

    def _under(self, asked: Limits) -> ParetoFront:
        others, everyone = asked.beside(self.objectives), (*self.points, *self.dominated)
        over = {p.trial for p in everyone if not are_kept(self._violations(p, others))}
        if others == Limits() or len(over) == len(everyone):
            return self
        return ParetoFront.of(self.baseline, everyone, self.objectives, over)

    def _asked(self, limits: Mapping[str, Any]) -> Limits:
        check_pick(limits, self.baseline.metrics)
        own = {name: value for name, value in limits.items() if value is not None}
        return Limits(accuracy=self.baseline.accuracy, **own)

    def _key(self, what: str) -> Any:
        # Errors such as perplexities range over powers of ten, as sizes and latencies do.
        errors = np.array([_negated(p, self.objectives) for p in self.points]).min(0) >= 1

        def coordinates(p: FrontPoint) -> NDArray[np.float64]:
            logs = np.log(p.measured.size_bytes), np.log(p.measured.latency_ms)
            lost = np.array(_negated(p, self.objectives))
            return np.array([*logs, *np.where(errors, np.log(np.where(errors, lost, 1)), lost)])

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
        # A point of an earlier version misses any limit of its memory.
        memory = math.inf if m.activation_bytes is None else m.activation_bytes
        return limits.violations(m.size_bytes, m.latency_ms, drop, m.metrics, memory)

    def _misses(
        self, point: FrontPoint, limits: Limits, violations: Mapping[str, float]
    ) -> list[str]:
        """Say what a point misses, and by how much."""
        m, words = point.measured, []
        for name, by in violations.items():
            if by <= 0:
                continue
            if name == "max_size":
                over = by * (limits.max_size_bytes or 0.0)
                words.append(f"{m.size_bytes} B, {over:.0f} B above the limit")
            elif name == "max_latency":
                over = by * (limits.max_latency_ms or 0.0)
                words.append(f"{m.latency_ms:.3f} ms, {over:.3g} ms above the limit")
            elif name == "max_memory" and m.activation_bytes is None:
                words.append("an unknown memory of activations")
            elif name == "max_memory":
                over = by * (limits.max_memory_bytes or 0.0)
                words.append(f"{m.activation_bytes} B of activations, {over:.0f} B above the limit")
            elif name == "max_accuracy_drop":
                drop = score_words(self.baseline.accuracy - m.accuracy)
                words.append(f"accuracy drop {drop}, {score_words(by)} above the limit")
            else:
                metric = name.removeprefix("min_metric ")
                if metric in m.metrics:
                    value = m.metrics[metric]
                    low, below = score_words(value), score_words(by)
                    words.append(f"{metric} {low}, {below} below the limit")
                else:
                    words.append(f"no {metric}, which was left out")
        return words

    def left_out(self) -> list[str]:
        """Return one line for each reason why figures of any model of the front are missing."""
        return left_out_words([self.baseline, *(point.measured for point in self.points)])

    def to_json(self) -> dict[str, Any]:
        """Return the content of front.json."""
        return {
            "baseline": self.baseline.to_json(),
            "objectives": list(self.objectives),
            "points": [point.to_json() for point in self.points],
            "dominated": [point.to_json() for point in self.dominated],
        }


def _negated(point: FrontPoint, objectives: Sequence[str]) -> list[float]:
    """Return accuracy and the extra metrics with changed signs, to be minimised."""
    return [-point.measured.accuracy, *(-point.measured.metrics[name] for name in objectives)]


def read_front(folder: str | Path) -> ParetoFront:
    """Return the front of a run folder.

    Args:
        folder: of a finished search.

    Returns:
        The front.

    Raises:
        ArgumentError: `folder` is no path.
        RunFolderError: front.json is missing or damaged.
    """
    folder = Path(path("read_front", "folder", folder, "reports/run"))
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
            f"{folder / FRONT_FILE}: damaged ({type(error).__name__}: {error}); "
            "run the search again to rebuild it"
        ) from error


def earlier_front(folder: Path) -> ParetoFront | None:
    """Return the front that a run folder holds so far.

    Args:
        folder: of a search that goes on.

    Returns:
        The front; None if there is none, or its file is damaged and will be written anew.

    Raises:
        RunFolderError: the file is there, and may be good, but cannot be read.
    """
    try:
        return read_front(folder)
    except RunFolderError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return None


@dataclass(frozen=True)
class SearchResult:
    """Hold the result of a search.

    Attributes:
        front: the front.
        folder: the run folder with all files.
        limits: the limits that were asked for.
    """

    front: ParetoFront
    folder: Path
    limits: Limits

    @property
    def shortfall(self) -> str:
        """Return by how much the nearest point misses the limits; "" if a point meets them.

        Where there is no point it says so.
        """
        if not self.front.points:
            return (
                "there is no compressed file: the time was over before the first one; search again "
                "with a longer timeout"
            )
        return self.front.pick("knee", **self.limits.pick_limits()).shortfall

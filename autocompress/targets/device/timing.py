"""Time models in turn with a baseline, so that a busy machine slows both."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .feeds import parts_of, run_once
from .sessions import Opener, Runnable, SessionSettings

QUIET = 0.1  # quantile of times on an undisturbed machine
PASSES = 3
RESAMPLES = 200  # of the bootstrap
WARM_UP = 2  # rounds
ON_PROCESSOR = ("CPUExecutionProvider", "XNNPACK")  # providers
BUSY = 0.25  # disturbance above which the user is warned
LONG_S = 0.004  # runs that take longer are not repeated within a round
SLOW_S = 0.1  # models whose runs take longer have one round of warm-up
ENOUGH_S = 12.0  # for the rounds of a model, beyond which it gets fewer rounds
FEWEST = 6  # rounds of a slow model


Clock = Callable[[], float]  # seconds


def quiet_clock(*settings: SessionSettings) -> Clock:
    """Return the clock of ratios, which is the one that other processes disturb least.

    A session of one thread does all of its work in the thread that calls it. The time of that
    thread does not count while another process has the processor. Not every system counts it
    finely.

    Args:
        settings: of the timed sessions; with several threads in one of them it is wall time.
    """
    alone = all(one.threads == 1 and one.provider in ON_PROCESSOR for one in settings)
    fine = sys.platform in ("linux", "darwin")
    return time.thread_time if alone and fine else time.perf_counter


@dataclass(frozen=True)
class Timing:
    """Hold the latency of a baseline and the ratios of models to it.

    All are 10 % quantiles over the rounds, which are the times of an undisturbed machine. On shared
    machines a neighbour that fills the caches slows a large model more than a small one, and the
    ratio of medians moves by a tenth and more with it. On a quiet machine quantiles repeat better
    too: the ratios of two halves of the rounds differed by 0.55 % against 0.75 %.

    Attributes:
        baseline_ms: milliseconds of the baseline in wall time, whatever clock the ratios are of.
        ratios: of each model to the baseline.
        intervals: bootstrapped 95 % interval of each ratio.
        disturbance: relative excess of the baseline's median over its quantile.
        rounds: number of turns of each model with the baseline.
    """

    baseline_ms: float
    ratios: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    disturbance: float = 0.0
    rounds: tuple[int, ...] = ()

    @property
    def warning(self) -> str:
        """Return a warning for the user if the machine was busy, else ""."""
        if self.disturbance <= BUSY:
            return ""
        widest = 0.0
        for ratio, (low, high) in zip(self.ratios, self.intervals, strict=True):
            widest = max(widest, (high - low) / 2 / ratio)
        return (
            f"the machine was busy: half of the runs of the baseline took {self.disturbance:.0%} "
            f"longer than undisturbed ones "
            f"(widest interval of a ratio: +-{widest:.0%})"
        )


def time_pair(
    baseline: Runnable,
    other: Runnable,
    feed: Mapping[str, Any],
    rounds: int,
    generator: np.random.Generator,
    repeats: int = 3,
    clock: Clock = time.perf_counter,
    warm_up: int = WARM_UP,
) -> NDArray[np.float64]:
    """Time two sessions in turn, in random order within a round.

    Args:
        baseline: first session.
        other: second session.
        feed: inputs by name.
        rounds: after the warm-up.
        generator: draws the order.
        repeats: runs in a row, the fastest of which counts.
        clock: returns seconds.
        warm_up: rounds that do not count.

    Returns:
        (rounds, 2, 2) seconds of baseline and other, each by the clock and in wall time. Those of
        several inputs are added with their weights.
    """
    pair, parts = (baseline, other), [(weight, dict(part)) for weight, part in parts_of(feed)]
    seconds = np.zeros((rounds, 2, 2))
    for turn in range(-warm_up, rounds):
        for i in generator.permutation(2):
            for weight, inputs in parts:
                best = wall = float("inf")
                for _ in range(repeats):
                    started, began = clock(), time.perf_counter()
                    pair[i].run(None, inputs)
                    wall = min(wall, time.perf_counter() - began)
                    best = min(best, clock() - started)
                if turn >= 0:
                    seconds[turn, i] += weight * best, weight * wall
    return seconds


def enough_rounds(rounds: int, run_s: float) -> int:
    """Return how many rounds a model gets: fewer where a run takes long.

    Args:
        rounds: of a fast model.
        run_s: seconds of a run.
    """
    return min(rounds, max(FEWEST, round(ENOUGH_S / (2 * max(run_s, 1e-9)))))


def interleaved_timing(
    baseline: Opener,
    models: Sequence[Opener],
    feed: Mapping[str, Any],
    rounds: int,
    seed: int = 0,
    report: Callable[[float], None] | None = None,
    precision: float = 0.0,
    budget_s: float = 0.0,
    passes: int = PASSES,
    least: int = 0,
    left_s: Callable[[], float] = lambda: float("inf"),
    clock: Clock = time.perf_counter,
    reopens: bool = False,
    all_rounds: bool = False,
) -> Timing:
    """Time each model in turn with the baseline alone.

    More sessions in one loop would push a large baseline out of the caches and flatter small
    models. The rounds are spread over several passes over all models, so that a disturbance of some
    seconds does not meet all rounds of one model. The first pass takes the models in order. Then
    models whose interval is wider than `precision` are measured again, the widest first, while the
    budget lasts. A model that takes long has fewer rounds, as many as `ENOUGH_S` allows.

    Args:
        baseline: opens the reference session.
        models: open one session after another.
        feed: inputs by name.
        rounds: of each model, unless it is slow.
        seed: of the order and of the bootstrap.
        report: called with the done share of the work, 0 to 1.
        precision: sufficient relative half width of an interval; 0 measures nothing again.
        budget_s: seconds in all after which nothing is measured again.
        passes: over all models; each opens their sessions once more.
        least: number of first models to measure in any case.
        left_s: returns the remaining seconds. No model is begun that would take longer than the
            models before it did.
        clock: of the ratios; returns seconds, as `quiet_clock` does.
        reopens: True to open the baseline anew after each model. A session takes most memory while
            it opens, so that a large baseline is left out of it.
        all_rounds: True gives slow models all rounds.

    Returns:
        Times of the models that were measured, which are the first ones.
    """
    started = time.monotonic()
    reference = baseline()
    run_s = _run_s(reference, feed)
    turns = _Turns(baseline, None if reopens else reference, models, feed, run_s, seed, clock)
    del reference
    rounds = rounds if all_rounds else enough_rounds(rounds, run_s)
    share = -(-rounds // passes)
    turns.take(share, passes, least, left_s, report)
    turns.take_widest(share, precision, lambda: time.monotonic() - started < budget_s, left_s)
    if turns.parts:
        whole = [np.concatenate(part) for part in turns.parts]
        everything, seconds = np.concatenate(whole)[:, 0], [part[..., 0] for part in whole]
    else:
        everything, seconds = turns.baseline_alone(rounds), []
    return _summary(everything, seconds, turns.generator)


class _Turns:
    """Time models in turn with a baseline.

    Args:
        baseline: opens the reference session.
        reference: the session that all models share; None opens one for each.
        models: open one session after another.
        feed: inputs by name.
        run_s: seconds of a run of the baseline.
        seed: of the order and of the bootstrap.
        clock: returns seconds.

    Attributes:
        parts: (rounds, 2, 2) seconds as `time_pair` returns them, by model and part.
        generator: draws the orders.
    """

    def __init__(
        self,
        baseline: Opener,
        reference: Runnable | None,
        models: Sequence[Opener],
        feed: Mapping[str, Any],
        run_s: float,
        seed: int,
        clock: Clock,
    ) -> None:
        self.parts: list[list[NDArray[np.float64]]] = []
        self.generator = np.random.default_rng(seed)
        self._baseline, self._reference = baseline, reference
        self._models, self._feed, self._seed, self._clock = models, feed, seed, clock
        self._repeats = 1 if run_s > LONG_S else 3
        self._warm_up = WARM_UP if run_s < SLOW_S else 1
        self._mean_s = 0.0  # of one model, building and opening it included

    def take(
        self,
        rounds: int,
        passes: int,
        least: int,
        left_s: Callable[[], float],
        report: Callable[[float], None] | None,
    ) -> None:
        """Measure `rounds` of each model in each pass; the arguments are `interleaved_timing`'s."""
        for turn in range(passes):
            count = len(self._models)
            order = [*range(count)]
            if turn > 0:
                order = [*self.generator.permutation(len(self.parts))]
            for position, i in enumerate(order):
                if left_s() < self._mean_s and (turn > 0 or i >= least):
                    break
                if report is not None:
                    report((turn + position / len(order)) / passes)
                begun = time.monotonic()
                if turn == 0:
                    self.parts.append([])
                self.parts[i].append(self._pair(i, rounds))
                spent = time.monotonic() - begun
                self._mean_s += (spent - self._mean_s) / (position + 1 + turn * count)

    def take_widest(
        self,
        rounds: int,
        precision: float,
        allowed: Callable[[], bool],
        left_s: Callable[[], float],
    ) -> None:
        """Measure 2 `rounds` more of the widest interval, until all are narrow or time is up."""
        widths = [self._width(part) for part in self.parts]
        while (
            max(widths, default=0.0) > precision > 0 and allowed() and left_s() > 2 * self._mean_s
        ):
            i = int(np.argmax(widths))
            self.parts[i].append(self._pair(i, 2 * rounds))
            widths[i] = self._width(self.parts[i])

    def baseline_alone(self, rounds: int) -> NDArray[np.float64]:
        """Return seconds of so many runs of the baseline, by the clock and in wall time."""
        alone = self._reference or self._baseline()
        return self._timed(alone, alone, -(-rounds // 2)).reshape(-1, 2)  # a pair runs it twice

    def _pair(self, i: int, rounds: int) -> NDArray[np.float64]:
        other = self._models[i]()
        return self._timed(self._reference or self._baseline(), other, rounds)

    def _timed(self, baseline: Runnable, other: Runnable, rounds: int) -> NDArray[np.float64]:
        given = (self._feed, rounds, self.generator, self._repeats, self._clock, self._warm_up)
        return time_pair(baseline, other, *given)

    def _width(self, part: Sequence[NDArray[np.float64]]) -> float:
        """Return the relative half width of the interval of a ratio."""
        low, high = _interval(np.concatenate(part)[..., 0], np.random.default_rng(self._seed))
        return (high - low) / (high + low)


def _summary(
    baseline: NDArray[np.float64],
    seconds: Sequence[NDArray[np.float64]],
    generator: np.random.Generator,
) -> Timing:
    """Return the timing of (runs, 2) seconds of the baseline and (rounds, 2) of each model.

    Those of the baseline are by the clock and in wall time, those of a model are the baseline's and
    its own by the clock.
    """
    intervals = [_interval(s, generator) for s in seconds]
    quiet = float(np.quantile(baseline[:, 1], QUIET))
    # Per model, since the speed of a processor drifts over a long measurement by itself.
    spread = []
    for part in seconds or [baseline]:
        spread.append(float(np.median(part[:, 0]) / np.quantile(part[:, 0], QUIET)) - 1)
    return Timing(
        quiet * 1e3,
        tuple(map(_ratio, seconds)),
        tuple(intervals),
        float(np.median(spread)),
        tuple(len(s) for s in seconds),
    )


def _run_s(session: Runnable, feed: Mapping[str, Any]) -> float:
    """Return the seconds of the fastest of some runs."""
    return min(run_once(session, feed) for _ in range(WARM_UP + 1))


def _ratio(seconds: NDArray[np.float64]) -> float:
    baseline, other = np.quantile(seconds, QUIET, axis=0)
    return float(other / baseline)


def _interval(seconds: NDArray[np.float64], generator: np.random.Generator) -> tuple[float, float]:
    draws = np.quantile(
        seconds[generator.integers(len(seconds), size=(RESAMPLES, len(seconds)))], QUIET, axis=1
    )
    low, high = np.quantile(draws[:, 1] / draws[:, 0], (0.025, 0.975))
    return float(low), float(high)

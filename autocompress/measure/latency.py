"""Latency of ONNX files, measured in turn with a baseline, so that a busy machine slows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autocompress.targets.runtime import open_session

QUIET = 0.1
PASSES = 3
RESAMPLES = 200
WARM_UP = 2


class Runnable(Protocol):
    """What an ONNX Runtime session does."""

    def run(self, output_names: None, input_feed: dict[str, Any]) -> Any:
        """Run once."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of the baseline, and of each model the ratio to it with its bootstrapped 95 % interval.

    All are 10 % quantiles over the rounds: what the machine does when nobody disturbs it. On shared machines a neighbour that
    fills the caches slows a large model more than a small one, and the ratio of medians moves by a tenth and more with it.
    """

    baseline_ms: float
    ratios: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]


def time_pair(
    baseline: Runnable, other: Runnable, feed: Mapping[str, Any], rounds: int, generator: np.random.Generator, repeats: int = 3
) -> NDArray[np.float64]:
    """(rounds, 2) seconds of baseline and other, in random order within a round, the fastest of `repeats` counting."""
    pair, inputs = (baseline, other), dict(feed)
    seconds = np.zeros((rounds, 2))
    for turn in range(-WARM_UP, rounds):
        for i in generator.permutation(2):
            best = float("inf")
            for _ in range(repeats):
                started = time.perf_counter()
                pair[i].run(None, inputs)
                best = min(best, time.perf_counter() - started)
            if turn >= 0:
                seconds[turn, i] = best
    return seconds


def interleaved_timing(
    baseline: bytes | str,
    models: Sequence[bytes | str],
    feed: Mapping[str, Any],
    threads: int,
    rounds: int,
    seed: int = 0,
    report: Callable[[float], None] | None = None,
) -> Timing:
    """Time each model (file content or path) in turn with the baseline alone.

    More sessions in one loop would push a large baseline out of the caches and flatter small models. The rounds are spread
    over three passes over all models, so that a disturbance of some seconds meets no model in all of its rounds.
    """
    generator = np.random.default_rng(seed)
    reference = open_session(baseline, threads)
    parts: list[list[NDArray[np.float64]]] = [[] for _ in models]
    for turn in range(PASSES):
        for position, i in enumerate(generator.permutation(len(models))):
            if report is not None:
                report((turn + position / len(models)) / PASSES)
            parts[i].append(time_pair(reference, open_session(models[i], threads), feed, -(-rounds // PASSES), generator))
    seconds = [np.concatenate(p) for p in parts] or [time_pair(reference, reference, feed, rounds, generator)]
    quiet = [np.quantile(s, QUIET, axis=0) for s in seconds]
    intervals = []
    for s in seconds:
        draws = np.quantile(s[generator.integers(len(s), size=(RESAMPLES, len(s)))], QUIET, axis=1)
        low, high = np.quantile(draws[:, 1] / draws[:, 0], (0.025, 0.975))
        intervals.append((float(low), float(high)))
    ratios = tuple(float(q[1] / q[0]) for q in quiet)
    baseline_ms = float(np.quantile(np.concatenate([s[:, 0] for s in seconds]), QUIET) * 1e3)
    return Timing(baseline_ms, ratios[: len(models)], tuple(intervals[: len(models)]))

"""Latency of ONNX files, measured interleaved with a baseline, so that a busy machine slows both."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of the baseline, and of each session the median ratio to the baseline's run next to it with its 95 % interval."""

    baseline_ms: float
    ratios: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]


def interleaved_timing(
    baseline: onnxruntime.InferenceSession,
    sessions: Sequence[onnxruntime.InferenceSession],
    feed: Mapping[str, Any],
    rounds: int,
    seed: int = 0,
    repeats: int = 3,
) -> Timing:
    """Each round runs the baseline and every session in random order, the fastest of `repeats` counting; 3 rounds warm up."""
    generator = np.random.default_rng(seed)
    everything = [baseline, *sessions]
    seconds = np.zeros((rounds, len(everything)))
    for turn in range(-3, rounds):
        for i in generator.permutation(len(everything)):
            best = float("inf")
            for _ in range(repeats):
                started = time.perf_counter()
                everything[i].run(None, feed)
                best = min(best, time.perf_counter() - started)
            if turn >= 0:
                seconds[turn, i] = best
    ratios = seconds[:, 1:] / seconds[:, :1]
    # Order statistics around the median: a distribution-free 95 % interval.
    half = 0.98 * np.sqrt(rounds)
    low, high = int(max(0, np.floor(rounds / 2 - half))), int(min(rounds - 1, np.ceil(rounds / 2 + half)))
    ordered = np.sort(ratios, axis=0)
    return Timing(
        float(np.median(seconds[:, 0]) * 1e3),
        tuple(float(r) for r in np.median(ratios, axis=0)),
        tuple((float(ordered[low, i]), float(ordered[high, i])) for i in range(len(sessions))),
    )

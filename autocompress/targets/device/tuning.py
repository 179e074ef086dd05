"""Choose the fastest session settings: threads, and harmful optimiser passes to disable."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .graph_file import GraphFile
from .processors import processors
from .sessions import SessionSettings, is_large, open_session
from .timing import PASSES, Timing, interleaved_timing, quiet_clock

Source = Callable[[], bytes | str]  # content or path of a model

# Optimiser passes, and the operators that they create.
PASSES_THAT_MAKE: Mapping[str, tuple[str, ...]] = {
    "SkipLayerNormFusion": ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    "BiasGeluFusion": ("BiasGelu",),
    "GeluFusionL2": ("Gelu",),
    "QuickGeluFusion": ("QuickGelu",),
    "EmbedLayerNormFusion": ("EmbedLayerNormalization",),
    "MatmulTransposeFusion": ("FusedMatMul",),
    "BiasSoftmaxFusion": ("BiasSoftmax",),
    "MatMulActivationFusion": ("FusedMatMulActivation",),
    "GemmActivationFusion": ("FusedGemm",),
    "ConvAddActivationFusion": ("FusedConv",),
    "NchwcTransformer": ("ReorderInput", "ReorderOutput"),
}
GAIN = 0.02  # relative time that a setting must save in the mean over the models
ROUNDS = 30


def tune(
    models: Sequence[Source],
    feed: Mapping[str, Any],
    settings: SessionSettings,
    threads: Sequence[int],
    seed: int = 0,
    left_s: Callable[[], float] = lambda: float("inf"),
    rounds: int = ROUNDS,
    passes: int = PASSES,
) -> tuple[SessionSettings, list[dict[str, Any]]]:
    """Return the fastest settings in the mean over models that slow none of them down.

    Threads and optimiser passes are tried one by one. Passes with a gain of at least GAIN are
    measured once more together; if the gain does not hold, none is disabled.

    Args:
        models: build the files to tune on.
        feed: inputs by name.
        settings: runtime and provider.
        threads: numbers of threads to try; the first is the default.
        seed: of the order of the sessions.
        left_s: returns the remaining seconds. No setting is tried that would take longer than the
            slowest before it did.
        rounds: turns of each model under a setting with the model without it.
        passes: that the rounds are spread over.

    Returns:
        The settings, and one row per setting that was tried: its name, the time of each model under
        it relative to that without it, and whether it was taken.
    """
    comparison = _Comparison(models, feed, seed, left_s, rounds, passes)
    default = replace(settings, threads=threads[0])
    best, best_time = default, 1.0
    for count in threads[1:]:
        other = replace(default, threads=count)
        share = comparison.time_of(f"{count} threads", other, default)
        if share < best_time:
            best, best_time = other, share
    if settings.runtime != "onnxruntime":
        return best, comparison.tried
    if best.threads > 1:
        quiet = replace(best, spinning=False)
        if comparison.time_of("threads that do not spin", quiet, best) < 1:
            best = quiet
    return _without_harmful_passes(best, comparison), comparison.tried


@dataclass
class _Comparison:
    """Compare settings on all models, while there is time.

    Attributes:
        tried: a row per setting.
        longest_s: seconds of the slowest comparison so far.
    """

    models: Sequence[Source]
    feed: Mapping[str, Any]
    seed: int
    left_s: Callable[[], float]
    rounds: int
    passes: int
    tried: list[dict[str, Any]] = field(default_factory=list)
    longest_s: float = 0.0

    def time_of(self, name: str, other: SessionSettings, against: SessionSettings) -> float:
        """Return the mean relative time of settings; 1 if they are not taken."""
        begun = time.monotonic()
        if self.left_s() <= self.longest_s:
            return 1.0
        timings = []
        for model in self.models:
            timings.append(
                _against(model, self.feed, against, other, self.seed, self.rounds, self.passes)
            )
        self.longest_s = max(self.longest_s, time.monotonic() - begun)
        ratios = [timing.ratios[0] for timing in timings]
        # A model counts as slower only where its whole interval is above 1.
        slower = any(timing.intervals[0][0] > 1 for timing in timings)
        mean = float(np.exp(np.mean(np.log(ratios))))
        taken = mean <= 1 - GAIN and not slower
        rounded = [round(ratio, 4) for ratio in ratios]
        self.tried.append({"setting": name, "ratios": rounded, "taken": taken})
        return mean if taken else 1.0


def _without_harmful_passes(best: SessionSettings, comparison: _Comparison) -> SessionSettings:
    """Return settings without the optimiser passes that slow the models down."""
    executed: set[str] = set()
    for model in comparison.models:
        if comparison.left_s() > 0:
            executed |= _operators(model, best)
    harmful = []
    for name, operators in PASSES_THAT_MAKE.items():
        without = replace(best, disabled_optimizers=(name,))
        if executed & set(operators) and comparison.time_of(f"without {name}", without, best) < 1:
            harmful.append(name)
    if not harmful:
        return best
    together = replace(best, disabled_optimizers=tuple(harmful))
    share = comparison.time_of(f"without {', '.join(harmful)}, once more", together, best)
    return together if share < 1 else best


def thread_counts(wanted: int | str | Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of threads to choose from.

    Args:
        wanted: a number, several, or "all": the powers of two up to the processors of this process,
            and that number itself.
    """
    if isinstance(wanted, str):
        most = processors()
        return tuple(sorted({*(2**i for i in range(most.bit_length())), most}))
    return (wanted,) if isinstance(wanted, int) else tuple(int(n) for n in wanted)


def _operators(model: Source, settings: SessionSettings) -> set[str]:
    """Return the types of the operators of the executed graph."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(model(), settings, optimized=str(optimized))
        return {node.operator for node in GraphFile.read(optimized.read_bytes()).nodes}


def _against(
    model: Source,
    feed: Mapping[str, Any],
    one: SessionSettings,
    other: SessionSettings,
    seed: int,
    rounds: int,
    passes: int,
) -> Timing:
    content = model()
    return interleaved_timing(
        partial(open_session, content, one),
        [partial(open_session, content, other)],
        feed,
        rounds,
        seed,
        passes=passes,
        clock=quiet_clock(one, other),
        reopens=is_large(content),
    )

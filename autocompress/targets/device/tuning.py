"""Choose the fastest session settings: threads, and harmful optimiser passes to disable."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .profiler import profile_nodes
from .sessions import SessionSettings, open_session
from .timing import Timing, interleaved_timing

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
    has_time: Callable[[], bool] = lambda: True,
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
        has_time: returns False when nothing more may be tried.

    Returns:
        The settings, and one row per setting that was tried: its name, the time of each model under
        it relative to that without it, and whether it was taken.
    """
    default = replace(settings, threads=threads[0])
    tried: list[dict[str, Any]] = []

    def compare(name: str, other: SessionSettings, against: SessionSettings) -> float:
        if not has_time():
            return 1.0
        timings = [_against(model, feed, against, other, seed) for model in models]
        ratios = [timing.ratios[0] for timing in timings]
        # A model counts as slower only where its whole interval is above 1.
        slower = any(timing.intervals[0][0] > 1 for timing in timings)
        mean = float(np.exp(np.mean(np.log(ratios))))
        taken = mean <= 1 - GAIN and not slower
        tried.append({"setting": name, "ratios": [round(r, 4) for r in ratios], "taken": taken})
        return mean if taken else 1.0

    best, best_time = default, 1.0
    for count in threads[1:]:
        time = compare(f"{count} threads", replace(default, threads=count), default)
        if time < best_time:
            best, best_time = replace(default, threads=count), time
    if settings.runtime != "onnxruntime":
        return best, tried
    if best.threads > 1:
        quiet = replace(best, spinning=False)
        best = quiet if compare("threads that do not spin", quiet, best) < 1 else best
    executed = {node.operator for model in models for node in profile_nodes(model(), feed, best, 1)}
    useless = []
    for name, operators in PASSES_THAT_MAKE.items():
        without = replace(best, disabled_optimizers=(name,))
        if executed & set(operators) and compare(f"without {name}", without, best) < 1:
            useless.append(name)
    if useless:
        together = replace(best, disabled_optimizers=tuple(useless))
        best = (
            together
            if compare(f"without {', '.join(useless)}, once more", together, best) < 1
            else best
        )
    return best, tried


def thread_counts(wanted: int | str | Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of threads to choose from.

    Args:
        wanted: a number, several, or "all": the powers of two up to the processors of this machine,
            and that number itself.
    """
    if isinstance(wanted, str):
        processors = os.cpu_count() or 1
        return tuple(sorted({*(2**i for i in range(processors.bit_length())), processors}))
    return (wanted,) if isinstance(wanted, int) else tuple(int(n) for n in wanted)


def _against(
    model: Source, feed: Mapping[str, Any], one: SessionSettings, other: SessionSettings, seed: int
) -> Timing:
    content = model()
    return interleaved_timing(
        partial(open_session, content, one),
        [partial(open_session, content, other)],
        feed,
        ROUNDS,
        seed,
    )

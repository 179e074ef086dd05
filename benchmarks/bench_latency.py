"""Give benchmarks the times of models, and latency tables measured now."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autocompress import Candidate, Task, find_modules
from autocompress.export.subject import builder_for, layout_of, subject_of
from autocompress.space.search_space import SearchSpace
from autocompress.targets.device.sessions import LITERT, SessionSettings, open_session
from autocompress.targets.device.timing import Timing, interleaved_timing
from autocompress.targets.kernel_arithmetic import products_saturate
from autocompress.targets.latency import compare
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import Subject, random_candidate
from autocompress.targets.latency_model.profile import measure_table
from autocompress.targets.target import Target, find_target
from autocompress.targets.workload import workload
from benchmarks.bench import DEFAULT, ONNXRUNTIME, Model


def timed(baseline: Model, models: Sequence[Model], feed: Mapping[str, Any], rounds: int) -> Timing:
    """Time each model in turn with a baseline, on one thread of ONNX Runtime.

    Args:
        baseline: content or path of a file.
        models: the other files.
        feed: inputs by name.
        rounds: of each model.

    Returns:
        Milliseconds of the baseline, and the ratio of each model to it.
    """
    return compare(baseline, models, feed, find_target(ONNXRUNTIME), DEFAULT, rounds)


def timed_in_litert(
    baseline: Model, models: Sequence[Model], feed: Mapping[str, Any], threads: int, rounds: int
) -> Timing:
    """Time each .tflite file in turn with a baseline.

    Args:
        baseline: content or path of a file.
        models: the other files.
        feed: inputs by name.
        threads: of LiteRT.
        rounds: of each model.

    Returns:
        Milliseconds of the baseline, and the ratio of each model to it.
    """
    settings = replace(LITERT, threads=threads)
    return compare(baseline, models, feed, find_target("litert-cpu"), settings, rounds)


def time_of_settings(
    model: Model, settings: tuple[SessionSettings, SessionSettings], feed: Any, rounds: int
) -> float:
    """Return the time of a model under the second settings, relative to the first.

    Args:
        model: content or path of a file.
        settings: of the two sessions.
        feed: inputs by name.
        rounds: of each session.
    """
    openers = [partial(open_session, model, each) for each in settings]
    return interleaved_timing(openers[0], openers[1:], feed, rounds).ratios[0]


def time_on_target(
    target: str, run: Path, baseline: Model, models: Sequence[Model], feed: Any, rounds: int
) -> tuple[float, ...]:
    """Return the time of each model relative to a baseline, on a target.

    Args:
        target: name of the target.
        run: folder of a search for it; its session settings are taken.
        baseline: path of a file.
        models: paths of the other files.
        feed: inputs by name.
        rounds: of each model.
    """
    settings = LatencyTable.load(run / "latency_table.json").settings
    return compare(baseline, models, feed, find_target(target), settings, rounds).ratios


def integers_saturate() -> bool:
    """Return True if this processor sums two 8-bit products in 16 bits."""
    return products_saturate(DEFAULT)


@dataclass(frozen=True)
class Profiled:
    """Hold the latency table of a task, measured now.

    Attributes:
        builder: of the files of the task.
        target: the runtime.
        space: the search space on the modules of the task.
        subject: what was measured.
        table: the latency table.
        seconds: of the measurement.
    """

    builder: Any
    target: Target
    space: Any
    subject: Subject
    table: LatencyTable
    seconds: float

    def random_candidate(self, generator: np.random.Generator) -> Candidate:
        """Return a random mixture of forms and widths.

        Args:
            generator: source of all draws.
        """
        return random_candidate(self.subject, generator)

    def file(self, candidate: Candidate) -> bytes:
        """Return the file of a candidate, with random weights.

        Args:
            candidate: configs of modules.
        """
        return self.subject.noise_file(candidate)[0]

    def kernels(self, candidate: Candidate) -> Mapping[str, Any]:
        """Return the kernel of each module.

        Args:
            candidate: configs of modules.
        """
        return workload(self.subject.layout, candidate).kernels

    def predict_ms(self, candidate: Candidate) -> float:
        """Return the predicted latency in milliseconds.

        Args:
            candidate: configs of modules.
        """
        return self.table.predict_ms(self.subject.layout, candidate)

    def compare(self, models: Sequence[Model], rounds: int) -> Timing:
        """Time models in turn with the float file, as the table was measured.

        Args:
            models: contents or paths.
            rounds: of each model.
        """
        subject = self.subject
        settings = self.table.settings
        return compare(subject.baseline(), models, subject.feed, self.target, settings, rounds)


def profiled(
    task: Task, space: Any = None, threads: tuple[int, ...] | None = None, target: str = ONNXRUNTIME
) -> Profiled:
    """Measure the latency table of a task, without a cache.

    Args:
        task: the model and its example inputs.
        space: as in `autocompress.search`.
        threads: numbers to tune over; None takes the target's.
        target: name of the target.
    """
    runtime = find_target(target)
    runtime = runtime if threads is None else replace(runtime, threads=threads)
    modules = find_modules(task.model, task.example_inputs, task.towers)
    builder = builder_for(task, modules, runtime)
    bound = SearchSpace.load(space).bind(builder.module_map, runtime)
    subject = subject_of(task, builder, layout_of(builder), bound)
    started = time.monotonic()
    table = measure_table(subject, runtime)
    seconds = time.monotonic() - started
    return Profiled(builder, runtime, bound, subject, table, seconds)

"""Measure the float file of a run, which all files of its front are compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from autocompress.results.front import earlier_front
from autocompress.results.measurement import Measurement
from autocompress.search.finish.measured_file import (
    OtherScores,
    figure_of,
    known_test,
    not_run,
    other_scores,
    other_splits,
)
from autocompress.search.problem.problem import Problem
from autocompress.targets.runtime import bytes_in_memory


@dataclass
class FloatFile:
    """Hold what was measured of the float file, each number once.

    Attributes:
        rest: scores on the test split and on disturbed inputs; None before `complete`.
        memory_bytes: of the weights in memory; None before `numbers`.
        splits: from `other_splits`; None before they were asked for.
    """

    rest: OtherScores | None = None
    memory_bytes: int | None = None
    splits: list[str] | None = None

    def other_splits(self, problem: Problem) -> list[str]:
        """Return the names of what files are run on beside the validation split.

        Args:
            problem: has the splits.
        """
        if self.splits is None:
            self.splits = other_splits(problem)
        return self.splits

    def numbers(self, folder: Path, problem: Problem) -> Measurement:
        """Return all numbers that are known so far.

        Args:
            folder: the run folder.
            problem: has the path of the file, its size, latency and accuracy.
        """
        if self.memory_bytes is None:
            self.memory_bytes = bytes_in_memory(str(problem.float_path), problem.settings)
        rest = self.rest or not_run(self.other_splits(problem), *known_test(folder))
        earlier = earlier_front(folder)
        before = {} if earlier is None else earlier.baseline.metrics
        metrics = {**before, **problem.baseline.metrics, **rest.disturbed}
        known = {figure_of(name) for name in metrics}
        latency_ms, source = problem.baseline.latency_ms, problem.latency_source
        if source == "table" and earlier is not None:
            # It may have been measured on the machine of the table, by an earlier run.
            latency_ms = earlier.baseline.latency_ms
            source = earlier.baseline.latency_source
        return replace(
            problem.baseline,
            latency_ms=latency_ms,
            test_accuracy=rest.test,
            metrics=metrics,
            memory_bytes=self.memory_bytes,
            latency_source=source,
            left_out={name: why for name, why in rest.left_out.items() if name not in known},
            test_share=rest.test_share,
        )

    def complete(self, folder: Path, problem: Problem, test_share: float) -> None:
        """Run the file on the test split and on disturbed inputs.

        Args:
            folder: the run folder.
            problem: has the splits.
            test_share: part of the batches of the test split.
        """
        known, share = known_test(folder)
        known = known if share == test_share else None
        self.rest = other_scores(problem, str(problem.float_path), test_share, known)

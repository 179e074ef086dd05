"""A prepared task on which benchmarks try candidates: simulated, trained, and from the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch

from autocompress import Candidate, Distillation, ModuleConfig, Task
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.recover import recover
from autocompress.compress.recover.teacher import Teacher
from autocompress.export.build import Builder
from autocompress.export.compressor import Compressor
from autocompress.measure.accuracy import evaluate_model, evaluate_session
from autocompress.targets.device.sessions import DEFAULT, open_session
from autocompress.targets.device.timing import Timing, interleaved_timing
from autocompress.targets.latency import all_threads
from autocompress.task.batches import Batches

ALL_THREADS = all_threads(DEFAULT)
CPU = torch.device("cpu")
INTEGER = ("linear", "conv")


@dataclass
class Bench:
    """`test` batches are what accuracy is measured on."""

    builder: Builder
    task: Task
    test: Batches = field(default_factory=list)

    @cached_property
    def compressor(self) -> Compressor:
        return Compressor.of(self.builder)

    @property
    def stitcher(self) -> Stitcher:
        return self.compressor.stitcher

    def uniform(self, bits: int, activation_bits: int = 8, **axes: object) -> Candidate:
        modules = self.builder.module_map
        return Candidate.of(
            {
                m.name: ModuleConfig(bits, activation_bits if m.kind in INTEGER else 32, **axes)
                for m in modules
            }
        )

    def simulated(
        self, candidate: Candidate, batches: Batches, trained: Trained | None = None
    ) -> float:
        return evaluate_model(self.task, self.stitcher.apply(candidate, trained), batches, CPU)[
            0
        ].accuracy

    def file(self, candidate: Candidate, trained: Trained | None = None) -> bytes:
        return self.compressor.graph(candidate, trained).SerializeToString()

    def from_file(self, candidate: Candidate, trained: Trained | None = None) -> tuple[float, int]:
        """(test accuracy, bytes) of the exported file."""
        data = self.file(candidate, trained)
        return self.session_accuracy(data), len(data)

    def session_accuracy(self, model: bytes | str) -> float:
        session = open_session(model, ALL_THREADS)
        return evaluate_session(
            self.task, session, tuple(i.name for i in session.get_inputs()), self.test
        )[0].accuracy

    def trained(self, candidate: Candidate) -> Trained:
        teacher = Teacher(
            self.task, self.builder.teacher, CPU, None, (candidate.distillation.temperature,)
        )
        return recover(Trainer(self.task, teacher), self.stitcher, candidate)[0]


def timed(
    baseline: bytes | str, models: Sequence[bytes | str], feed: Mapping[str, Any], rounds: int
) -> Timing:
    """Each model in turn with the baseline, on one thread."""
    openers = [partial(open_session, model) for model in (baseline, *models)]
    return interleaved_timing(openers[0], openers[1:], feed, rounds)


def distilled(candidate: Candidate, steps: int, schedule: str = "one_shot") -> Candidate:
    """The candidate with that much recovery."""
    return replace(candidate, distillation=Distillation(0.3, 2.0, steps, schedule))

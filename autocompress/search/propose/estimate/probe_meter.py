"""Measure how much single changes make the outputs diverge, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.differences import norm_difference
from autocompress.measure.accuracy import model_outputs
from autocompress.spill import SpilledRows
from autocompress.task.batches import Inputs
from autocompress.task.task import Task

Probe = tuple[str, ModuleConfig]  # a module, or the root of a channel group, and its change
SAMPLES = 64


@dataclass(frozen=True)
class Effect:
    """Hold the effect of one change on the outputs.

    Attributes:
        divergence: mean over the samples.
        moved: largest relative change of the outputs of a batch.
    """

    divergence: float
    moved: float


@dataclass
class ProbeMeter:
    """Measure single changes on the first calibration samples.

    Attributes:
        task: its calibration batches and its divergence of outputs.
        stitcher: builds the model with one change.
        device: runs the model.
    """

    task: Task
    stitcher: Stitcher
    device: torch.device

    @cached_property
    def batches(self) -> list[Inputs]:
        """Return the inputs of the samples."""
        samples = self.task.first_samples(self.task.calibration_batches(), SAMPLES)
        return [inputs for inputs, _ in samples]

    @cached_property
    def _answers(self) -> SpilledRows[Inputs]:
        """Return the outputs of the original."""

        def reference(inputs: Inputs) -> Tensor:
            return self.task.rows(model_outputs(self.stitcher.teacher, inputs, self.device))

        answers = SpilledRows(reference)
        for inputs in self.batches:
            answers.add(reference(inputs))
        return answers

    def measure(self, module: str, config: ModuleConfig) -> Effect:
        """Return the effect of one change; the stitcher's model has it afterwards.

        Args:
            module: the module, or the root of the channel group that is pruned.
            config: the only change.
        """
        answers = self._answers
        model = self.stitcher.apply(Candidate.of({module: config}))
        parts, seen, moved = list[Tensor](), 0, 0.0
        for inputs in self.batches:
            output = self.task.rows(model_outputs(model, inputs, self.device))
            expected = answers.take(range(seen, seen + len(output)), inputs)
            parts.append(self.task.output_divergence(output, expected))
            moved = max(moved, norm_difference(output, expected))
            seen += len(output)
        return Effect(float(torch.cat(parts).mean()), moved)

"""Measure single changes on made-up models."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from autocompress import Task
from autocompress.candidate import ModuleConfig
from autocompress.search.propose.estimate.probe_meter import SAMPLES, ProbeMeter


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_the_divergence_is_a_mean_over_the_samples_and_the_change_the_largest_of_a_batch() -> None:
    applied, batches = [], [(torch.full((40, 1), value), None) for value in (1.0, 3.0, 100.0)]
    task = Task(
        "scaled",
        Scaled(1.0),
        torch.ones(1, 1),
        batches,
        lambda outputs, targets: 0.0,
        divergence=lambda outputs, expected: (outputs - expected).abs().sum(1),
    )

    def apply(candidate) -> nn.Module:
        applied.append(candidate.modules)
        return Scaled(1.5)

    stitcher = SimpleNamespace(teacher=Scaled(1.0), apply=apply)
    meter = ProbeMeter(task, stitcher, torch.device("cpu"))
    effect = meter.measure("a", ModuleConfig(weight_bits=4))
    assert applied == [(("a", ModuleConfig(weight_bits=4)),)]
    assert sum(len(inputs) for inputs in meter.batches) == SAMPLES
    assert effect.divergence == pytest.approx((40 * 0.5 + 24 * 1.5) / SAMPLES)
    assert effect.moved == pytest.approx(0.5)

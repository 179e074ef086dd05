"""Make tasks of functions whose calls can be watched, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autocompress import Task
from autocompress.measure.accuracy import model_outputs
from autocompress.task.batches import Batches

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


class Calls(nn.Module):
    """Call a function, and note the sizes of the batches."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.fc = nn.Linear(4, 4)

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def task_of(model: nn.Module, inputs: Any = X, target: Any = None, **settings: Any) -> Task:
    return Task("t", model, inputs, [(inputs, target)], lambda o, t: 0.0, **settings)


def all_outputs(model: nn.Module, batches: Batches) -> Tensor:
    """Return the outputs of a model on the CPU for all batches."""
    return torch.cat([model_outputs(model, inputs, torch.device("cpu")) for inputs, _ in batches])


def judged(metric: Any, *batches: tuple[Any, Any]) -> float:
    """Return what an accumulator computes of (outputs, targets) batches."""
    for outputs, targets in batches:
        metric.update(outputs, targets)
    return float(metric.compute())

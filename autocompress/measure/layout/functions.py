"""Bring a task into the layout with samples first, and give the user's functions their own layout.

`measure.prepare` calls `in_rows` once. From then on all readers of outputs and targets see (n, ...)
tensors, while metrics, loss and divergence get what the model returns and the data hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from autocompress.measure.accumulators import fresh, is_metric
from autocompress.measure.layout.targets import (
    Dimensions,
    as_given,
    back,
    target_dimensions,
    with_samples_first,
)
from autocompress.task.batches import Batches, Inputs, map_value
from autocompress.task.calls import Accumulator, Metric, copies_for, is_ours
from autocompress.task.free_shapes import SPLITS
from autocompress.task.loading import Changed
from autocompress.task.task import OutputMetric, Task
from autocompress.task.user_code import user_code


def in_rows(task: Task, outputs: Mapping[str, int], along: int) -> Task:
    """Return the task with all outputs and targets in one layout.

    Args:
        task: with settled splits.
        outputs: output -> its dimension that counts samples, as `Task.sample_dims`.
        along: the dimension of the inputs that counts samples.

    Returns:
        The task with `sample_dims`, targets with samples first, and functions that get outputs and
        targets in the layout in which the model and the data have them.
    """
    dims = {name: dim for name, dim in outputs.items() if dim > 0}
    if not dims:
        return replace(task, sample_dims={})
    targets = target_dimensions(task, along)
    if targets is None:
        return replace(task, sample_dims={}, batch_first=False)
    primary = dims.get(task.primary_name, 0)
    extra: dict[str, Metric | OutputMetric] = {}
    for name, metric in task.extra_metrics.items():
        if isinstance(metric, OutputMetric):
            # It gets the entry of its own output if targets are mappings.
            entry = metric.output if metric.output in targets else ""
            own: Dimensions = {"": targets[entry]} if entry in targets else {}
            judged = _metric(metric.metric, name, dims.get(metric.output, 0), own)
            extra[name] = replace(metric, metric=judged)
        else:
            extra[name] = _metric(metric, name, primary, targets)
    loss, divergence = task.loss, task.divergence
    splits: dict[str, Any] = {split: _moved(getattr(task, split), targets) for split in SPLITS}
    return replace(
        task,
        sample_dims=dims,
        metric=_metric(task.metric, "metric", primary, targets),
        extra_metrics=extra,
        loss=None if loss is None else _loss(loss, dims, targets),
        divergence=None if divergence is None else _divergence(divergence, primary),
        **splits,
    )


def _moved(batches: Batches | None, dims: Dimensions) -> Batches | None:
    if batches is None or not dims:
        return batches

    def change(inputs: Inputs, target: Any) -> tuple[Inputs, Any]:
        return inputs, with_samples_first(target, dims)

    if isinstance(batches, (list, tuple)):
        return [change(*batch) for batch in batches]
    return Changed(batches, change)


def _outputs(value: Any, dim: int) -> Any:
    """Return a copy of outputs in the model's layout; lists with an entry per sample stay lists."""
    return back(value, dim) if isinstance(value, Tensor) else map_value(value, torch.clone)


def _target(function: Any, target: Any, dims: Dimensions) -> Any:
    """Return a copy of a target in the layout of the data."""
    return copies_for(function, as_given(target, dims))[0]


def _metric(metric: Metric, name: str, dim: int, targets: Dimensions) -> Metric:
    """Return a metric that gets samples first, and gives the user's metric its own layout."""
    if not is_metric(metric):
        return metric  # it is refused later
    if fresh(metric) is None:
        function = cast(Callable[[Any, Any], float], metric)

        def judge(outputs: Any, target: Any) -> float:
            own = _outputs(outputs, dim), _target(function, target, targets)
            with user_code(f"task: {name} fails"):
                return function(*own)

        return judge
    return _Maker(metric, name, dim, targets)


class _Maker:
    """Make accumulators that get samples first."""

    def __init__(self, metric: Metric, name: str, dim: int, targets: Dimensions) -> None:
        self._parts = metric, name, dim, targets
        if not is_ours(metric):
            self.__module__ = "the user's"  # so that it is checked as theirs

    def __call__(self) -> Accumulator:
        return _InOwnLayout(*self._parts)


class _InOwnLayout:
    """Give each batch to a new accumulator of the user's in its own layout."""

    def __init__(self, metric: Metric, name: str, dim: int, targets: Dimensions) -> None:
        self._running = cast(Accumulator, fresh(metric, name))
        self._name, self._dim, self._targets = name, dim, targets

    def update(self, outputs: Any, targets: Any) -> None:
        own = _outputs(outputs, self._dim), _target(self._running, targets, self._targets)
        with user_code(f"task: {self._name}.update fails"):
            self._running.update(*own)

    def compute(self) -> Any:
        with user_code(f"task: {self._name}.compute fails"):
            return self._running.compute()


def _loss(
    loss: Callable[[Any, Any], Tensor], dims: Mapping[str, int], targets: Dimensions
) -> Callable[[Any, Any], Tensor]:
    def own_loss(outputs: Any, target: Any) -> Tensor:
        if isinstance(outputs, Mapping):
            own: Any = {name: back(value, dims.get(name, 0)) for name, value in outputs.items()}
        else:
            own = back(outputs, dims.get("", 0))
        wanted = _target(loss, target, targets)
        with user_code("task: loss fails"):
            return loss(own, wanted)

    return own_loss


def _divergence(divergence: Callable[[Any, Any], Tensor], dim: int) -> Callable[..., Tensor]:
    def own_divergence(student: Tensor, teacher: Tensor) -> Tensor:
        own = back(student, dim), back(teacher, dim)
        with user_code("task: divergence fails"):
            return divergence(*own)

    return own_divergence

"""Metrics of a split whose batches give outputs of different shapes, as sequences of different lengths do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import NotComputableError
from autocompress.task.task import score
from autocompress.task.user_code import UserCodeError

CLOSE = 1e-6
Metric = Callable[[Any, Any], float]


def split_rows(batches: list[Tensor]) -> list[Tensor]:
    """One entry per sample."""
    return [row for batch in batches for row in batch]


def ragged_score(
    metric: Metric, outputs: list[Tensor], targets: Any, name: str = "metric"
) -> float:
    """The metric of outputs that no tensor can hold together.

    A metric that takes lists gets them, one entry per sample. Else, if the metric of samples of one shape is the mean over them, as
    accuracy is, it is computed shape by shape and averaged: by the number of positions where it is a mean over positions too, as the
    accuracy of tokens is, else by the number of samples.

    Args:
        metric: of outputs and targets.
        outputs: one entry per sample.
        targets: one entry per sample, a tensor with one row per sample, or None.
        name: of the metric, for messages.

    Raises:
        UserCodeError: the metric takes no lists, and fails on tensors or is no mean.
    """
    with suppress(UserCodeError, NotComputableError):  # it takes no lists
        return score(metric, outputs, targets, name)
    try:
        parts = list(_same_shapes(outputs, targets))
        values = [score(metric, *part, name) for part in parts]
        if not all(_is_mean_over(metric, *part, 0, 0) for part in parts):
            raise NotComputableError(f"task: {name} takes no lists and is no mean over samples")
    except (UserCodeError, NotComputableError) as problem:
        shapes = list(dict.fromkeys(tuple(output.shape) for output in outputs))[:2]
        raise UserCodeError(
            f"{problem}; outputs have shapes {shapes[0]} and {shapes[1]}, which are not one tensor; nearest: a metric that takes lists "
            "with an entry per sample, or inputs padded to one length"
        ) from problem
    dimensions = _positions(outputs, targets)
    by_position = dimensions is not None and all(
        _is_mean_over(metric, *part, *dimensions) for part in parts
    )
    weights = [found[1].numel() if by_position else len(found[0]) for found in parts]
    return float(np.average(values, weights=weights))


def _same_shapes(outputs: list[Tensor], targets: Any) -> Iterator[tuple[Tensor, Any]]:
    """All samples of each shape: tensors (n, ...) of outputs, and of targets where these are tensors."""
    shapes: dict[Any, list[int]] = {}
    for i, output in enumerate(outputs):
        shapes.setdefault(tuple(output.shape), []).append(i)
    for rows in shapes.values():
        chosen = None if targets is None else [targets[i] for i in rows]
        tensors = chosen is not None and all(isinstance(found, Tensor) for found in chosen)
        yield (
            torch.stack([outputs[i] for i in rows]),
            torch.stack(chosen) if tensors and chosen is not None else chosen,
        )


def _is_mean_over(
    metric: Metric, outputs: Tensor, targets: Any, output_dim: int, target_dim: int
) -> bool:
    """Whether the metric is the weighted mean of its values on two unequal parts along a dimension."""
    size = outputs.shape[output_dim]
    if size < 2:
        return True
    first = max(1, size // 3)
    found = 0.0
    for start, count in ((0, first), (first, size - first)):
        rows = slice(start, start + count)
        part = (
            targets.narrow(target_dim, start, count)
            if isinstance(targets, Tensor)
            else None
            if targets is None
            else targets[rows]
        )
        found += count / size * score(metric, outputs.narrow(output_dim, start, count), part)
    whole = score(metric, outputs, targets)
    return abs(found - whole) <= CLOSE * max(1.0, abs(whole))


def _positions(outputs: list[Tensor], targets: Any) -> tuple[int, int] | None:
    """The dimensions of stacked outputs and targets that differ among samples and agree with each other, or None."""
    if targets is None or not all(isinstance(target, Tensor) for target in targets):
        return None
    for i in range(outputs[0].dim()):
        sizes = [output.shape[i] for output in outputs if output.dim() > i]
        for j in range(targets[0].dim()):
            if len(set(sizes)) > 1 and sizes == [
                target.shape[j] for target in targets if target.dim() > j
            ]:
                return i + 1, j + 1
    return None

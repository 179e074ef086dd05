"""Compute metrics of a split whose batches give outputs of different shapes.

Sequences of different lengths are the usual case. `accuracy` calls `ragged_score` for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import NotComputableError
from autocompress.task.calls import score
from autocompress.task.user_code import UserCodeError

CLOSE = 1e-6
Metric = Callable[[Any, Any], float]


def split_rows(batches: list[Tensor]) -> list[Tensor]:
    """Return the outputs of batches with one entry per sample.

    Args:
        batches: each (n, ...).

    Returns:
        The rows of all batches in their order.
    """
    return [row for batch in batches for row in batch]


def ragged_score(
    metric: Metric, outputs: list[Tensor], targets: Any, name: str = "metric"
) -> float:
    """Return the metric of outputs that do not fit into one tensor.

    A metric that takes lists gets them, one entry per sample. Any other metric must be a mean over
    positions, as the accuracy of tokens is, or over samples: it is computed for each shape and
    averaged by numbers of positions or of samples. Shapes with one sample do not tell if it is a
    mean over samples; then another shape or the positions must.

    Args:
        metric: (outputs, targets) -> float, higher is better.
        outputs: one entry per sample.
        targets: one entry per sample, a tensor with one row per sample, or None.
        name: of the metric, for messages.

    Returns:
        The metric.

    Raises:
        UserCodeError: the metric takes no lists, and fails on tensors or is no mean.
    """
    with suppress(UserCodeError, NotComputableError):  # the metric takes no lists
        return score(metric, outputs, targets, name)
    by_position = False
    try:
        parts = list(_same_shapes(outputs, targets))
        values = [score(metric, *part, name) for part in parts]
        dimensions = _positions(outputs, targets)
        if dimensions is not None:
            with suppress(UserCodeError, NotComputableError):  # it cannot judge a few positions
                by_position = _is_mean(metric, parts, *dimensions) is True
        by_sample = _is_mean(metric, parts, 0, 0)
        if by_sample is False or not (by_position or by_sample):
            raise NotComputableError(f"task: {name} takes no lists and is no mean over samples")
    except (UserCodeError, NotComputableError) as problem:
        shapes = list(dict.fromkeys(tuple(output.shape) for output in outputs))[:2]
        raise UserCodeError(
            f"{problem}; outputs have shapes {shapes[0]} and {shapes[1]}, which are not one "
            "tensor; nearest: a metric that takes lists with an entry per sample, or inputs padded "
            "to one length"
        ) from problem
    weights = [part[1].numel() if by_position else len(part[0]) for part in parts]
    return float(np.average(values, weights=weights))


def _same_shapes(outputs: list[Tensor], targets: Any) -> Iterator[tuple[Tensor, Any]]:
    """Yield (outputs, targets) of all samples of each shape, stacked where they are tensors."""
    if isinstance(targets, Mapping) or (targets is not None and len(targets) != len(outputs)):
        raise NotComputableError("task: the targets are no list with an entry per sample")
    shapes: dict[Any, list[int]] = {}
    for i, output in enumerate(outputs):
        own_shape = None if targets is None else getattr(targets[i], "shape", None)
        shapes.setdefault((output.shape, own_shape), []).append(i)
    for rows in shapes.values():
        own: Any = None if targets is None else [targets[i] for i in rows]
        if own is not None and all(isinstance(target, Tensor) for target in own):
            own = torch.stack(own)
        yield torch.stack([outputs[i] for i in rows]), own


def _is_mean(
    metric: Metric, parts: list[tuple[Tensor, Any]], output_dim: int, target_dim: int
) -> bool | None:
    """Return True if the metric of each part is a mean over a dimension, None if no part tells.

    A part of one entry does not tell, since that is its own mean.
    """
    shown = []
    for outputs, targets in parts:
        if outputs.shape[output_dim] > 1:
            shown.append(_is_mean_over(metric, outputs, targets, output_dim, target_dim))
    return all(shown) if shown else None


def _is_mean_over(
    metric: Metric, outputs: Tensor, targets: Any, output_dim: int, target_dim: int
) -> bool:
    """Return True if the metric is the weighted mean of its values on two parts of a dimension."""
    size = outputs.shape[output_dim]
    first = max(1, size // 3)
    mean = 0.0
    for start, count in ((0, first), (first, size - first)):
        part = targets
        if isinstance(targets, Tensor):
            part = targets.narrow(target_dim, start, count)
        elif targets is not None:
            part = targets[start : start + count]
        mean += count / size * score(metric, outputs.narrow(output_dim, start, count), part)
    whole = score(metric, outputs, targets)
    return abs(mean - whole) <= CLOSE * max(1.0, abs(whole))


def _positions(outputs: list[Tensor], targets: Any) -> tuple[int, int] | None:
    """Return the dimensions of stacked outputs and targets that count positions, or None.

    They differ among samples and agree with each other.
    """
    if targets is None or not all(isinstance(target, Tensor) for target in targets):
        return None
    for i in range(outputs[0].dim()):
        sizes = [output.shape[i] for output in outputs if output.dim() > i]
        if len(set(sizes)) < 2:
            continue
        for j in range(targets[0].dim()):
            if sizes == [target.shape[j] for target in targets if target.dim() > j]:
                return i + 1, j + 1
    return None

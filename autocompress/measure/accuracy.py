"""Evaluate a PyTorch model or an ONNX file on a split with the task's metrics.

The search judges stitched models with `evaluate_model`; the files of the front are verified with
`evaluate_session`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.measure.ragged import ragged_score, split_rows
from autocompress.measure.target_forms import by_position, check_forms, entries
from autocompress.task.batches import Batches, Inputs, batch_size, feed_of, input_tensors, to_device
from autocompress.task.calls import (
    call_model,
    named_outputs,
    primary_output,
    run_model,
    score,
    target_of,
)
from autocompress.task.task import OutputMetric, Task

Outputs = Tensor | list[Tensor]  # of a split; a list has one entry per sample


@dataclass(frozen=True)
class Scores:
    """Hold the metrics of one model on one split.

    Attributes:
        accuracy: the task's metric, higher is better.
        metrics: the extra metrics by name.
    """

    accuracy: float
    metrics: Mapping[str, float]


@torch.no_grad()
def model_outputs(model: nn.Module, inputs: Inputs, device: torch.device) -> Tensor:
    """Return the primary output of one batch on the CPU.

    Args:
        model: any module.
        inputs: one batch of inputs, on any device.
        device: of the model.

    Returns:
        (n, ...), float32 if it is floating point.

    Raises:
        UserCodeError: forward fails.
    """
    return _collected(call_model(model, to_device(inputs, device)))


def _collected(output: Tensor) -> Tensor:
    output = output.detach().cpu()
    return output.float() if output.is_floating_point() else output


def join_targets(targets: list[Any], sizes: Sequence[int] = ()) -> Any:
    """Return all targets of a split in one.

    Args:
        targets: one entry per batch.
        sizes: rows of each batch; without them a sequence is one of entries per sample.

    Returns:
        A tensor if they are tensors that fit together, a mapping if they are mappings, None if
        there are none. Sequences of several targets, such as labels and weights, are joined
        position by position. Anything else is a list with an entry per sample.

    Raises:
        TaskError: targets of two batches have different forms.
    """
    return _joined_targets(targets, sizes, "")


def _joined_targets(targets: list[Any], sizes: Sequence[int], entry: str) -> Any:
    """Return what `join_targets` does; `entry` says which part of the targets they are."""
    check_forms(targets, entry)
    first = targets[0] if targets else None
    if first is None:
        return None
    tensors = all(isinstance(target, Tensor) for target in targets)
    if tensors and len({target.shape[1:] for target in targets}) == 1:
        return torch.cat([t.cpu().reshape(1) if t.dim() == 0 else t.cpu() for t in targets])

    def joined(name: Any, parts: list[Any]) -> Any:
        return _joined_targets(parts, sizes, f"{entry}[{name!r}]")

    if isinstance(first, Mapping):
        names = dict.fromkeys(name for target in targets for name in target)
        return {name: joined(name, [target.get(name) for target in targets]) for name in names}
    if sizes and by_position(targets, sizes, entry):
        parts = [joined(i, [target[i] for target in targets]) for i in range(len(first))]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return [item for target in targets for item in entries(target)]


@torch.no_grad()
def metric_outputs(
    task: Task, model: nn.Module, inputs: Inputs, device: torch.device
) -> dict[str, Tensor]:
    """Return the outputs of one batch that the metrics read.

    Args:
        task: names the outputs.
        model: any module.
        inputs: one batch of inputs, on any device.
        device: of the model.

    Returns:
        Name -> output as `model_outputs` gives it; the primary one is "".

    Raises:
        UserCodeError: forward fails.
    """
    if not task.has_output_metrics:
        return {"": model_outputs(model, inputs, device)}
    result = run_model(model, to_device(inputs, device))
    outputs = {"": primary_output(result), **named_outputs(result, task.further_outputs)}
    return {name: _collected(output) for name, output in outputs.items()}


def join_outputs(
    batches: list[dict[str, Tensor]], places: Sequence[int] | None = None
) -> dict[str, Outputs]:
    """Return the outputs of a split, each held once.

    Args:
        batches: for each batch its outputs by name. It is emptied, so that the outputs of a batch
            are freed as soon as they are joined.
        places: for each row of all batches its place in the result; None keeps their order.

    Returns:
        Name -> tensor, or a list with an entry per sample if the batches do not fit together.

    Raises:
        TaskError: an output has no row per sample.
    """
    joined: dict[str, Outputs] = {}
    for name in list(batches[0]):
        parts = [outputs.pop(name) for outputs in batches]
        if any(output.dim() == 0 for output in parts):
            raise TaskError(
                "task: a batch gives an output of shape (); "
                f"expected a row per sample, not one number like {float(parts[0]):.3g}"
            )
        if len({output.shape[1:] for output in parts}) == 1:
            joined[name] = _joined(parts, places)
        else:
            rows = split_rows(parts)
            joined[name] = rows if places is None else [rows[i] for i in np.argsort(places)]
    batches.clear()
    return joined


def _joined(parts: list[Tensor], places: Sequence[int] | None) -> Tensor:
    """Return parts in one tensor. They are dropped one by one, so that memory is not doubled."""
    rows = sum(len(part) for part in parts)
    kind = reduce(torch.promote_types, (part.dtype for part in parts))
    whole = torch.empty(rows, *parts[0].shape[1:], dtype=kind)  # takes memory as it is filled
    where = torch.arange(rows) if places is None else torch.as_tensor(places)
    parts.reverse()
    first = 0
    while parts:
        part = parts.pop()
        whole[where[first : first + len(part)]] = part.to(kind)
        first += len(part)
    return whole


def scores_of(task: Task, outputs: Mapping[str, Outputs], targets: Any) -> Scores:
    """Return the metrics of all outputs of a split.

    Args:
        task: gives the metrics.
        outputs: by name, as `join_outputs` returns them.
        targets: as `join_targets` returns them.

    Returns:
        The scores.

    Raises:
        UserCodeError: a metric fails.
        NotComputableError: a metric gives no finite number.
    """
    extra = {}
    for name, metric in task.extra_metrics.items():
        if isinstance(metric, OutputMetric):
            read = "" if metric.output == task.primary_name else metric.output
            own = target_of(targets, metric.output)
            extra[name] = _score(metric.metric, outputs[read], own, name)
        else:
            extra[name] = _score(metric, outputs[""], targets, name)
    return Scores(_score(task.metric, outputs[""], targets, "metric"), extra)


def _scored(
    task: Task, outputs: list[dict[str, Tensor]], targets: list[Any]
) -> tuple[Scores, Outputs]:
    """Return the scores and the primary outputs of all batches; `outputs` is emptied."""
    sizes = [output[""].shape[:1].numel() for output in outputs]
    joined = join_outputs(outputs)
    return scores_of(task, joined, join_targets(targets, sizes)), joined[""]


def _score(metric: Callable[[Any, Any], float], outputs: Outputs, targets: Any, name: str) -> float:
    if isinstance(outputs, list):
        return ragged_score(metric, outputs, targets, name)
    return score(metric, outputs, targets, name)


def evaluate_model(
    task: Task, model: nn.Module, batches: Batches, device: torch.device
) -> tuple[Scores, Outputs]:
    """Return the scores and the primary outputs of a PyTorch model on a split.

    Args:
        task: gives the metrics.
        model: any module.
        batches: the split.
        device: of the model.

    Returns:
        (scores, primary outputs).

    Raises:
        UserCodeError: forward or a metric fails.
        NotComputableError: a metric gives no finite number.
    """
    outputs, targets = [], []
    for inputs, target in batches:
        outputs.append(metric_outputs(task, model, inputs, device))
        targets.append(target)
    return _scored(task, outputs, targets)


def _check_shapes(
    session: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[Any]], whole: bool
) -> None:
    """Raise a TaskError if the file fixes another size in a dimension.

    The first dimension is looked at only if batches stay `whole`; others are fed in parts.
    """
    for value in session.get_inputs():
        shape = feed[value.name].shape if value.name in feed else ()
        pairs = list(zip(value.shape, shape, strict=False))[0 if whole else 1 :]
        if any(isinstance(size, int) and size != came for size, came in pairs):
            raise TaskError(
                f"task: a batch has {value.name} of shape {shape}, the file takes "
                f"{tuple(value.shape)} as in example_inputs; "
                "nearest: batches of the example's shape"
            )


def _run(
    session: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    try:
        return [np.asarray(output) for output in session.run(None, dict(feed))]
    except Exception as error:
        came = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in feed.items())
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[0] if lines else type(error).__name__
        raise TaskError(f"task: the file does not run on a batch ({came}): {why}") from error


def _run_in_parts(
    session: onnxruntime.InferenceSession,
    feed: Mapping[str, NDArray[Any]],
    size: int,
    fixed: int,
    count: int,
) -> list[NDArray[Any]]:
    """Return the first `count` outputs of `size` samples from a file of batch size `fixed`.

    The last part is padded.
    """
    parts = []
    for start in range(0, size, fixed):
        rows = np.minimum(np.arange(start, start + fixed), size - 1)
        part = {name: array[rows] if array.ndim else array for name, array in feed.items()}
        parts.append(_run(session, part)[:count])
    results = []
    for outputs in zip(*parts, strict=True):
        rows_per_sample = len(outputs[0]) // fixed
        results.append(np.concatenate(outputs)[: size * rows_per_sample])
    return results


def evaluate_session(
    task: Task,
    session: onnxruntime.InferenceSession,
    input_names: tuple[str, ...],
    batches: Batches,
) -> tuple[Scores, Outputs]:
    """Return the scores and the primary outputs of an ONNX file on a split.

    A file with a fixed batch size is fed in parts of that size, the last one padded.

    Args:
        task: gives the metrics.
        session: of the file.
        input_names: of the file.
        batches: the split.

    Returns:
        (scores, primary outputs).

    Raises:
        TaskError: a batch does not fit the file, or the file lacks an output.
        UserCodeError: a metric fails.
        NotComputableError: a metric gives no finite number.
    """
    fixed = next((value.shape[0] for value in session.get_inputs() if value.shape), None)
    names = ("", *task.further_outputs) if task.has_output_metrics else ("",)
    outputs, targets = [], []
    for inputs, target in batches:
        tensors = input_tensors(inputs)
        if len(tensors) != len(input_names):
            raise TaskError(
                f"task: a batch has {len(tensors)} input tensors, the file takes "
                f"{len(input_names)} ({', '.join(input_names)})"
            )
        feed = feed_of(inputs, input_names)
        size = batch_size(inputs)
        _check_shapes(session, feed, task.batch_first is False)
        if isinstance(fixed, int) and fixed != size:
            results = _run_in_parts(session, feed, size, fixed, len(names))
        else:
            results = _run(session, feed)[: len(names)]
        if len(results) < len(names):
            raise TaskError(
                f"task: the file gives {len(results)} outputs, metrics read {len(names)}: "
                f"{', '.join(task.output_weights or ())}"
            )
        pairs = zip(names, results, strict=True)
        outputs.append({name: torch.from_numpy(np.asarray(result)) for name, result in pairs})
        targets.append(target)
    return _scored(task, outputs, targets)

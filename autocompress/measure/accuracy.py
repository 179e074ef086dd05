"""Evaluate a PyTorch model or an ONNX file on a split with the task's metrics.

The search judges stitched models with `evaluate_model`; the files of the front are verified with
`evaluate_session`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import AutocompressError, TaskError
from autocompress.measure.tally import Scores, Tally
from autocompress.task.batches import (
    Batches,
    Inputs,
    batch_size,
    cache_feed,
    cache_shapes,
    feed_of,
    input_tensors,
    to_device,
)
from autocompress.task.calls import call_model, named_outputs, primary_output, run_model
from autocompress.task.copies import copied
from autocompress.task.task import Task

DIRECTION_SAMPLES, DIRECTION_S = 256, 2.0  # most samples, and seconds after which no more are run
MOST_VALUES = 1 << 22  # of the outputs of a batch
MOVES = (1, 2, 3, 4, 5, 6, 7)  # places by which outputs are moved
APART = 6.0  # standard deviations of the moved scores between them and that of the model
LEAST_GAP = 0.01  # the same as a share of the moved scores


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
    """Return a copy on the CPU: a model may write its next outputs over these."""
    dtype = torch.float32 if output.is_floating_point() else output.dtype
    return output.detach().to("cpu", dtype, copy=True)


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
        Name -> (n, ...) output as `model_outputs` gives it, samples first; the primary one is "".

    Raises:
        UserCodeError: forward fails.
    """
    if not task.has_output_metrics:
        return {"": task.rows(model_outputs(model, inputs, device))}
    result = run_model(model, to_device(inputs, device))
    outputs = {"": primary_output(result), **named_outputs(result, task.further_outputs)}
    return {name: task.rows(_collected(value), name or None) for name, value in outputs.items()}


def evaluate_model(
    task: Task, model: nn.Module, batches: Batches, device: torch.device
) -> tuple[Scores, int]:
    """Return the scores of a PyTorch model on a split, and the number of its samples.

    Args:
        task: gives the metrics.
        model: any module.
        batches: the split.
        device: of the model.

    Returns:
        (scores, samples).

    Raises:
        UserCodeError: forward or a metric fails.
        NotComputableError: a metric gives no finite number.
    """
    tally = Tally(task)
    for inputs, target in batches:
        tally.add(metric_outputs(task, model, inputs, device), target)
    return tally.scores(), tally.samples


def direction_note(task: Task) -> str:
    """Return a line if the metric is better for outputs that belong to other samples.

    The metric of the first validation samples is compared with those after the rows of each batch
    were moved by several places. It is noted only if it lies far below all of them, so that a
    metric of random labels passes. Models that are worse than chance, as some with random weights
    are, cannot be told from metrics of which smaller values are better.

    Args:
        task: with settled splits and a known first dimension.

    Returns:
        "" for most tasks.
    """
    if task.batch_first is False:
        return ""
    pairs, device, cpu = [], torch.device("cpu"), copied(task.model, shares_weights=True)
    begun = time.monotonic()
    for inputs, target in task.first_samples(task.validation, DIRECTION_SAMPLES):
        outputs = metric_outputs(task, cpu, inputs, device)
        primary = outputs[""]
        if primary.dim() == 0 or not max(MOVES) < len(primary) <= primary.numel() <= MOST_VALUES:
            break
        pairs.append((outputs, target))
        if time.monotonic() - begun > DIRECTION_S:
            break
    if not pairs:
        return ""
    scores = []
    for places in (0, *MOVES):
        own = replace(task, extra_metrics={})
        tally = Tally(own)
        for outputs, target in pairs:
            moved = {name: value.roll(places, 0) for name, value in outputs.items()}
            tally.add(moved, target)
        try:
            scores.append(tally.scores().accuracy)
        except AutocompressError:
            return ""  # a metric that fails on few samples
    right, others = scores[0], np.array(scores[1:])
    wrong = float(others.mean())
    if wrong - right <= max(APART * float(others.std(ddof=1)), LEAST_GAP * abs(wrong)):
        return ""
    return (
        f"metric: it is {right:.4g} for the model and {wrong:.4g} when its outputs are those of "
        "other samples, and higher counts as better; if smaller is better, give its negative"
    )


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
    session: onnxruntime.InferenceSession,
    feed: Mapping[str, NDArray[Any]],
    wanted: list[str] | None = None,
) -> list[NDArray[Any]]:
    try:
        return [np.asarray(output) for output in session.run(wanted, dict(feed))]
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
    dims: Sequence[int],
) -> list[NDArray[Any]]:
    """Return the first outputs of `size` samples from a file of batch size `fixed`.

    The last part is padded. Samples are counted by dimension `dims[i]` of output i.
    """
    parts = []
    for start in range(0, size, fixed):
        rows = np.minimum(np.arange(start, start + fixed), size - 1)
        part = {name: array[rows] if array.ndim else array for name, array in feed.items()}
        parts.append(_run(session, part)[: len(dims)])
    results = []
    for dim, outputs in zip(dims, zip(*parts, strict=True), strict=False):
        rows_per_sample = outputs[0].shape[dim] // fixed
        joined = np.concatenate(outputs, dim)
        results.append(joined.take(np.arange(size * rows_per_sample), dim))
    return results


def evaluate_session(
    task: Task,
    session: onnxruntime.InferenceSession,
    input_names: tuple[str, ...],
    batches: Batches,
) -> tuple[Scores, int]:
    """Return the scores of an ONNX file on a split, and the number of its samples.

    A file with a fixed batch size is fed in parts of that size, the last one padded. The cache of a
    decoder is empty.

    Args:
        task: gives the metrics.
        session: of the file.
        input_names: of the file, without those of a cache.
        batches: the split.

    Returns:
        (scores, samples).

    Raises:
        TaskError: a batch does not fit the file, or the file lacks an output.
        UserCodeError: a metric fails.
        NotComputableError: a metric gives no finite number.
    """
    fixed = next((value.shape[0] for value in session.get_inputs() if value.shape), None)
    names = ("", *task.further_outputs) if task.has_output_metrics else ("",)
    caches = cache_shapes(session.get_inputs())
    # New keys and values, which no metric reads, take as much memory as a batch has tokens.
    wanted = [value.name for value in session.get_outputs()][: len(names)] if caches else None
    known = task.sample_dims or {}
    dims = [known.get(name or task.primary_name, 0) for name in names]
    tally = Tally(task)
    for inputs, target in batches:
        tensors = input_tensors(inputs)
        if len(tensors) != len(input_names):
            raise TaskError(
                f"task: a batch has {len(tensors)} input tensors, the file takes "
                f"{len(input_names)} ({', '.join(input_names)})"
            )
        size = batch_size(inputs)
        feed = {**feed_of(inputs, input_names), **cache_feed(caches, size)}
        _check_shapes(session, feed, task.batch_first is False)
        if isinstance(fixed, int) and fixed != size:
            results = _run_in_parts(session, feed, size, fixed, dims)
        else:
            results = _run(session, feed, wanted)[: len(names)]
        if len(results) < len(names):
            raise TaskError(
                f"task: the file gives {len(results)} outputs, metrics read {len(names)}: "
                f"{', '.join(task.output_weights or ())}"
            )
        outputs = {}
        for name, result in zip(names, results, strict=True):
            outputs[name] = task.rows(torch.from_numpy(np.asarray(result)), name or None)
        tally.add(outputs, target)
    return tally.scores(), tally.samples

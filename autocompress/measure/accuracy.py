"""Evaluate a PyTorch model or an ONNX file on a split with the task's metrics.

The search judges stitched models with `evaluate_model`; the files of the front are verified with
`evaluate_session`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import AutocompressError, TaskError
from autocompress.measure.accumulators import equal
from autocompress.measure.tally import Scores, Tally, readings
from autocompress.task.batches import (
    Batches,
    Inputs,
    batch_size,
    cache_feed,
    cache_shapes,
    feed_of,
    input_tensors,
    seeded,
    to_device,
)
from autocompress.task.calls import call_model, is_ours, named_outputs, primary_output, run_model
from autocompress.task.copies import copied
from autocompress.task.task import Task

TRIED_SAMPLES, TRIED_S = 256, 2.0  # most samples, and seconds after which no more are run
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


@dataclass(frozen=True)
class _Sample:
    """Hold the outputs and targets of the first validation batches, to try the metrics on."""

    task: Task
    pairs: Sequence[tuple[Mapping[str, Tensor], Any]]

    def scores(self, change: Callable[[Tensor, Any], Tensor]) -> list[tuple[str, float]]:
        """Return (name, value) of each metric; [] if one fails on so few samples.

        Args:
            change: (output, target) -> the output that the metrics get in its place.
        """
        tally = Tally(self.task)
        for outputs, target in self.pairs:
            tally.add({name: change(value, target) for name, value in outputs.items()}, target)
        try:
            with seeded(0):
                found = tally.scores()
        except AutocompressError:
            return []
        return [("metric", found.accuracy), *found.metrics.items()]


def metric_notes(task: Task) -> Iterator[str]:
    """Yield what the metrics do on the first validation samples that is most likely a mistake.

    That are metrics that are better for outputs of other samples, that are not the same twice, and
    that compare each output with each target, as (n, 1) == (n,) does.

    Args:
        task: with settled splits and a known first dimension.

    Yields:
        One line for each.

    Raises:
        TaskError: a metric depends on what it was given before.
        UserCodeError: forward or a metric fails.
    """
    primary_alone = replace(task, extra_metrics={})
    sample = _Sample(primary_alone, _first_outputs(task))
    if sample.pairs:
        yield from _repeat_notes(_Sample(task, sample.pairs))
        yield from _broadcast_notes(sample)
        yield from _direction_notes(sample)


def _first_outputs(task: Task) -> list[tuple[dict[str, Tensor], Any]]:
    pairs, device, cpu = [], torch.device("cpu"), copied(task.model, shares_weights=True)
    begun = time.monotonic()
    for inputs, target in task.first_samples(task.validation, TRIED_SAMPLES):
        outputs = metric_outputs(task, cpu, inputs, device)
        primary = outputs[""]
        if primary.dim() == 0 or not 0 < primary.numel() <= MOST_VALUES:
            break
        pairs.append((outputs, target))
        if time.monotonic() - begun > TRIED_S:
            break
    return pairs


def _moved(places: int) -> Callable[[Tensor, Any], Tensor]:
    """Return a change that moves the rows of each batch."""
    return lambda output, _: output.roll(places, 0)


def _repeat_notes(sample: _Sample) -> Iterator[str]:
    """Yield a line for each metric that draws numbers, or raise a TaskError for one with a memory.

    A sum or mean over all calls is the same at its second call with equal arguments; it is not once
    it got others in between.
    """
    if all(is_ours(reading.metric) for reading in readings(sample.task)):
        return
    steps = [sample.scores(_moved(places)) for places in (0, 0, 1, 0)]
    for (name, first), (_, second), _, (_, last) in zip(*steps, strict=False):
        if not equal(first, second):
            yield (
                f"{name}: it is {first:.4g} and then {second:.4g} for the same outputs and "
                "targets, and scores of candidates differ as much; nearest: drawn numbers that "
                "start at a seed in each call"
            )
        elif not equal(second, last):
            raise TaskError(
                f"task: {name} returned {second:.4g} and later {last:.4g} for the same outputs "
                "and targets, so it depends on what it was given before; nearest: a new state in "
                "each call, or an object with update and compute"
            )


def _broadcast_notes(sample: _Sample) -> Iterator[str]:
    """Yield a line if the metric is better where outputs have the shape of their targets."""
    for outputs, target in sample.pairs:
        alike = isinstance(target, Tensor) and target.numel() == outputs[""].numel() > 1
        if not alike or target.shape == outputs[""].shape:
            return
    came = sample.scores(lambda output, _: output)
    fitting = sample.scores(lambda output, target: output.reshape(target.shape))
    better = bool(came and fitting) and fitting[0][1] > came[0][1]
    if better and not equal(came[0][1], fitting[0][1]):
        outputs, target = sample.pairs[0]
        yield (
            f"metric: it is {came[0][1]:.4g} for outputs of shape {tuple(outputs[''].shape)} with "
            f"targets of shape {tuple(target.shape)}, and {fitting[0][1]:.4g} if both have that of "
            "the targets; if it compares each output with each target, reshape one in the metric"
        )


def _direction_notes(sample: _Sample) -> Iterator[str]:
    """Yield a line if the metric is better for outputs that belong to other samples.

    The metric is compared with those after the rows of each batch were moved by several places. It
    is noted only if it lies far below all of them, so that a metric of random labels passes. Models
    that are worse than chance, as some with random weights are, cannot be told from metrics of
    which smaller values are better.
    """
    large = takewhile(lambda pair: len(pair[0][""]) > max(MOVES), sample.pairs)
    sample = replace(sample, pairs=list(large))
    if sample.task.batch_first is False or not sample.pairs:
        return
    scores = []
    for places in (0, *MOVES):
        found = sample.scores(_moved(places))
        if not found:
            return
        scores.append(found[0][1])
    right, others = scores[0], np.array(scores[1:])
    wrong = float(others.mean())
    if wrong - right > max(APART * float(others.std(ddof=1)), LEAST_GAP * abs(wrong)):
        yield (
            f"metric: it is {right:.4g} for the model and {wrong:.4g} when its outputs are those "
            "of other samples, and higher counts as better; if smaller is better, give its negative"
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

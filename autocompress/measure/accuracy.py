"""Outputs of a PyTorch model or of an ONNX file on a split, and the metrics of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.measure.ragged import ragged_score, split_rows
from autocompress.task.batches import Batches, Inputs, batch_size, feed_of, input_tensors, to_device
from autocompress.task.task import (
    OutputMetric,
    Task,
    call_model,
    named_outputs,
    primary_output,
    run_model,
    score,
    target_of,
)

Outputs = Tensor | list[Tensor]  # of a split; a list has one entry per sample


@dataclass(frozen=True)
class Scores:
    """`accuracy` is the task's metric; `metrics` holds the extra ones."""

    accuracy: float
    metrics: Mapping[str, float]


@torch.no_grad()
def model_outputs(model: nn.Module, inputs: Inputs, device: torch.device) -> Tensor:
    """Primary output of one batch on the CPU, float32 when it is floating point."""
    return _collected(call_model(model, to_device(inputs, device)))


def _collected(output: Tensor) -> Tensor:
    output = output.detach().cpu()
    return output.float() if output.is_floating_point() else output


def join_targets(targets: list[Any]) -> Any:
    """All targets of a split in one: a tensor where they are tensors that fit together, a mapping of them where they are mappings, else
    a list with an entry per sample.

    None when there are none.
    """
    if all(target is None for target in targets):
        return None
    if (
        all(isinstance(target, Tensor) for target in targets)
        and len({target.shape[1:] for target in targets}) == 1
    ):
        return torch.cat([t.cpu().reshape(1) if t.dim() == 0 else t.cpu() for t in targets])
    if all(isinstance(target, Mapping) for target in targets):
        return {name: join_targets([target.get(name) for target in targets]) for name in targets[0]}
    return [item for target in targets for item in target]


@torch.no_grad()
def metric_outputs(
    task: Task, model: nn.Module, inputs: Inputs, device: torch.device
) -> dict[str, Tensor]:
    """The outputs of one batch that metrics read, as `model_outputs` gives them: the primary one is "", others go by their names."""
    if not task.has_output_metrics:
        return {"": model_outputs(model, inputs, device)}
    result = run_model(model, to_device(inputs, device))
    found = {"": primary_output(result), **named_outputs(result, task.further_outputs)}
    return {name: _collected(output) for name, output in found.items()}


def join_outputs(batches: list[dict[str, Tensor]]) -> dict[str, Outputs]:
    """The outputs of a split, by name: a tensor, or a list with an entry per sample where those of its batches do not fit together."""
    joined: dict[str, Outputs] = {}
    for name, first in batches[0].items():
        found = [outputs[name] for outputs in batches]
        if any(output.dim() == 0 for output in found):
            raise TaskError(
                f"task: a batch gives an output of shape (); expected a row per sample, not one number like {float(first):.3g}"
            )
        joined[name] = (
            torch.cat(found)
            if len({output.shape[1:] for output in found}) == 1
            else split_rows(found)
        )
    return joined


def scores_of(task: Task, outputs: Mapping[str, Outputs], targets: Any) -> Scores:
    """Metric and extra metrics of all outputs of a split, by name."""
    extra = {}
    for name, metric in task.extra_metrics.items():
        if isinstance(metric, OutputMetric):
            read = "" if metric.output == task.primary_name else metric.output
            extra[name] = _score(
                metric.metric, outputs[read], target_of(targets, metric.output), name
            )
        else:
            extra[name] = _score(metric, outputs[""], targets, name)
    return Scores(_score(task.metric, outputs[""], targets, "metric"), extra)


def _score(metric: Callable[[Any, Any], float], outputs: Outputs, targets: Any, name: str) -> float:
    return (
        ragged_score(metric, outputs, targets, name)
        if isinstance(outputs, list)
        else score(metric, outputs, targets, name)
    )


def evaluate_model(
    task: Task, model: nn.Module, batches: Batches, device: torch.device
) -> tuple[Scores, Outputs]:
    """(scores, primary outputs) of a PyTorch model on a split."""
    outputs, targets = [], []
    for inputs, target in batches:
        outputs.append(metric_outputs(task, model, inputs, device))
        targets.append(target)
    joined = join_outputs(outputs)
    return scores_of(task, joined, join_targets(targets)), joined[""]


def _check_shapes(
    session: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[Any]], whole: bool
) -> None:
    """TaskError for dimensions that the file has fixed otherwise; the first one counts where batches stay `whole`."""
    for value in session.get_inputs():
        shape = feed[value.name].shape if value.name in feed else ()
        pairs = list(zip(value.shape, shape, strict=False))[0 if whole else 1 :]
        if any(isinstance(size, int) and size != came for size, came in pairs):
            raise TaskError(
                f"task: a batch has {value.name} of shape {shape}, the file takes {tuple(value.shape)} as in example_inputs; "
                "nearest: batches of the example's shape"
            )


def _run(
    session: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    try:
        return [np.asarray(found) for found in session.run(None, dict(feed))]
    except Exception as error:
        came = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in feed.items())
        why = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise TaskError(f"task: the file does not run on a batch ({came}): {why}") from error


def evaluate_session(
    task: Task,
    session: onnxruntime.InferenceSession,
    input_names: tuple[str, ...],
    batches: Batches,
) -> tuple[Scores, Outputs]:
    """(scores, primary outputs) of an ONNX file; a file with a fixed batch size is fed in parts of that size, the last one padded.

    TaskError where a batch has another size in a dimension that the file fixes, or does not fit the file at all.
    """
    fixed = session.get_inputs()[0].shape[0]
    names = ("", *task.further_outputs) if task.has_output_metrics else ("",)
    outputs, targets = [], []
    for inputs, target in batches:
        tensors = input_tensors(inputs)
        if len(tensors) != len(input_names):
            raise TaskError(
                f"task: a batch has {len(tensors)} input tensors, the file takes {len(input_names)} ({', '.join(input_names)})"
            )
        feed = feed_of(inputs, input_names)
        size = batch_size(inputs)
        _check_shapes(session, feed, task.batch_first is False)
        if isinstance(fixed, int) and fixed != size:
            parts = []
            for start in range(0, size, fixed):
                rows = np.minimum(np.arange(start, start + fixed), size - 1)
                parts.append(
                    _run(session, {name: array[rows] for name, array in feed.items()})[: len(names)]
                )
            # A sample may have several rows of output.
            results = [
                np.concatenate(found)[: size * (len(found[0]) // fixed)]
                for found in zip(*parts, strict=True)
            ]
        else:
            results = _run(session, feed)[: len(names)]
        if len(results) < len(names):
            raise TaskError(
                f"task: the file gives {len(results)} outputs, metrics read {len(names)}: {', '.join(task.output_weights or ())}"
            )
        outputs.append(
            {
                name: torch.from_numpy(np.asarray(found))
                for name, found in zip(names, results, strict=True)
            }
        )
        targets.append(target)
    joined = join_outputs(outputs)
    return scores_of(task, joined, join_targets(targets)), joined[""]

"""Outputs of a PyTorch model or of an ONNX file on a split, and the metrics of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.batches import Batches, Inputs, batch_size, feed_of, to_device
from autocompress.errors import TaskError
from autocompress.task import OutputMetric, Task, call_model, named_outputs, primary_output, run_model, score, target_of


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
    """All targets of a split in one: a tensor where they are tensors, a mapping of them where they are mappings, else a list.

    None when there are none.
    """
    if all(target is None for target in targets):
        return None
    if all(isinstance(target, Tensor) for target in targets):
        return torch.cat([t.cpu() for t in targets])
    if all(isinstance(target, Mapping) for target in targets):
        return {name: join_targets([target.get(name) for target in targets]) for name in targets[0]}
    return [item for target in targets for item in target]


@torch.no_grad()
def metric_outputs(task: Task, model: nn.Module, inputs: Inputs, device: torch.device) -> dict[str, Tensor]:
    """The outputs of one batch that metrics read, as `model_outputs` gives them: the primary one is "", others go by their names."""
    if not task.has_output_metrics:
        return {"": model_outputs(model, inputs, device)}
    result = run_model(model, to_device(inputs, device))
    found = {"": primary_output(result), **named_outputs(result, task.further_outputs)}
    return {name: _collected(output) for name, output in found.items()}


def join_outputs(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The outputs of a split, by name; TaskError where those of two batches do not fit together."""
    for name, first in batches[0].items():
        other = next((found[name] for found in batches if found[name].shape[1:] != first.shape[1:]), None)
        if other is not None:
            raise TaskError(
                f"task: outputs of two batches have shapes {tuple(first.shape)} and {tuple(other.shape)}, which no metric can see as one; "
                "return one row per sample, or pad all batches to one size"
            )
    return {name: torch.cat([outputs[name] for outputs in batches]) for name in batches[0]}


def scores_of(task: Task, outputs: Mapping[str, Tensor], targets: Any) -> Scores:
    """Metric and extra metrics of the concatenated outputs of a split, by name."""
    extra = {}
    for name, metric in task.extra_metrics.items():
        if isinstance(metric, OutputMetric):
            read = "" if metric.output == task.primary_name else metric.output
            extra[name] = score(metric.metric, outputs[read], target_of(targets, metric.output), name)
        else:
            extra[name] = score(metric, outputs[""], targets, name)
    return Scores(score(task.metric, outputs[""], targets), extra)


def evaluate_model(task: Task, model: nn.Module, batches: Batches, device: torch.device) -> tuple[Scores, Tensor]:
    """(scores, primary outputs) of a PyTorch model on a split."""
    outputs, targets = [], []
    for inputs, target in batches:
        outputs.append(metric_outputs(task, model, inputs, device))
        targets.append(target)
    joined = join_outputs(outputs)
    return scores_of(task, joined, join_targets(targets)), joined[""]


def evaluate_session(
    task: Task, session: onnxruntime.InferenceSession, input_names: tuple[str, ...], batches: Batches
) -> tuple[Scores, Tensor]:
    """(scores, primary outputs) of an ONNX file; a file with a fixed batch size is fed in parts of that size, the last one padded.

    A batch of another size in another fixed dimension raises TaskError.
    """
    fixed = session.get_inputs()[0].shape[0]
    names = ("", *task.further_outputs) if task.has_output_metrics else ("",)
    outputs, targets = [], []
    for inputs, target in batches:
        feed = feed_of(inputs, input_names)
        size = batch_size(inputs)
        _check_sizes(session, feed)
        if isinstance(fixed, int) and fixed != size:
            parts = []
            for start in range(0, size, fixed):
                rows = np.minimum(np.arange(start, start + fixed), size - 1)
                parts.append(session.run(None, {name: array[rows] for name, array in feed.items()})[: len(names)])
            results = [np.concatenate(found)[:size] for found in zip(*parts, strict=True)]
        else:
            results = session.run(None, feed)[: len(names)]
        outputs.append({name: torch.from_numpy(np.asarray(found)) for name, found in zip(names, results, strict=True)})
        targets.append(target)
    joined = join_outputs(outputs)
    return scores_of(task, joined, join_targets(targets)), joined[""]


def _check_sizes(session: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[Any]]) -> None:
    for value in session.get_inputs():
        found = feed[value.name].shape
        for d, (size, given) in enumerate(zip(value.shape, found, strict=False)):
            if d > 0 and isinstance(size, int) and size != given:
                raise TaskError(
                    f"evaluate: {value.name}: dimension {d} is fixed at {size} in the file, the batch has {given}; pad to {size}"
                )

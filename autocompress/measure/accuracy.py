"""Outputs of a PyTorch model or of an ONNX file on a split, and the metrics of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from autocompress.batches import Batches, Inputs, batch_size, feed_of, to_device
from autocompress.task import Task, call_model, score


@dataclass(frozen=True)
class Scores:
    """`accuracy` is the task's metric; `metrics` holds the extra ones."""

    accuracy: float
    metrics: Mapping[str, float]


@torch.no_grad()
def model_outputs(model: nn.Module, inputs: Inputs, device: torch.device) -> Tensor:
    """Primary output of one batch on the CPU, float32 when it is floating point."""
    output = call_model(model, to_device(inputs, device)).detach().cpu()
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


def scores_of(task: Task, outputs: Tensor, targets: Any) -> Scores:
    """Metric and extra metrics of the concatenated outputs of a split."""
    extra = {name: score(metric, outputs, targets, name) for name, metric in task.extra_metrics.items()}
    return Scores(score(task.metric, outputs, targets), extra)


def evaluate_model(task: Task, model: nn.Module, batches: Batches, device: torch.device) -> tuple[Scores, Tensor]:
    """(scores, outputs) of a PyTorch model on a split."""
    outputs, targets = [], []
    for inputs, target in batches:
        outputs.append(model_outputs(model, inputs, device))
        targets.append(target)
    joined = torch.cat(outputs)
    return scores_of(task, joined, join_targets(targets)), joined


def evaluate_session(
    task: Task, session: onnxruntime.InferenceSession, input_names: tuple[str, ...], batches: Batches
) -> tuple[Scores, Tensor]:
    """(scores, outputs) of an ONNX file; a file with a fixed batch size is fed in parts of that size, the last one padded."""
    fixed = session.get_inputs()[0].shape[0]
    outputs, targets = [], []
    for inputs, target in batches:
        feed = feed_of(inputs, input_names)
        size = batch_size(inputs)
        if isinstance(fixed, int) and fixed != size:
            parts = []
            for start in range(0, size, fixed):
                rows = np.minimum(np.arange(start, start + fixed), size - 1)
                parts.append(session.run(None, {name: array[rows] for name, array in feed.items()})[0])
            result = np.concatenate(parts)[:size]
        else:
            result = session.run(None, feed)[0]
        outputs.append(torch.from_numpy(np.asarray(result)))
        targets.append(target)
    joined = torch.cat(outputs)
    return scores_of(task, joined, join_targets(targets)), joined

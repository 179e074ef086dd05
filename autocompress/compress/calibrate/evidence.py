"""What speaks for keeping a weight besides its size: the inputs it multiplies and the gradients of the loss, from calibration batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.compress.calibrate.statistics import LayerStatistics
from autocompress.errors import NotComputableError
from autocompress.task.batches import Inputs, batch_size, cut, target_to_device, to_device
from autocompress.task.copies import copied
from autocompress.task.task import Task

GRADIENT_SAMPLES = 128
GRADIENT_BATCH = 8


@dataclass(frozen=True, eq=False)
class Gradients:
    """Of the loss at a weight, over small batches; all on the CPU.

    Attributes:
        mean, square: (the weight's shape) mean and mean square of its gradient.
        rows, columns: (rows,), (columns,) mean square of the sum of weight * gradient over all that goes with a row or a column.
        whole: the same over the whole weight.
    """

    mean: Tensor
    square: Tensor
    rows: Tensor
    columns: Tensor
    whole: Tensor


@dataclass
class Evidence:
    """Of one model: statistics of layers' inputs by name (may be empty), and gradients, which are computed when first asked for.

    `losses(model)` gives scalar losses, one per small batch; None where there is no data. `scores` remembers the importance of units by
    (group, criterion), for all who ask.
    """

    model: nn.Module
    statistics: Mapping[str, LayerStatistics] = field(default_factory=dict)
    losses: Callable[[nn.Module], Iterable[Tensor]] | None = None
    scores: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)

    @cached_property
    def gradients(self) -> Mapping[str, Gradients]:
        """By module name; empty where there is no data."""
        return {} if self.losses is None else collect_gradients(self.model, self.losses)

    @cached_property
    def gradient_digest(self) -> str:
        """Hash of the gradients."""
        digest = hashlib.sha256()
        for name, found in self.gradients.items():
            digest.update(name.encode() + found.square.numpy().tobytes())
        return digest.hexdigest()


def collect_gradients(
    model: nn.Module, losses: Callable[[nn.Module], Iterable[Tensor]]
) -> dict[str, Gradients]:
    """Of every module with a weight that the loss depends on; `model` is not changed."""
    own = copied(model, None)
    weights = {
        name: module.weight
        for name, module in own.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    }
    for parameter in own.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    sums: dict[str, list[Tensor]] = {}
    count = 0
    with torch.backends.cudnn.flags(
        enabled=False
    ):  # its recurrent layers have no gradient in eval mode
        for loss in losses(own):
            if not torch.isfinite(loss):
                raise NotComputableError(
                    f"calibration: the loss is {float(loss.detach())}; check the calibration data"
                )
            own.zero_grad()
            torch.autograd.backward(loss)
            count += 1
            for name, weight in weights.items():
                if weight.grad is None:
                    continue
                gradient = weight.grad.float()
                product = weight.detach().float() * gradient
                by_row = product.reshape(len(product), -1)
                by_column = (
                    product.transpose(0, 1).reshape(product.shape[1], -1)
                    if product.dim() > 1
                    else by_row
                )
                parts = [
                    gradient,
                    gradient.square(),
                    by_row.sum(1).square(),
                    by_column.sum(1).square(),
                    product.sum().square(),
                ]
                known = sums.get(name)
                sums[name] = (
                    parts if known is None else [a + b for a, b in zip(known, parts, strict=True)]
                )
    return {
        name: Gradients(*((part / count).cpu() for part in parts)) for name, parts in sums.items()
    }


def task_losses(task: Task) -> Callable[[nn.Module], Iterable[Tensor]]:
    """The loss of `Evidence` for a task: its training loss on calibration samples, or, without targets, a random projection of the
    outputs, whose gradients have the same second moments as those of a Gaussian likelihood (Gauss-Newton)."""

    def losses(model: nn.Module) -> Iterable[Tensor]:
        generator = torch.Generator().manual_seed(0)
        device = next(model.parameters()).device
        for inputs, target in task.first_samples(task.calibration_batches(), GRADIENT_SAMPLES):
            for part, wanted in _pieces(task, inputs, target):
                outputs = task.outputs_of(model, to_device(part, device))
                if not task.teaches(wanted):
                    noise = {
                        name: torch.randn(found.shape, generator=generator).to(device)
                        for name, found in outputs.items()
                    }
                    yield torch.stack(
                        [
                            (found.float() * noise[name]).sum() / len(found)
                            for name, found in outputs.items()
                        ]
                    ).sum()
                else:
                    yield task.training_loss(outputs, target_to_device(wanted, device))

    return losses


def _pieces(task: Task, inputs: Inputs, target: Any) -> Iterable[tuple[Inputs, Any]]:
    """A batch in parts of GRADIENT_BATCH samples; whole where it cannot be cut."""
    if not task.can_cut(inputs, target):
        yield inputs, target
        return
    for start in range(0, batch_size(inputs), GRADIENT_BATCH):
        yield cut(inputs, target, slice(start, start + GRADIENT_BATCH))

"""Collect evidence about the weights of one model from calibration data.

The evidence is the statistics of each layer's inputs (`statistics.py`) and the gradients of the
loss at each weight. Importance of units, masks of zeros and rounding all read it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.compress.calibrate.statistics import LayerStatistics
from autocompress.errors import NotComputableError
from autocompress.spill import Spilled
from autocompress.task.batches import Inputs, batch_size, cut, target_to_device, to_device
from autocompress.task.copies import copied
from autocompress.task.task import Task

GRADIENT_SAMPLES = 128
GRADIENT_BATCH = 8
ROUNDED_AWAY = 0.01  # of the mean square of a layer's inputs


@dataclass(frozen=True, eq=False)
class Gradients:
    """Hold moments of the loss's gradient g at one weight w, taken over small batches, on the CPU.

    Attributes:
        mean: (the weight's shape) E[g].
        square: (the weight's shape) E[g^2], the diagonal of the empirical Fisher matrix.
        rows: (rows,) E[(sum of w g over a row)^2].
        columns: (columns,) E[(sum of w g over a column)^2].
        whole: () E[(sum of w g over the weight)^2].
    """

    mean: Tensor
    square: Tensor
    rows: Tensor
    columns: Tensor
    whole: Tensor


@dataclass
class Evidence:
    """Hold input statistics and gradients of one model; gradients are computed on first use.

    Attributes:
        model: the original model; never changed.
        statistics: statistics of layers' inputs by module name; may be empty.
        losses: maps a model to scalar losses, one per small batch; None without data.
        scores: cache of unit importance by (group, criterion), shared by all readers.
        batches: the inputs on which statistics of batch normalisations are estimated again.
    """

    model: nn.Module
    statistics: Mapping[str, LayerStatistics] = field(default_factory=dict)
    losses: Callable[[nn.Module], Iterable[Tensor]] | None = None
    scores: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)
    batches: Sequence[Inputs] = ()

    @cached_property
    def wide(self) -> frozenset[str]:
        """Return the layers whose inputs lose more than ROUNDED_AWAY when rounded to 8 bits."""
        shares = {name: self.statistics[name].rounded_away(8) for name in self.statistics}
        return frozenset(name for name, share in shares.items() if share > ROUNDED_AWAY)

    @cached_property
    def gradients(self) -> Mapping[str, Gradients]:
        """Return the gradients by module name; empty without data."""
        return {} if self.losses is None else collect_gradients(self.model, self.losses)

    @cached_property
    def gradient_digest(self) -> str:
        """Return a hash of the gradients."""
        digest = hashlib.sha256()
        for name, gradients in self.gradients.items():
            digest.update(name.encode() + gradients.square.numpy().tobytes())
        return digest.hexdigest()


def collect_gradients(
    model: nn.Module, losses: Callable[[nn.Module], Iterable[Tensor]]
) -> Mapping[str, Gradients]:
    """Return the gradients' moments for every module with a weight that the loss depends on.

    They take twice the memory of the weights while they are added up; they are then kept on disk.

    Args:
        model: read in eval mode on a copy; not changed.
        losses: maps the copy to scalar losses, one per small batch.

    Returns:
        Moments by module name, on the CPU.

    Raises:
        NotComputableError: if a loss is NaN or infinite.
    """
    own = copied(model, None, shares_weights=True)
    weights: dict[str, nn.Parameter] = {}
    for name, module in own.named_modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            weights[name] = module.weight
    for parameter in own.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    sums: dict[str, list[Tensor]] = {}
    count = 0
    # Recurrent layers of cuDNN have no gradient in eval mode.
    with torch.backends.cudnn.flags(enabled=False):
        for loss in losses(own):
            if not torch.isfinite(loss):
                raise NotComputableError(
                    f"calibration: the loss is {float(loss.detach())}; check the calibration data"
                )
            own.zero_grad()
            torch.autograd.backward(loss)
            count += 1
            for name, weight in weights.items():
                if weight.grad is not None:
                    _add(sums, name, _moments(weight.detach().float(), weight.grad.float()))
    own.zero_grad()

    def mean(parts: list[Tensor]) -> Gradients:
        return Gradients(*((part / count).cpu() for part in parts))

    return Spilled((name, mean(sums.pop(name))) for name in list(sums))


def _moments(weight: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return the five parts of `Gradients` for one batch."""
    product = weight * gradient
    by_row = product.reshape(len(product), -1)
    by_column = by_row
    if product.dim() > 1:
        by_column = product.transpose(0, 1).reshape(product.shape[1], -1)
    return [
        gradient.clone(),  # tied weights share it, and sums are added in place
        gradient.square(),
        by_row.sum(1).square(),
        by_column.sum(1).square(),
        product.sum().square(),
    ]


def _add(sums: dict[str, list[Tensor]], name: str, parts: list[Tensor]) -> None:
    """Add the parts of one batch to the sums of module `name`."""
    if name in sums:
        for total, part in zip(sums[name], parts, strict=True):
            total.add_(part)
    else:
        sums[name] = parts


def task_losses(task: Task) -> Callable[[nn.Module], Iterable[Tensor]]:
    """Return the `losses` of `Evidence` for a task.

    With targets it is the task's training loss on calibration samples. Without targets it is a
    random projection of the outputs, whose gradients have the second moments of those of a Gaussian
    likelihood (Gauss-Newton).

    Args:
        task: gives calibration batches, model call and training loss.

    Returns:
        A function from a model to scalar losses, one per part of GRADIENT_BATCH samples.
    """

    def losses(model: nn.Module) -> Iterable[Tensor]:
        generator = torch.Generator().manual_seed(0)
        device = next(model.parameters()).device
        for inputs, target in task.first_samples(task.calibration_batches(), GRADIENT_SAMPLES):
            for part, labels in _pieces(task, inputs, target):
                outputs = task.outputs_of(model, to_device(part, device))
                if not task.teaches(labels):
                    yield _projection(outputs, generator, device)
                else:
                    yield task.training_loss(outputs, target_to_device(labels, device))

    return losses


def _projection(
    outputs: Mapping[str, Tensor], generator: torch.Generator, device: torch.device
) -> Tensor:
    """Return the sum over outputs of a Gaussian projection, divided by the batch size."""
    noise: dict[str, Tensor] = {}
    for name, output in outputs.items():
        noise[name] = torch.randn(output.shape, generator=generator).to(device)
    terms = []
    for name, output in outputs.items():
        terms.append((output.float() * noise[name]).sum() / len(output))
    return torch.stack(terms).sum()


def _pieces(task: Task, inputs: Inputs, target: Any) -> Iterable[tuple[Inputs, Any]]:
    """Yield a batch in parts of GRADIENT_BATCH samples, or whole if it cannot be cut."""
    if not task.can_cut(inputs, target):
        yield inputs, target
        return
    for start in range(0, batch_size(inputs), GRADIENT_BATCH):
        yield cut(inputs, target, slice(start, start + GRADIENT_BATCH))

"""What calibration batches show of each layer's inputs: Gram matrix, mean and extremes, gathered batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import NotComputableError
from autocompress.model.modules import ModuleMap
from autocompress.task.batches import Inputs, map_inputs
from autocompress.task.calls import call_model

CALIBRATION_SAMPLES = 128
POSITIONS = 4096  # input vectors that one batch adds to one layer


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Of the vectors that a layer multiplies (columns of W; a convolution's patches, per group of channels).

    Attributes:
        gram: (groups, columns, columns) mean of x x^T; groups is 1 but for grouped convolutions.
        mean: (groups, columns) mean of x.
        lowest, highest: (channels,) extremes of each input channel.
    """

    gram: Tensor
    mean: Tensor
    lowest: Tensor
    highest: Tensor

    @cached_property
    def digest(self) -> str:
        """Hash of the content."""
        digest = hashlib.sha256()
        for tensor in (self.gram, self.mean, self.lowest, self.highest):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def of(self, columns: Tensor | None, factors: Tensor | None) -> LayerStatistics:
        """For the inputs divided by `factors` (channels,), of which only `columns` (a mask) are kept; one group only."""
        gram, mean, low, high = self.gram, self.mean, self.lowest, self.highest
        if factors is not None:
            gram, mean, low, high = (
                gram / factors / factors[:, None],
                mean / factors,
                low / factors,
                high / factors,
            )
        if columns is not None:
            per_channel = columns.view(len(low), -1)[:, 0]
            gram, mean, low, high = (
                gram[:, columns][:, :, columns],
                mean[:, columns],
                low[per_channel],
                high[per_channel],
            )
        return LayerStatistics(gram, mean, low, high)

    def of_groups(self, kept: NDArray[np.bool_] | None) -> LayerStatistics:
        """Of the groups of a depthwise convolution that are left; `kept` (groups,), None for all."""
        if kept is None:
            return self
        mask = torch.from_numpy(kept)
        return LayerStatistics(
            self.gram[mask], self.mean[mask], self.lowest[mask], self.highest[mask]
        )

    def after(self, first: Tensor) -> LayerStatistics:
        """Of first @ x: what the second factor of a factorised layer reads."""
        none = torch.zeros(len(first))
        return LayerStatistics(first @ self.gram @ first.T, self.mean @ first.T, none, none)


def collect_statistics(
    model: nn.Module, module_map: ModuleMap, batches: Iterable[Inputs], device: torch.device
) -> Mapping[str, LayerStatistics]:
    """Statistics of every linear and convolutional module that `model` calls; memory is that of the Gram matrices.

    Raises NotComputableError when there are no batches or an input is not finite.
    """
    gathered: dict[str, _Sums] = {}

    def hook(name: str) -> Any:
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].numel() == 0:  # a part of the batch without samples
                return
            gathered.setdefault(name, _Sums()).add(*input_vectors(module, inputs[0]))

        return see

    handles = [
        model.get_submodule(alias).register_forward_pre_hook(hook(module.name))
        for module in module_map
        if module.kind in ("linear", "conv")
        for alias in (module.name, *module.aliases)
    ]
    seen = 0
    try:
        with torch.inference_mode():
            for inputs in batches:
                call_model(model, map_inputs(inputs, lambda tensor: tensor.to(device)))
                seen += 1
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise NotComputableError(
            "calibration: there are no batches; give the task calibration, train or validation data"
        )
    return {name: sums.finish(name) for name, sums in gathered.items()}


def input_vectors(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(vectors (n, groups, columns), lowest (channels,), highest (channels,)) that `module` multiplies for input x."""
    x = x.detach().float()
    if not isinstance(module, (nn.Conv1d, nn.Conv2d)):
        flat = x.reshape(-1, x.shape[-1])
        return flat[:: -(-len(flat) // POSITIONS)].unsqueeze(1), flat.amin(0), flat.amax(0)
    if x.dim() == 1 + len(module.kernel_size):  # one sample without a batch
        x = x.unsqueeze(0)
    channels = x.transpose(0, 1).flatten(1)
    low, high = channels.amin(1), channels.amax(1)
    kernel, stride, dilation = (
        tuple(module.kernel_size),
        tuple(module.stride),
        tuple(module.dilation),
    )
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(kernel)
    else:
        padding = tuple(module.padding)
    if isinstance(module, nn.Conv1d):
        x, kernel, stride, dilation, padding = (
            x.unsqueeze(2),
            (1, *kernel),
            (1, *stride),
            (1, *dilation),
            (0, *padding),
        )
    patches = F.unfold(
        x, kernel, dilation, padding, stride
    )  # (batch, channels * kernel, positions)
    flat = patches.transpose(1, 2).reshape(-1, patches.shape[1])
    return (
        flat[:: -(-len(flat) // POSITIONS)].reshape(
            -1, module.groups, patches.shape[1] // module.groups
        ),
        low,
        high,
    )


class _Sums:
    """Running sums of one layer."""

    def __init__(self) -> None:
        self.count = 0
        self.gram = self.total = self.low = self.high = torch.zeros(())

    def add(self, vectors: Tensor, low: Tensor, high: Tensor) -> None:
        by_group = vectors.transpose(0, 1)
        gram, total = by_group.transpose(1, 2) @ by_group, by_group.sum(1)
        first = self.count == 0
        self.gram = gram if first else self.gram + gram
        self.total = total if first else self.total + total
        self.low = low if first else self.low.minimum(low)
        self.high = high if first else self.high.maximum(high)
        self.count += len(vectors)

    def finish(self, name: str) -> LayerStatistics:
        if not torch.isfinite(self.gram).all():
            raise NotComputableError(
                f"calibration: inputs of {name} hold NaN or infinity; check the calibration data"
            )
        parts = (self.gram / self.count, self.total / self.count, self.low, self.high)
        return LayerStatistics(*(part.cpu() for part in parts))


def output_error(difference: Tensor, statistics: LayerStatistics, bias_is_corrected: bool) -> float:
    """E||D x||^2 of a weight difference D (rows, columns): squared error per output vector, without its mean where the bias absorbs it."""
    groups = len(statistics.gram)
    parts = difference.view(groups, -1, difference.shape[1])
    error = float(((parts @ statistics.gram) * parts).sum())
    if bias_is_corrected:
        error -= float((parts @ statistics.mean.unsqueeze(-1)).square().sum())
    return max(error, 0.0)

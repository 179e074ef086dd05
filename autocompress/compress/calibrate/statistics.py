"""Collect the Gram matrix, the mean and the extremes of each layer's inputs, batch by batch.

Rounding, zeros, pruning and whitened factors minimise ||(W - Q) X||^2. They need X only through
these statistics, so that the batches themselves need not be stored.
"""

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
from autocompress.spill import Spilled
from autocompress.task.batches import Inputs, map_inputs
from autocompress.task.calls import call_model

MOST_SAMPLES, LEAST_SAMPLES = 128, 32  # of the calibration
# Multiply-accumulates of the model on all of them: tens of seconds on two processors. It depends on
# no clock, so that each machine calibrates on the same samples.
CALIBRATION_MACS = 5e11
POSITIONS = 4096  # input vectors that one batch adds to one layer


def calibration_samples(module_map: ModuleMap, batch: int) -> int:
    """Return the number of samples that a model is calibrated on; fewer for large models.

    Args:
        module_map: counts the multiply-accumulates of the example.
        batch: samples of the example.
    """
    macs = module_map.total_macs / max(1, batch)
    return int(min(MOST_SAMPLES, max(LEAST_SAMPLES, CALIBRATION_MACS / max(1.0, macs))))


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Hold statistics of the vectors x that a layer multiplies by W, on the CPU.

    x is an input vector of a linear layer, or a patch of a convolution's input per group of
    channels.

    Attributes:
        gram: (groups, columns, columns) mean of x x^T; groups is 1 but for grouped convolutions.
        mean: (groups, columns) mean of x.
        lowest: (channels,) minimum of each input channel.
        highest: (channels,) maximum of each input channel.
    """

    gram: Tensor
    mean: Tensor
    lowest: Tensor
    highest: Tensor

    @cached_property
    def digest(self) -> str:
        """Return a hash of the content."""
        digest = hashlib.sha256()
        for tensor in (self.gram, self.mean, self.lowest, self.highest):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def rounded_away(self, bits: int) -> float:
        """Return the share of the inputs' mean square that rounding over their range takes.

        The noise of a step s is s^2 / 12 (Widrow and Kollar 2008). Few very large values widen the
        step of all others.

        Args:
            bits: of the rounded inputs.
        """
        width = max(0.0, float(self.highest.max())) - min(0.0, float(self.lowest.min()))
        noise = (width / float(2**bits - 1)) ** 2 / 12
        return noise / max(float(self.gram.diagonal(dim1=1, dim2=2).mean()), 1e-30)

    def with_lookups(self) -> LayerStatistics:
        """Return the statistics of a table that is multiplied, by a head, and looked up.

        A lookup is a product with a vector of which one element is 1, so that the errors of all
        columns count alike. Both uses have the same weight in the mean.
        """
        scale = float(self.gram.diagonal(dim1=1, dim2=2).mean())
        gram = self.gram + scale * torch.eye(self.gram.shape[-1])
        return LayerStatistics(gram / 2, self.mean, self.lowest, self.highest)

    def of(self, columns: Tensor | None, factors: Tensor | None) -> LayerStatistics:
        """Return the statistics of smoothed and pruned inputs; for one group only.

        Args:
            columns: (columns,) bool mask of the columns that stay; None for all.
            factors: (channels,) divisors of the input channels, applied first; None for none.

        Returns:
            Statistics of the columns that stay.
        """
        gram, mean, low, high = self.gram, self.mean, self.lowest, self.highest
        if factors is not None:
            gram = gram / factors / factors[:, None]
            mean, low, high = mean / factors, low / factors, high / factors
        if columns is not None:
            per_channel = columns.view(len(low), -1)[:, 0]
            gram, mean = gram[:, columns][:, :, columns], mean[:, columns]
            low, high = low[per_channel], high[per_channel]
        return LayerStatistics(gram, mean, low, high)

    def of_groups(self, stays: NDArray[np.bool_] | None) -> LayerStatistics:
        """Return the statistics of a depthwise convolution after pruning.

        Args:
            stays: (groups,) mask of the groups that stay; None for all.

        Returns:
            Statistics of the groups that stay.
        """
        if stays is None:
            return self
        mask = torch.from_numpy(stays)
        return LayerStatistics(
            self.gram[mask], self.mean[mask], self.lowest[mask], self.highest[mask]
        )

    def after(self, first: Tensor) -> LayerStatistics:
        """Return the statistics of A x, the input of the second of two factors.

        Args:
            first: (rank, columns) A, the factor that is applied first.

        Returns:
            Gram matrix A H A^T and mean; the extremes are 0, since no factor reads them.
        """
        zeros = torch.zeros(len(first))
        return LayerStatistics(first @ self.gram @ first.T, self.mean @ first.T, zeros, zeros)


def collect_statistics(
    model: nn.Module, module_map: ModuleMap, batches: Iterable[Inputs], device: torch.device
) -> Mapping[str, LayerStatistics]:
    """Return input statistics of every linear and convolutional module that `model` calls.

    Those of a linear layer that shares an embedding's table, as the head of many language models
    does, stand under its own name, others under the name of the module. Memory is that of the Gram
    matrices, whatever the number of batches; they are then kept on disk.

    Args:
        model: called as it is; not changed.
        module_map: the compressible modules of `model`.
        batches: inputs of `model`, without targets.
        device: device of `model`, to which the inputs are moved.

    Returns:
        Statistics by module name.

    Raises:
        NotComputableError: if there are no batches, or an input is NaN or infinite.
    """
    sums_of: dict[str, _Sums] = {}

    def hook(name: str) -> Any:
        def see(module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            x = args[0] if args else named["input"]
            if x.numel():  # not a part of the batch without samples
                sums_of.setdefault(name, _Sums()).add(*input_vectors(module, x))

        return see

    watched: list[tuple[str, str]] = []
    for module in module_map:
        if module.kind in ("linear", "conv"):
            watched += [(alias, module.name) for alias in (module.name, *module.aliases)]
        if module.kind == "embedding":
            for alias in module.aliases:
                if isinstance(model.get_submodule(alias), nn.Linear):
                    watched.append((alias, alias))
    handles = []
    for alias, name in watched:
        submodule = model.get_submodule(alias)
        handles.append(submodule.register_forward_pre_hook(hook(name), with_kwargs=True))
    count = 0
    try:
        with torch.inference_mode():
            for inputs in batches:
                call_model(model, map_inputs(inputs, lambda tensor: tensor.to(device)))
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise NotComputableError(
            "calibration: there are no batches; give the task calibration, train or validation data"
        )
    return Spilled((name, sums_of.pop(name).finish(name)) for name in list(sums_of))


def input_vectors(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the vectors that `module` multiplies by its weight for input x.

    Args:
        module: a linear layer or a convolution in one or two dimensions.
        x: (..., columns) for a linear layer, (batch, channels, *positions) for a convolution.

    Returns:
        (n, groups, columns) vectors, evenly thinned out to about POSITIONS; (channels,) minimum and
        (channels,) maximum of x over all positions.
    """
    x = x.detach().float()
    if not isinstance(module, (nn.Conv1d, nn.Conv2d)):
        flat = x.reshape(-1, x.shape[-1])
        return _thinned(flat).unsqueeze(1), flat.amin(0), flat.amax(0)
    if x.dim() == 1 + len(module.kernel_size):  # one sample without a batch
        x = x.unsqueeze(0)
    channels = x.transpose(0, 1).flatten(1)
    low, high = channels.amin(1), channels.amax(1)
    vectors = _vectors(module, x)
    return vectors.view(len(vectors), module.groups, -1), low, high


def _thinned(vectors: Tensor) -> Tensor:
    """Return every n-th row, so that at most POSITIONS are left."""
    return vectors[:: -(-len(vectors) // POSITIONS)]


def _vectors(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """Return every n-th patch of a batch, (n, channels * kernel), as `_thinned` would.

    All patches of a batch take the memory of its input times the kernel's size; one sample's less.
    """
    vectors = []
    for i in range(len(x)):
        patches = _patches(module, x[i : i + 1])[0]
        count = patches.shape[1]
        step = -(-len(x) * count // POSITIONS)
        vectors.append(patches[:, -i * count % step :: step].t())
    return torch.cat(vectors)


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """Return the (batch, channels * kernel, positions) patches of a convolution's input."""
    kernel, stride = tuple(module.kernel_size), tuple(module.stride)
    dilation = tuple(module.dilation)
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(kernel)
    else:
        padding = tuple(module.padding)
    if isinstance(module, nn.Conv1d):
        x = x.unsqueeze(2)
        kernel, stride = (1, *kernel), (1, *stride)
        dilation, padding = (1, *dilation), (0, *padding)
    return F.unfold(x, kernel, dilation, padding, stride)


class _Sums:
    """Add up the statistics of one layer."""

    def __init__(self) -> None:
        self.count = 0
        self.gram = self.total = self.low = self.high = torch.zeros(())

    def add(self, vectors: Tensor, low: Tensor, high: Tensor) -> None:
        by_group = vectors.transpose(0, 1)
        gram, total = by_group.transpose(1, 2) @ by_group, by_group.sum(1)
        first = self.count == 0
        self.gram = gram if first else self.gram.add_(gram)
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
    """Return E||D x||^2, the squared error of a layer's output per input vector.

    E||D x||^2 = tr(D H D^T). If the bias is corrected, it absorbs the mean error D E[x], and
    ||D E[x]||^2 is subtracted.

    Args:
        difference: (rows, columns) D, the compressed weight minus the original one.
        statistics: statistics of the layer's inputs.
        bias_is_corrected: True if the layer has a bias that absorbs the mean error.

    Returns:
        The error in squared units of the output, at least 0.
    """
    groups = len(statistics.gram)
    parts = difference.view(groups, -1, difference.shape[1])
    error = float(((parts @ statistics.gram) * parts).sum())
    if bias_is_corrected:
        error -= float((parts @ statistics.mean.unsqueeze(-1)).square().sum())
    return max(error, 0.0)

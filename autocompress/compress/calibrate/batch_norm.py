"""Estimate the statistics of batch normalisations again, for a model with compressed weights.

Compressed weights change the mean and the variance of what a normalisation reads. No label is
needed to measure that. Only the change of both moments on the calibration samples is taken over, as
in Jordan et al. 2022, "REPAIR", sec. 4. So few samples suffice: their own deviation from the
training data is in both models and cancels. Where nothing in front has changed, the statistics stay
as they are, bit by bit. Sun et al. 2019, "Hybrid 8-bit floating point training and inference", and
Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", estimate them anew instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.task.batches import Inputs, batch_size, to_device
from autocompress.task.calls import call_model

NORMS = nn.modules.batchnorm._BatchNorm
STATISTICS = ("running_mean", "running_var")
SAMPLES = 64  # of the calibration samples; batches are not cut
# Largest ratio of two variances that is followed. A channel whose variance falls further is dead:
# to scale up what is left of it would scale up errors.
LARGEST_RATIO = 64.0


@dataclass(frozen=True, eq=False)
class Moments:
    """Hold the moments of what a normalisation has read, per channel.

    Attributes:
        count: values per channel.
        mean: (channels,) float64.
        variance: (channels,) float64, of the values seen.
    """

    count: int
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        """Return the moments of one input.

        Args:
            x: (n, channels, ...) with at least one value per channel.
        """
        dims = [0, *range(2, x.dim())]
        variance, mean = torch.var_mean(x.detach().float(), dims, correction=0)
        return cls(x.numel() // x.shape[1], mean.double(), variance.double())

    def joined(self, other: Moments) -> Moments:
        """Return the moments of the values of both.

        Source: Chan, Golub and LeVeque 1983, eq. 2.1.

        Args:
            other: moments of further values.
        """
        count = self.count + other.count
        share, apart = other.count / count, other.mean - self.mean
        variance = (1 - share) * self.variance + share * other.variance
        variance = variance + share * (1 - share) * apart.square()
        return Moments(count, self.mean + share * apart, variance)


@dataclass(eq=False)
class NormStatistics:
    """Estimate the statistics of the normalisations of one model's compressed copies.

    Attributes:
        model: the float model; never changed.
        batches: `norm_samples`; none leaves all statistics as they are.
    """

    model: nn.Module
    batches: Sequence[Inputs] = ()
    _order: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Return all names of each normalisation with statistics, by its first name."""
        names: dict[int, list[str]] = {}
        for name, module in self.model.named_modules(remove_duplicate=False):
            if isinstance(module, NORMS) and module.running_mean is not None:
                names.setdefault(id(module), []).append(name)
        return {own[0]: tuple(own) for own in names.values()} if self.batches else {}

    @cached_property
    def buffers(self) -> tuple[str, ...]:
        """Return the names of the means and variances of these normalisations."""
        return tuple(f"{name}.{part}" for name in self.names for part in STATISTICS)

    @cached_property
    def _samples(self) -> tuple[Inputs, ...]:
        """Return the batches on the model's device."""
        device = _device(self.model)
        return tuple(to_device(inputs, device) for inputs in self.batches)

    @cached_property
    def _reference(self) -> Mapping[str, list[Moments]]:
        """Return what the normalisations of the float model read, up to each of their calls."""
        read: dict[str, list[Moments]] = {name: [] for name in self.names}
        order: dict[str, int] = {}

        def notice(name: str) -> Any:
            def hook(*_: object) -> None:
                order.setdefault(name, len(order))

            return hook

        def see(name: str, x: Tensor) -> None:
            read[name].append(_with_next(read[name], x))

        handles = []
        for name, module in self.model.named_modules(remove_duplicate=False):
            handles.append(module.register_forward_pre_hook(notice(name)))
        try:
            self._run(self.model, see)
        finally:
            for handle in handles:
                handle.remove()
        self._order = order
        return read

    def estimate(self, model: nn.Module, changed: Collection[str]) -> dict[str, Tensor]:
        """Estimate the statistics of a compressed copy, and set them in it.

        Each normalisation already computes with its new statistics while those behind it are
        measured.

        Args:
            model: a copy of the float model, in eval mode on its device, that computes with
                compressed weights and the float model's statistics.
            changed: names of the modules that compute something else.

        Returns:
            The means and variances that changed, by the name of the buffer.
        """
        if not changed or not self.names:
            return {}
        reference = self._reference
        first = min(self._order.get(name, 0) for name in changed)
        if first > max(self._order.get(name, 0) for name in self.names):
            return {}  # nothing is normalised behind it
        before: dict[str, tuple[Tensor, Tensor]] = {}
        for name in self.names:
            norm: Any = model.get_submodule(name)
            before[name] = norm.running_mean.clone(), norm.running_var.clone()
        read: dict[str, list[Moments]] = {name: [] for name in self.names}

        def see(name: str, x: Tensor) -> None:
            read[name].append(_with_next(read[name], x))
            norm: Any = model.get_submodule(name)
            at = len(read[name]) - 1
            mean, variance = before[name]
            if at < len(reference[name]) and reference[name][at].count == read[name][at].count:
                moments = reference[name][at], read[name][at]
                mean, variance = moved(mean, variance, *moments, norm.eps)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)

        self._run(model, see)
        return self._changes(model, before)

    def _changes(
        self, model: nn.Module, before: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Return the buffers that differ from `before`, under all names of their modules."""
        changes: dict[str, Tensor] = {}
        for name, others in self.names.items():
            norm: Any = model.get_submodule(name)
            for part, old in zip(STATISTICS, before[name], strict=True):
                value = getattr(norm, part)
                if not torch.equal(value, old):
                    changes.update({f"{other}.{part}": value.clone() for other in others})
        return changes

    def _run(self, model: nn.Module, see: Callable[[str, Tensor], None]) -> None:
        """Call a model on the samples; `see` gets the name and the input of each normalisation."""

        def hook(name: str) -> Any:
            def before(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
                x = args[0] if args else named["input"]
                if x.numel():  # not a part of the batch without samples
                    see(name, x)

            return before

        handles = []
        for name in self.names:
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(hook(name), with_kwargs=True))
        try:
            with torch.no_grad():
                for inputs in self._samples:
                    call_model(model, inputs)
        finally:
            for handle in handles:
                handle.remove()


def norm_samples(model: nn.Module, batches: Iterable[Inputs]) -> tuple[Inputs, ...]:
    """Return the calibration inputs on which the statistics of a model are estimated.

    Args:
        model: the float model.
        batches: calibration inputs.

    Returns:
        The first batches with SAMPLES samples; none if no normalisation has statistics.
    """
    taken: list[Inputs] = []
    norms = (module for module in model.modules() if isinstance(module, NORMS))
    if any(norm.running_mean is not None for norm in norms):
        count = 0
        for inputs in batches:
            if count >= SAMPLES:
                break
            taken.append(inputs)
            count += batch_size(inputs)
    return tuple(taken)


def moved(
    mean: Tensor, variance: Tensor, original: Moments, compressed: Moments, eps: float
) -> tuple[Tensor, Tensor]:
    """Move statistics so that a normalisation's output has the float model's moments again.

    With r the ratio of the variances of both inputs, the variance becomes r times the old one, and
    the mean the one with which the mean of the output stays.

    Args:
        mean: (channels,) the statistics of the float model.
        variance: (channels,) likewise.
        original: of the inputs in the float model.
        compressed: of the inputs in the compressed model.
        eps: added to the variance by the normalisation.

    Returns:
        (mean, variance) for the compressed model, of the types of the old ones.
    """
    old, spread = mean.double(), variance.double()
    ratio = compressed.variance / original.variance
    alive = compressed.variance * LARGEST_RATIO >= original.variance
    ratio = torch.where(alive & (original.variance > 0), ratio.clamp_max(LARGEST_RATIO), 1.0)
    scale = ((spread * ratio + eps) / (spread + eps)).sqrt()
    shift = compressed.mean - original.mean + (original.mean - old) * (1 - scale)
    return (old + shift).to(mean.dtype), (spread * ratio).to(variance.dtype)


def _with_next(seen: Sequence[Moments], x: Tensor) -> Moments:
    """Return the moments of all inputs so far and of the next one."""
    own = Moments.of(x)
    return seen[-1].joined(own) if seen else own


def _device(model: nn.Module) -> torch.device:
    return next((value.device for value in model.parameters()), torch.device("cpu"))

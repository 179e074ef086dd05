"""Accuracy on disturbed inputs: a compressed model that is as accurate as before may have become fragile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autocompress.task.batches import Batches, Inputs, input_tensors, map_inputs, take_samples

SAMPLES = 512
NOISE = 0.3  # standard deviation of the noise against that of the tensor
CONTRAST = 0.4  # what is left of each sample's deviation from its mean
DROPPED = 0.1  # share of the tokens that become token 0
FRAGILE = 0.02  # share of the baseline's accuracy lost under a corruption beyond what is lost on clean inputs


def gaussian_noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """`tensor` with independent noise of NOISE times its standard deviation."""
    return tensor + NOISE * tensor.std() * torch.randn(tensor.shape, generator=generator)


def contrast(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Every sample drawn towards its own mean."""
    mean = (
        tensor.mean(tuple(range(1, tensor.dim())), keepdim=True)
        if tensor.dim() > 1
        else tensor.mean()
    )
    return mean + CONTRAST * (tensor - mean)


def token_dropout(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Tokens (n, length) of which some are 0."""
    return torch.where(
        torch.rand(tensor.shape, generator=generator) < DROPPED, torch.zeros_like(tensor), tensor
    )


def _is_signal(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _is_tokens(tensor: Tensor) -> bool:
    """Integers that are not a mask of zeros and ones."""
    return (
        not tensor.is_floating_point()
        and tensor.dtype != torch.bool
        and tensor.dim() > 1
        and int(tensor.max()) > 1
    )


CORRUPTIONS: Mapping[
    str, tuple[Callable[[Tensor, torch.Generator], Tensor], Callable[[Tensor], bool]]
] = {
    "gaussian_noise": (gaussian_noise, _is_signal),
    "contrast": (contrast, _is_signal),
    "token_dropout": (token_dropout, _is_tokens),
}


class Corrupted:
    """The first whole batches with SAMPLES samples under one corruption, the same in every pass."""

    def __init__(self, batches: Batches, name: str) -> None:
        self.batches = take_samples(
            batches, SAMPLES, whole=True
        )  # a metric may be of pairs or groups of a batch
        self.corrupt, self.applies = CORRUPTIONS[name]

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        generator = torch.Generator().manual_seed(0)
        for inputs, target in self.batches:
            yield map_inputs(inputs, partial(self._disturbed, generator)), target

    def _disturbed(self, generator: torch.Generator, tensor: Tensor) -> Tensor:
        return self.corrupt(tensor, generator) if self.applies(tensor) else tensor


def corruptions_of(batches: Batches, batch_first: bool | None = None) -> dict[str, Corrupted]:
    """Every corruption that changes inputs of such batches, by the name of its metric; noise alone where samples cannot be told apart."""
    inputs = next(iter(batches))[0]
    return {
        f"accuracy_{name}": Corrupted(batches, name)
        for name, (_, applies) in CORRUPTIONS.items()
        if (batch_first is not False or name == "gaussian_noise")
        and any(applies(tensor) for tensor in input_tensors(inputs))
    }


def fragile_under(
    baseline: Mapping[str, float], point: Mapping[str, float], accuracy: float, clean_loss: float
) -> tuple[str, ...]:
    """The corruptions under which a point loses against the baseline more than `clean_loss` and FRAGILE of the baseline's `accuracy`."""
    allowed = max(clean_loss, 0.0) + FRAGILE * abs(accuracy)
    names = [f"accuracy_{name}" for name in CORRUPTIONS]
    return tuple(
        name.removeprefix("accuracy_")
        for name in names
        if name in point and name in baseline and baseline[name] - point[name] > allowed
    )

"""Measure accuracy on corrupted inputs, to find compressed models that became fragile.

The files of the front are evaluated on `Corrupted` splits; a point that loses clearly more than the
float model is marked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autocompress.task.batches import (
    Batches,
    Inputs,
    input_tensors,
    map_inputs,
    map_value,
    take_samples,
)

SAMPLES = 512
NOISE = 0.3  # standard deviation of the noise against that of the tensor
CONTRAST = 0.4  # share of each sample's deviation from its mean after the corruption
DROPPED = 0.1  # share of the tokens that become token 0
# The argument that holds the tokens, in models that name it so; their other integers are positions,
# types or labels.
TOKENS = "input_ids"
# Share of the baseline's accuracy that a point may lose under a corruption beyond its loss on clean
# inputs.
FRAGILE = 0.02


def gaussian_noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return a tensor with independent noise of NOISE times its standard deviation.

    Args:
        tensor: floating-point numbers of any shape.
        generator: draws the noise.

    Returns:
        A tensor of the same shape.
    """
    return tensor + NOISE * tensor.std() * torch.randn(tensor.shape, generator=generator)


def contrast(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return a tensor in which every sample is drawn towards its own mean.

    Args:
        tensor: (n, ...) floating-point numbers.
        generator: not used.

    Returns:
        A tensor of the same shape.
    """
    if tensor.dim() > 1:
        mean = tensor.mean(tuple(range(1, tensor.dim())), keepdim=True)
    else:
        mean = tensor.mean()
    return mean + CONTRAST * (tensor - mean)


def token_dropout(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return tokens of which a share of DROPPED is 0.

    Args:
        tensor: (n, length) token ids.
        generator: draws the positions.

    Returns:
        A tensor of the same shape.
    """
    dropped = torch.rand(tensor.shape, generator=generator) < DROPPED
    return torch.where(dropped, torch.zeros_like(tensor), tensor)


def _is_signal(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _is_tokens(tensor: Tensor) -> bool:
    """Return True for integers that are not a mask of zeros and ones."""
    integers = not tensor.is_floating_point() and tensor.dtype != torch.bool
    return integers and tensor.dim() > 1 and int(tensor.max()) > 1


Corruption = Callable[[Tensor, torch.Generator], Tensor]
# Name -> (corruption, True if it applies to a tensor).
CORRUPTIONS: Mapping[str, tuple[Corruption, Callable[[Tensor], bool]]] = {
    "gaussian_noise": (gaussian_noise, _is_signal),
    "contrast": (contrast, _is_signal),
    "token_dropout": (token_dropout, _is_tokens),
}


class Corrupted:
    """Give the first whole batches with SAMPLES samples under one corruption.

    They are the same in every pass.
    """

    def __init__(self, batches: Batches, name: str, special: Sequence[int] = ()) -> None:
        # Batches stay whole, since a metric may compare the samples of a batch.
        self.batches = take_samples(batches, SAMPLES, whole=True)
        self.corrupt, self.applies = CORRUPTIONS[name]
        self.of_tokens = name == "token_dropout"
        self.special = torch.tensor(special, dtype=torch.int64)

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        generator = torch.Generator().manual_seed(0)
        for inputs, target in self.batches:
            yield self._disturbed(inputs, generator), target

    def _disturbed(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        def change(tensor: Tensor) -> Tensor:
            if not self.applies(tensor):
                return tensor
            changed = self.corrupt(tensor, generator)
            if not self.of_tokens:
                return changed
            return torch.where(torch.isin(tensor, self.special), tensor, changed)

        if self.of_tokens and isinstance(inputs, Mapping) and TOKENS in inputs:
            return {**inputs, TOKENS: map_value(inputs[TOKENS], change)}
        return map_inputs(inputs, change)


def corruptions_of(
    batches: Batches, batch_first: bool | None = None, special: Sequence[int] = ()
) -> dict[str, Corrupted]:
    """Return the corrupted splits that differ from a split.

    Args:
        batches: the split.
        batch_first: False if samples cannot be told apart; then only noise is applied.
        special: numbers of tokens that are never dropped, such as the first and the last one.

    Returns:
        Name of the metric ("accuracy_contrast", ...) -> corrupted batches.
    """
    tensors = input_tensors(next(iter(batches))[0])
    corrupted = {}
    for name, (_, applies) in CORRUPTIONS.items():
        by_sample = name != "gaussian_noise"
        if (batch_first is not False or not by_sample) and any(map(applies, tensors)):
            corrupted[f"accuracy_{name}"] = Corrupted(batches, name, special)
    return corrupted


def fragile_under(
    baseline: Mapping[str, float], point: Mapping[str, float], accuracy: float, clean_loss: float
) -> tuple[str, ...]:
    """Return the corruptions under which a point loses clearly more accuracy than on clean inputs.

    Args:
        baseline: accuracy of the float model by metric name.
        point: accuracy of the point by metric name.
        accuracy: of the float model on clean inputs.
        clean_loss: accuracy that the point loses on clean inputs.

    Returns:
        Names of corruptions with a loss above `clean_loss` plus FRAGILE of `accuracy`.
    """
    allowed = max(clean_loss, 0.0) + FRAGILE * abs(accuracy)
    fragile = []
    for name in CORRUPTIONS:
        key = f"accuracy_{name}"
        if key in point and key in baseline and baseline[key] - point[key] > allowed:
            fragile.append(name)
    return tuple(fragile)

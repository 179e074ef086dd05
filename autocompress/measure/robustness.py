"""Measure accuracy on corrupted inputs, to find compressed models that became fragile.

The files of the front are evaluated on `Corrupted` splits; a point that loses clearly more than the
float model is marked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from operator import length_hint
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.task.batches import (
    Batches,
    Inputs,
    input_tensors,
    map_inputs,
    map_value,
    seeded,
    take_samples,
)

SAMPLES = 512
NOISE = 0.3  # standard deviation of the noise against that of the tensor
CONTRAST = 0.4  # share of each sample's deviation from its mean after the corruption
DROPPED = 0.1  # share of the tokens that become token 0
BLURRED = 3  # pixels on each side of the square that a pixel becomes the mean of
GAIN = 0.25  # loudness of sounds after the corruption
# The argument that holds the tokens, in models that name it so; their other integers are positions,
# types or labels.
TOKENS = "input_ids"
# Parts of names of other arguments with integers that are no tokens.
NO_TOKENS = ("position", "type", "mask", "grid", "label", "index", "bbox", "length", "size")
SOUND = "input_values"  # the argument that holds waves
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


def blur(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures in which every pixel is the mean of a square around it.

    Args:
        tensor: (n, channels, height, width).
        generator: not used.

    Returns:
        A tensor of the same shape.
    """
    padded = F.pad(tensor, [BLURRED // 2] * 4, mode="replicate")
    return F.avg_pool2d(padded, BLURRED, 1)


def gain(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return sounds at GAIN of their loudness.

    Args:
        tensor: (n, samples).
        generator: not used.

    Returns:
        A tensor of the same shape.
    """
    return GAIN * tensor


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


Applies = Callable[[Tensor, str, bool], bool]  # (tensor, its argument, inputs have TOKENS)


def _is_signal(tensor: Tensor, name: str, named: bool) -> bool:
    """Return True for floating-point numbers; one number alone does not vary."""
    return tensor.is_floating_point() and tensor.numel() > 1


def _is_picture(tensor: Tensor, name: str, named: bool) -> bool:
    return tensor.is_floating_point() and tensor.dim() == 4 and min(tensor.shape[2:]) >= BLURRED


def _is_sound(tensor: Tensor, name: str, named: bool) -> bool:
    return tensor.is_floating_point() and tensor.dim() == 2 and name == SOUND


def _is_tokens(tensor: Tensor, name: str, named: bool) -> bool:
    """Return True for integers that are no mask of zeros and ones and no positions.

    Names of arguments tell more, if there are any.
    """
    if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.dim() < 2:
        return False
    if named or any(part in name for part in NO_TOKENS):
        return name == TOKENS
    counted = tensor.shape[1] > 1 and bool((tensor.diff(dim=1) == 1).all())
    return int(tensor.max()) > 1 and not counted


def _is_text(tensor: Tensor, name: str, named: bool) -> bool:
    return named and name == TOKENS


Corruption = Callable[[Tensor, torch.Generator], Tensor]
# Name -> (corruption, if it applies to a tensor).
CORRUPTIONS: Mapping[str, tuple[Corruption | None, Applies]] = {
    "gaussian_noise": (gaussian_noise, _is_signal),
    "contrast": (contrast, _is_signal),
    "blur": (blur, _is_picture),
    "gain": (gain, _is_sound),
    "token_dropout": (token_dropout, _is_tokens),
    "typos": (None, _is_text),  # the task brings them
}
# The same samples without a corruption, where they are a part of the split only. A split that is
# sorted by class loses another amount on its first samples than as a whole.
UNDISTURBED = "undisturbed"
PARTS = (UNDISTURBED, *CORRUPTIONS)  # names of the splits of `corruptions_of`


class Corrupted:
    """Give the first whole batches with SAMPLES samples under one corruption.

    They are the same in every pass.
    """

    def __init__(
        self,
        batches: Batches,
        name: str,
        special: Sequence[int] = (),
        typos: Corruption | None = None,
    ) -> None:
        # Batches stay whole, since a metric may compare the samples of a batch.
        self.batches = take_samples(batches, SAMPLES, whole=True)
        own, self.applies = CORRUPTIONS[name]
        corrupt = typos if own is None else own
        assert corrupt is not None
        self.corrupt = corrupt
        self.special = torch.tensor(special, dtype=torch.int64)

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        generator = torch.Generator().manual_seed(0)
        for inputs, target in self.batches:
            yield self._disturbed(inputs, generator), target

    def _disturbed(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        named = isinstance(inputs, Mapping) and TOKENS in inputs

        def change(name: str, tensor: Tensor) -> Tensor:
            if not self.applies(tensor, name, named):
                return tensor
            changed = self.corrupt(tensor, generator)
            if tensor.is_floating_point():
                return changed
            return torch.where(torch.isin(tensor, self.special), tensor, changed)

        if isinstance(inputs, Mapping):
            return {name: map_value(part, partial(change, name)) for name, part in inputs.items()}
        return map_inputs(inputs, partial(change, ""))


def corruptions_of(
    batches: Batches,
    batch_first: bool | None = None,
    special: Sequence[int] = (),
    typos: Corruption | None = None,
) -> dict[str, Batches]:
    """Return the corrupted splits that differ from a split, and the same samples as they are.

    Args:
        batches: the split.
        batch_first: False if samples cannot be told apart; then only noise is applied.
        special: numbers of tokens that are never dropped, such as the first and the last one.
        typos: as `Task.typos`.

    Returns:
        Name of the metric ("accuracy_contrast", ...) -> batches. "accuracy_undisturbed" is left
        out where the samples are the whole split.
    """
    names = corruptions(batches, batch_first, typos)
    # The samples are read and held once.
    samples = take_samples(batches, SAMPLES, whole=True) if names else []
    splits: dict[str, Batches] = {}
    if names and _has_more(batches, len(samples)):
        splits[f"accuracy_{UNDISTURBED}"] = samples
    return splits | {f"accuracy_{name}": Corrupted(samples, name, special, typos) for name in names}


def _has_more(batches: Batches, count: int) -> bool:
    """Return True if a split has more than a number of batches."""
    known = length_hint(batches, -1)
    if known >= 0:
        return known > count
    with seeded(0):
        return any(True for _ in islice(batches, count, None))


def corruptions(
    batches: Batches, batch_first: bool | None = None, typos: Corruption | None = None
) -> list[str]:
    """Return the names of the corruptions that change the inputs of a split.

    Args:
        batches: the split.
        batch_first: False if samples cannot be told apart; then only noise is applied.
        typos: as `Task.typos`.
    """
    inputs = next(iter(batches))[0]
    named = isinstance(inputs, Mapping) and TOKENS in inputs
    arguments = inputs.items() if isinstance(inputs, Mapping) else [("", inputs)]
    tensors = [(tensor, key) for key, part in arguments for tensor in input_tensors((part,))]
    names = []
    for name, (own, applies) in CORRUPTIONS.items():
        if own is None and typos is None:
            continue
        by_sample = name != "gaussian_noise"
        if (batch_first is not False or not by_sample) and any(
            applies(tensor, key, named) for tensor, key in tensors
        ):
            names.append(name)
    return names


def fragile_under(
    baseline: Mapping[str, float], point: Mapping[str, float], accuracy: float, clean_loss: float
) -> tuple[str, ...]:
    """Return the corruptions under which a point loses clearly more accuracy than on clean inputs.

    Args:
        baseline: accuracy of the float model by metric name.
        point: accuracy of the point by metric name.
        accuracy: of the float model on clean inputs.
        clean_loss: accuracy that the point loses on clean inputs. Both are of the whole split;
            those of the samples that were disturbed take their place where they are known.

    Returns:
        Names of corruptions with a loss above `clean_loss` plus FRAGILE of `accuracy`. Errors such
        as perplexities grow by ratios: there both are shares of the float model's value under the
        corruption.
    """
    clean = f"accuracy_{UNDISTURBED}"
    if clean in baseline and clean in point:
        accuracy, clean_loss = baseline[clean], baseline[clean] - point[clean]
    allowed = max(clean_loss, 0.0) + FRAGILE * abs(accuracy)
    fragile = []
    for name in CORRUPTIONS:
        key = f"accuracy_{name}"
        if key not in point or key not in baseline:
            continue
        growth = baseline[key] / accuracy if accuracy < -1 else 1.0
        if baseline[key] - point[key] > allowed * max(growth, 1.0):
            fragile.append(name)
    return tuple(fragile)

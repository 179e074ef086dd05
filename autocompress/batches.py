"""Batches of a user's data: what the inputs of a model look like, and how they are cut, moved and named."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
Batches = Iterable[tuple[Inputs, Any]]
HALVES = (torch.float16, torch.bfloat16)


def map_inputs(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """`function` applied to each tensor of `inputs`."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return tuple(function(tensor) for tensor in inputs)


def input_tensors(inputs: Inputs) -> list[Tensor]:
    """The tensors of `inputs` in calling order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values() if isinstance(inputs, Mapping) else inputs)


def feed_of(inputs: Inputs, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """numpy inputs by the input names of an ONNX graph: by name where `inputs` has names, else in calling order."""
    if isinstance(inputs, Mapping) and set(names) == set(inputs):
        return {name: inputs[name].detach().cpu().numpy() for name in names}
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, input_tensors(inputs), strict=True)}


def batch_size(inputs: Inputs) -> int:
    """Length of the first dimension of the first tensor."""
    return len(input_tensors(inputs)[0])


def cut(inputs: Inputs, target: Any, rows: slice) -> tuple[Inputs, Any]:
    """The samples `rows` of a batch; targets are tensors, lists, mappings of them by output, or None."""

    def part(value: Any) -> Any:
        return value[rows]

    if target is not None:
        target = {name: part(value) for name, value in target.items()} if isinstance(target, Mapping) else part(target)
    return map_inputs(inputs, part), target


def cuttable(inputs: Inputs, target: Any) -> bool:
    """Whether every tensor of the batch has one entry per sample, so that `cut` gives a smaller batch."""
    targets = list(target.values()) if isinstance(target, Mapping) else [] if target is None else [target]
    size = batch_size(inputs)
    return all(len(tensor) == size for tensor in input_tensors(inputs)) and all(
        isinstance(value, (Tensor, list)) and len(value) == size for value in targets
    )


def seed_all(seed: int) -> None:
    """Start all generators that loaders draw from at `seed`."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All generators that loaders draw from start at `seed` inside the block, and go on behind it as if nothing had been."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        seed_all(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def take_samples(batches: Batches, count: int) -> list[tuple[Inputs, Any]]:
    """The first `count` samples of `batches`, in their batches, the last one cut; a loader that shuffles gives the same ones each time."""
    taken: list[tuple[Inputs, Any]] = []
    with seeded(0):
        for inputs, target in batches:
            size = batch_size(inputs)
            taken.append(cut(inputs, target, slice(count)) if size > count else (inputs, target))
            count -= size
            if count <= 0:
                break
    return taken


def dealt(batches: Batches, seed: int) -> Batches:
    """The same samples in an order that depends on `seed` only, in batches of the first one's size, so that any first part is a random
    sample; batches that are no list, or that do not fit together, stay as they are.
    """
    if not isinstance(batches, (list, tuple)) or len(batches) < 2 or not all(cuttable(*batch) for batch in batches):
        return batches
    try:
        inputs = [torch.cat(tensors) for tensors in zip(*(input_tensors(batch[0]) for batch in batches), strict=True)]
        targets = _joined([target for _, target in batches])
    except (RuntimeError, TypeError, KeyError, ValueError):
        return batches  # of different lengths, say
    order = np.random.default_rng(seed).permutation(len(inputs[0]))
    size = batch_size(batches[0][0])
    return [_chosen(batches[0][0], inputs, targets, order[start : start + size].tolist()) for start in range(0, len(order), size)]


def _joined(targets: list[Any]) -> Any:
    if isinstance(targets[0], Mapping):
        return {name: _joined([target[name] for target in targets]) for name in targets[0]}
    if targets[0] is None:
        return None
    return torch.cat(targets) if isinstance(targets[0], Tensor) else [item for target in targets for item in target]


def _chosen(like: Inputs, inputs: list[Tensor], targets: Any, rows: list[int]) -> tuple[Inputs, Any]:
    left = iter(inputs)

    def part(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: part(found) for name, found in value.items()}
        return value[rows] if isinstance(value, Tensor) else None if value is None else [value[i] for i in rows]

    return map_inputs(like, lambda tensor: next(left)[rows]), part(targets)


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """`inputs` on `device`."""
    return map_inputs(inputs, lambda tensor: tensor.to(device))


def target_to_device(target: Any, device: torch.device) -> Any:
    """The tensors of `target` on `device`; other targets as they are."""
    if isinstance(target, Mapping):
        return {name: target_to_device(value, device) for name, value in target.items()}
    return target.to(device) if isinstance(target, Tensor) else target


class Unlabelled:
    """The same inputs without their targets; re-iterable as the batches are."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Inputs, None]]:
        return ((inputs, None) for inputs, _ in self.batches)


class FloatBatches:
    """Batches whose half-precision tensors are float32; re-iterable as the batches are."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        for inputs, target in self.batches:
            yield map_inputs(inputs, float32), float32(target) if isinstance(target, Tensor) else target


def float32(tensor: Tensor) -> Tensor:
    """`tensor` with half precision turned into float32."""
    return tensor.float() if tensor.dtype in HALVES else tensor

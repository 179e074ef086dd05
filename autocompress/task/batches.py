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

# A tensor, positional or keyword arguments: tensors, constants (None, bool, int, float, str), and lists, tuples and dicts of them.
Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Batches = Iterable[tuple[Inputs, Any]]
NARROWED = (torch.float16, torch.bfloat16, torch.float64)  # searched as float32 copies


def map_inputs(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """`function` applied to each tensor of `inputs`, nested ones included; constants stay."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: map_value(value, function) for name, value in inputs.items()}
    return tuple(map_value(value, function) for value in inputs)


def map_value(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`function` applied to each tensor of one argument or target; what is no tensor, list, tuple or mapping stays."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: map_value(found, function) for name, found in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_value(found, function) for found in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_value(found, function) for found in value)
    return value


def leaves(inputs: Any, path: str = "") -> dict[str, Any]:
    """Tensors and constants by the path of their argument: "mask", "argument 0", "argument 1[0]", in calling order."""
    if isinstance(inputs, Mapping):
        named = {
            f"{path}[{name!r}]" if path else str(name): value for name, value in inputs.items()
        }
    elif isinstance(inputs, (tuple, list)):
        named = {
            f"{path}[{i}]" if path else f"argument {i}": value for i, value in enumerate(inputs)
        }
    else:
        return {path or "argument 0": inputs}
    found: dict[str, Any] = {}
    for name, value in named.items():
        found |= leaves(value, name)
    return found


def input_tensors(inputs: Inputs) -> list[Tensor]:
    """The tensors of `inputs` in calling order."""
    return [value for value in leaves(inputs).values() if isinstance(value, Tensor)]


def feed_of(inputs: Inputs, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """numpy inputs by the input names of an ONNX graph: by name where `inputs` has names, else in calling order."""
    if isinstance(inputs, Mapping) and set(names) == {
        name for name, value in inputs.items() if isinstance(value, Tensor)
    }:
        return {name: inputs[name].detach().cpu().numpy() for name in names}
    return {
        name: tensor.detach().cpu().numpy()
        for name, tensor in zip(names, input_tensors(inputs), strict=True)
    }


def batch_size(inputs: Inputs) -> int:
    """Length of the first dimension of the first tensor that has one; 1 where none has."""
    return next((len(tensor) for tensor in input_tensors(inputs) if tensor.dim() > 0), 1)


def cut(inputs: Inputs, target: Any, rows: slice) -> tuple[Inputs, Any]:
    """The samples `rows` of a batch; targets are tensors, lists, mappings of them by output, or None."""

    def part(value: Any) -> Any:
        return value[rows]

    if target is not None:
        target = (
            {name: part(value) for name, value in target.items()}
            if isinstance(target, Mapping)
            else part(target)
        )
    return map_inputs(inputs, part), target


def cuttable(inputs: Inputs, target: Any) -> bool:
    """Whether every tensor of the batch has one entry per sample, so that `cut` gives a smaller batch."""
    targets = (
        list(target.values()) if isinstance(target, Mapping) else [] if target is None else [target]
    )
    size = batch_size(inputs)
    return (
        all(tensor.dim() > 0 and len(tensor) == size for tensor in input_tensors(inputs))
        and all(
            isinstance(value, list) or (isinstance(value, Tensor) and value.dim() > 0)
            for value in targets
        )
        and all(len(value) == size for value in targets)
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


def take_samples(batches: Batches, count: int, whole: bool = False) -> list[tuple[Inputs, Any]]:
    """The first batches with `count` samples, the last one cut unless batches stay `whole` or cannot be cut; a loader that shuffles gives
    the same ones each time."""
    taken: list[tuple[Inputs, Any]] = []
    with seeded(0):
        for inputs, target in batches:
            size = batch_size(inputs)
            fits = size <= count or whole or not cuttable(inputs, target)
            taken.append((inputs, target) if fits else cut(inputs, target, slice(count)))
            count -= size
            if count <= 0:
                break
    return taken


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """`inputs` on `device`."""
    return map_inputs(inputs, lambda tensor: tensor.to(device))


def target_to_device(target: Any, device: torch.device) -> Any:
    """The tensors of `target` on `device`; other targets as they are."""
    return map_value(target, lambda tensor: tensor.to(device))

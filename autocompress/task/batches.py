"""Walk, cut, move and name the inputs and targets of a user's batches.

Every part of the package that reads data does it through these functions. They know the three forms
of inputs (a tensor, positional arguments, keyword arguments) and nested containers.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import TaskError

# A tensor, positional or keyword arguments. Arguments are tensors, constants (None, bool, int,
# float, str), and lists, tuples and dicts of them.
Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Batches = Iterable[tuple[Inputs, Any]]
NARROWED = (torch.float16, torch.bfloat16, torch.float64)  # searched as float32 copies
ONNX_TYPES = {"float32": "float", "float64": "double"}  # others have the same names
MASK = "attention_mask"
# What names of a file's inputs and outputs for keys and values begin with.
CACHE, PRESENT = "past_key_values.", "present."
# Name of a free number of samples in such inputs: 0 where a file reads what the cache would hold.
UNREAD = "samples of a cache"
NO_BFLOAT16 = "which a file of a float32 model does not take; nearest: float32"


def map_inputs(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Apply a function to each tensor of `inputs`, nested ones included.

    Args:
        inputs: one batch of inputs; it is not changed.
        function: tensor -> tensor.

    Returns:
        Inputs of the same form; positional arguments become a tuple, constants stay.
    """
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: map_value(value, function) for name, value in inputs.items()}
    return tuple(map_value(value, function) for value in inputs)


def map_value(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to each tensor of one argument or target.

    Args:
        value: a tensor, or nested lists, tuples and mappings; it is not changed.
        function: tensor -> tensor.

    Returns:
        The same structure; values of other types stay.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: map_value(item, function) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_value(item, function) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_value(item, function) for item in value)
    return value


def leaves(inputs: Any, path: str = "") -> dict[str, Any]:
    """Return the tensors and constants of inputs or of a target by their paths.

    Args:
        inputs: any nested value.
        path: the path of `inputs` itself, "" for the whole.

    Returns:
        Path -> value in calling order; paths are "mask", "argument 0", "argument 1[0]".
    """
    entries: list[tuple[str, Any]]
    if isinstance(inputs, Mapping):
        entries = [(f"{path}[{k!r}]" if path else str(k), value) for k, value in inputs.items()]
    elif isinstance(inputs, (tuple, list)):
        prefixed = enumerate(inputs)
        entries = [(f"{path}[{i}]" if path else f"argument {i}", value) for i, value in prefixed]
    else:
        return {path or "argument 0": inputs}
    values: dict[str, Any] = {}
    for name, value in entries:
        values |= leaves(value, name)
    return values


def input_tensors(inputs: Inputs) -> list[Tensor]:
    """Return the tensors of one batch of inputs in calling order.

    Args:
        inputs: one batch of inputs; constants are skipped.

    Returns:
        The tensors themselves, not copies.
    """
    return [value for value in leaves(inputs).values() if isinstance(value, Tensor)]


def feed_of(inputs: Inputs, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays that a session of an ONNX file takes for one batch.

    Args:
        inputs: one batch of inputs.
        names: the input names of the file.

    Returns:
        Name -> array; assigned by name if `inputs` has just these names, else in calling order.

    Raises:
        TaskError: a tensor is in bfloat16, which NumPy does not have.
    """
    if isinstance(inputs, Mapping):
        own = {name for name, value in inputs.items() if isinstance(value, Tensor)}
        if set(names) == own:
            return {name: _array(name, inputs[name]) for name in names}
    pairs = zip(names, input_tensors(inputs), strict=True)
    return {name: _array(name, tensor) for name, tensor in pairs}


def cache_shapes(values: Iterable[Any]) -> dict[str, tuple[Any, ...]]:
    """Return the inputs of a file that take keys and values of earlier tokens.

    Args:
        values: inputs of a session, each with a name and a shape.

    Returns:
        Name -> shape; free dimensions are no integers.
    """
    return {value.name: tuple(value.shape) for value in values if value.name.startswith(CACHE)}


def cache_feed(
    shapes: Mapping[str, Sequence[Any]], samples: int, tokens: int = 0
) -> dict[str, NDArray[Any]]:
    """Return random keys and values of earlier tokens.

    Args:
        shapes: as `cache_shapes` returns them.
        samples: of the batch.
        tokens: number of earlier tokens; 0 for none.

    Returns:
        Name -> float32 array.
    """
    generator, feed = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        first = samples if tokens or shape[0] != UNREAD else 0
        free = [first, *[tokens] * (len(shape) - 1)]
        sizes = [size if isinstance(size, int) else free[i] for i, size in enumerate(shape)]
        feed[name] = generator.standard_normal(sizes, dtype=np.float32)
    return feed


def calling_names(inputs: Inputs, values: Sequence[Any]) -> tuple[str, ...]:
    """Return the input names of any file in the calling order of a task.

    Names that agree belong together. Where they stand at the same places, so does the rest.
    Otherwise the rest is told by types and shapes.

    Args:
        inputs: one batch of inputs of the task.
        values: inputs of a session of the file, each with a name, a shape and a type.

    Returns:
        The names, without those of a cache; in the file's order if it takes another number of
        tensors.

    Raises:
        TaskError: some names agree, and for the rest more than one assignment is possible, or none.
    """
    values = [value for value in values if not value.name.startswith(CACHE)]
    names = tuple(value.name for value in values)
    own = {name: one for name, one in leaves(inputs).items() if isinstance(one, Tensor)}
    agreed = {name: names.index(name) for name in own if name in names}
    if len(own) != len(names) or all([*own][place] == name for name, place in agreed.items()):
        return names
    matched = {name: name for name in agreed}
    others = [value for value in values if value.name not in agreed]
    fitting = {
        name: [value.name for value in others if _fits(value, tensor)]
        for name, tensor in own.items()
        if name not in agreed
    }
    while fitting:  # if only one assignment is possible, some tensor has only one name left
        name = min(fitting, key=lambda name: len(fitting[name]))
        if len(fitting[name]) != 1:
            raise TaskError(
                f"task: a batch has the inputs {', '.join(own)}, the file takes "
                f"{', '.join(names)}, and {len(fitting[name]) or 'none'} of them fit {name}; "
                "nearest: a task that names its inputs as the file does"
            )
        (matched[name],) = fitting.pop(name)
        fitting = {
            other: [one for one in left if one != matched[name]] for other, left in fitting.items()
        }
    return tuple(matched[name] for name in own)


def _fits(value: Any, tensor: Tensor) -> bool:
    """Return True if an input of a file takes a tensor; batches are cut as the file needs them."""
    kind = str(tensor.dtype).removeprefix("torch.")
    pairs = list(zip(value.shape, tensor.shape, strict=False))[1:]
    return (
        value.type == f"tensor({ONNX_TYPES.get(kind, kind)})"
        and len(value.shape) == tensor.dim()
        and not any(isinstance(size, int) and size != came for size, came in pairs)
    )


def _array(name: str, tensor: Tensor) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:
        raise TaskError(f"task: a batch has {name} in bfloat16, {NO_BFLOAT16}")
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def batch_size(inputs: Inputs) -> int:
    """Return the length of the first dimension of the first tensor that has one.

    Args:
        inputs: one batch of inputs.

    Returns:
        Number of samples; 1 if every tensor is a scalar.
    """
    return next((len(tensor) for tensor in input_tensors(inputs) if tensor.dim() > 0), 1)


def cut(inputs: Inputs, target: Any, rows: slice) -> tuple[Inputs, Any]:
    """Return some samples of a batch.

    Args:
        inputs: one batch of inputs, all tensors with one entry per sample.
        target: a tensor, a list, a mapping of them by output, or None.
        rows: the samples.

    Returns:
        (inputs, target) of these samples.
    """

    def part(value: Any) -> Any:
        return value[rows]

    if isinstance(target, Mapping):
        target = {name: part(value) for name, value in target.items()}
    elif target is not None:
        target = part(target)
    return map_inputs(inputs, part), target


def cuttable(inputs: Inputs, target: Any) -> bool:
    """Return True if every tensor of the batch has one entry per sample.

    Args:
        inputs: one batch of inputs.
        target: its target, or None.

    Returns:
        True if `cut` gives a smaller batch.
    """
    targets = [] if target is None else [target]
    if isinstance(target, Mapping):
        targets = list(target.values())
    size = batch_size(inputs)
    for tensor in input_tensors(inputs):
        if tensor.dim() == 0 or len(tensor) != size:
            return False
    for value in targets:
        entries = isinstance(value, list) or (isinstance(value, Tensor) and value.dim() > 0)
        if not entries or len(value) != size:
            return False
    return True


def seed_all(seed: int) -> None:
    """Start all random generators that loaders draw from.

    Args:
        seed: the same number gives the same draws.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start all random generators at a seed inside the block, and restore them behind it.

    Args:
        seed: the same number gives the same draws.
    """
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        seed_all(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def take_samples(batches: Batches, count: int, whole: bool = False) -> list[tuple[Inputs, Any]]:
    """Return the first batches with a number of samples.

    A loader that shuffles gives the same batches at each call, since it draws from a fixed seed.

    Args:
        batches: a split.
        count: number of samples.
        whole: never cut the last batch.

    Returns:
        The batches; the last one is cut to `count` unless `whole` is set or it cannot be cut.
    """
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


def spread_batches(batches: Batches, share: float) -> Iterator[tuple[Inputs, Any]]:
    """Yield a share of the batches of a split, at equal distances.

    A loader that shuffles gives the same batches each time, since it draws from a fixed seed.

    Args:
        batches: a split.
        share: in (0, 1]; 1 yields all. The first batch is always among them.
    """
    with seeded(0):
        for i, batch in enumerate(batches):
            if math.ceil((i + 1) * share) > math.ceil(i * share):
                yield batch


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Return one batch of inputs with its tensors on a device.

    Args:
        inputs: one batch of inputs; it is not changed.
        device: the device.

    Returns:
        Inputs of the same form.
    """
    return map_inputs(inputs, lambda tensor: tensor.to(device))


def target_to_device(target: Any, device: torch.device) -> Any:
    """Return a target with its tensors on a device.

    Args:
        target: a tensor, nested containers of them, or anything else, which stays as it is.
        device: the device.

    Returns:
        A target of the same structure.
    """
    return map_value(target, lambda tensor: tensor.to(device))


def describe_inputs(value: Any) -> Any:
    """Describe what a model is called with, in plain types.

    Args:
        value: a tensor, a constant, or a tuple, list or mapping of them.

    Returns:
        Shapes and types of tensors, constants, and how they are nested.
    """
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "type": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"entries": {name: describe_inputs(part) for name, part in value.items()}}
    if isinstance(value, (tuple, list)):
        return {
            type(value).__name__ if type(value) in (tuple, list) else "tuple": [
                describe_inputs(part) for part in value
            ]
        }
    return {"constant": value}


def described_inputs(description: Mapping[str, Any]) -> Any:
    """Make inputs from a description, the reverse of `describe_inputs`.

    Args:
        description: made by `describe_inputs`.

    Returns:
        Inputs with zeros in all tensors.
    """
    ((kind, value), *_) = description.items()
    if kind == "shape":
        return torch.zeros(value, dtype=getattr(torch, description["type"]))
    if kind == "entries":
        return {name: described_inputs(part) for name, part in value.items()}
    if kind in ("tuple", "list"):
        parts = [described_inputs(part) for part in value]
        return tuple(parts) if kind == "tuple" else parts
    return value

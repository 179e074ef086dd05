"""Which dimensions of a model's inputs are free: by default, because the user's batches differ there, or because the task names them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice

from torch import Tensor, nn

from autocompress.errors import TaskError, nearest_name
from autocompress.task.batches import Inputs, batch_size, input_tensors, leaves, seeded
from autocompress.task.task import Task

SPLITS = ("validation", "train", "test", "calibration")
LOOKED_AT = 32  # batches of each split


@dataclass(frozen=True)
class FreeDimension:
    """A dimension that the exported graph should leave open.

    Attributes:
        position: of the input, in calling order.
        dimension: of that input.
        label: what the input is called, for messages.
        name: what the dimension is called in the file.
        sizes: those that the user's batches have there, where they differ from the example's; the graph must then be free.
        split: the split in which they were seen first.
        samples: whether the first dimension of the model's inputs counts samples.
    """

    position: int
    dimension: int
    label: str
    name: str
    sizes: tuple[int, ...] = ()
    split: str = ""
    samples: bool = True

    @property
    def is_batch(self) -> bool:
        """Whether it counts samples, which can also be fed in parts."""
        return self.dimension == 0 and self.samples


def argument_names(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """The model's own names of `inputs`, in calling order: keys, else arguments of forward, all different."""
    paths = [path for path, value in leaves(inputs).items() if isinstance(value, Tensor)]
    if isinstance(inputs, Mapping):
        return tuple(paths)
    # "argument 1[0]" is the first entry of the second argument.
    places = [re.match(r"argument (\d+)(.*)", path, re.DOTALL) for path in paths]
    return tuple(positional_name(model, int(place[1])) + place[2] for place in places if place)


def positional_name(model: nn.Module, position: int) -> str:
    """The name of an argument of forward that is given by its position."""
    for i, (name, parameter) in enumerate(inspect.signature(model.forward).parameters.items()):
        if parameter.kind == parameter.VAR_POSITIONAL:
            return f"{name}_{position - i}"
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            break
        if i == position:
            return name
    return f"input_{position}"


def default_dimensions(model: nn.Module, inputs: Inputs) -> tuple[FreeDimension, ...]:
    """The batch, and the sequence of integer inputs (n, length) and of whatever has the same length there, such as masks."""
    tensors, names = input_tensors(inputs), argument_names(model, inputs)
    size = batch_size(inputs) if tensors[0].dim() else None
    lengths = {tensor.shape[1] for tensor in tensors if _whole(tensor) and tensor.dim() == 2}
    found = []
    for i, (tensor, label) in enumerate(zip(tensors, names, strict=True)):
        if tensor.dim() and tensor.shape[0] == size:
            found.append(FreeDimension(i, 0, label, "batch"))
        square = _mask(tensor) and (
            tensor.dim() > 2 or (tensor.dim() == 2 and tensor.shape[0] != size)
        )
        first = tensor.dim() - 2 if square else 1
        if tensor.dim() == 2 or square:
            found += [
                FreeDimension(i, d, label, "sequence")
                for d in range(first, tensor.dim())
                if tensor.shape[d] in lengths
            ]
    return tuple(found)


def _whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and not _mask(tensor)


def _mask(tensor: Tensor) -> bool:
    return str(tensor.dtype) == "torch.bool"


def free_dimensions(task: Task) -> tuple[FreeDimension, ...]:
    """The default ones, those in which the task's batches differ from `example_inputs`, and those that `task.dynamic` names."""
    names, tensors = (
        argument_names(task.model, task.example_inputs),
        input_tensors(task.example_inputs),
    )
    samples = task.batch_first is not False
    usual = default_dimensions(task.model, task.example_inputs)
    found = {
        (free.position, free.dimension): free for free in usual if samples or free.dimension > 0
    }

    def at(i: int, d: int) -> FreeDimension:
        return found.get((i, d)) or FreeDimension(
            i, d, names[i], f"{names[i]}_{d}", samples=samples
        )

    seen = {split: getattr(task, split) for split in SPLITS} | {
        "latency_inputs": [(inputs, None) for inputs in task.latency_inputs.values()]
    }
    for split, batches in seen.items():
        if batches is None:
            continue
        with seeded(0):
            for inputs, _ in islice(batches, LOOKED_AT):
                for i, (tensor, example) in enumerate(
                    zip(input_tensors(inputs), tensors, strict=False)
                ):
                    for d, (size, own) in enumerate(zip(tensor.shape, example.shape, strict=False)):
                        if size != own and (d > 0 or not samples) and tensor.dim() == example.dim():
                            old = at(i, d)
                            found[i, d] = replace(
                                old,
                                sizes=tuple(sorted({*old.sizes, size})),
                                split=old.split or split,
                            )
    for key, dimensions in (task.dynamic or {}).items():
        i = _position(task, key, names)
        for d, name in dimensions.items():
            if not 0 <= d < tensors[i].dim():
                raise TaskError(
                    f"task {task.name}: dynamic[{key!r}] names dimension {d}; {names[i]} has 0 to {tensors[i].dim() - 1}"
                )
            found[i, d] = replace(at(i, d), name=name)
    return tuple(found[key] for key in sorted(found))


def _position(task: Task, key: str, names: tuple[str, ...]) -> int:
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(names):
        return int(key)
    raise TaskError(
        f"task {task.name}: dynamic names {key!r}, which is no input; nearest: {nearest_name(key, names)}"
    )

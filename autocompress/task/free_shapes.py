"""Find the dimensions of a model's inputs that files leave open.

A dimension is free by default (batch, sequence), because the user's batches differ in it, or
because the task names it. The exporter and the builder of files read the result.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from torch import Tensor, nn

from autocompress.errors import TaskError, nearest_name
from autocompress.task.batches import Inputs, batch_size, input_tensors, leaves, seeded
from autocompress.task.task import Task

SPLITS = ("validation", "train", "test", "calibration")
LOOKED_AT = 32  # batches of each split
BATCH = "batch"  # name of the dimension that counts samples


@dataclass(frozen=True)
class FreeDimension:
    """Describe a dimension that the exported graph should leave open.

    Attributes:
        position: of the input, in calling order.
        dimension: of that input.
        label: name of the input, for messages.
        name: name of the dimension in the file.
        sizes: sizes in the user's batches that differ from the example's; if there are any, the
            graph must be free there.
        split: the split in which they were seen first.
        samples: True if the first dimension of the model's inputs counts samples.
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
        """Return True if it counts samples, which can also be fed in parts."""
        return self.dimension == 0 and self.samples


def argument_names(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Return the model's own names of its input tensors.

    Args:
        model: any module.
        inputs: one batch of inputs.

    Returns:
        One name per tensor in calling order, all different: keys, else arguments of forward.
    """
    paths = [path for path, value in leaves(inputs).items() if isinstance(value, Tensor)]
    if isinstance(inputs, Mapping):
        return tuple(paths)
    # "argument 1[0]" is the first entry of the second argument.
    places = [re.match(r"argument (\d+)(.*)", path, re.DOTALL) for path in paths]
    return tuple(positional_name(model, int(place[1])) + place[2] for place in places if place)


def positional_name(model: nn.Module, position: int) -> str:
    """Return the name of an argument of forward that is given by its position.

    Args:
        model: any module.
        position: from 0.

    Returns:
        The name; "args_0" for the first of *args, "input_1" if forward has no such argument.
    """
    for i, (name, parameter) in enumerate(inspect.signature(model.forward).parameters.items()):
        if parameter.kind == parameter.VAR_POSITIONAL:
            return f"{name}_{position - i}"
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            break
        if i == position:
            return name
    return f"input_{position}"


def default_dimensions(model: nn.Module, inputs: Inputs) -> tuple[FreeDimension, ...]:
    """Return the dimensions that are free without being named.

    Args:
        model: gives the names of the inputs.
        inputs: one batch of inputs.

    Returns:
        The batch, and the sequence: the length of integer inputs (n, length), and dimensions of
        that length in masks and other inputs (n, length).
    """
    tensors, names = input_tensors(inputs), argument_names(model, inputs)
    size = batch_size(inputs)
    lengths = {tensor.shape[1] for tensor in tensors if _whole(tensor) and tensor.dim() == 2}
    free = []
    for i, (tensor, label) in enumerate(zip(tensors, names, strict=True)):
        dims = tensor.dim()
        if dims and tensor.shape[0] == size:
            free.append(FreeDimension(i, 0, label, BATCH))
        square = _mask(tensor) and (dims > 2 or (dims == 2 and tensor.shape[0] != size))
        if dims == 2 or square:
            for d in range(dims - 2 if square else 1, dims):
                if tensor.shape[d] in lengths:
                    free.append(FreeDimension(i, d, label, "sequence"))
    return tuple(free)


def _whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and not _mask(tensor)


def _mask(tensor: Tensor) -> bool:
    return str(tensor.dtype) == "torch.bool"


def free_dimensions(task: Task) -> tuple[FreeDimension, ...]:
    """Return the dimensions that the task's files leave open.

    Args:
        task: with its splits; at most LOOKED_AT batches of each are read.

    Returns:
        The default dimensions, those in which the batches differ from `example_inputs`, and those
        that `task.dynamic` names, in the order of inputs and dimensions.

    Raises:
        TaskError: `task.dynamic` names an input or a dimension that does not exist.
    """
    names = argument_names(task.model, task.example_inputs)
    tensors = input_tensors(task.example_inputs)
    samples = task.batch_first is not False
    free: dict[tuple[int, int], FreeDimension] = {}
    for usual in default_dimensions(task.model, task.example_inputs):
        if samples or usual.dimension > 0:
            free[usual.position, usual.dimension] = usual

    def at(i: int, d: int) -> FreeDimension:
        unnamed = FreeDimension(i, d, names[i], f"{names[i]}_{d}", samples=samples)
        return free.get((i, d)) or unnamed

    for (i, d), (sizes, split) in _differing_sizes(task, tensors, samples).items():
        free[i, d] = replace(at(i, d), sizes=tuple(sorted(sizes)), split=split)
    for key, dimensions in (task.dynamic or {}).items():
        i = _position(task, key, names)
        for d, name in dimensions.items():
            if not 0 <= d < tensors[i].dim():
                raise TaskError(
                    f"task {task.name}: dynamic[{key!r}] names dimension {d}; "
                    f"{names[i]} has 0 to {tensors[i].dim() - 1}"
                )
            free[i, d] = replace(at(i, d), name=name)
    return tuple(free[key] for key in sorted(free))


def _differing_sizes(
    task: Task, examples: Sequence[Tensor], samples: bool
) -> dict[tuple[int, int], tuple[set[int], str]]:
    """Return by (input, dimension) the sizes that differ from the example's, and their first split.

    The first dimension is left out if it counts `samples`.
    """
    differing: dict[tuple[int, int], tuple[set[int], str]] = {}
    splits = {split: getattr(task, split) for split in SPLITS}
    splits["latency_inputs"] = [(inputs, None) for inputs in task.latency_inputs.values()]
    for split, batches in splits.items():
        if batches is None:
            continue
        with seeded(0):
            for inputs, _ in islice(batches, LOOKED_AT):
                pairs = zip(input_tensors(inputs), examples, strict=False)
                for i, (tensor, example) in enumerate(pairs):
                    if tensor.dim() != example.dim():
                        continue
                    for d in range(1 if samples else 0, tensor.dim()):
                        if tensor.shape[d] != example.shape[d]:
                            differing.setdefault((i, d), (set(), split))[0].add(tensor.shape[d])
    return differing


def _position(task: Task, key: str, names: tuple[str, ...]) -> int:
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(names):
        return int(key)
    raise TaskError(
        f"task {task.name}: dynamic names {key!r}, which is no input; "
        f"nearest: {nearest_name(key, names)}"
    )

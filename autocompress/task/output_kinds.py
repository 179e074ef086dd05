"""Find out what the outputs of a model hold, from their shapes and the targets of some batches.

The kinds decide the default loss and divergence (`outputs`), so that a task needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import AutocompressError, TaskError
from autocompress.task.batches import Batches, Inputs, batch_size, input_tensors, seeded
from autocompress.task.outputs import (
    BERNOULLI,
    EMBEDDING,
    IGNORED,
    VALUES,
    OutputKind,
    as_labels,
    one_each,
    outside,
    shapes_of,
    squeezed,
)

# Most samples, batches and shapes of inputs of a split that are looked at.
ROWS, BATCHES, SHAPES = 256, 32, 4
SUM_ERROR = 2e-3  # of probabilities that sum to 1
# Operators that change no value, as autograd names them.
MOVES = (
    *("View", "Select", "Squeeze", "Unsqueeze", "Slice"),
    *("Transpose", "Permute", "Alias", "Clone", "ToCopy"),
)

Run = Callable[[Inputs], dict[str, Tensor]]
TargetOf = Callable[[Any, str], Any]


@dataclass(frozen=True)
class Output:
    """Describe an output of one batch without its values.

    Attributes:
        like: of its shape and type, on the device "meta".
        distributed: the dimensions over which it sums to 1, if it lies between 0 and 1.
        in_unit: True if it lies between 0 and 1.
    """

    like: Tensor
    distributed: frozenset[int]
    in_unit: bool

    @classmethod
    def of(cls, output: Tensor) -> Output:
        """Return the description of an output.

        Args:
            output: (n, ...) with its values.

        Returns:
            The description.
        """
        in_unit = output.is_floating_point() and output.numel() > 0
        in_unit = in_unit and bool((output.min() >= 0) & (output.max() <= 1))
        sums = frozenset(d for d in _class_dims(output) if in_unit and _sums_to_one(output, d))
        return cls(output.to("meta"), sums, in_unit)


@dataclass(frozen=True)
class Seen:
    """Describe what the labels of one batch tell about an output.

    Attributes:
        output: the output.
        readings: the kinds that the labels fit; None if the batch has no labels.
        shapes: output and labels, in words.
        misfit: why nothing fits, in words.
    """

    output: Output
    readings: frozenset[OutputKind] | None = None
    shapes: str = ""
    misfit: str = ""

    @classmethod
    def of(cls, output: Output, labels: Tensor | None) -> Seen:
        """Return what labels tell about an output.

        Args:
            output: of the same batch.
            labels: as `as_labels` returns them, or None.

        Returns:
            The readings.
        """
        if labels is None:
            return cls(output)
        like = output.like
        return cls(output, _readings(like, labels), shapes_of(like, labels), _misfit(like, labels))


def find_kinds(
    splits: Sequence[Batches], run: Run, target_of: TargetOf
) -> dict[str, OutputKind | str]:
    """Return the kind of each output, or the reason why it is not known.

    Args:
        splits: validation first; a later split counts if only its labels show that an output gives
            probabilities.
        run: inputs -> outputs by name.
        target_of: (target, name) -> the target of one output.

    Returns:
        By name of the output its kind, or the reason in words.

    Raises:
        TaskError: the model fails on a batch.
    """
    with torch.no_grad(), seeded(0):
        looks = [_look_at(split, run, target_of) for split in splits]
    kinds = {name: _decide([look[name] for look in looks if name in look]) for name in looks[0]}
    for name, kind in kinds.items():
        batches = [seen for look in looks for seen in look.get(name, ())]
        if kind == BERNOULLI and all(seen.output.in_unit for seen in batches):
            with torch.enable_grad():
                output = run(next(iter(splits[0]))[0])[name]
            kinds[name] = replace(BERNOULLI, normalised=_is_probability(output))
    return kinds


def _look_at(batches: Batches, run: Run, target_of: TargetOf) -> dict[str, list[Seen]]:
    """Return what the first batches tell, by output; `run` is called once per shape of inputs."""
    seen: dict[str, list[Seen]] = {}
    by_shape: dict[Any, dict[str, Output]] = {}
    rows = 0
    for count, (inputs, target) in enumerate(batches):
        if rows >= ROWS or count >= BATCHES:
            break
        rows += batch_size(inputs)
        shapes = tuple(tensor.shape for tensor in input_tensors(inputs))
        if shapes not in by_shape and len(by_shape) >= SHAPES:
            continue
        if shapes not in by_shape:
            by_shape[shapes] = {
                name: Output.of(output) for name, output in _ran(run, inputs).items()
            }
        for name, output in by_shape[shapes].items():
            labels = as_labels(target_of(target, name))
            seen.setdefault(name, []).append(Seen.of(output, labels))
    return seen


def _ran(run: Run, inputs: Inputs) -> dict[str, Tensor]:
    try:
        return run(inputs)
    except AutocompressError:
        raise
    except Exception as error:
        first_line = str(error).strip().split("\n")[0]
        raise TaskError(
            "task: model.forward fails on a batch of the data: "
            f"{type(error).__name__}: {first_line}"
        ) from error


def _decide(splits: Sequence[Sequence[Seen]]) -> OutputKind | str:
    """Return the kind of an output, or the reason why none or more than one fits.

    The first split whose labels tell of probabilities decides, else the first reason, else the
    first split with labels. Without labels an output holds numbers or an embedding.
    """
    answers: list[OutputKind | str] = []
    for split in splits:
        if any(seen.readings is not None for seen in split):
            answers.append(_of_split(split))
    for answer in answers:
        if isinstance(answer, OutputKind) and answer.is_logits:
            return answer
    for answer in answers:
        if isinstance(answer, str):
            return answer
    return answers[0] if answers else _plain(splits[0][0].output.like)


def _of_split(split: Sequence[Seen]) -> OutputKind | str:
    labelled = [seen for seen in split if seen.readings is not None]
    possible = set.intersection(*(set(seen.readings or ()) for seen in labelled))
    if len(possible) > 1:
        possible -= {VALUES, EMBEDDING}
    if len(possible) > 1:
        possible.discard(BERNOULLI)  # every row is one-hot
    if len(possible) > 1:
        return f"{labelled[0].shapes} fit classes in dimension 1 and in the last one"
    if not possible:
        wrong = next((seen for seen in labelled if seen.misfit), labelled[0])
        return f"{wrong.shapes} {wrong.misfit or 'are read differently than other batches'}"
    kind = possible.pop()
    dim = kind.class_dim
    if dim is not None and all(dim in seen.output.distributed for seen in split):
        return replace(kind, normalised=True)
    return kind


def _is_probability(output: Tensor) -> bool:
    """Return True if a sigmoid or softmax gave the output, as its gradient function tells."""
    node = output.grad_fn
    while node is not None and node.name().startswith(MOVES):
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith(("Sigmoid", "Softmax"))


def _plain(output: Tensor) -> OutputKind:
    return VALUES if output.dim() < 2 or output[0].numel() == 1 else EMBEDDING


def _readings(output: Tensor, labels: Tensor) -> frozenset[OutputKind]:
    """Return all kinds of output that the labels of one batch fit.

    Integers are never plain numbers, floats are never indices of classes.
    """
    real = labels.is_floating_point()
    if not output.is_floating_point():
        return frozenset({_plain(output)})
    readings = {_plain(output)} if real else set[OutputKind]()
    if one_each(output, labels):
        if outside(labels, 2) is None and not (real and bool((labels != labels.round()).any())):
            readings.add(BERNOULLI)
        shaped = labels.reshape(output.shape)
        for d in _class_dims(output):
            if _sums_to_one(shaped, d):
                readings.add(OutputKind("softmax", d))
    elif not real:
        for d in _index_dims(output, labels):
            if outside(labels, output.shape[d]) is None:
                readings.add(OutputKind("softmax", d))
    return frozenset(readings)


def _misfit(output: Tensor, labels: Tensor) -> str:
    """Return why labels fit nothing; "" if that is not their fault."""
    dims = _index_dims(output, labels)
    classes = output.shape[dims[0]] if dims else 2
    wrong = outside(labels, classes)
    if labels.is_floating_point() or not (dims or one_each(output, labels)):
        return "are neither classes nor yes or no for each"
    if wrong is None:
        return ""
    near = f"{IGNORED} for what does not count" if dims else "float targets, for a squared error"
    return f"hold target {wrong:g}, which is none of {classes} classes (nearest: {near})"


def _class_dims(output: Tensor) -> list[int]:
    """Return the dimensions where classes may be: PyTorch's dimension 1, or the last."""
    dims = [] if output.dim() < 2 else [-1] if output.dim() == 2 else [1, -1]
    return [d for d in dims if output.shape[d] > 1]


def _index_dims(output: Tensor, labels: Tensor) -> list[int]:
    """Return the dimensions of classes with which there is one label per position."""
    if one_each(output, labels):
        return []
    dims = []
    for d in _class_dims(output):
        rest = list(output.shape)
        del rest[d]
        if squeezed(rest) == squeezed(labels.shape):
            dims.append(d)
    if not dims and output.dim() > 1 and labels.numel() * output.shape[-1] == output.numel():
        dims = [-1]  # all positions in one dimension, (n * T, classes)
    return dims


def _sums_to_one(tensor: Tensor, dim: int) -> bool:
    """Return True if a tensor is a distribution over `dim` wherever it is not ignored."""
    tensor = tensor.double()
    ignored = (tensor == IGNORED).any(dim)
    fits = (tensor.min(dim).values >= 0) & ((tensor.sum(dim) - 1).abs() < SUM_ERROR)
    return bool((fits | ignored).all()) and not bool(ignored.all())

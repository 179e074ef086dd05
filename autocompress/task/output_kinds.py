"""Which kind of output a model gives, read from the shapes of its outputs and the targets of the first batches."""

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

ROWS, BATCHES, SHAPES = (
    256,
    32,
    4,
)  # samples, batches and shapes of inputs of a split that are looked at
SUM_ERROR = 2e-3  # of probabilities that sum to 1
MOVES = (
    "View",
    "Select",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Transpose",
    "Permute",
    "Alias",
    "Clone",
    "ToCopy",
)  # change no value

Run = Callable[[Inputs], dict[str, Tensor]]
TargetOf = Callable[[Any, str], Any]


@dataclass(frozen=True)
class Output:
    """An output of one batch without its values.

    Attributes:
        like: of its shape and type, on the device "meta".
        distributed: the dimensions over which it sums to 1, if it lies between 0 and 1.
        in_unit: whether it lies between 0 and 1.
    """

    like: Tensor
    distributed: frozenset[int]
    in_unit: bool

    @classmethod
    def of(cls, output: Tensor) -> Output:
        """What is remembered of `output`."""
        in_unit = (
            output.is_floating_point()
            and output.numel() > 0
            and bool((output.min() >= 0) & (output.max() <= 1))
        )
        sums = frozenset(d for d in _class_dims(output) if in_unit and _sums_to_one(output, d))
        return cls(output.to("meta"), sums, in_unit)


@dataclass(frozen=True)
class Seen:
    """What the labels of one batch say about an output.

    Attributes:
        output: the output.
        readings: the kinds that the labels fit; None where the batch has no labels.
        shapes: output and labels, in words.
        misfit: why nothing fits, in words.
    """

    output: Output
    readings: frozenset[OutputKind] | None = None
    shapes: str = ""
    misfit: str = ""

    @classmethod
    def of(cls, output: Output, labels: Tensor | None) -> Seen:
        """What `labels` say about `output`."""
        if labels is None:
            return cls(output)
        return cls(
            output,
            _readings(output.like, labels),
            shapes_of(output.like, labels),
            _misfit(output.like, labels),
        )


def find_kinds(
    splits: Sequence[Batches], run: Run, target_of: TargetOf
) -> dict[str, OutputKind | str]:
    """By output what it holds, or the reason why that is not known.

    Args:
        splits: validation first; what later splits say counts where it does not say that an output gives probabilities.
        run: inputs -> outputs by name.
        target_of: (target, name) -> the target of one output.

    Raises:
        TaskError: the model fails on a batch.
    """
    with torch.no_grad(), seeded(0):
        looks = [_look_at(split, run, target_of) for split in splits]
    kinds = {name: _decide([look[name] for look in looks if name in look]) for name in looks[0]}
    for name, kind in kinds.items():
        if kind == BERNOULLI and all(
            seen.output.in_unit for look in looks for seen in look.get(name, ())
        ):
            with torch.enable_grad():
                output = run(next(iter(splits[0]))[0])[name]
            kinds[name] = replace(BERNOULLI, normalised=_is_probability(output))
    return kinds


def _look_at(batches: Batches, run: Run, target_of: TargetOf) -> dict[str, list[Seen]]:
    """What the first batches say, by output; `run` is called once per shape of the inputs."""
    seen: dict[str, list[Seen]] = {}
    known: dict[Any, dict[str, Output]] = {}
    rows = 0
    for count, (inputs, target) in enumerate(batches):
        if rows >= ROWS or count >= BATCHES:
            break
        rows += batch_size(inputs)
        shapes = tuple(tensor.shape for tensor in input_tensors(inputs))
        if shapes not in known and len(known) >= SHAPES:
            continue
        if shapes not in known:
            known[shapes] = {name: Output.of(output) for name, output in _ran(run, inputs).items()}
        for name, output in known[shapes].items():
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
            f"task: model.forward fails on a batch of the data: {type(error).__name__}: {first_line}"
        ) from error


def _decide(splits: Sequence[Sequence[Seen]]) -> OutputKind | str:
    """The kind of an output, or the reason why none or more than one fits: of the first split whose labels say that it gives
    probabilities, else what the first one with labels says; without labels it is numbers or an embedding.
    """
    found: list[OutputKind | str] = [
        _of_split(split) for split in splits if any(seen.readings is not None for seen in split)
    ]
    logits: list[OutputKind | str] = [
        kind for kind in found if isinstance(kind, OutputKind) and kind.is_logits
    ]
    reasons: list[OutputKind | str] = [kind for kind in found if isinstance(kind, str)]
    return (logits + reasons + found or [_plain(splits[0][0].output.like)])[0]


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
    if kind.class_dim is not None and all(
        kind.class_dim in seen.output.distributed for seen in split
    ):
        return replace(kind, normalised=True)
    return kind


def _is_probability(output: Tensor) -> bool:
    """Whether a sigmoid or softmax gave the output, as its gradient says."""
    node = output.grad_fn
    while node is not None and node.name().startswith(MOVES):
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith(("Sigmoid", "Softmax"))


def _plain(output: Tensor) -> OutputKind:
    return VALUES if output.dim() < 2 or output[0].numel() == 1 else EMBEDDING


def _readings(output: Tensor, labels: Tensor) -> frozenset[OutputKind]:
    """All kinds of output that the labels of one batch fit; integers are never plain numbers, floats never indices of classes."""
    real = labels.is_floating_point()
    found = {_plain(output)} if real or not output.is_floating_point() else set[OutputKind]()
    if not output.is_floating_point():
        return frozenset(found)
    if one_each(output, labels):
        if outside(labels, 2) is None and not (real and bool((labels != labels.round()).any())):
            found.add(BERNOULLI)
        shaped = labels.reshape(output.shape)
        found |= {OutputKind("softmax", d) for d in _class_dims(output) if _sums_to_one(shaped, d)}
    elif not real:
        found |= {
            OutputKind("softmax", d)
            for d in _index_dims(output, labels)
            if outside(labels, output.shape[d]) is None
        }
    return frozenset(found)


def _misfit(output: Tensor, labels: Tensor) -> str:
    """Why labels fit nothing; "" where that is not their fault."""
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
    """Where classes may be: PyTorch's dimension 1, or the last."""
    dims = [] if output.dim() < 2 else [-1] if output.dim() == 2 else [1, -1]
    return [d for d in dims if output.shape[d] > 1]


def _index_dims(output: Tensor, labels: Tensor) -> list[int]:
    """The dimensions of classes with which there is one label per position."""
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
    """Whether `tensor` is a distribution over `dim` everywhere; what is ignored does not count."""
    tensor = tensor.double()
    ignored = (tensor == IGNORED).any(dim)
    fits = (tensor.min(dim).values >= 0) & ((tensor.sum(dim) - 1).abs() < SUM_ERROR)
    return bool((fits | ignored).all()) and not bool(ignored.all())

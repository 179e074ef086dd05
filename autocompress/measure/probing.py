"""Call a model several times to find out if it is deterministic and which dimension is the batch.

`prepare` asks these questions once per task; the answers say if batches may be cut and joined.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.differences import relative_difference
from autocompress.errors import TaskError
from autocompress.task.batches import (
    Inputs,
    batch_size,
    cut,
    cuttable,
    input_tensors,
    map_inputs,
    seeded,
)
from autocompress.task.calls import named_outputs, primary_output, run_model
from autocompress.task.copies import copied
from autocompress.task.task import Task
from autocompress.task.user_code import UserCodeError

AGAIN = 1e-4  # of the largest output: another order of sums
APART = 1e-3  # the same for a part and its batch: their kernels differ
LEAST = 1e-6  # smaller outputs are compared to this
PROBED = 8  # samples by which the first dimension is judged


def validation_outputs(
    task: Task, model: nn.Module, inputs: Inputs, what: str = "model"
) -> list[Tensor]:
    """Return the outputs of a model on one validation batch.

    Args:
        task: names the outputs.
        model: a copy of the task's model or student on the CPU.
        inputs: one batch of inputs.
        what: "model" or "student", for messages.

    Returns:
        The primary output, then those of `output_weights`, each detached.

    Raises:
        UserCodeError: forward fails.
        TaskError: an output of `output_weights` is not there.
    """
    begin = f"task {task.name}: {what}.forward fails on validation"
    with torch.no_grad():
        result = run_model(model, map_inputs(inputs, lambda tensor: tensor.cpu()), begin)
    outputs = [primary_output(result)]
    outputs += named_outputs(result, tuple(task.output_weights or ())).values()
    return [output.detach() for output in outputs]


def check_steady(task: Task, model: nn.Module, inputs: Inputs, what: str = "model") -> None:
    """Check that a model in eval mode gives the same outputs for the same inputs.

    Args:
        task: names the outputs.
        model: the task's model or student; it is not changed.
        inputs: one batch of inputs, of which at most PROBED samples are used.
        what: "model" or "student", for messages.

    Raises:
        TaskError: the model keeps state between calls, or draws random numbers.
    """
    probe, answers = copied(model), []
    if cuttable(inputs, None) and batch_size(inputs) > PROBED:
        few = cut(inputs, None, slice(PROBED))[0]
        with suppress(UserCodeError):  # some models take whole batches only
            validation_outputs(task, copied(model), few, what)
            inputs = few
    for seed in (0, 0, 1):
        with seeded(seed):
            answers.append(validation_outputs(task, probe, inputs, what))
    first, second, third = answers
    where = (
        f"task {task.name}: {what}.forward gives other outputs when it is called again "
        "on the same inputs"
    )
    if not _close(first, second, AGAIN):
        names = _changed(copied(model), probe)
        changed = f" ({', '.join(names[:3])} changed)" if names else ""
        raise TaskError(
            f"{where}, by up to {_distance(first, second)}: it keeps state{changed}; "
            "start it anew at each call, or make it an input"
        )
    if not _close(second, third, AGAIN):
        raise TaskError(
            f"{where}, by up to {_distance(second, third)}: it draws random numbers in eval mode "
            "(dropout with training=True?); draw none, or make the noise an input"
        )


def sample_dimensions(
    task: Task, model: nn.Module, inputs: Inputs, along: int = 0
) -> tuple[int, ...] | None:
    """Return the dimension of each output that counts samples.

    Args:
        task: names the outputs.
        model: the task's model or student; it is not changed.
        inputs: one batch of inputs, of which at most PROBED samples are used.
        along: the dimension of the inputs that is tried.

    Returns:
        One dimension per output of `validation_outputs`; None unless two parts of the inputs give
        the two parts of each output along one dimension.
    """
    answers = _whole_and_halves(task, model, inputs, along)
    if answers is None:
        return None
    whole, (one, other), sizes = answers
    dims, joined = list[int](), list[Tensor]()
    for full, first, second in zip(whole, one, other, strict=True):
        possible = [dim for dim in range(full.dim()) if _divides(dim, full, (first, second), sizes)]
        if not possible:
            return None
        dims.append(possible[0])
        joined.append(torch.cat([first, second], possible[0]))
    return tuple(dims) if _close(joined, whole, APART) else None


def check_depends_on_inputs(task: Task, model: nn.Module, inputs: Inputs) -> None:
    """Check that no output of `output_weights` is a table that is the same for all inputs.

    Args:
        task: names the outputs.
        model: the task's model or student; it is not changed.
        inputs: one batch of inputs, of which at most PROBED samples are used.

    Raises:
        TaskError: an output is.
    """
    answers = _whole_and_halves(task, model, inputs)
    if answers is None or batch_size(inputs) < 2 or task.output_weights is None:
        return
    whole, halves, _ = answers
    for i, name in enumerate(task.output_weights, 1):
        full = whole[i]
        if all(torch.equal(full, half[i]) for half in halves):
            raise TaskError(
                f"task {task.name}: output {name!r} of shape {tuple(full.shape)} is the same for "
                "all inputs; expected a row per sample, or leave it out of output_weights"
            )


def _divides(dim: int, whole: Tensor, parts: tuple[Tensor, Tensor], sizes: tuple[int, int]) -> bool:
    """Return True if parts have their shares of one dimension, and all of the others."""
    rows = whole.shape[dim]
    if not rows or rows % sum(sizes):
        return False
    for part, size in zip(parts, sizes, strict=True):
        shape = list(whole.shape)
        shape[dim] = rows // sum(sizes) * size
        if list(part.shape) != shape:
            return False
    return True


def samples_along(inputs: Inputs, along: int) -> int:
    """Return the number of samples of a batch.

    Args:
        inputs: one batch of inputs.
        along: the dimension of the inputs that counts samples.

    Returns:
        The size of the first tensor that has this dimension; 0 if there is none.
    """
    sizes = (tensor.shape[along] for tensor in input_tensors(inputs) if tensor.dim() > along)
    return next(sizes, 0)


def _sample_dim(tensor: Tensor, along: int, size: int) -> int | None:
    """Return the dimension of one input that counts samples, or None.

    Inputs of one dimension, such as lengths, have it in the first. Dimension 1 of floating-point
    inputs of two dimensions holds features.
    """
    if tensor.dim() == 1 and len(tensor) == size:
        return 0
    if tensor.dim() <= along or tensor.shape[along] != size:
        return None
    return None if along and tensor.dim() == 2 and tensor.is_floating_point() else along


def compares_samples(task: Task, model: nn.Module, inputs: Inputs) -> bool:
    """Return True if outputs hold one entry per pair of samples.

    Such are the scores of all pictures and all texts of a batch. The batch cannot be cut, but it
    may have any size.

    Args:
        task: names the outputs.
        model: the task's model or student; it is not changed.
        inputs: one batch of inputs, of which at most PROBED samples are used.

    Returns:
        True if the first samples give the first rows and columns of the whole batch's output.
    """
    answers = _whole_and_halves(task, model, inputs)
    if answers is None:
        return False
    whole, (first, _), (rows, rest) = answers
    for half, full in zip(first, whole, strict=True):
        sizes = zip(half.shape, full.shape, strict=False)
        differing = [(part, total) for part, total in sizes if part != total]
        if half.dim() != full.dim() or not differing:
            return False
        if any(part * (rows + rest) != total * rows for part, total in differing):
            return False
    corners = []
    for half, full in zip(first, whole, strict=True):
        corners.append(full[tuple(map(slice, half.shape))])
    return _close(first, corners, APART)


def _whole_and_halves(
    task: Task, model: nn.Module, inputs: Inputs, along: int = 0
) -> tuple[list[Tensor], list[list[Tensor]], tuple[int, int]] | None:
    """Return (outputs of a batch, of its halves, their sizes); None if the model fails on them."""
    size = samples_along(inputs, along)
    dims = [_sample_dim(tensor, along, size) for tensor in input_tensors(inputs)]
    if not size or None in dims:
        return None

    def taken(start: int, count: int) -> Inputs:
        left = iter(dims)
        # Models may view what they get in another shape.
        return map_inputs(
            inputs, lambda tensor: tensor.narrow(next(left) or 0, start, count).contiguous()
        )

    probe = copied(model)
    if size < 2:
        left = iter(dims)
        inputs = map_inputs(inputs, lambda tensor: torch.cat([tensor, tensor], next(left) or 0))
        size = 2 * size
    size = min(size, PROBED)
    half = size // 2
    try:
        whole = validation_outputs(task, probe, taken(0, size))
        parts = ((0, half), (half, size - half))
        halves = [validation_outputs(task, probe, taken(*part)) for part in parts]
    except UserCodeError:
        return None  # the model takes inputs of some sizes only
    return whole, halves, (half, size - half)


def _close(outputs: list[Tensor], expected: list[Tensor], tolerance: float) -> bool:
    pairs = zip(outputs, expected, strict=True)
    return all(relative_difference(*pair, LEAST) <= tolerance for pair in pairs)


def _gap(a: Tensor, b: Tensor) -> float:
    """Return the largest difference; infinite where NaN or infinities differ."""
    if not a.numel():
        return 0.0
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    gaps = torch.where(same, torch.zeros_like(a), (a - b).abs())
    return float(gaps.nan_to_num(float("inf")).max())


def _distance(outputs: list[Tensor], expected: list[Tensor]) -> str:
    pairs = zip(outputs, expected, strict=True)
    gaps = [_gap(a, b) for a, b in pairs if a.shape == b.shape]
    return f"{max(gaps):.3g}" if len(gaps) == len(outputs) else "another shape"


def _changed(before: nn.Module, after: nn.Module) -> list[str]:
    """Return the names of buffers and attributes that differ between two copies of a model."""
    names = []
    for (name, old), (_, new) in zip(before.named_modules(), after.named_modules(), strict=False):
        for key in sorted({**_state(old), **_state(new)}):
            if not _equal(_state(old).get(key), _state(new).get(key)):
                names.append(f"{name}.{key}" if name else key)
    return names


def _state(module: nn.Module) -> dict[str, Any]:
    own = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    return {**own, **module._buffers}


def _equal(a: Any, b: Any) -> bool:
    """Return True if two values are equal, or of types that cannot be compared."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_equal, a, b))
    simple = (bool, int, float, str, type(None), Tensor)
    if isinstance(a, simple) or isinstance(b, simple):
        return type(a) is type(b) and a == b
    return True

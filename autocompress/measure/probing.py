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
from autocompress.task.batches import Inputs, batch_size, cut, cuttable, map_inputs, seeded
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


def is_batch_first(task: Task, model: nn.Module, inputs: Inputs) -> bool:
    """Return True if the first dimension of inputs and outputs is the batch.

    Args:
        task: names the outputs.
        model: the task's model or student; it is not changed.
        inputs: one batch of inputs, of which at most PROBED samples are used.

    Returns:
        True if two parts of the batch give the same outputs as the whole.
    """
    answers = _whole_and_halves(task, model, inputs)
    if answers is None:
        return False
    whole, halves, sizes = answers
    size = sum(sizes)
    if any(output.dim() == 0 or len(output) % size for output in whole):
        return False
    for half, rows in zip(halves, sizes, strict=True):
        for output, full in zip(half, whole, strict=True):
            if len(output) * size != len(full) * rows:
                return False
    joined = []
    for first, second in zip(*halves, strict=True):
        fits = first.shape[1:] == second.shape[1:]
        joined.append(torch.cat([first, second]) if fits else first)
    return _close(joined, whole, APART)


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
    task: Task, model: nn.Module, inputs: Inputs
) -> tuple[list[Tensor], list[list[Tensor]], tuple[int, int]] | None:
    """Return (outputs of a batch, of its halves, their sizes); None if the model fails on them."""
    if not cuttable(inputs, None):
        return None
    probe, size = copied(model), batch_size(inputs)
    if size < 2:
        inputs, size = map_inputs(inputs, lambda tensor: torch.cat([tensor, tensor])), 2 * size
    elif size > PROBED:
        inputs, size = cut(inputs, None, slice(PROBED))[0], PROBED
    half = size // 2
    parts = [cut(inputs, None, rows)[0] for rows in (slice(half), slice(half, None))]
    try:
        whole = validation_outputs(task, probe, inputs)
        halves = [validation_outputs(task, probe, part) for part in parts]
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

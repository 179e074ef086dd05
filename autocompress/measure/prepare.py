"""What is found out about a task before it is searched: that its model answers alike when asked again, and where its samples are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from autocompress.errors import TaskError
from autocompress.model.plain.plain import plain_task
from autocompress.results.limits import parse_bytes
from autocompress.task.batches import (
    NARROWED,
    Inputs,
    batch_size,
    cut,
    cuttable,
    input_tensors,
    map_inputs,
    seeded,
)
from autocompress.task.copies import copied
from autocompress.task.float_copy import float_task, narrowed_types, noticed_autocast
from autocompress.task.free_shapes import argument_names
from autocompress.task.loading import check_inputs, ordinary, settled
from autocompress.task.task import Task, check_task, named_outputs, primary_output, run_model
from autocompress.task.user_code import UserCodeError, user_code

SPLITS = ("validation", "train", "calibration", "test")
AGAIN = 1e-4  # of the largest output: another order of sums
APART = 1e-3  # the same for samples alone and in a batch, for which other kernels are chosen
PROBED = 8  # samples by which the first dimension is judged
NORMS = nn.modules.batchnorm._BatchNorm
STATISTICS = ("running_mean", "running_var")


def prepared(task: Task, say: Callable[[str], None] = lambda line: None) -> Task:
    """`task` as it is searched: its splits the same in every pass, its numbers in float32, and whether its first dimension is the batch.

    `say` gets what was changed, a line each. TaskError for what cannot work, before anything takes long.
    """
    for model, what in ((task.model, "model"), (task.student, "student")):
        if model is not None or what == "model":
            _check_model(task, model, what)
    check_inputs(task.example_inputs, "example_inputs")
    for name, inputs in task.latency_inputs.items():
        check_inputs(inputs, f"latency_inputs[{name!r}]", task.example_inputs)
    elsewhere = {name: map_inputs(inputs, ordinary) for name, inputs in task.latency_inputs.items()}
    task = replace(
        task, example_inputs=map_inputs(task.example_inputs, ordinary), latency_inputs=elsewhere
    )
    memory = parse_bytes("data_memory", task.data_memory)
    splits: dict[str, Any] = {
        split: settled(getattr(task, split), split, task.example_inputs, memory, split == "train")
        for split in SPLITS
        if getattr(task, split) is not None
    }
    task = replace(task, **splits)
    floats = float_task(task)
    if floats is not task:
        kinds = {
            str(kind).removeprefix("torch.")
            for model in (task.model, task.student)
            if model
            for kind in narrowed_types(model)
        }
        say(
            f"the model is in {' and '.join(sorted(kinds))}: a float32 copy of it and of its data is searched"
        )
        task = floats
    with suppress(
        UserCodeError
    ):  # what the model's forward raises, check_task tells with its place
        _check_rows(task)
    check_task(task)
    inputs = task.first_batch[0]
    firsts = []
    for model, what in ((task.model, "model"), (task.student, "student")):
        if model is not None:
            check_steady(task, model, inputs, what)
            firsts.append(
                task.batch_first
                if task.batch_first is not None
                else is_batch_first(task, model, inputs)
            )
    _check_loss(task)
    for name, found in task.latency_inputs.items():
        with torch.no_grad():
            run_model(
                _probe(task.student or task.model),
                found,
                f"task {task.name}: model.forward fails on latency_inputs[{name!r}]",
            )
    if not all(firsts) and task.batch_first is None and compares_samples(task, task.model, inputs):
        say(
            "outputs compare the samples of a batch: batches are never cut nor joined; files take any batch size"
        )
        task = _with_free_batch(task)
    elif not all(firsts):
        say(
            f"{_why_whole(task)}: batches are never cut nor joined, and files take the shape of example_inputs"
        )
    return plain_task(replace(task, batch_first=all(firsts)))


def _with_free_batch(task: Task) -> Task:
    """The task with the first dimension of its inputs among those that it names as free."""
    dynamic = {name: dict(dimensions) for name, dimensions in (task.dynamic or {}).items()}
    for i, name in enumerate(argument_names(task.model, task.example_inputs)):
        dynamic.setdefault(name if name in dynamic else str(i), {}).setdefault(0, "batch")
    return replace(task, dynamic=dynamic)


def _check_model(task: Task, model: Any, what: str) -> None:
    """TaskError for what is no module with values, or cannot be copied."""
    if not isinstance(model, nn.Module):
        raise TaskError(
            f"task {task.name}: {what} is a {type(model).__name__}; expected a torch.nn.Module"
        )
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            raise TaskError(
                f"task {task.name}: {what}'s {name} is on device meta and has no values; nearest: to_empty, and load weights"
            )
    for name, module in model.named_modules():
        place = f"task {task.name}: {what}'s {name}" if name else f"task {task.name}: the {what}"
        if isinstance(module, torch.jit.ScriptModule):
            raise TaskError(
                f"{place} is a TorchScript module, which nothing can look into; nearest: the Python module it was made of"
            )
        if isinstance(module, nn.LSTM) and module.proj_size > 0:
            raise TaskError(
                f"{place} is an LSTM with proj_size, which ONNX does not have; nearest: an LSTM without"
            )
    _check_finite(task, model, what)
    with torch.no_grad(), user_code(f"task {task.name}: the {what} cannot be copied"):
        copy.deepcopy(model)


def _check_finite(task: Task, model: nn.Module, what: str) -> None:
    """TaskError that names the first weight, or statistic of a normalisation, that holds NaN or infinity.

    A frozen parameter of zeros and -inf is a mask, and other buffers may hold what they like.
    """
    norms = {
        f"{name}.{key}".lstrip("."): module
        for name, module in model.named_modules()
        if isinstance(module, NORMS)
        for key in STATISTICS
    }
    values = dict(model.named_parameters()) | {
        name: value for name, value in model.named_buffers() if name in norms
    }
    for name, value in values.items():
        if is_lazy(value) or value.dtype not in (torch.float32, *NARROWED):
            continue
        found = value.detach().float()  # larger numbers of double precision are infinite there
        finite = found.isfinite()
        wrong, rest = found[~finite], found[finite]
        if not len(wrong):
            continue
        if (
            not value.requires_grad
            and name not in norms
            and bool((wrong == -torch.inf).all())
            and not bool(rest.any())
        ):
            continue
        kind = "NaN" if bool(wrong.isnan().any()) else "infinity"
        raise TaskError(
            f"task {task.name}: {what}'s {name} holds {kind} in {len(wrong)} of {value.numel()} values; expected finite numbers, "
            "nearest: weights from before training diverged"
        )


def _check_loss(task: Task) -> None:
    """Call a loss of the user's on the first training batch, so that what fails is said before anything takes long."""
    if task.loss is None or not task.has_labels:
        return
    inputs, target = next(iter(task.training_batches()))
    with torch.no_grad():
        loss = task.training_loss(
            task.outputs_of(_probe(task.student or task.model), inputs), target
        )
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        came = (
            f"a tensor of shape {tuple(loss.shape)}"
            if isinstance(loss, Tensor)
            else type(loss).__name__
        )
        raise TaskError(
            f"task: loss returned {came} of the first training batch; expected one number, a scalar tensor"
        )


def _check_rows(task: Task) -> None:
    """TaskError for outputs that are no floating-point numbers, or, of a model that takes one sample at a time, have no row per sample."""
    inputs, target = task.first_batch
    with noticed_autocast() as found:
        output = _outputs(task, _probe(task.model), inputs)[0]
    if found:
        raise TaskError(
            f"task: model.forward runs under torch.autocast in {found[0]}; no file can follow it, nearest: enabled=False"
        )
    if not output.is_floating_point() and (
        task.divergence is None or (task.has_labels and task.loss is None)
    ):
        kind = str(output.dtype).removeprefix("torch.")
        raise TaskError(
            f"task: the model gives {kind} outputs; expected scores, nearest: logits, with argmax in the metric"
        )
    if output.numel() and not bool(output.isfinite().any()):
        raise TaskError(
            "task: the model gives no finite number on the first validation batch; look for NaN in its weights and inputs"
        )
    single = isinstance(target, Tensor) and target.numel() == 1
    if output.dim() == 0 or (single and output.dim() == 1 and len(output) > 1):
        wanted = (1, *output.shape)
        raise TaskError(
            f"task: the model gives outputs of shape {tuple(output.shape)} for one sample; expected a row per sample, {wanted}"
        )


def check_steady(task: Task, model: nn.Module, inputs: Inputs, what: str = "model") -> None:
    """Raise a TaskError when `model` in eval mode gives other outputs for the same inputs: it keeps state, or draws random numbers."""
    probe, answers = _probe(model), []
    if cuttable(inputs, None) and batch_size(inputs) > PROBED:
        few = cut(inputs, None, slice(PROBED))[0]
        with suppress(UserCodeError):  # it takes whole batches only
            _outputs(task, _probe(model), few, what)
            inputs = few
    for seed in (0, 0, 1):
        with seeded(seed):
            answers.append(_outputs(task, probe, inputs, what))
    first, second, third = answers
    where = f"task {task.name}: {what}.forward gives other outputs when it is called again on the same inputs"
    if not _close(first, second, AGAIN):
        changed = _changed(_probe(model), probe)
        kept = f" ({', '.join(changed[:3])} changed)" if changed else ""
        raise TaskError(
            f"{where}, by up to {_distance(first, second)}: it keeps state{kept}; start it anew at each call, or make it an input"
        )
    if not _close(second, third, AGAIN):
        raise TaskError(
            f"{where}, by up to {_distance(second, third)}: it draws random numbers in eval mode (dropout with training=True?); "
            "draw none, or make the noise an input"
        )


def is_batch_first(task: Task, model: nn.Module, inputs: Inputs) -> bool:
    """Whether parts of a batch along the first dimension give the same outputs as the whole, so that this dimension is the batch."""
    found = _whole_and_halves(task, model, inputs)
    if found is None:
        return False
    whole, halves, sizes = found
    size = sum(sizes)
    if any(output.dim() == 0 or len(output) % size for output in whole):
        return False
    if any(
        len(output) * size != len(full) * rows
        for half, rows in zip(halves, sizes, strict=True)
        for output, full in zip(half, whole, strict=True)
    ):
        return False
    joined = [
        torch.cat(pair) if pair[0].shape[1:] == pair[1].shape[1:] else pair[0]
        for pair in zip(*halves, strict=True)
    ]
    return _close(joined, whole, APART)


def compares_samples(task: Task, model: nn.Module, inputs: Inputs) -> bool:
    """Return whether outputs hold one entry per pair of samples, as the scores of all pictures and all texts of a batch.

    Their first samples then give the first rows and columns of what the whole batch gives: it cannot be cut, but it has any size.
    """
    found = _whole_and_halves(task, model, inputs)
    if found is None:
        return False
    whole, (first, _), (rows, rest) = found
    for half, full in zip(first, whole, strict=True):
        counts = [(a, b) for a, b in zip(half.shape, full.shape, strict=False) if a != b]
        if (
            half.dim() != full.dim()
            or not counts
            or any(a * (rows + rest) != b * rows for a, b in counts)
        ):
            return False
    shown = [full[tuple(map(slice, half.shape))] for half, full in zip(first, whole, strict=True)]
    return _close(first, shown, APART)


def _whole_and_halves(
    task: Task, model: nn.Module, inputs: Inputs
) -> tuple[list[Tensor], list[list[Tensor]], tuple[int, int]] | None:
    """(outputs of a batch, of its two halves, their sizes), or None where the model does not take them."""
    if not cuttable(inputs, None):
        return None
    probe, size = _probe(model), batch_size(inputs)
    if size < 2:
        inputs, size = map_inputs(inputs, lambda tensor: torch.cat([tensor, tensor])), 2 * size
    elif size > PROBED:
        inputs, size = cut(inputs, None, slice(PROBED))[0], PROBED
    half = size // 2
    try:
        whole = _outputs(task, probe, inputs)
        return (
            whole,
            [
                _outputs(task, probe, cut(inputs, None, rows)[0])
                for rows in (slice(half), slice(half, None))
            ],
            (half, size - half),
        )
    except UserCodeError:
        return None  # it takes inputs of some sizes only


def _why_whole(task: Task) -> str:
    """What keeps samples from being told apart, as far as it is known."""
    for name, module in task.model.named_modules():
        if isinstance(module, NORMS) and module.running_mean is None:
            return (
                f"{name or 'the model'} normalises by the batch that it is given, also in eval mode"
            )
    shapes = [tuple(tensor.shape) for tensor in input_tensors(task.first_batch[0])]
    return f"the first dimension of the inputs {shapes} is not the batch (its parts give other outputs, or none)"


def _probe(model: nn.Module) -> nn.Module:
    return copied(model)


def _outputs(task: Task, model: nn.Module, inputs: Inputs, what: str = "model") -> list[Tensor]:
    with torch.no_grad():
        result = run_model(
            model,
            map_inputs(inputs, lambda tensor: tensor.cpu()),
            f"task {task.name}: {what}.forward fails on validation",
        )
    found = [
        primary_output(result),
        *named_outputs(result, tuple(task.output_weights or ())).values(),
    ]
    return [output.detach() for output in found]


def _close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> bool:
    return all(
        a.shape == b.shape and _gap(a, b) <= tolerance * max(1e-6, _largest(b))
        for a, b in zip(found, expected, strict=True)
    )


def _gap(a: Tensor, b: Tensor) -> float:
    """The largest difference; values that are not finite must be the same."""
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    return (
        float(torch.where(same, torch.zeros_like(a), (a - b).abs()).nan_to_num(float("inf")).max())
        if a.numel()
        else 0.0
    )


def _largest(tensor: Tensor) -> float:
    finite = tensor.double()[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _distance(found: list[Tensor], expected: list[Tensor]) -> str:
    gaps = [_gap(a, b) for a, b in zip(found, expected, strict=True) if a.shape == b.shape]
    return f"{max(gaps):.3g}" if len(gaps) == len(found) else "another shape"


def _changed(before: nn.Module, after: nn.Module) -> list[str]:
    """Buffers and attributes of modules that differ."""
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
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, (bool, int, float, str, type(None), Tensor)) or isinstance(
        b, (bool, int, float, str, type(None), Tensor)
    ):
        return type(a) is type(b) and a == b
    return True

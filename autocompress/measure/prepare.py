"""Check a task, and complete it with what is found out by calling its model.

`search`, `inspect` and the other entry points begin here. Behind it splits are the same in every
pass, numbers are float32, and it is known which dimensions of inputs and outputs count samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.measure.accumulators import check_fresh, fresh
from autocompress.measure.accuracy import metric_notes, metric_outputs
from autocompress.measure.checks import (
    NORMS,
    SPLITS,
    check_augment,
    check_loss,
    check_model,
    check_outputs,
    check_task,
)
from autocompress.measure.layout.functions import in_rows
from autocompress.measure.probing import (
    check_depends_on_inputs,
    check_steady,
    compares_samples,
    sample_dimensions,
)
from autocompress.measure.size import check_size
from autocompress.measure.tally import readings
from autocompress.model.float_copy import float_task, narrowed_types
from autocompress.model.plain.plain import plain_task
from autocompress.results.limits import parse_bytes
from autocompress.task.batch_checks import check_inputs, ordinary
from autocompress.task.batches import input_tensors, map_inputs
from autocompress.task.calls import (
    is_ours,
    named_outputs,
    primary_output,
    run_model,
    tensors_in_order,
)
from autocompress.task.copies import copied, is_compiled
from autocompress.task.free_shapes import argument_names
from autocompress.task.loading import settled
from autocompress.task.task import Task
from autocompress.task.user_code import UserCodeError


def prepared(
    task: Task, say: Callable[[str], None] = lambda line: None, beside: bool = False
) -> Task:
    """Return a task in the form that is searched.

    Its splits are the same in every pass, its numbers are float32, its modules are plain,
    `batch_first` and `sample_dims` are known.

    Args:
        task: as the user made it; it is not changed.
        say: gets a line for each thing that was changed.
        beside: True where the weights of files may lie beside them, so that a model may have more
            than one ONNX file holds.

    Returns:
        The completed task.

    Raises:
        TaskError: something cannot work; this is said before anything takes long.
        UserCodeError: the user's model, loss or loader fails.
    """
    for line in task.notes:
        say(line)
    for model, what in ((task.model, "model"), (task.student, "student")):
        if model is not None or what == "model":
            check_model(task, model, what)
        if model is not None and not beside:
            check_size(task.name, model)
    task = _in_float32(_without_wrappers(_with_checked_data(task), say), say)
    with suppress(UserCodeError):  # check_task tells errors of forward with their place
        check_outputs(task)
    given, task = task, _with_layout(task, say)
    check_task(task)
    _check_accumulators(given)
    inputs = task.first_batch[0]
    for model, what in ((task.model, "model"), (task.student, "student")):
        if model is not None:
            check_steady(task, model, inputs, what)
    check_loss(task)
    check_augment(task)
    for name, further in task.latency_inputs.items():
        begin = f"task {task.name}: model.forward fails on latency_inputs[{name!r}]"
        with torch.no_grad():
            run_model(copied(task.student or task.model), further, begin)
    if not task.batch_first:
        if given.batch_first is None and compares_samples(task, task.model, inputs):
            say(
                "outputs compare the samples of a batch: batches are never cut nor joined; "
                "files take any batch size"
            )
            task = _with_free_batch(task)
        else:
            say(
                f"{_why_whole(task)}: batches are never cut nor joined, "
                "and files take the shape of example_inputs"
            )
    with suppress(UserCodeError):  # an evaluation tells errors of the metric with their place
        for line in metric_notes(task):
            say(line)
    task = plain_task(task)
    if task.no_gradient:
        say(f"{task.no_gradient}: candidates are not trained")
    return task


def _with_layout(task: Task, say: Callable[[str], None]) -> Task:
    """Return the task with `batch_first`, and with samples first in its outputs and targets."""
    if task.sample_dims is not None:
        return task  # it is prepared
    models = [model for model in (task.model, task.student) if model is not None]
    found = [_found_layout(task, model) for model in models]
    batch_first, along, dims = found[0]
    if any(layout[1:] != (along, dims) for layout in found):
        batch_first, along, dims = False, 0, (0,) * len(dims)
    task = replace(task, batch_first=batch_first and all(layout[0] for layout in found))
    names = tuple(task.output_weights or ("",))
    outputs = dict(zip(names, dims[-len(names) :], strict=True))
    moved = in_rows(task, outputs, along)
    with suppress(UserCodeError):  # check_task tells errors of forward with their place
        for line in _layout_notes(task, moved.sample_dims or {}):
            say(line)
    return moved


def _found_layout(task: Task, model: nn.Module) -> tuple[bool, int, tuple[int, ...]]:
    """Return (batch_first, the inputs' dimension that counts samples, those of the outputs)."""
    inputs = task.first_batch[0]
    usual = (0,) * (1 + len(task.output_weights or ()))
    if task.batch_first is None:
        dims = sample_dimensions(task, model, inputs)
        if dims is not None:
            return True, 0, dims
        check_depends_on_inputs(task, model, inputs)
    elif task.batch_first:
        return True, 0, usual
    dims = sample_dimensions(task, model, inputs, along=1)
    return (False, 0, usual) if dims is None else (False, 1, dims)


def _layout_notes(task: Task, dims: Mapping[str, int]) -> Iterator[str]:
    """Yield what is found out about the outputs, as far as it is unusual."""
    model, primary_names = copied(task.model, shares_weights=True), list[str]()
    few = task.first_samples(task.validation, 2)[0][0]
    for inputs in (few, task.example_inputs):
        with torch.no_grad():
            found = run_model(model, map_inputs(inputs, lambda tensor: tensor.cpu()))
        if isinstance(found, Tensor) and not any(dims.values()):
            return  # a single output, and samples are first
        outputs = primary_output(found), list(tensors_in_order(found))
        if inputs is few:
            result, (primary, named) = found, outputs
        # A property may make a new tensor at each look.
        name = next((name for name, tensor in outputs[1] if tensor is outputs[0]), "logits")
        primary_names.append(name)
    if primary_names[0] != primary_names[1]:
        raise TaskError(
            f"task {task.name}: the output that is judged is {primary_names[1]} for example_inputs "
            f"and {primary_names[0]} for validation, as one of them is a single number there; "
            "nearest: squeeze(-1) in forward, not squeeze()"
        )
    if named[0][1].dim() == 0 < primary.dim():
        yield (
            f"the model returns one number first ({named[0][0]}): output {primary_names[0]} of "
            f"shape {tuple(primary.shape)} is judged"
        )
    for name, dim in dims.items():
        if dim > 0:
            value = primary if not name else named_outputs(result, [name])[name]
            yield (
                f"{f'output {name!r}' if name else 'the output'} of shape {tuple(value.shape)} has "
                f"samples in dimension {dim}: batches are joined and scored along it"
            )


def _check_accumulators(task: Task) -> None:
    """Check on the first batch that evaluations with accumulators do not change each other."""
    found = [reading for reading in readings(task) if not is_ours(reading.metric)]
    found = [reading for reading in found if fresh(reading.metric, reading.name) is not None]
    if not found:
        return
    inputs, target = task.first_batch
    outputs = metric_outputs(
        task, copied(task.model, shares_weights=True), inputs, torch.device("cpu")
    )
    for reading in found:
        own = reading.target(target)
        check_fresh(reading.metric, outputs[reading.output], own, reading.name)


def _with_checked_data(task: Task) -> Task:
    """Return the task with checked inputs and settled splits."""
    check_inputs(task.example_inputs, "example_inputs")
    further = {}
    for name, inputs in task.latency_inputs.items():
        check_inputs(inputs, f"latency_inputs[{name!r}]", task.example_inputs)
        further[name] = map_inputs(inputs, ordinary)
    example = map_inputs(task.example_inputs, ordinary)
    memory = parse_bytes("data_memory", task.data_memory)
    splits: dict[str, Any] = {}
    for split in SPLITS:
        batches = getattr(task, split)
        if batches is not None:
            splits[split] = settled(batches, split, example, memory, split == "train")
    return replace(task, example_inputs=example, latency_inputs=further, **splits)


def _without_wrappers(task: Task, say: Callable[[str], None]) -> Task:
    """Return the task with the modules that `torch.compile` wrapped in place of its wrappers."""
    changed: dict[str, Any] = {}
    for what in ("model", "student"):
        model = getattr(task, what)
        if model is not None and any(map(is_compiled, model.modules())):
            changed[what] = copied(model, None, shares_weights=True)
            say(f"the {what} is compiled by torch.compile: what was compiled is searched")
    return replace(task, **changed) if changed else task


def _in_float32(task: Task, say: Callable[[str], None]) -> Task:
    """Return the task with float32 copies of its models and data, if they have other precisions."""
    floats = float_task(task)
    if floats is task:
        return task
    kinds: set[str] = set()
    for model in (task.model, task.student):
        if model is not None:
            kinds |= {str(kind).removeprefix("torch.") for kind in narrowed_types(model)}
    say(
        f"the model is in {' and '.join(sorted(kinds))}: "
        "a float32 copy of it and of its data is searched"
    )
    return floats


def _with_free_batch(task: Task) -> Task:
    """Return the task with the first dimension of its inputs named as free."""
    dynamic = {name: dict(dimensions) for name, dimensions in (task.dynamic or {}).items()}
    for i, name in enumerate(argument_names(task.model, task.example_inputs)):
        dynamic.setdefault(name if name in dynamic else str(i), {}).setdefault(0, "batch")
    return replace(task, dynamic=dynamic)


def _why_whole(task: Task) -> str:
    """Return the reason why samples cannot be told apart, as far as it is known."""
    for name, module in task.model.named_modules():
        if isinstance(module, NORMS) and module.running_mean is None:
            place = name or "the model"
            return f"{place} normalises by the batch that it is given, also in eval mode"
    shapes = [tuple(tensor.shape) for tensor in input_tensors(task.first_batch[0])]
    return (
        f"the first dimension of the inputs {shapes} is not the batch "
        "(its parts give other outputs, or none)"
    )

"""Check a task's models, outputs, targets and loss before anything takes long.

`prepare` calls these functions first. Each raises a TaskError of one line that says what cannot
work and the nearest that does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from autocompress.argument_types import shown
from autocompress.errors import TaskError, nearest_name
from autocompress.measure.accumulators import EXPECTED, is_metric
from autocompress.measure.probing import validation_outputs
from autocompress.measure.tally import readings
from autocompress.model.float_copy import narrowed_types, noticed_casts
from autocompress.task.batch_checks import first_batch
from autocompress.task.batches import (
    NARROWED,
    NO_BFLOAT16,
    Inputs,
    input_tensors,
    leaves,
    map_inputs,
)
from autocompress.task.calls import named_outputs, primary_output, run_model
from autocompress.task.copies import copied
from autocompress.task.task import OutputMetric, Task
from autocompress.task.user_code import user_code

SPLITS = ("validation", "train", "calibration", "test")
NORMS = nn.modules.batchnorm._BatchNorm
STATISTICS = ("running_mean", "running_var")
# Packages of modules that prepare for quantization, and of those whose weights are integers.
OBSERVERS = ("torch.ao.quantization.fake_quantize", "torch.ao.quantization.observer")
INTEGERS = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse")


def check_model(task: Task, model: Any, what: str) -> None:
    """Check that a model is a module with values and can be copied.

    Args:
        task: names the messages.
        model: the task's model or student as the user gives it.
        what: "model" or "student", for messages.

    Raises:
        TaskError: it is no module, a kind of module that no file can hold, or holds NaN.
        UserCodeError: it cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise TaskError(
            f"task {task.name}: {what} is a {type(model).__name__}; expected a torch.nn.Module"
        )
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            raise TaskError(
                f"task {task.name}: {what}'s {name} is on device meta and has no values; "
                "nearest: to_empty, and load weights"
            )
    for name, module in model.named_modules():
        place = f"task {task.name}: {what}'s {name}" if name else f"task {task.name}: the {what}"
        if isinstance(module, torch.jit.ScriptModule):
            raise TaskError(
                f"{place} is a TorchScript module, which nothing can look into; "
                "nearest: the Python module it was made of"
            )
        if type(module).__module__.startswith(INTEGERS):
            raise TaskError(
                f"{place} is quantized already ({type(module).__name__} of PyTorch); "
                "nearest: the float model that it was made of"
            )
        if type(module).__module__.startswith(OBSERVERS):
            raise TaskError(
                f"{place} observes or rounds what it reads ({type(module).__name__} of PyTorch); "
                "nearest: the float model that was prepared for quantization"
            )
        if isinstance(module, nn.LSTM) and module.proj_size > 0:
            raise TaskError(
                f"{place} is an LSTM with proj_size, which ONNX does not have; "
                "nearest: an LSTM without"
            )
    _check_finite(task, model, what)
    with torch.no_grad(), user_code(f"task {task.name}: the {what} cannot be copied"):
        copy.deepcopy(model)


def _check_finite(task: Task, model: nn.Module, what: str) -> None:
    """Raise a TaskError for the first weight or statistic of a normalisation with NaN or infinity.

    A frozen parameter of zeros and -inf is a mask and allowed. Other buffers are not looked at.
    """
    statistics = set()
    for name, module in model.named_modules():
        if isinstance(module, NORMS):
            statistics |= {f"{name}.{key}".lstrip(".") for key in STATISTICS}
    values: dict[str, Tensor] = dict(model.named_parameters())
    for name, value in model.named_buffers():
        if name in statistics:
            values[name] = value
    for name, value in values.items():
        if is_lazy(value) or value.dtype not in (torch.float32, *NARROWED):
            continue
        numbers = value.detach().float()  # larger numbers of double precision become infinite
        finite = numbers.isfinite()
        wrong, rest = numbers[~finite], numbers[finite]
        if not len(wrong):
            continue
        frozen = not value.requires_grad and name not in statistics
        if frozen and bool((wrong == -torch.inf).all()) and not bool(rest.any()):
            continue
        kind = "NaN" if bool(wrong.isnan().any()) else "infinity"
        raise TaskError(
            f"task {task.name}: {what}'s {name} holds {kind} in {len(wrong)} of {value.numel()} "
            "values; expected finite numbers, nearest: weights from before training diverged"
        )


def check_outputs(task: Task) -> None:
    """Check the outputs of the model on the first validation batch.

    Args:
        task: with a model that `check_model` accepts.

    Raises:
        TaskError: outputs are not floating-point numbers, not finite, or have no row per sample,
            or the model casts types in forward.
        UserCodeError: forward fails.
    """
    inputs, target = task.first_batch
    with noticed_casts() as casts:
        output, *further = validation_outputs(task, copied(task.model), inputs)
    if casts:
        raise TaskError(f"task: model.forward {casts[0]}")
    if not output.is_floating_point() and (
        task.divergence is None or (task.has_labels and task.loss is None)
    ):
        kind = str(output.dtype).removeprefix("torch.")
        raise TaskError(
            f"task: the model gives {kind} outputs; "
            "expected scores, nearest: logits, with argmax in the metric"
        )
    if output.numel() and not bool(output.isfinite().any()):
        raise TaskError(
            "task: the model gives no finite number on the first validation batch; "
            "look for NaN in its weights and inputs"
        )
    single = isinstance(target, Tensor) and target.numel() == 1
    if output.dim() == 0 or (single and output.dim() == 1 and len(output) > 1):
        nearest = ""
        shapes = [
            [tuple(tensor.shape) for tensor in input_tensors(value)]
            for value in (inputs, task.example_inputs)
        ]
        if [(1, *shape) for shape in shapes[0]] == [(1, *shape[1:]) for shape in shapes[1]]:
            nearest = (
                f"; validation yields inputs of shape {shapes[0][0]} and example_inputs have "
                f"{shapes[1][0]}, nearest: batches, as torch.utils.data.DataLoader makes of samples"
            )
        raise TaskError(
            f"task: the model gives outputs of shape {tuple(output.shape)} for one sample; "
            f"expected a row per sample, {(1, *output.shape)}{nearest}"
        )
    for name, value in zip(task.output_weights or (), further, strict=True):
        if value.dim() == 0:
            raise TaskError(
                f"task: output {name!r} is one number for the whole batch; "
                "expected a row per sample, or leave it out of output_weights"
            )


def check_loss(task: Task) -> None:
    """Call the task's own loss, if it has one, on the first training batch.

    Args:
        task: with a model that `check_model` accepts.

    Raises:
        TaskError: the loss is not one number.
        UserCodeError: the loss or forward fails.
    """
    if task.loss is None or not task.has_labels:
        return
    inputs, target = next(iter(task.training_batches()))
    with torch.no_grad():
        outputs = task.outputs_of(copied(task.student or task.model), inputs)
        loss = task.training_loss(outputs, target)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        came = type(loss).__name__
        if isinstance(loss, Tensor):
            came = f"a tensor of shape {tuple(loss.shape)}"
        raise TaskError(
            f"task: loss returned {came} of the first training batch; "
            "expected one number, a scalar tensor"
        )


def check_augment(task: Task) -> None:
    """Check that the views of a training batch can take its place.

    Args:
        task: with its splits settled.

    Raises:
        TaskError: `augment` is no function, changes a shape, a type or a constant, makes numbers
            that are not finite, or gives another view under the same seed.
        UserCodeError: it fails.
    """
    if task.augment is None:
        return
    begin = f"task {task.name}: augment"
    if not callable(task.augment):
        raise TaskError(f"{begin} is {shown(task.augment)}; expected a function of inputs")
    inputs = first_batch(task.training_batches(), "train")[0]
    views = [task.view(inputs, 0) for _ in range(2)]
    expected, found, again = leaves(inputs), leaves(views[0]), leaves(views[1])
    for path in {**expected, **found}:
        wanted, came = _described(expected, path), _described(found, path)
        if came != wanted:
            raise TaskError(f"{begin} returned {came} for {path}; nearest: {wanted}, as it came")
        value = found[path]
        if not isinstance(value, Tensor):
            continue
        if bool(torch.isfinite(expected[path]).all()) and not bool(torch.isfinite(value).all()):
            raise TaskError(f"{begin} makes NaN or infinity in {path} of the first training batch")
        same = _described(again, path) == came
        if not same or not torch.equal(value.nan_to_num(), again[path].nan_to_num()):
            raise TaskError(
                f"{begin} gives another {path} under the same seed, so that training could not "
                "resume; nearest: draw from the generators of torch, numpy.random or random"
            )


def _described(values: Mapping[str, Any], path: str) -> str:
    """Return shape and type of a tensor, the text of a constant, or "nothing"."""
    if path not in values:
        return "nothing"
    value = values[path]
    if not isinstance(value, Tensor):
        return shown(value)
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


def check_task(task: Task) -> None:
    """Check that the parts of a task fit together.

    Args:
        task: as the user made it, or with its splits settled.

    Raises:
        TaskError: a split is empty, an input is in bfloat16, a parameter has no shape yet, a name
            is not there, or outputs and targets do not tell what they hold.
        UserCodeError: forward fails on the example, or the model cannot be copied.
    """
    _check_types(task.example_inputs, "example_inputs", task)
    for name, inputs in task.latency_inputs.items():
        _check_types(inputs, f"latency_inputs[{name!r}]", task)
    for split in SPLITS:
        batches = getattr(task, split)
        if batches is not None:
            _check_types(first_batch(batches, split)[0], split, task)
    for model, what in ((task.model, "model"), (task.student, "student")):
        if model is None:
            continue
        _check_initialised(task, model, what)
        with torch.no_grad(), user_code(f"task {task.name}: the {what} cannot be copied"):
            own = copy.deepcopy(model).cpu().eval()
        inputs = map_inputs(task.example_inputs, lambda tensor: tensor.cpu())
        begin = f"task {task.name}: {what}.forward fails on example_inputs"
        with torch.no_grad():
            result = run_model(own, inputs, begin)
        _check_names(task, result)
    _check_kinds(task)
    _check_matched(task)
    _check_metrics(task)


def _check_types(inputs: Inputs, split: str, task: Task) -> None:
    """Raise a TaskError for bfloat16 inputs, unless the task is searched as a float32 copy."""
    models = [model for model in (task.model, task.student) if model is not None]
    if any(narrowed_types(model) for model in models):
        return
    for path, value in leaves(inputs).items():
        if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
            raise TaskError(f"task {task.name}: {split} has {path} in bfloat16, {NO_BFLOAT16}")


def _check_initialised(task: Task, model: nn.Module, what: str) -> None:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            raise TaskError(
                f"task {task.name}: {what}'s {name} has no shape yet; "
                f"call the {what} once before the task is made"
            )


def _check_names(task: Task, result: Any) -> None:
    """Raise a TaskError unless `output_weights` begins with the primary output."""
    primary = primary_output(result)
    names = tuple(task.output_weights or ())
    if names and named_outputs(result, names)[task.primary_name] is not primary:
        raise TaskError(
            f"task {task.name}: output_weights must name the model's first output (or logits) "
            f"first, got {list(names)}"
        )


def _check_kinds(task: Task) -> None:
    """Raise a TaskError if a default divergence or loss is needed and the targets fit none."""
    learns = task.loss is None and task.has_labels
    for name in task.output_weights or ("",):
        if learns or task.divergence is None or name != task.primary_name:
            task.kind_of(name)
    if learns:
        inputs, target = first_batch(task.training_batches(), "train")
        with torch.no_grad():
            model, inputs = copied(task.model), map_inputs(inputs, lambda tensor: tensor.cpu())
            task.training_loss(task.outputs_of(model, inputs), target)


def _check_matched(task: Task) -> None:
    for learns, teaches in (task.matched_modules or {}).items():
        for model, name in ((task.student or task.model, learns), (task.model, teaches)):
            modules = dict(model.named_modules())
            if name not in modules:
                near = nearest_name(name, list(modules)) or "none"
                raise TaskError(
                    f"task {task.name}: matched_modules names {name!r}, which is no module; "
                    f"nearest: {near}"
                )


def _check_metrics(task: Task) -> None:
    outputs = tuple(task.output_weights or ())
    for reading in readings(task):
        if not is_metric(reading.metric):
            raise TaskError(
                f"task {task.name}: {reading.name} is a {type(reading.metric).__name__}; "
                f"expected {EXPECTED}"
            )
    for name, metric in task.extra_metrics.items():
        if isinstance(metric, OutputMetric) and metric.output not in outputs:
            near = nearest_name(metric.output, list(outputs))
            near = near or "none, since output_weights is not given"
            raise TaskError(
                f"task {task.name}: metric {name} reads output {metric.output!r}, which "
                f"output_weights lacks; nearest: {near}"
            )

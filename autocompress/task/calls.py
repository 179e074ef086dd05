"""Call the user's model and metric in one way, and read what they return.

Everything that runs a model (inspection, calibration, recovery, evaluation, export) does it here.
So errors of the user's code are told with the place in their file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from autocompress.errors import NotComputableError, TaskError, nearest_name
from autocompress.task.batches import Inputs, map_inputs, map_value
from autocompress.task.user_code import user_code

FORWARD_FAILS = "task: model.forward fails"
OURS = "autocompress."  # how the names of our own modules begin


class Accumulator(Protocol):
    """Describe a metric that gets a split batch by batch, as those of torchmetrics do.

    It may have a `reset()` too.
    """

    def update(self, outputs: Any, targets: Any) -> Any:
        """Take the outputs and the target of one batch.

        Args:
            outputs: (n, ...) of the model.
            targets: of the batch, as its split gives it.
        """

    def compute(self) -> Any:
        """Return the metric of all batches so far, higher is better."""


# A function of all outputs of a split; an accumulator, its class, or a function that makes one.
Metric = Callable[[Any, Any], float] | Accumulator | Callable[[], Accumulator]


def call_model(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the primary output of a model.

    Args:
        model: any module.
        inputs: one batch of inputs on the model's device.

    Returns:
        (n, ...): the result itself, its `.logits`, or its first tensor.

    Raises:
        UserCodeError: forward fails.
        TaskError: the result holds no tensor.
    """
    return primary_output(run_model(model, inputs))


def run_model(model: nn.Module, inputs: Inputs, what: str = FORWARD_FAILS) -> Any:
    """Return everything that a model returns.

    Args:
        model: any module; it gets copies of the inputs, since it may write to them.
        inputs: one batch of inputs on the model's device.
        what: how the error begins if forward fails.

    Returns:
        The result as forward gives it.

    Raises:
        UserCodeError: forward fails.
    """
    own = map_inputs(inputs, torch.clone)
    silent: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if isinstance(model, fx.GraphModule):
        # A traced program prints its source where it fails, beside the error.
        silent = contextlib.redirect_stderr(io.StringIO())
    with user_code(what), silent:
        if isinstance(own, Tensor):
            return model(own)
        return model(**own) if isinstance(own, Mapping) else model(*own)


def named_outputs(result: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Return some outputs of a model by their names.

    Args:
        result: what the model returns.
        names: keys, attributes or positions ("0").

    Returns:
        Name -> tensor, in the order of `names`.

    Raises:
        TaskError: a name is not there, or is not a tensor.
    """
    if isinstance(result, Mapping):
        outputs = dict(result)
    elif isinstance(result, (tuple, list)):
        outputs = {str(i): value for i, value in enumerate(result)}
    else:
        outputs = {} if isinstance(result, Tensor) else _attributes(result)
    for name in names:
        if not isinstance(outputs.get(name), Tensor):
            near = nearest_name(name, list(outputs)) or "none"
            raise TaskError(
                f"task: output_weights names {name!r}, "
                f"which the model does not return as a tensor; nearest: {near}"
            )
    return {name: outputs[name] for name in names}


def _attributes(result: Any) -> dict[str, Any]:
    """Return the attributes of an object; a dataclass with slots has its fields only."""
    if hasattr(result, "__dict__") or not dataclasses.is_dataclass(result):
        return dict(getattr(result, "__dict__", {}))
    return {item.name: getattr(result, item.name) for item in dataclasses.fields(result)}


def primary_output(result: Any) -> Tensor:
    """Return the output that the task's metric judges.

    Args:
        result: what the model returns.

    Returns:
        `result` itself, its `.logits`, its "logits" entry, its first tensor, or the first tensor
        inside of its entries. The entries of a dataclass are its fields. A single number, such as
        the loss of a batch, is returned only if there is nothing else.

    Raises:
        TaskError: there is no tensor.
    """
    first = None
    for _, tensor in tensors_in_order(result):
        if tensor.dim() > 0:
            return tensor
        first = tensor if first is None else first
    if first is not None:
        return first
    raise TaskError(
        f"task: the model returns {type(result).__name__}; "
        "expected a tensor, .logits, or a tuple, dict or dataclass of tensors"
    )


def tensors_in_order(result: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a result in the order in which one is chosen as primary.

    Args:
        result: what the model returns.
        name: of the result itself.

    Yields:
        (name, tensor): "logits" first, then the other entries, then what is inside of entries.
        Names are keys, fields and positions on the way, joined by ".".
    """
    if isinstance(result, Tensor):
        yield name, result
        return
    entries: dict[str, Any] = {}
    if isinstance(result, Mapping):
        entries = {str(key): value for key, value in result.items()}
    elif isinstance(result, (tuple, list)):
        labels = getattr(result, "_fields", range(len(result)))
        entries = {str(label): value for label, value in zip(labels, result, strict=True)}
    elif dataclasses.is_dataclass(result):
        fields = dataclasses.fields(result)
        entries = {field.name: getattr(result, field.name, None) for field in fields}
    logits = entries.get("logits", getattr(result, "logits", None))
    if isinstance(logits, Tensor):
        entries = {"logits": logits, **entries}
    prefix = f"{name}." if name else ""
    inside = {label: value for label, value in entries.items() if not isinstance(value, Tensor)}
    for label in [label for label in entries if label not in inside] + list(inside):
        yield from tensors_in_order(entries[label], prefix + label)


def target_of(target: Any, name: str) -> Any:
    """Return the target of one output.

    Args:
        target: a mapping of targets by output, or one target that belongs to all outputs.
        name: the output.

    Returns:
        The target; None if the mapping does not have it.
    """
    return target.get(name) if isinstance(target, Mapping) else target


def is_ours(function: Any) -> bool:
    """Return True if a metric, loss or divergence is of this package.

    Args:
        function: a function or an object.
    """
    called = function.func if isinstance(function, partial) else function
    return str(getattr(called, "__module__", "")).startswith(OURS)


def copies_for(function: Any, *arguments: Any) -> tuple[Any, ...]:
    """Return copies of outputs and targets for a function of the user's, which may write to them.

    Functions of this package write to none and get the arguments themselves, since the outputs of
    a split may be large.

    Args:
        function: a metric, loss or divergence.
        arguments: tensors, and nested lists, tuples and mappings of them; gradients pass the copy.

    Returns:
        The arguments in their order.
    """
    if is_ours(function):
        return arguments
    return tuple(map_value(argument, torch.clone) for argument in arguments)


def score(
    metric: Callable[[Any, Any], float], outputs: Any, targets: Any, name: str = "metric"
) -> float:
    """Return a metric of the user's as a finite number.

    Args:
        metric: (outputs, targets) -> float.
        outputs: of a split: a tensor (n, ...), or a list with an entry per sample.
        targets: of the same samples, or None.
        name: of the metric, for messages.

    Returns:
        The metric, higher is better.

    Raises:
        UserCodeError: the metric fails.
        NotComputableError: it returns something else than a finite number.
    """
    with user_code(f"task: {name} fails"):
        result: Any = metric(*copies_for(metric, outputs, targets))
    return finite(result, len(outputs), name)


def finite(result: Any, samples: int, name: str = "metric") -> float:
    """Return what a metric gave as a finite number.

    Args:
        result: of the metric.
        samples: that it judged, for messages.
        name: of the metric, for messages.

    Raises:
        NotComputableError: it is something else.
    """
    try:
        value = float(result)
    except (TypeError, ValueError, RuntimeError):
        came = repr(result)[:60]
        if isinstance(result, Tensor):
            came = f"a tensor of shape {tuple(result.shape)}"
        raise NotComputableError(
            f"task: {name} returned {came}; it must be a finite number"
        ) from None
    if not math.isfinite(value):
        raise NotComputableError(
            f"task: {name} returned {value} on {samples} outputs; it must be a finite number"
        )
    return value

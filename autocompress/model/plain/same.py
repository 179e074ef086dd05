"""Compare the outputs of a model and of another form of it.

`plain` uses a form only if it computes what the user's model computes.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.differences import relative_difference
from autocompress.errors import TaskError
from autocompress.task.batches import Batches, Inputs, input_tensors, map_inputs
from autocompress.task.calls import call_model, run_model

TOLERANCE = 1e-4  # of the largest output: another order of sums, and nothing else
LEAST = 1e-6  # smaller outputs are compared to this


def same_outputs(model: nn.Module, other: nn.Module, inputs: Inputs) -> bool:
    """Return True if another form of a model gives its primary output.

    Args:
        model: the model.
        other: another form of it, on the same device.
        inputs: one batch of inputs.

    Returns:
        False too if the other form fails.

    Raises:
        UserCodeError: the model itself fails.
    """
    with torch.no_grad():
        expected = call_model(model, map_inputs(inputs, Tensor.clone))
        try:
            output = call_model(other, map_inputs(inputs, Tensor.clone))
        except Exception:  # a split module does not cover every way of calling it
            return False
    if output.shape != expected.shape or output.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return bool(torch.equal(output, expected))
    return relative_difference(output, expected, LEAST) <= TOLERANCE


def check_same(
    model: nn.Module, plain: nn.Module, batches: Batches, example: Inputs, count: int = 2
) -> None:
    """Check that a plain model gives the outputs of the user's model on the first batches.

    Args:
        model: the user's model.
        plain: its plain form, which gives the same outputs on the example.
        batches: a split.
        example: the inputs that the plain form was made with.
        count: number of batches to compare.

    Raises:
        TaskError: an output differs.
    """
    for i, (inputs, _) in enumerate(batches):
        if i == count:
            return
        if same_outputs(model, plain, inputs):
            continue
        shapes = [tuple(tensor.shape) for tensor in input_tensors(inputs)]
        usual = [tuple(tensor.shape) for tensor in input_tensors(example)]
        if shapes != usual:
            raise TaskError(
                f"model: it does something else with inputs of {shapes} (validation) than with "
                f"those of {usual} (example_inputs), which no file can follow; "
                "nearest: example_inputs of the size of the batches"
            )
        raise TaskError(
            "model: what would be compressed differs from the model"
            f"{first_difference(model, plain, inputs)}; please report it with the model"
        )


def first_difference(model: nn.Module, other: nn.Module, inputs: Inputs) -> str:
    """Return where the outputs of two models differ first, for messages.

    Args:
        model: any module.
        other: a module with the same names inside.
        inputs: one batch of inputs.

    Returns:
        " at module NAME" for the first module in calling order; "" if none differs.
    """
    first, second = _module_outputs(model, inputs), _module_outputs(other, inputs)
    for name, expected in first.items():
        output = second.get(name)
        if output is None:
            continue
        if output.shape != expected.shape:
            return f" at module {name}"
        if not torch.allclose(output, expected, rtol=1e-3, atol=1e-4):
            return f" at module {name}"
    return ""


def _module_outputs(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Return the first output of each module, in calling order."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(_recorder(outputs, name)))
    try:
        with torch.no_grad(), contextlib.suppress(Exception):
            run_model(model, map_inputs(inputs, Tensor.clone))
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _recorder(outputs: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            outputs.setdefault(name, output.detach().clone())

    return hook

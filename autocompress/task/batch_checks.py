"""Check the batches of a task, one by one, as they are read.

`loading` calls these functions for every split. A batch that no ONNX file can take is refused with
a TaskError of one line that names the split and the argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from autocompress.errors import TaskError
from autocompress.task.batches import Batches, Inputs, batch_size, leaves, map_inputs, map_value

WIDE = (torch.uint16, torch.uint32, torch.uint64)

CONSTANTS = (bool, int, float, str, type(None))


def check_inputs(inputs: Any, split: str, example: Inputs | None = None) -> None:
    """Check that an ONNX file can take inputs like these.

    Args:
        inputs: one batch of inputs as the user gives it.
        split: where it comes from, for messages.
        example: inputs that it must agree with in argument names and constants, if given.

    Raises:
        TaskError: an argument cannot be an input of a file, or differs from the example's.
    """
    if isinstance(inputs, PackedSequence):
        raise TaskError(
            f"task: {split} gives a PackedSequence; expected tensors, "
            "nearest: pad_packed_sequence, and lengths as a tensor"
        )
    if isinstance(inputs, CONSTANTS) or not isinstance(inputs, (Tensor, tuple, list, Mapping)):
        raise TaskError(
            f"task: {split} gives inputs of type {type(inputs).__name__}; "
            "expected a tensor, a tuple or a dict of arguments"
        )
    values = leaves(inputs)
    for path, value in values.items():
        _check_argument(value, f"task: {split}: {path}")
    if not any(isinstance(value, Tensor) for value in values.values()):
        raise TaskError(
            f"task: {split} has no tensor among its inputs {sorted(values)}; expected at least one"
        )
    if example is not None and isinstance(example, Mapping) == isinstance(inputs, Mapping):
        _check_against(values, leaves(example), split)


def _check_argument(value: Any, where: str) -> None:
    if not isinstance(value, (Tensor, *CONSTANTS)):
        raise TaskError(
            f"{where} is a {type(value).__name__}; "
            "expected a tensor, None, a number, or lists, tuples and dicts of them"
        )
    if not isinstance(value, Tensor):
        return
    if value.layout != torch.strided or value.is_nested or value.is_complex():
        kind = "nested" if value.is_nested else "complex" if value.is_complex() else "sparse"
        raise TaskError(
            f"{where} is a {kind} tensor, which no ONNX input can be; nearest: a dense, real tensor"
        )


def _check_against(values: dict[str, Any], expected: dict[str, Any], split: str) -> None:
    for path in (*expected, *values):
        if path not in values or path not in expected:
            missing = path not in values
            has, lacks = ("example_inputs", split) if missing else (split, "example_inputs")
            raise TaskError(
                f"task: {has} has {path}, which {lacks} lacks; "
                "expected the same arguments in every batch"
            )
        value, constant = values[path], expected[path]
        if isinstance(value, Tensor):
            same = isinstance(constant, Tensor)
        else:
            same = type(value) is type(constant) and value == constant
        if not same:
            words = ["a tensor" if isinstance(v, Tensor) else repr(v) for v in (value, constant)]
            raise TaskError(
                f"task: {split}: {path} is {words[0]}, and {words[1]} in example_inputs; "
                "an argument that is not a tensor is a constant of the file, "
                "nearest: give it as a tensor"
            )


def checked(batch: Any, split: str, example: Inputs | None = None) -> tuple[Inputs, Any]:
    """Check one batch, and return it in the form that the package works with.

    Args:
        batch: what the user's loader yields.
        split: where it comes from, for messages.
        example: inputs that it must agree with in argument names and constants, if given.

    Returns:
        (inputs, target); inference tensors are copied, numbers as targets become tensors, wide
        unsigned integers as targets int64, and the names of nested mappings are in the order of the
        example's.

    Raises:
        TaskError: it is no (inputs, target) pair, has no samples, or its inputs fit no file.
    """
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    if isinstance(batch, PackedSequence) or not pair:
        raise TaskError(
            f"task: {split} yields {type(batch).__name__}; "
            "expected (inputs, target), target may be None"
        )
    check_inputs(batch[0], split, example)
    if batch_size(batch[0]) == 0:
        raise TaskError(f"task: {split} yields a batch without samples; nearest: leave it out")
    return map_inputs(_ordered(batch[0], example), ordinary), map_value(_tensor(batch[1]), _label)


def first_batch(batches: Batches, split: str) -> tuple[Inputs, Any]:
    """Return the first batch of a split, checked.

    Args:
        batches: the split.
        split: its name, for messages.

    Returns:
        (inputs, target).

    Raises:
        TaskError: there is no batch, or the first one cannot be used.
    """
    for batch in batches:
        return checked(batch, split)
    raise TaskError(f"task: {split} is empty; expected at least one (inputs, target) batch")


def ordinary(tensor: Tensor) -> Tensor:
    """Return a tensor that gradients may pass.

    Args:
        tensor: any tensor.

    Returns:
        A copy if it was made in inference mode, else the tensor itself.
    """
    return tensor.clone() if tensor.is_inference() else tensor


def _label(tensor: Tensor) -> Tensor:
    """Return a target that PyTorch can index and compare, which it cannot do with WIDE types."""
    return tensor.long() if tensor.dtype in WIDE else ordinary(tensor)


def _tensor(target: Any) -> Any:
    """Return a number as a tensor, and any other target as it is."""
    return torch.tensor(target) if isinstance(target, (bool, int, float)) else target


def _ordered(inputs: Any, like: Any) -> Any:
    """Return `inputs` with the names of each mapping in the order of `like`'s.

    Files take nested entries in the order of the example.
    """
    if isinstance(inputs, Mapping) and isinstance(like, Mapping):
        return {name: _ordered(inputs[name], like[name]) for name in like}
    sequences = isinstance(inputs, (tuple, list)) and isinstance(like, (tuple, list))
    if sequences and not hasattr(inputs, "_fields"):
        return type(inputs)(map(_ordered, inputs, like))
    return inputs

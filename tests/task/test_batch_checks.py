"""Check what is refused of a batch, and what is changed."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.task.batch_checks import check_inputs, checked, ordinary

X = torch.arange(6.0).view(3, 2)
Point = namedtuple("Point", ["a", "b"])


def test_equal_constants_and_nested_arguments_are_accepted() -> None:
    example = {"x": X, "more": [X, None], "scale": 2.0, "mode": "sum"}
    check_inputs({"mode": "sum", "scale": 2.0, "more": [X + 1, None], "x": X}, "test", example)
    check_inputs((X,), "test", {"x": X})  # positional where the example is named


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"x": X, "scale": 2}, "test: scale is 2, and 2.0 in example_inputs"),
        ({"x": X, "scale": True}, "test: scale is True, and 2.0 in example_inputs"),
        ({"x": X, "scale": X}, "test: scale is a tensor, and 2.0 in example_inputs"),
    ],
)
def test_constants_must_have_the_type_and_value_of_the_example(inputs: Any, text: str) -> None:
    with pytest.raises(TaskError) as caught:
        check_inputs(inputs, "test", {"x": X, "scale": 2.0})
    assert text in str(caught.value)


class Ragged(Tensor):
    is_nested = True  # type: ignore[assignment]


def test_nested_tensors_are_refused() -> None:
    with pytest.raises(TaskError, match="test: x is a nested tensor, which no ONNX input can be"):
        check_inputs({"x": X.as_subclass(Ragged)}, "test")


def test_a_batch_has_the_order_of_the_example_and_numbers_become_tensors() -> None:
    example = {"a": X, "b": {"c": X, "d": X}}
    inputs, target = checked(({"b": {"d": X + 1, "c": X}, "a": X}, 3), "train", example)
    assert list(inputs) == ["a", "b"]
    assert list(inputs["b"]) == ["c", "d"]
    assert torch.equal(inputs["b"]["d"], X + 1)
    assert torch.equal(target, torch.tensor(3))
    assert checked([X, True], "train")[1].dtype is torch.bool
    named, _ = checked((Point(X, X + 1), None), "train", Point(X, X))
    assert torch.equal(named[1], X + 1)


def test_a_batch_without_samples_is_refused() -> None:
    with pytest.raises(
        TaskError, match=r"task: train yields a batch without samples; nearest: leave it out$"
    ):
        checked((torch.zeros(0, 2), None), "train")
    with pytest.raises(TaskError, match=r"task: train yields tuple; expected \(inputs, target\)"):
        checked((X, None, None), "train")


def test_tensors_of_inference_mode_are_copied_and_others_are_not() -> None:
    with torch.inference_mode():
        made = X + 1
    copied = ordinary(made)
    assert not copied.is_inference()
    assert torch.equal(copied, X + 1)
    assert ordinary(X) is X
    assert not checked((X, {"y": made}), "train")[1]["y"].is_inference()


@pytest.mark.parametrize("kind", [torch.uint16, torch.uint32, torch.uint64])
def test_targets_of_wide_unsigned_integers_become_int64(kind: torch.dtype) -> None:
    labels = torch.tensor([3, 60000], dtype=kind)
    _, target = checked((torch.zeros(2, 4), {"a": labels, "b": labels.byte()}), "validation")
    assert target["a"].dtype is torch.int64
    assert target["a"].tolist() == [3, 60000]
    assert target["b"].dtype is torch.uint8

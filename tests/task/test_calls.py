"""Check how models and metrics are called."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autocompress.errors import NotComputableError, TaskError
from autocompress.task.calls import named_outputs, primary_output, score


@dataclass
class Answer:
    """Hold what some models return."""

    loss: float
    scores: Any


def test_a_metric_must_be_finite() -> None:
    with pytest.raises(NotComputableError, match="metric returned nan on 2 outputs"):
        score(lambda o, t: float("nan"), torch.zeros(2), None)


def test_primary_output() -> None:
    x = torch.zeros(1)
    for result in (x, (x, 1), {"loss": 1, "logits": x}, SimpleNamespace(logits=x), {"out": x}):
        assert primary_output(result) is x
    assert primary_output(Answer(1, x)) is x
    assert primary_output([Answer(1, {"inside": x})]) is x
    with pytest.raises(TaskError, match="the model returns str"):
        primary_output("text")


def test_outputs_are_named_by_key_position_or_attribute() -> None:
    x, y = torch.rand(2), torch.rand(3)
    for result, names in (
        ({"a": x, "b": y}, ("a", "b")),
        ((x, y), ("0", "1")),
        (SimpleNamespace(a=x, b=y), ("a", "b")),
    ):
        found = named_outputs(result, names)
        assert found[names[0]] is x
        assert found[names[1]] is y
    with pytest.raises(
        TaskError,
        match=r"output_weights names 'scor', which the model does not return as a tensor; "
        r"nearest: score",
    ):
        named_outputs({"score": x}, ("scor",))

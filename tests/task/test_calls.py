"""Check how models and metrics are called."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autocompress.errors import NotComputableError, TaskError
from autocompress.huggingface.metrics.tokens import TokenAccuracy
from autocompress.task.calls import (
    copies_for,
    named_outputs,
    primary_output,
    score,
    tensors_in_order,
)
from autocompress.task.outputs import OutputKind, sample_divergence


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


def test_a_single_number_is_no_primary_output_beside_others() -> None:
    """As the loss that many models return first if they get labels."""
    loss, x, y = torch.tensor(1.0), torch.zeros(2, 3), torch.zeros(2, 1)
    for result in (
        (loss, x, y),
        [loss, [loss, x]],
        {"loss": loss, "out": x},
        {"loss": loss, "inside": {"logits": x, "first": y}},
        Answer(loss, (x, y)),  # type: ignore[arg-type]
    ):
        assert primary_output(result) is x
    assert primary_output((loss, 2 * loss)) is loss, "there is nothing else"
    named = [name for name, _ in tensors_in_order((loss, {"a": x}, [y]))]
    assert named == ["0", "1.a", "2.0"]


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


class Writing:
    """Return the sum of what is left, and write to all that it gets."""

    def __call__(self, outputs: Any, targets: Any) -> float:
        for part in (outputs, targets):
            for tensor in part.values() if isinstance(part, dict) else part:
                tensor -= 1
        outputs = torch.cat([output.reshape(-1) for output in outputs])
        return float(outputs.sum())


def test_a_metric_that_writes_to_what_it_gets_changes_nothing() -> None:
    outputs, targets = torch.arange(4.0), {"a": torch.ones(2), "b": torch.zeros(1)}
    for given in (outputs, list(outputs), list(outputs.view(2, 2))):
        first, second = (score(Writing(), given, targets) for _ in range(2))
        assert first == second == 2.0
    assert outputs.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert (targets["a"].tolist(), targets["b"].tolist()) == ([1.0, 1.0], [0.0])


def test_functions_of_this_package_get_the_arguments_themselves() -> None:
    x = torch.rand(2)
    for own in (
        TokenAccuracy,
        TokenAccuracy(),
        partial(sample_divergence, OutputKind("softmax", -1)),
    ):
        assert copies_for(own, x)[0] is x
    for theirs in (Writing(), partial(Writing()), torch.dist, lambda o: o):
        (copy,) = copies_for(theirs, x)
        assert copy is not x
        assert torch.equal(copy, x)


def test_gradients_pass_a_copy() -> None:
    x = torch.ones(2, requires_grad=True)
    (copy,) = copies_for(lambda o: o, 2 * x)
    copy[0] = 5.0
    copy.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0]

"""A distillation holds plain types and comes back from JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from autocompress import Distillation
from autocompress.errors import SpaceError


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("steps", "3", "a whole number, got '3'; nearest valid value: 3"),
        ("steps", 2.5, "a whole number, got 2.5; nearest valid value: 2"),
        ("alpha", None, "a number, got None; nearest valid value: 0.5"),
        ("temperature", "hot", "a number, got 'hot'; nearest valid value: 2.0"),
        ("schedule", 3, "a text, got 3; nearest valid value: 'one_shot'"),
        ("checkpointing", "on", "True or False, got 'on'; nearest valid value: True"),
        ("restarts", 3, "a tuple of whole numbers, got 3; nearest valid value: ()"),
        ("restarts", ("3",), "a whole number, got '3'; nearest valid value: 3"),
    ],
)
def test_wrong_types_are_refused(field: str, value: Any, rule: str) -> None:
    with pytest.raises(SpaceError) as caught:
        Distillation(**{field: value})
    assert str(caught.value) == f"Distillation: {field} must be {rule}"


def test_restarts_come_back_from_json() -> None:
    training = Distillation(1, 4, 30, restarts=[10, 20], learning_rate=1e-3)
    assert training.restarts == (10, 20)
    assert type(training.alpha) is float
    assert Distillation.from_json(json.loads(json.dumps(training.to_json()))) == training


@pytest.mark.parametrize(("planned", "near"), [(-1, 0), (1, 30), (29, 30)])
def test_a_schedule_does_not_end_before_the_training(planned: int, near: int) -> None:
    with pytest.raises(SpaceError) as caught:
        Distillation(steps=30, planned_steps=planned)
    assert str(caught.value) == (
        f"Distillation: planned_steps must be 0, or at least steps (30), got {planned}; "
        f"nearest valid value: {near}"
    )
    for valid in (0, 30, 60):
        assert Distillation(steps=30, planned_steps=valid).planned_steps == valid

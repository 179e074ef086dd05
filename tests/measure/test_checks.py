"""Check what is refused before a search."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autocompress import Task, load_task
from autocompress.errors import TaskError
from autocompress.measure.checks import check_augment, check_task


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (
            "failing_forward",
            "task quarters: model.forward fails on example_inputs: RuntimeError: Given groups=1",
        ),
        ("empty_loader", "task: validation is empty; expected at least one (inputs, target) batch"),
    ],
)
def test_tasks_that_cannot_work(task_files: Path, function: str, text: str) -> None:
    with pytest.raises(TaskError) as caught:
        check_task(load_task(f"{task_files}/cnn.py:{function}"))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def failing(images: Tensor) -> Tensor:
    raise ValueError("no such view")


CALLS = itertools.count()
AUGMENTS = {
    "task: augment fails: ValueError: no such view (": failing,
    "augment is 'flip'; expected a function of inputs": "flip",
    "augment returned float64 of shape (2, 3, 4, 4) for argument 0; nearest: float32 of shape "
    "(2, 3, 4, 4), as it came": lambda x: x.double(),
    "augment returned float32 of shape (2, 3, 2, 4) for argument 0; nearest": lambda x: x[:, :, 2:],
    "augment returned nothing for argument 0; nearest": lambda x: {"images": x},
    "augment makes NaN or infinity in argument 0 of the first": lambda x: x / 0,
    "augment gives another argument 0 under the same seed": lambda x: x + next(CALLS),
}


@pytest.mark.parametrize("text", list(AUGMENTS))
def test_views_that_cannot_take_the_place_of_a_batch(text: str) -> None:
    x = torch.rand(2, 3, 4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    task = Task("t", model, x, [(x, None)], lambda outputs, targets: 0.0)
    flipped = replace(task, augment=lambda images: images.add_(torch.rand(())).flip(3))
    before = x.clone()
    check_augment(flipped)
    assert torch.equal(x, before), "the function may write to what it gets"
    with pytest.raises(TaskError) as caught:
        check_augment(replace(task, augment=AUGMENTS[text]))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_checking_changes_nothing(cnn_task) -> None:
    cnn_task.model.train()
    check_task(cnn_task)
    assert cnn_task.model.training
    cnn_task.model.eval()

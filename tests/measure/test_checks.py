"""Check what is refused before a search."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress import load_task
from autocompress.errors import TaskError
from autocompress.measure.checks import check_task


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


def test_checking_changes_nothing(cnn_task) -> None:
    cnn_task.model.train()
    check_task(cnn_task)
    assert cnn_task.model.training
    cnn_task.model.eval()

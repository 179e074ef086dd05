"""Validation labels for which a metric has one value are refused; others are not."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from autocompress.errors import TaskError
from autocompress.huggingface.kinds.one_sided import check_any, check_classes, check_numbers
from autocompress.huggingface.metrics.classes import OfClasses, f1, matthews
from autocompress.huggingface.metrics.numbers import Correlation, pearson, spearman


@pytest.mark.parametrize("of", [pearson, spearman])
@pytest.mark.parametrize(
    ("numbers", "shown"), [([2.5, 2.5], "2.5"), ([[1.0, 0.0], [1.0, 0.0]], "1, 0"), ([3.0], "3")]
)
def test_equal_scores(of: Any, numbers: list[Any], shown: str) -> None:
    line = f"a line 1: all scores are {shown} in the validation split, so that {of.__name__} is 0 "
    with pytest.raises(TaskError, match=re.escape(line)):
        check_numbers(of.__name__, numbers, "a line 1", "others")
    check_numbers("squared_error", numbers, "a line 1", "others")
    check_numbers(of.__name__, [*numbers, _other(numbers[0])], "a line 1", "others")
    metric = Correlation(of)
    metric.update(torch.randn(2, 1), torch.tensor([2.5, 2.5]))
    assert metric.compute() == 0.0, "which is why they are refused"


def _other(number: Any) -> Any:
    return [9.0, 9.0] if isinstance(number, list) else 9.0


@pytest.mark.parametrize(
    ("metric", "score", "numbers", "classes", "why"),
    [
        ("matthews", matthews, [2, 2, 2], 3, "all labels are class 2"),
        ("f1", f1, [0, 0, 0], 2, "no label is class 1"),
    ],
)
def test_classes_that_a_metric_does_not_tell_apart(
    metric: str, score: Any, numbers: list[int], classes: int, why: str
) -> None:
    with pytest.raises(TaskError, match=re.escape(f"a line 1: {why} in the validation split")):
        check_classes(metric, numbers, classes, "a line 1")
    check_classes("accuracy", numbers, classes, "a line 1")
    check_classes(metric, [*numbers, 1], classes, "a line 1")
    for outputs in (torch.eye(classes)[numbers], torch.randn(3, classes)):
        judge = OfClasses(score)
        judge.update(outputs, torch.tensor(numbers))
        assert judge.compute() == 0.0, "which is why they are refused"


def test_f1_of_one_class_of_three_tells_right_from_wrong() -> None:
    check_classes("f1", [0, 0, 0], 3, "a line 1")
    check_classes("f1", [1, 1], 2, "a line 1")


def test_samples_without_what_f1_counts() -> None:
    with pytest.raises(TaskError, match=r"a line 1: no sample has an entity .* --metric accuracy"):
        check_any("f1", False, "an entity", "a line 1")
    check_any("accuracy", False, "an entity", "a line 1")
    check_any("f1", True, "an entity", "a line 1")

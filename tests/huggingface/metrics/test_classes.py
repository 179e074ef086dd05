"""Metrics of classes against scikit-learn and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_tasks import judged
from torch import Tensor

from autocompress.errors import NotComputableError
from autocompress.huggingface.metrics.classes import (
    Accuracy,
    Agreement,
    OfClasses,
    closeness,
    f1,
    matthews,
    probabilities,
    same_class,
)
from autocompress.huggingface.metrics.numbers import Correlation, spearman

pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'autocompress[huggingface]'")


def test_logits_that_are_nan_have_no_class() -> None:
    logits, right = torch.eye(3), torch.arange(3)
    logits[0, 0] = math.nan  # argmax takes it for the largest
    for metric in (Accuracy(), OfClasses(f1)):
        for targets in (right, torch.eye(3)):
            with pytest.raises(NotComputableError, match="an output is NaN"):
                metric.update(logits, targets)
    with pytest.raises(NotComputableError, match="an output is NaN"):
        Agreement(same_class).update(logits, torch.eye(3))


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    return judged(Accuracy(), *pairs(outputs, targets))


def of_classes(score: Any, outputs: Tensor, targets: Tensor) -> float:
    return judged(OfClasses(score), *pairs(outputs, targets))


def pairs(outputs: Tensor, targets: Tensor) -> Any:
    """Return batches of two samples."""
    return zip(outputs.split(2), targets.split(2), strict=True)


GENERATOR = torch.Generator().manual_seed(0)


def test_two_classes() -> None:
    outputs = torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0], [0, 1]])
    targets = torch.tensor([0, 1, 0, 1, 1])
    assert accuracy(outputs, targets) == pytest.approx(3 / 5)
    assert of_classes(f1, outputs, targets) == pytest.approx(2 * 2 / (3 + 3))  # of class 1
    assert of_classes(matthews, outputs, targets) == pytest.approx(
        (2 * 1 - 1 * 1) / (3 * 2 * 3 * 2) ** 0.5
    )


def test_one_class_has_no_correlation() -> None:
    assert of_classes(matthews, torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([0, 0])) == 0.0


def test_several_classes_and_several_labels() -> None:
    outputs = torch.eye(3)[[0, 1, 2, 0]]
    targets = torch.tensor([0, 1, 1, 0])
    mean = (1 + 2 / 3 + 0) / 3  # over the classes
    assert of_classes(f1, outputs, targets) == pytest.approx(mean)
    logits = torch.tensor([[1.0, -1], [1, 1], [-1, -1]])
    labels = torch.tensor([[1.0, 0], [1, 0], [0, 0]])
    assert accuracy(logits, labels) == pytest.approx(2 / 3)
    assert of_classes(f1, logits, labels) == pytest.approx((1 + 0) / 2)


def test_answers_of_the_float_model() -> None:
    outputs = torch.randn(6, 5, 3, generator=GENERATOR)
    mask = torch.ones(6, 5, dtype=torch.int64)
    mask[:, 3:] = 0
    targets = probabilities({"attention_mask": mask}, outputs)
    assert judged(Agreement(same_class), (outputs, targets)) == 1.0
    assert judged(Agreement(closeness), (outputs, targets)) == pytest.approx(0, abs=1e-6)
    changed = outputs.clone()
    changed[:, 3:] = 0  # padding does not count
    assert judged(Agreement(same_class), (list(changed), list(targets))) == 1.0
    changed[0, 0] = outputs[0, 0].flip(0) * 10
    wrong = int(changed[0, 0].argmax() != outputs[0, 0].argmax())
    assert judged(Agreement(same_class), *pairs(changed, targets)) == pytest.approx(1 - wrong / 18)
    p, q = outputs[0, 0].softmax(0), changed[0, 0].softmax(0)
    expected = -float((p * (p / q).log()).sum()) / 18
    assert judged(Agreement(closeness), *pairs(changed, targets)) == pytest.approx(expected)


def test_no_samples_have_no_metric() -> None:
    assert all(math.isnan(judged(metric)) for metric in (Accuracy(), OfClasses(f1)))
    assert math.isnan(judged(Correlation(spearman)))

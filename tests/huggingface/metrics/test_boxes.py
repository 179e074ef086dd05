"""Average precision: cases that were counted by hand, with COCO's rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_tasks import judged
from torch import Tensor

from autocompress.huggingface.metrics.boxes import (
    AveragePrecision,
    detected,
    matches,
    overlaps,
    precision_at_recalls,
)

LOW, NONE = -20.0, 0.0
HALF = (0.5,)


def picture(*found: tuple[int, float, list[float]], classes: int = 2) -> Tensor:
    """Return an output of DETR's kind: (class, probability, corners) of each object."""
    rows = []
    for kind, probability, (x0, y0, x1, y1) in found:
        logits = [LOW] * classes + [NONE]  # the last one stands for no object
        logits[kind] = float(np.log(probability / (1 - probability)))
        rows.append([*logits, (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
    return torch.tensor(rows)


def truth(*objects: tuple[int, list[float]]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor([box for _, box in objects]).reshape(-1, 4),
        "classes": torch.tensor([kind for kind, _ in objects], dtype=torch.int64),
    }


LEFT, RIGHT, THIN = [0.0, 0.0, 0.4, 0.4], [0.6, 0.6, 1.0, 1.0], [0.0, 0.0, 0.4, 0.24]


def test_detected_objects() -> None:
    scores, classes, boxes = detected(picture((1, 0.9, LEFT), (0, 0.3, RIGHT)), 2)
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.3]))
    assert classes.tolist() == [1, 0]
    torch.testing.assert_close(boxes, torch.tensor([LEFT, RIGHT]))
    # Without a class for no object each score stands for itself.
    one = torch.tensor([[2.0, -1.0, 0.2, 0.2, 0.4, 0.4], [0.0, 1.0, 0.8, 0.8, 0.4, 0.4]])
    scores, classes, boxes = detected(one, 2)
    torch.testing.assert_close(scores, torch.tensor([2.0, 1.0]).sigmoid())
    assert classes.tolist() == [0, 1]
    torch.testing.assert_close(boxes, torch.tensor([LEFT, RIGHT]))


def test_overlaps() -> None:
    boxes, single = np.array([LEFT, THIN, RIGHT]), np.zeros(3, dtype=bool)
    np.testing.assert_allclose(overlaps(boxes[:1], boxes, single), [[1.0, 0.6, 0.0]])
    # A box inside of a group is covered by it, however large the group is.
    np.testing.assert_allclose(overlaps(boxes[1:2], boxes, ~single), [[1.0, 1.0, 0.0]])


def test_each_object_is_found_once() -> None:
    pairs = np.array([[0.7, 0.0], [0.9, 0.55], [0.8, 0.0]])
    assert matches(pairs, (0.5, 0.75)).tolist() == [[True, True, False], [False, True, False]]


def test_precision_at_recalls() -> None:
    # Right, wrong, right of 2: precision 1 up to recall 0.5 (51 of 101), then 2/3.
    assert precision_at_recalls(np.array([1, 0, 1]), 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    # One of 4 is found: 26 recalls (0 to 0.25) have precision 1/2, the others 0.
    assert precision_at_recalls(np.array([0, 1]), 4) == pytest.approx(26 / 2 / 101)


def test_mean_over_classes_and_thresholds() -> None:
    outputs = torch.stack(
        [
            picture((0, 0.9, LEFT), (0, 0.6, RIGHT), (1, 0.8, RIGHT)),
            picture((0, 0.7, THIN), (1, 0.2, LEFT), (0, 0.1, RIGHT)),
        ]
    )
    targets = [truth((0, LEFT), (1, RIGHT)), truth((0, LEFT))]
    # Class 0 by score: 0.9 right, 0.7 right (overlap 0.6), 0.6 and 0.1 wrong: AP 1. Class 1: AP 1.
    batches = [(outputs[:1], targets[:1]), (outputs[1:], targets[1:])]
    assert judged(AveragePrecision(2, HALF), *batches) == 1.0
    # At 0.75 the second one is wrong: 1 of 2 is found, with precision 1.
    assert judged(AveragePrecision(2, (0.5, 0.75)), (outputs, targets)) == pytest.approx(
        (1 + 51 / 101 + 1 + 1) / 4
    )
    # A class that no picture has does not count, whatever is found of it.
    assert judged(AveragePrecision(2, HALF), (outputs[1:], targets[1:])) == 1.0
    assert math.isnan(judged(AveragePrecision(2, HALF), (outputs[1:], [truth()])))
    # Objects that are found in another picture are wrong; lists are taken as well.
    elsewhere = (list(outputs), [truth((1, LEFT)), truth()])
    assert judged(AveragePrecision(2, HALF), elsewhere) == 0.0


def test_boxes_in_groups_do_not_count() -> None:
    outputs = picture((0, 0.9, RIGHT), (0, 0.8, LEFT), (0, 0.7, THIN), (0, 0.6, RIGHT))[None]
    group = {**truth((0, LEFT), (0, RIGHT)), "groups": torch.tensor([True, False])}
    # 0.9 is right, 0.8 and 0.7 lie in the group, 0.6 is found twice, behind all others.
    assert judged(AveragePrecision(2, HALF), (outputs, [group])) == 1.0
    # A box that is right counts as right, though it lies in a group too.
    group = {**truth((0, LEFT), (0, LEFT)), "groups": torch.tensor([True, False])}
    # 0.9 is wrong, 0.8 right, 0.7 in the group, 0.6 wrong.
    assert judged(AveragePrecision(2, HALF), (outputs, [group])) == pytest.approx(0.5)
    only = {**truth((0, LEFT)), "groups": torch.tensor([True])}
    assert math.isnan(judged(AveragePrecision(2, HALF), (outputs, [only])))

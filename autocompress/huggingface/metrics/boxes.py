"""Compute the mean average precision of detected objects, as COCO does."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST = 100  # detections of a class in a picture
RECALLS = np.linspace(0, 1, 101)
Array = NDArray[Any]


def detected(output: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the objects that a model finds in a picture, as `post_process_object_detection` does.

    Args:
        output: (queries, scores + 4): scores of the classes, then middle, width and height of the
            box. With a score more than classes, the last one stands for no object.
        classes: number of classes.

    Returns:
        Scores (objects,), classes (objects,) and corners of boxes (objects, 4).
    """
    logits, box = output[:, :-4], output[:, -4:]
    middle, half = box[:, :2], box[:, 2:] / 2
    corners = torch.cat([middle - half, middle + half], 1)
    if logits.shape[1] > classes:
        scores, labels = logits.softmax(-1)[:, :-1].max(-1)
        return scores, labels, corners
    best = logits.sigmoid().flatten().topk(min(len(logits), logits.numel()))
    return best.values, best.indices % classes, corners[best.indices // classes]


def overlaps(boxes: Array, others: Array, groups: Array) -> Array:
    """Return the intersection over union of all pairs of boxes.

    Args:
        boxes: (n, 4) corners.
        others: (m, 4) corners.
        groups: (m,) booleans, which of the others hold many objects. Of these it is the share of
            the first box that lies inside.

    Returns:
        (n, m), from 0 to 1.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    areas = [(part[:, 2:] - part[:, :2]).clip(min=0).prod(-1) for part in (boxes, others)]
    union = areas[0][:, None] + np.where(groups, 0.0, areas[1][None] - shared)
    return np.asarray(shared / np.maximum(union, 1e-12))


class AveragePrecision:
    """Compute the mean over classes and thresholds of precision at 101 recalls.

    Source: Lin et al. 2014, "Microsoft COCO: Common objects in context", and its evaluation code.
    """

    def __init__(self, classes: int, thresholds: tuple[float, ...]) -> None:
        """Begin with no picture.

        Args:
            classes: of the model.
            thresholds: least overlaps at which a box is right.
        """
        self.classes, self.thresholds = classes, thresholds
        self.scores: dict[int, list[Array]] = defaultdict(list)
        self.right: dict[int, list[Array]] = defaultdict(list)
        self.counted: dict[int, list[Array]] = defaultdict(list)
        self.wanted: dict[int, int] = defaultdict(int)

    def update(self, outputs: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Take the pictures of one batch.

        Args:
            outputs: (n, queries, scores + 4), or a list with an entry per picture.
            targets: for each picture "boxes" (objects, 4), "classes" (objects,) and, where some
                are groups, "groups" (objects,) booleans. A box found in a group is neither right
                nor wrong, and groups need not be found.
        """
        for output, target in zip(outputs, targets, strict=True):
            values, labels, boxes = (part.numpy() for part in detected(output, self.classes))
            true, kinds = target["boxes"].numpy(), target["classes"].numpy()
            groups = target["groups"].numpy() if "groups" in target else kinds < 0
            for kind in np.union1d(labels, kinds).tolist():
                own = np.flatnonzero(labels == kind)
                own = own[np.argsort(-values[own], kind="stable")][:MOST]
                crowds = groups[kinds == kind]
                pairs = overlaps(boxes[own], true[kinds == kind], crowds)
                self.scores[kind].append(values[own])
                hits = matches(pairs[:, ~crowds], self.thresholds)
                self.right[kind].append(hits)
                self.counted[kind].append(hits | ~inside(pairs[:, crowds], self.thresholds))
                self.wanted[kind] += int((~crowds).sum())

    def compute(self) -> float:
        """Return a number from 0 to 1; NaN if no picture has an object that is no group."""
        precisions = []
        for kind, count in self.wanted.items():
            if count:
                order = np.argsort(-np.concatenate(self.scores[kind]), kind="stable")
                rows, counts = (
                    np.concatenate(parts[kind], 1)[:, order] for parts in (self.right, self.counted)
                )
                precisions += [
                    precision_at_recalls(row[own], count)
                    for row, own in zip(rows, counts, strict=True)
                ]
        return float(np.mean(precisions)) if precisions else math.nan


def matches(pairs: Array, thresholds: Sequence[float]) -> Array:
    """Return which boxes of one class are right in one picture.

    Args:
        pairs: (n, m) overlaps of found boxes, best score first, with true ones.
        thresholds: least overlaps.

    Returns:
        (thresholds, n); each true box is found once.
    """
    found = np.zeros((len(thresholds), len(pairs)), dtype=bool)
    if not pairs.shape[1]:
        return found
    taken = np.zeros((len(thresholds), pairs.shape[1]), dtype=bool)
    least, rows = np.asarray(thresholds)[:, None], np.arange(len(thresholds))
    for i, pair in enumerate(pairs):
        free = np.where(taken | (pair[None] < least), -1.0, pair[None])
        best = free.argmax(1)
        found[:, i] = free[rows, best] >= 0
        taken[rows, best] |= found[:, i]
    return found


def inside(pairs: Array, thresholds: Sequence[float]) -> Array:
    """Return which boxes of one class lie in a group of objects of one picture.

    Args:
        pairs: (n, m) overlaps of found boxes with groups.
        thresholds: least overlaps.

    Returns:
        (thresholds, n); a group may hold any number of boxes.
    """
    most = pairs.max(1, initial=0.0)
    return np.asarray(most[None] >= np.asarray(thresholds)[:, None])


def precision_at_recalls(hits: Array, count: int) -> float:
    """Return the mean over 101 recalls of the best precision at that recall or a higher one.

    Args:
        hits: (n,) which found boxes are right, best score first.
        count: true boxes.

    Returns:
        From 0 to 1.
    """
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(right / count, RECALLS, side="left")
    return float(np.append(precision, 0.0)[places].mean())

"""Refuse validation labels for which a metric has one value, whatever the model answers."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.errors import TaskError
from autocompress.huggingface.options import Options

CORRELATIONS = ("pearson", "spearman")
F1, MATTHEWS = "f1", "matthews"
BY_ACCURACY = "--metric accuracy"


def check_numbers(
    metric: str, numbers: Sequence[float | Sequence[float]], place: str, nearest: str
) -> None:
    """Refuse scores that are all equal where a correlation decides.

    Args:
        metric: that decides.
        numbers: one or more per validation sample; none without labels.
        place: of the first sample.
        nearest: what the user can do instead.

    Raises:
        TaskError: each correlation would be 0 for every model.
    """
    rows = [tuple(row) if isinstance(row, Sequence) else (row,) for row in numbers]
    if metric in CORRELATIONS and len(set(rows)) == 1:
        shown = ", ".join(f"{number:g}" for number in rows[0])
        _refuse(place, f"all scores are {shown}", metric, nearest)


def check_classes(metric: str, numbers: Sequence[int], classes: int, place: str) -> None:
    """Refuse classes without the one that F1 counts, or all equal for the Matthews correlation.

    Args:
        metric: that decides.
        numbers: class of each validation sample.
        classes: of the model.
        place: of the first sample.

    Raises:
        TaskError: the metric would be 0 for every model.
    """
    there = set(numbers)
    if metric == MATTHEWS and len(there) < 2:
        _refuse(place, f"all labels are class {numbers[0]}", metric, BY_ACCURACY)
    if metric == F1 and classes == 2 and 1 not in there:
        _refuse(place, "no label is class 1", metric, BY_ACCURACY)


def check_any(metric: str, is_there: bool, what: str, place: str) -> None:
    """Refuse samples without anything that F1 counts.

    Args:
        metric: that decides.
        is_there: True if a validation sample has it.
        what: it is, such as "entity".
        place: of the first sample.

    Raises:
        TaskError: the metric would be 0 for every model.
    """
    if metric == F1 and not is_there:
        _refuse(place, f"no sample has {what}", metric, BY_ACCURACY)


def deciding(options: Options, usual: str) -> str:
    """Return the name of the metric that decides.

    Args:
        options: of the user, who may name it.
        usual: the first one of the task.
    """
    return options.metrics[0] if options.metrics else usual


def _refuse(place: str, why: str, metric: str, nearest: str) -> None:
    raise TaskError(
        f"{place}: {why} in the validation split, so that {metric} is 0 for every model; "
        f"nearest: {nearest}, or a --validation FILE with others"
    )

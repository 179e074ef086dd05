"""Tell the forms of targets apart, so that those of all batches can be joined.

`accuracy.join_targets` asks these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor

from autocompress.errors import TaskError


def check_forms(targets: Sequence[Any], entry: str = "") -> None:
    """Check that targets are all there or all None, and all mappings or none.

    Args:
        targets: one per batch.
        entry: which part of the targets they are, such as "['mask']", for messages.

    Raises:
        TaskError: two batches differ.
    """
    for kind in (type(None), Mapping):
        of_kind = [isinstance(target, kind) for target in targets]
        if len(set(of_kind)) > 1:
            _refuse(targets, of_kind.index(True), of_kind.index(False), entry)


def by_position(targets: Sequence[Any], sizes: Sequence[int], entry: str = "") -> bool:
    """Return True if each target is a sequence of several targets, such as labels and weights.

    Each of these has an entry per row. In some batch their number is not the number of rows, which
    shows that they are not the entries of single samples.

    Args:
        targets: one per batch.
        sizes: rows of each batch.
        entry: as `check_forms`.

    Raises:
        TaskError: targets of one batch are of that form, and those of another one are not.
    """
    several, shown = [], []
    for target, size in zip(targets, sizes, strict=True):
        filled = isinstance(target, (list, tuple)) and len(target) > 0
        several.append(filled and all(_length(part) == size for part in target))
        shown.append(several[-1] and len(target) != size)
    if not any(shown):
        return False
    first = shown.index(True)
    for i, target in enumerate(targets):
        if not several[i] or len(target) != len(targets[first]):
            _refuse(targets, i, first, entry)
    return True


def entries(target: Any) -> list[Any]:
    """Return the entries of one batch's target.

    Args:
        target: not None.

    Returns:
        One per sample; a text or a number is one entry.
    """
    single = isinstance(target, (str, bytes)) or getattr(target, "ndim", 1) == 0
    return [target] if single or not isinstance(target, Iterable) else list(target)


def _length(part: Any) -> int | None:
    """Return the number of entries of a tensor, list or tuple; None for anything else."""
    counted = isinstance(part, (list, tuple)) or (isinstance(part, Tensor) and part.dim() > 0)
    return len(part) if counted else None


def _refuse(targets: Sequence[Any], i: int, j: int, entry: str) -> NoReturn:
    """Raise the TaskError for two batches whose targets have different forms."""
    raise TaskError(
        f"task: the target{entry} is {_form(targets[i])} in batch {i} of the split (from 0) and "
        f"{_form(targets[j])} in batch {j}; expected the same form in all batches, "
        "nearest: a dict with the same names"
    )


def _form(target: Any) -> str:
    """Return what a target is, for messages."""
    if target is None:
        return "None"
    count = f" of {len(target)}" if isinstance(target, (list, tuple)) else ""
    return f"a {type(target).__name__}{count}"

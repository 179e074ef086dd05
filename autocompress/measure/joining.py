"""Join the outputs and the targets of the batches of a split, for metrics that need all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.measure.ragged import split_rows
from autocompress.measure.target_forms import by_position, check_forms, entries

Outputs = Tensor | list[Tensor]  # of a split; a list has one entry per sample


def join_targets(targets: list[Any], sizes: Sequence[int] = ()) -> Any:
    """Return all targets of a split in one.

    Args:
        targets: one entry per batch.
        sizes: rows of each batch; without them a sequence is one of entries per sample.

    Returns:
        A tensor if they are tensors that fit together, a mapping if they are mappings, None if
        there are none. Sequences of several targets, such as labels and weights, are joined
        position by position. Anything else is a list with an entry per sample.

    Raises:
        TaskError: targets of two batches have different forms.
    """
    return _joined_targets(targets, sizes, "")


def _joined_targets(targets: list[Any], sizes: Sequence[int], entry: str) -> Any:
    """Return what `join_targets` does; `entry` says which part of the targets they are."""
    check_forms(targets, entry)
    first = targets[0] if targets else None
    if first is None:
        return None
    tensors = all(isinstance(target, Tensor) for target in targets)
    if tensors and len({target.shape[1:] for target in targets}) == 1:
        return torch.cat([t.cpu().reshape(1) if t.dim() == 0 else t.cpu() for t in targets])

    def joined(name: Any, parts: list[Any]) -> Any:
        return _joined_targets(parts, sizes, f"{entry}[{name!r}]")

    if isinstance(first, Mapping):
        names = dict.fromkeys(name for target in targets for name in target)
        return {name: joined(name, [target.get(name) for target in targets]) for name in names}
    if sizes and by_position(targets, sizes, entry):
        parts = [joined(i, [target[i] for target in targets]) for i in range(len(first))]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return [item for target in targets for item in entries(target)]


def join_outputs(
    batches: list[dict[str, Tensor]], places: Sequence[int] | None = None
) -> dict[str, Outputs]:
    """Return the outputs of a split, each held once.

    Args:
        batches: for each batch its outputs by name. It is emptied, so that the outputs of a batch
            are freed as soon as they are joined. Each output has a row per sample.
        places: for each row of all batches its place in the result; None keeps their order.

    Returns:
        Name -> tensor, or a list with an entry per sample if the batches do not fit together.
    """
    joined: dict[str, Outputs] = {}
    for name in list(batches[0]) if batches else []:
        parts = [outputs.pop(name) for outputs in batches]
        if len({output.shape[1:] for output in parts}) == 1:
            joined[name] = _joined(parts, places)
        else:
            rows = split_rows(parts)
            joined[name] = rows if places is None else [rows[i] for i in np.argsort(places)]
    batches.clear()
    return joined


def _joined(parts: list[Tensor], places: Sequence[int] | None) -> Tensor:
    """Return parts in one tensor. They are dropped one by one, so that memory is not doubled."""
    rows = sum(len(part) for part in parts)
    kind = reduce(torch.promote_types, (part.dtype for part in parts))
    whole = torch.empty(rows, *parts[0].shape[1:], dtype=kind)  # takes memory as it is filled
    where = torch.arange(rows) if places is None else torch.as_tensor(places)
    parts.reverse()
    first = 0
    while parts:
        part = parts.pop()
        whole[where[first : first + len(part)]] = part.to(kind)
        first += len(part)
    return whole

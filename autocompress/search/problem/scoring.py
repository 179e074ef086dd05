"""The validation split as candidates race on it: whole batches in an order by the seed, and what the original says about them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.measure.accuracy import (
    Outputs,
    join_outputs,
    join_targets,
    metric_outputs,
    scores_of,
)
from autocompress.search.evaluate.racing import scoring_of
from autocompress.task.batches import Batches, Inputs, input_tensors, leaves, map_inputs
from autocompress.task.loading import in_memory
from autocompress.task.task import Task

HASHED = 64  # first values of each tensor by which batches are told apart


@dataclass(frozen=True)
class Race:
    """The split in the order of the race.

    Attributes:
        batches: what is looked at one after another.
        targets: of these batches.
        order: which batch of the split is at each place; of `mixed` samples, which sample.
        mixed: whether samples were dealt anew, so that each first part is a random sample.
        teacher: (n, ...) outputs of the original in the order of the race; a list where batches do not fit together.
        answers: all targets in the order of the split, as metrics get them.
        scored: how samples are scored: see `sample_scores`.
        digest: hash of the order and of a part of the data: scores of another race cannot be compared sample by sample.
    """

    batches: Batches
    targets: list[Any]
    order: list[int]
    mixed: bool
    teacher: Outputs
    answers: Any
    scored: str
    digest: str

    def expected(self, first: int, count: int) -> Tensor:
        """The original's outputs of `count` samples of one batch."""
        found = self.teacher[first : first + count]
        return torch.stack(found) if isinstance(found, list) else found

    def joined(self, outputs: Sequence[dict[str, Tensor]]) -> dict[str, Outputs]:
        """The outputs of the race's batches in the order of the split, by name, as metrics get them."""
        if not self.mixed:
            return join_outputs([outputs[place] for place in np.argsort(self.order).tolist()])
        back = torch.as_tensor(np.argsort(self.order))
        return {
            name: found[back]
            for name, found in join_outputs(list(outputs)).items()
            if isinstance(found, Tensor)
        }


def open_race(task: Task, original: nn.Module, device: torch.device, seed: int) -> Race:
    """The race on the validation split, with the answers of `original`, whose metric is checked on the way.

    Batches stay whole, and where they are in memory their order depends on `seed` alone; else it is the loader's.
    """
    outputs, targets = [], []
    for inputs, target in task.validation:
        outputs.append(metric_outputs(task, original, inputs, device))
        targets.append(target)
    if not outputs:
        raise TaskError("task: validation is empty; expected at least one (inputs, target) batch")
    joined, answers = join_outputs(outputs), join_targets(targets)
    scores_of(task, joined, answers)
    _check_divergence(task, outputs[0][""])
    batches, order, mixed = task.validation, list(range(len(outputs))), False
    if in_memory(batches):
        generator, batches = np.random.default_rng(seed), list(batches)
        fits = all(isinstance(found, Tensor) for found in joined.values())
        each = (
            fits and len(joined[""]) == sum(len(input_tensors(inputs)[0]) for inputs, _ in batches)
            if task.rows_independent
            else False
        )
        dealt = _dealt(task, batches, generator) if each else None
        mixed = dealt is not None
        if dealt is not None:
            batches, order = dealt
        else:
            order = generator.permutation(len(batches)).tolist()
            batches = [batches[i] for i in order]
        targets = [target for _, target in batches]
    primary = joined[""]
    teacher = (
        primary[order]
        if mixed and isinstance(primary, Tensor)
        else join_outputs([outputs[i] for i in order])[""]
    )
    scored = scoring_of(task, primary, answers) if isinstance(primary, Tensor) else "divergence"
    return Race(batches, targets, order, mixed, teacher, answers, scored, _digest(batches, order))


def _check_divergence(task: Task, outputs: Tensor) -> None:
    found = task.output_divergence(outputs, outputs)
    if (
        not isinstance(found, Tensor)
        or found.shape != outputs.shape[:1]
        or not bool(found.isfinite().all())
    ):
        if not isinstance(found, Tensor):
            came = type(found).__name__
        elif found.shape != outputs.shape[:1]:
            came = f"shape {tuple(found.shape)}"
        elif outputs.isnan().any():
            came = f"{int((~found.isfinite()).sum())} values that are not finite, since the model's outputs hold NaN"
        else:
            came = f"{int((~found.isfinite()).sum())} values that are not finite"
        raise TaskError(
            f"task: divergence of a batch from itself gave {came}; expected ({len(outputs)},) finite numbers"
        )


def _dealt(
    task: Task, batches: list[tuple[Inputs, Any]], generator: np.random.Generator
) -> tuple[list[tuple[Inputs, Any]], list[int]] | None:
    """(batches of the first one's size, the order of samples); None where batches cannot be cut or do not fit together."""
    if len(batches) < 2 or not all(task.can_cut(*batch) for batch in batches):
        return None
    try:
        inputs = [
            torch.cat(tensors)
            for tensors in zip(*(input_tensors(batch[0]) for batch in batches), strict=True)
        ]
        targets = join_targets([target for _, target in batches])
    except RuntimeError:
        return None  # of different lengths, say
    order = generator.permutation(len(inputs[0])).tolist()
    size, like = len(input_tensors(batches[0][0])[0]), batches[0][0]
    return [
        _chosen(like, inputs, targets, order[start : start + size])
        for start in range(0, len(order), size)
    ], order


def _chosen(
    like: Inputs, inputs: list[Tensor], targets: Any, rows: list[int]
) -> tuple[Inputs, Any]:
    left = iter(inputs)

    def part(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: part(found) for name, found in value.items()}
        return (
            value[rows]
            if isinstance(value, Tensor)
            else None
            if value is None
            else [value[i] for i in rows]
        )

    return map_inputs(like, lambda tensor: next(left)[rows]), part(targets)


def _digest(batches: Batches, order: list[int]) -> str:
    digest = hashlib.sha256(str(order).encode())
    for batch in batches:
        for part in batch:
            for value in leaves(part).values():
                if isinstance(value, Tensor):
                    some = value.flatten()[:HASHED].detach().cpu()
                    digest.update(f"{value.dtype} {tuple(value.shape)} {some.tolist()}".encode())
                else:
                    digest.update(repr(value).encode())
    return digest.hexdigest()[:16]

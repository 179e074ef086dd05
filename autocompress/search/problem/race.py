"""Order the validation split as candidates race on it, with the original's answers.

Candidates are judged on growing parts of this order, so that a poor one is stopped early
(`evaluate/racing.py`). The order depends on the seed alone.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.measure.accuracy import (
    Outputs,
    Scores,
    join_outputs,
    join_targets,
    metric_outputs,
    scores_of,
)
from autocompress.search.problem.scoring import scoring_of
from autocompress.task.batches import Batches, Inputs, batch_size, input_tensors, leaves, map_inputs
from autocompress.task.loading import in_memory
from autocompress.task.task import Task

HASHED = 64  # first values of each tensor that enter the digest


@dataclass(frozen=True)
class Race:
    """Hold the validation split in the order of the race.

    Attributes:
        batches: batches in the order in which candidates see them.
        targets: targets of these batches.
        order: for each place the index of the batch in the split; of the sample if `mixed`.
        mixed: True if samples were shuffled across batches, so that each first part is random.
        teacher: (n, ...) outputs of the original in this order; a list of n tensors where batches
            do not fit together.
        answers: all targets in the order of the split, as metrics get them.
        scored: how samples are scored: "top1", "metric" or "divergence" (see `sample_scores`).
        digest: hash of the order and of a part of the data. Scores can be compared sample by
            sample only if it is the same.
        pass_s: seconds that the original took for the split.
        scores: of the original on the split.
        split: hash of a part of the data in the order of the split, whatever the seed; "" for a
            split that is not in memory.
    """

    batches: Batches
    targets: list[Any]
    order: list[int]
    mixed: bool
    teacher: Outputs
    answers: Any
    scored: str
    digest: str
    pass_s: float = 0.0
    scores: Scores | None = None
    split: str = ""

    def expected(self, first: int, count: int) -> Tensor:
        """Return the original's outputs for the samples of one batch.

        Args:
            first: index of its first sample in the race.
            count: number of its samples.

        Returns:
            (count, ...) outputs.
        """
        outputs = self.teacher[first : first + count]
        return torch.stack(outputs) if isinstance(outputs, list) else outputs

    def joined(self, outputs: list[dict[str, Tensor]]) -> dict[str, Outputs]:
        """Put outputs back into the order of the split, as metrics get them.

        Args:
            outputs: for each batch of the race, outputs by name. It is emptied, as in
                `join_outputs`.

        Returns:
            By name, (n, ...) outputs or a list of n tensors.
        """
        if not self.mixed:
            # The race saw the batches in another order than the split has them.
            places = np.argsort(self.order).tolist()
            outputs[:] = [outputs[place] for place in places]
            return join_outputs(outputs)
        return join_outputs(outputs, self.order)


def open_race(task: Task, original: nn.Module, device: torch.device, seed: int) -> Race:
    """Run the original on the validation split and order the split for races.

    Batches stay whole unless `Task.rows_independent` allows to shuffle samples. A split that is
    not in memory keeps the order of its loader.

    Args:
        task: the task; its metric and divergence are checked on the way.
        original: the model in eval mode, on `device`.
        device: where it runs.
        seed: of the order.

    Returns:
        The race.

    Raises:
        TaskError: the split is empty, or the metric or the divergence does not fit the outputs.
    """
    outputs, targets = [], []
    started = time.monotonic()
    for inputs, target in task.validation:
        outputs.append(metric_outputs(task, original, inputs, device))
        targets.append(target)
    if not outputs:
        raise TaskError("task: validation is empty; expected at least one (inputs, target) batch")
    pass_s = time.monotonic() - started
    first, sizes = outputs[0][""], [output[""].shape[:1].numel() for output in outputs]
    joined, answers = join_outputs(outputs), join_targets(targets, sizes)
    scores = scores_of(task, joined, answers)
    _check_divergence(task, first)
    primary = joined[""]
    batches, order, mixed, split = task.validation, list(range(len(sizes))), False, ""
    if in_memory(batches):
        split = _digest(batches, [])
        generator, batches = np.random.default_rng(seed), list(batches)
        shuffled = None
        if task.rows_independent and _one_row_per_sample(joined, batches):
            shuffled = _shuffled(task, batches, generator)
        if shuffled is not None:
            (batches, order), mixed = shuffled, True
        else:
            order = generator.permutation(len(batches)).tolist()
            batches = [batches[i] for i in order]
        targets = [target for _, target in batches]
    rows = order if mixed else _rows(sizes, order)
    teacher = primary[rows] if isinstance(primary, Tensor) else [primary[i] for i in rows]
    scored = scoring_of(task, primary, answers) if isinstance(primary, Tensor) else "divergence"
    digest = _digest(batches, order)
    parts = (batches, targets, order, mixed, teacher, answers, scored, digest, pass_s)
    return Race(*parts, scores, split)


def _rows(sizes: list[int], order: list[int]) -> list[int]:
    """Return the rows of batches in another order of the batches."""
    ends = np.cumsum(sizes)
    return [row for i in order for row in range(int(ends[i]) - sizes[i], int(ends[i]))]


def _one_row_per_sample(joined: dict[str, Outputs], batches: list[tuple[Inputs, Any]]) -> bool:
    if not all(isinstance(output, Tensor) for output in joined.values()):
        return False
    return len(joined[""]) == sum(batch_size(inputs) for inputs, _ in batches)


def _check_divergence(task: Task, outputs: Tensor) -> None:
    """Raise TaskError unless the divergence of a batch from itself is finite numbers."""
    divergence = task.output_divergence(outputs, outputs)
    if not isinstance(divergence, Tensor):
        came = type(divergence).__name__
    elif divergence.shape != outputs.shape[:1]:
        came = f"shape {tuple(divergence.shape)}"
    elif not bool(divergence.isfinite().all()):
        came = f"{int((~divergence.isfinite()).sum())} values that are not finite"
        if outputs.isnan().any():
            came += ", since the model's outputs hold NaN"
    else:
        return
    raise TaskError(
        f"task: divergence of a batch from itself gave {came}; "
        f"expected ({len(outputs)},) finite numbers"
    )


def _shuffled(
    task: Task, batches: list[tuple[Inputs, Any]], generator: np.random.Generator
) -> tuple[list[tuple[Inputs, Any]], list[int]] | None:
    """Return (batches of shuffled samples, their order), or None where batches do not fit."""
    if len(batches) < 2 or not all(task.can_cut(*batch) for batch in batches):
        return None
    try:
        tensors_of = [input_tensors(inputs) for inputs, _ in batches]
        inputs = [torch.cat(tensors) for tensors in zip(*tensors_of, strict=True)]
        targets = join_targets([target for _, target in batches])
    except RuntimeError:
        return None  # for example of different lengths
    order = generator.permutation(len(inputs[0])).tolist()
    size, like = len(input_tensors(batches[0][0])[0]), batches[0][0]
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [_chosen(like, inputs, targets, rows) for rows in parts], order


def _chosen(
    like: Inputs, inputs: list[Tensor], targets: Any, rows: list[int]
) -> tuple[Inputs, Any]:
    left = iter(inputs)

    def part(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: part(item) for name, item in value.items()}
        if isinstance(value, Tensor):
            return value[rows]
        return None if value is None else [value[i] for i in rows]

    return map_inputs(like, lambda tensor: next(left)[rows]), part(targets)


def _digest(batches: Batches, order: list[int]) -> str:
    digest = hashlib.sha256(str(order).encode())
    for batch in batches:
        for part in batch:
            for value in leaves(part).values():
                if isinstance(value, Tensor):
                    some = value.flatten()[:HASHED].detach().cpu()
                    text = f"{value.dtype} {tuple(value.shape)} {some.tolist()}"
                else:
                    text = repr(value)
                digest.update(text.encode())
    return digest.hexdigest()[:16]

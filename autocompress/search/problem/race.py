"""Order the validation split as candidates race on it, with the original's answers.

Candidates are judged on growing parts of this order, so that a poor one is stopped early
(`evaluate/racing.py`). The order depends on the seed alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.measure.accumulators import agrees, agrees_divided, is_users_accumulator
from autocompress.measure.accuracy import metric_outputs, model_outputs
from autocompress.measure.joining import Outputs, join_outputs, join_targets
from autocompress.measure.tally import Scores, Tally, keeps_scores, readings
from autocompress.search.problem.scoring import CHECKED, check_divergence, scoring_of
from autocompress.spill import SpilledRows
from autocompress.task.batches import Batches, Inputs, batch_size, input_tensors, leaves, map_inputs
from autocompress.task.loading import in_memory
from autocompress.task.task import Task

HASHED = 64  # first values of each tensor that enter the digest
HEAD_BYTES = 64 << 20  # of the first outputs, on which metrics are tried; at least two batches
Head = tuple[dict[str, Tensor], Any]  # outputs and targets of one of the first batches


@dataclass(frozen=True)
class Race:
    """Hold the validation split in the order of the race.

    Attributes:
        batches: batches in the order in which candidates see them.
        order: for each place the index of the batch in the split; of the sample if `mixed`.
        mixed: True if samples were shuffled across batches, so that each first part is random.
        rows: (n,) index in the split of each row of outputs in this order.
        teacher: outputs of the original in the order of the split.
        answers: all targets in the order of the split, as metrics get them; None if no metric needs
            all at once.
        scored: how samples are scored: "top1", "metric" or "divergence" (see `sample_scores`).
        digest: hash of the order and of a part of the data. Scores can be compared sample by
            sample only if it is the same.
        pass_s: seconds that the original took for the split.
        scores: of the original on the split.
        split: hash of a part of the data in the order of the split, whatever the seed; "" for a
            split that is not in memory.
        ragged: True if a metric that needs all outputs at once gets several shapes of them.
        ordered: True if batches keep their order since a metric may depend on it.
    """

    batches: Batches
    order: list[int]
    mixed: bool
    rows: NDArray[np.int64]
    teacher: SpilledRows[Inputs]
    answers: Any
    scored: str
    digest: str
    pass_s: float = 0.0
    scores: Scores | None = None
    split: str = ""
    ragged: bool = False
    ordered: bool = False

    @property
    def samples(self) -> int:
        """Return the number of rows of outputs."""
        return len(self.rows)

    def expected(self, first: int, count: int, inputs: Inputs) -> Tensor:
        """Return the original's outputs for one batch.

        Args:
            first: index of its first row in the race.
            count: number of its rows.
            inputs: of the batch.

        Returns:
            (count, ...) outputs.
        """
        return self.teacher.take(self.rows[first : first + count].tolist(), inputs)

    def joined(self, outputs: list[dict[str, Tensor]]) -> dict[str, Outputs]:
        """Put outputs back into the order of the split, as metrics get them.

        Args:
            outputs: for each batch of the race, outputs by name. It is emptied, as in
                `join_outputs`.

        Returns:
            By name, (n, ...) outputs or a list of n tensors.
        """
        if not self.mixed and outputs:
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
    tally, shapes = Tally(task), dict[str, set[torch.Size]]()
    teacher = SpilledRows(partial(_outputs, task, original, device))
    sizes: list[int] = []
    head, head_bytes = list[Head](), 0
    started = time.monotonic()
    for inputs, target in task.validation:
        outputs = metric_outputs(task, original, inputs, device)
        tally.add(outputs, target)
        teacher.add(outputs[""])
        for name, output in outputs.items():
            shapes.setdefault(name, set()).add(output.shape[1:])
        if len(head) < 2 or (sum(sizes) < CHECKED and head_bytes < HEAD_BYTES):
            head.append((outputs, target))
            head_bytes += sum(output.nbytes for output in outputs.values())
        sizes.append(len(outputs[""]))
    if not sizes:
        raise TaskError("task: validation is empty; expected at least one (inputs, target) batch")
    pass_s = time.monotonic() - started
    answers = tally.answers()
    scores = tally.scores_of(join_outputs(tally.outputs), answers)
    check_divergence(task, head[0][0][""])
    fits = all(len(found) == 1 for found in shapes.values())

    def keeps(batches: Batches, order: list[int]) -> bool:
        dealt = _redealt(task, original, device, teacher, batches, order)
        return keeps_scores(task, scores, dealt)

    batches, order, mixed, ordered, split = _dealt(task, sizes, head, fits, seed, keeps)
    rows = np.array(order) if mixed else _rows(sizes, order)
    ragged = len(shapes[""]) > 1
    scored = "divergence" if ragged else _scored(task, head)
    digest = digest_of(batches, order)
    if task.sample_dims:  # rows of scores are of other samples
        text = f"{digest} {dict(task.sample_dims)}"
        digest = hashlib.sha256(text.encode()).hexdigest()[: len(digest)]
    parts = (batches, order, mixed, rows, teacher, answers, scored, digest, pass_s)
    return Race(*parts, scores, split, ragged and tally.joins, ordered)


def _outputs(task: Task, original: nn.Module, device: torch.device, inputs: Inputs) -> Tensor:
    return task.rows(model_outputs(original, inputs, device))


def _dealt(
    task: Task,
    sizes: list[int],
    head: list[Head],
    fits: bool,
    seed: int,
    keeps: Callable[[Batches, list[int]], bool],
) -> tuple[Batches, list[int], bool, bool, str]:
    """Return (batches, order, mixed, ordered, split) as `Race` has them.

    `sizes` are the rows of outputs of the batches; they `fit` together if they have one shape.
    `keeps` says if the original has its scores in mixed batches.
    """
    batches, order = task.validation, list(range(len(sizes)))
    if not in_memory(batches):
        return batches, order, False, False, ""
    split = digest_of(batches, [])
    generator, batches = np.random.default_rng(seed), list(batches)
    by_row = sum(sizes) == sum(batch_size(inputs) for inputs, _ in batches)
    if task.rows_independent and fits and by_row and _is_free(task, head, of_batches=True):
        shuffled = _shuffled(task, batches, generator)
        if shuffled is not None and keeps(*shuffled):
            return *shuffled, True, False, split
        if shuffled is not None:
            return batches, order, False, True, split
    if not _is_free(task, head):
        return batches, order, False, True, split
    order = generator.permutation(len(batches)).tolist()
    return [batches[i] for i in order], order, False, False, split


def _is_free(task: Task, head: list[Head], of_batches: bool = False) -> bool:
    """Return True if no metric depends on the order of the first batches.

    With `of_batches`, no metric may depend on how samples are divided into batches either.
    """
    for reading in readings(task):
        if not is_users_accumulator(reading.metric):
            continue
        batches = [(outputs[reading.output], reading.target(target)) for outputs, target in head]
        sizes = [len(outputs) for outputs, _ in batches]
        if not agrees(reading.metric, [batches, batches[::-1]]):
            return False
        if of_batches and not agrees_divided(reading.metric, *_joined(batches), sizes):
            return False
    return True


def _redealt(
    task: Task,
    original: nn.Module,
    device: torch.device,
    teacher: SpilledRows[Inputs],
    batches: Batches,
    order: list[int],
) -> Iterator[Head]:
    """Yield the original's outputs, and the targets, of batches of samples in another order."""
    seen = 0
    for inputs, target in batches:
        rows = order[seen : seen + batch_size(inputs)]
        seen += len(rows)
        if task.has_output_metrics:
            yield metric_outputs(task, original, inputs, device), target
        else:
            yield {"": teacher.take(rows, inputs)}, target


def _joined(batches: Sequence[tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
    """Return the outputs and targets of batches as those of one batch."""
    outputs = torch.cat([output for output, _ in batches])
    sizes = [len(output) for output, _ in batches]
    return outputs, join_targets([target for _, target in batches], sizes)


def _scored(task: Task, head: list[Head]) -> str:
    """Find out on the first batches how samples can be scored."""
    return scoring_of(task, *_joined([(outputs[""], target) for outputs, target in head]))


def _rows(sizes: list[int], order: list[int]) -> NDArray[np.int64]:
    """Return the rows of batches in another order of the batches."""
    ends = np.cumsum(sizes)
    return np.concatenate([np.arange(ends[i] - sizes[i], ends[i]) for i in order])


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


def digest_of(batches: Iterable[tuple[Inputs, Any]], order: Sequence[int] = ()) -> str:
    """Return a hash of a part of each of some batches.

    Args:
        batches: of a split.
        order: is hashed too.
    """
    digest = hashlib.sha256(str(list(order)).encode())
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

"""Score the outputs of a model on a split, batch by batch.

Metrics that accumulate get each batch at once. Outputs are kept only for functions of all outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from autocompress.errors import NotComputableError, TaskError
from autocompress.measure.accumulators import equal, feed, fresh, result_of
from autocompress.measure.joining import Outputs, join_outputs, join_targets
from autocompress.measure.ragged import ragged_score
from autocompress.task.calls import Accumulator, Metric, is_ours, score, target_of
from autocompress.task.task import OutputMetric, Task
from autocompress.task.user_code import UserCodeError


@dataclass(frozen=True)
class Scores:
    """Hold the metrics of one model on one split.

    Attributes:
        accuracy: the task's metric, higher is better.
        metrics: the extra metrics by name.
    """

    accuracy: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Reading:
    """Describe what one metric of a task reads.

    Attributes:
        name: of the metric, for messages.
        metric: the metric.
        output: name of the output that it judges, "" for the primary one.
        entry: name of its own entry of targets that are mappings; None takes the whole target.
    """

    name: str
    metric: Metric
    output: str = ""
    entry: str | None = None

    def target(self, targets: Any) -> Any:
        """Return the part of targets that the metric gets.

        Args:
            targets: of a batch or of a split.
        """
        return targets if self.entry is None else target_of(targets, self.entry)


def readings(task: Task) -> list[Reading]:
    """Return what the metrics of a task read: its own first, then the extra ones.

    Args:
        task: with its metrics.
    """
    found = [Reading("metric", task.metric)]
    for name, metric in task.extra_metrics.items():
        if isinstance(metric, OutputMetric):
            output = "" if metric.output == task.primary_name else metric.output
            found.append(Reading(name, metric.metric, output, metric.output))
        else:
            found.append(Reading(name, metric))
    return found


class Tally:
    """Collect the outputs of one evaluation.

    `samples` counts them. `outputs` and `targets` hold the batches so far if a metric needs all
    outputs of the split at once, and are empty if none does.
    """

    def __init__(self, task: Task) -> None:
        """Begin an evaluation.

        Args:
            task: gives the metrics.

        Raises:
            UserCodeError: an accumulator cannot be begun.
        """
        pairs = [(reading, fresh(reading.metric, reading.name)) for reading in readings(task)]
        self._judges: list[tuple[Reading, Accumulator | None]] = pairs
        self._joined = {reading.output for reading, running in pairs if running is None}
        self.samples = 0
        self.outputs: list[dict[str, Tensor]] = []
        self.targets: list[Any] = []
        self._sizes: list[int] = []

    @property
    def joins(self) -> bool:
        """Return True if a metric needs all outputs at once."""
        return bool(self._joined)

    def add(self, outputs: Mapping[str, Tensor], target: Any) -> None:
        """Take one batch.

        Args:
            outputs: by name; the primary one is "".
            target: of the batch.

        Raises:
            TaskError: an output has no row per sample.
            NotComputableError: the output of a sample is NaN throughout. Many metrics take that
                for a class.
            UserCodeError: an accumulator fails.
        """
        for output in outputs.values():
            if output.dim() == 0:
                raise TaskError(
                    "task: a batch gives an output of shape (); "
                    f"expected a row per sample, not one number like {float(output):.3g}"
                )
            undefined = _undefined(output)
            if undefined:
                raise NotComputableError(
                    f"task: the outputs of {undefined} of {len(output)} samples of a batch are "
                    "NaN; expected numbers, as metrics take NaN for a class"
                )
        self.samples += len(outputs[""])
        for reading, running in self._judges:
            if running is not None:
                own = reading.target(target)
                feed(running, outputs[reading.output], own, reading.name)
        if self._joined:
            self.outputs.append({name: outputs[name] for name in sorted(self._joined)})
            self.targets.append(target)
            self._sizes.append(len(outputs[""]))

    def answers(self) -> Any:
        """Return the targets of all batches, joined; None if no metric needs them."""
        return join_targets(self.targets, self._sizes) if self._joined else None

    def scores(self) -> Scores:
        """Return the metrics of all batches in their order; `outputs` is emptied.

        Raises:
            UserCodeError: a metric fails.
            NotComputableError: the split has no sample, or a metric gives no finite number.
        """
        answers = self.answers()
        return self.scores_of(join_outputs(self.outputs), answers)

    def scores_of(self, outputs: Mapping[str, Outputs], targets: Any) -> Scores:
        """Return the metrics of all batches.

        Args:
            outputs: by name, as `join_outputs` gives them in an order that the caller chooses.
            targets: in the same order.

        Returns:
            The scores.

        Raises:
            UserCodeError: a metric fails.
            NotComputableError: the split has no sample, or a metric gives no finite number.
        """
        if not self.samples:
            raise NotComputableError(
                "task: the split has no sample, so that no metric can be computed; "
                "expected at least one (inputs, target) batch"
            )
        values = []
        for reading, running in self._judges:
            if running is not None:
                values.append(result_of(running, self.samples, reading.name))
            else:
                values.append(_score(reading, outputs[reading.output], reading.target(targets)))
        names = [reading.name for reading, _ in self._judges[1:]]
        return Scores(values[0], dict(zip(names, values[1:], strict=True)))


def _undefined(output: Tensor) -> int:
    """Return the number of samples whose output is NaN throughout."""
    if not output.is_floating_point() or not output.numel():
        return 0
    rows = output.reshape(len(output), -1)
    rows = rows[rows[:, 0].isnan()]
    return int(rows.isnan().all(1).sum())


def _score(reading: Reading, outputs: Outputs, targets: Any) -> float:
    """Return a function of all outputs of a split."""
    metric = cast(Callable[[Any, Any], float], reading.metric)
    if isinstance(outputs, list):
        return ragged_score(metric, outputs, targets, reading.name)
    return score(metric, outputs, targets, reading.name)


def keeps_scores(
    task: Task, scores: Scores, batches: Iterable[tuple[Mapping[str, Tensor], Any]]
) -> bool:
    """Return True if accumulators of the user's give the same scores for other batches.

    Args:
        task: gives the metrics.
        scores: of a model on a split.
        batches: (outputs by name, target) of the same model, of the samples in other batches. They
            are read only if there are such metrics.

    Returns:
        False too if a metric fails on them.
    """
    values = [scores.accuracy, *scores.metrics.values()]
    judges: list[tuple[Reading, Accumulator, float]] = []
    for reading, value in zip(readings(task), values, strict=True):
        running = fresh(reading.metric, reading.name)
        if running is not None and not is_ours(reading.metric):
            judges.append((reading, running, value))
    if not judges:
        return True
    samples = 0
    try:
        for outputs, target in batches:
            samples += len(outputs[""])
            for reading, running, _ in judges:
                own = reading.target(target)
                feed(running, outputs[reading.output], own, reading.name)
        results = [result_of(running, samples, reading.name) for reading, running, _ in judges]
    except (UserCodeError, NotComputableError):
        return False
    return all(equal(result, judge[2]) for result, judge in zip(results, judges, strict=True))

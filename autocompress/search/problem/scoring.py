"""Score single samples: the task's metric where it is a mean over samples, and the divergence.

Races compare candidates sample by sample on these scores (`evaluate/racing.py`).
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.measure.accumulators import value_of
from autocompress.measure.joining import join_targets
from autocompress.task.task import Task

Array = NDArray[np.float32]
CHECKED = 32  # samples on which it is found out how a metric scores
LARGEST = " largest"  # behind the name of encoded scores: the value of their largest
SAME = 1e-6  # relative difference up to which a metric of a batch is the mean over its samples


@dataclass(frozen=True)
class SampleScores:
    """Hold one score per sample, in the order of the race.

    Attributes:
        metric: (n,) the task's metric, higher is better; None where it is no mean over samples.
        divergence: (n,) distance from the teacher's outputs, lower is better.
    """

    metric: Array | None
    divergence: Array

    def __len__(self) -> int:
        return len(self.divergence)

    @classmethod
    def joined(cls, parts: Sequence[SampleScores]) -> SampleScores:
        """Join the scores of consecutive batches.

        Args:
            parts: scores by batch.

        Returns:
            All scores, without the metric if one batch has none.
        """
        metrics = [part.metric for part in parts if part.metric is not None]
        return cls(
            np.concatenate(metrics) if len(metrics) == len(parts) else None,
            np.concatenate([part.divergence for part in parts]),
        )

    def encoded(self, count: int) -> dict[str, str]:
        """Encode the first samples as text, for an attribute of a trial.

        Args:
            count: number of samples to keep, at most.

        Returns:
            By name, base64 of deflated 16-bit floats, and the value that their largest stands for.
        """
        arrays = {"divergence": self.divergence}
        if self.metric is not None:
            arrays["metric"] = self.metric
        texts = {}
        for name, values in arrays.items():
            # Squared errors of small targets are below what 16 bits tell from 0.
            largest = float(np.abs(values[:count]).max(initial=0.0))
            largest = largest if 0 < largest < math.inf else 1.0
            packed = zlib.compress((values[:count] / largest).astype(np.float16).tobytes())
            texts[name] = base64.b64encode(packed).decode()
            texts[f"{name}{LARGEST}"] = repr(largest)
        return texts

    @classmethod
    def decoded(cls, texts: Mapping[str, str]) -> SampleScores:
        """Reverse `encoded`.

        Args:
            texts: as `encoded` returns them.

        Returns:
            The scores, rounded to 16-bit floats.
        """
        arrays = {}
        for name, text in texts.items():
            if name.endswith(LARGEST):
                continue
            values = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.float16)
            # Trials of earlier versions have no largest value.
            arrays[name] = values.astype(np.float32) * float(texts.get(f"{name}{LARGEST}", 1.0))
        return cls(arrays.get("metric"), arrays["divergence"])


def _scored(task: Task, outputs: Tensor, targets: Any) -> float:
    return value_of(task.metric, [(outputs, targets)])


def metric_is_mean(task: Task, outputs: Tensor, targets: Any, samples: int = CHECKED) -> bool:
    """Return True if the metric of a batch is the mean of the metric of its samples.

    Accuracy is such a mean, F1 is not.

    Args:
        task: the task with the metric.
        outputs: (n, ...) outputs of the original.
        targets: their targets.
        samples: number of samples on which it is tried, at most.
    """
    if targets is None or len(outputs) < 2:
        return False
    count = min(samples, len(outputs))
    try:
        single = [_scored(task, outputs[i : i + 1], targets[i : i + 1]) for i in range(count)]
        whole = _scored(task, outputs[:count], targets[:count])
    except Exception:
        return False  # a metric that cannot judge one sample is no mean over samples
    return abs(float(np.mean(single)) - whole) < SAME * max(1.0, abs(whole))


def metric_is_top1(task: Task, outputs: Tensor, targets: Any, samples: int = CHECKED) -> bool:
    """Return True if a metric that is a mean over samples is the share of right classes.

    Args:
        task: the task with the metric.
        outputs: (n, classes) outputs of the original.
        targets: (n,) classes; anything else returns False.
        samples: number of samples on which it is tried, with their own outputs and with those of
            other samples.
    """
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return False
    if targets.dim() != 1 or outputs.dim() != 2:
        return False
    if outputs.shape[1] == 1:
        return False  # one logit, whose sign decides
    count = min(samples, len(outputs))
    rows = [*range(count), *np.roll(np.arange(count), 1)]
    asked = [*range(count), *range(count)]
    right = (outputs[rows].argmax(1) == targets[asked]).tolist()
    values = []
    try:
        for row, i in zip(rows, asked, strict=True):
            values.append(_scored(task, outputs[row : row + 1], targets[i : i + 1]))
    except Exception:
        return False  # it cannot judge outputs of other samples
    return values == [float(value) for value in right]


def scoring_of(task: Task, outputs: Tensor, targets: Any) -> str:
    """Find out how samples can be scored.

    Args:
        task: the task with the metric.
        outputs: (n, ...) outputs of the original.
        targets: their targets.

    Returns:
        "top1", "metric" or "divergence", as `sample_scores` takes it.
    """
    if not metric_is_mean(task, outputs, targets):
        return "divergence"
    return "top1" if metric_is_top1(task, outputs, targets) else "metric"


def sample_scores(
    task: Task, outputs: Tensor, target: Any, teacher: Tensor, scored: str
) -> SampleScores:
    """Score the samples of one batch.

    Args:
        task: the task with metric and divergence.
        outputs: (n, ...) outputs of the candidate.
        target: targets of the batch.
        teacher: (n, ...) outputs of the original.
        scored: "metric" calls the metric for each sample, "top1" compares classes, which is the
            same and faster, "divergence" leaves the metric out.

    Returns:
        Scores of n samples. The metric is None where it fails for one of them.
    """
    divergence = task.output_divergence(outputs, teacher).numpy().astype(np.float32)
    if scored == "top1":
        right = (outputs.argmax(1) == target.cpu()).numpy().astype(np.float32)
        return SampleScores(right, divergence)
    if scored != "metric":
        return SampleScores(None, divergence)
    joined, values = join_targets([target]), []
    try:
        for i in range(len(outputs)):
            values.append(_scored(task, outputs[i : i + 1], joined[i : i + 1]))
    except Exception:
        return SampleScores(None, divergence)
    single = np.array(values, dtype=np.float32)
    return SampleScores(single if np.isfinite(single).all() else None, divergence)


def check_divergence(task: Task, outputs: Tensor) -> None:
    """Check that the divergence of a batch from itself is a finite number per sample.

    Args:
        task: gives the divergence.
        outputs: (n, ...) of one batch.

    Raises:
        TaskError: it is not.
    """
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

"""Stop a candidate early that is surely dominated or surely over the accuracy limit, on growing parts of the validation split."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from autocompress.measure.accuracy import join_targets
from autocompress.task import Task

PARTS = (0.125, 0.375)  # parts of the split after which a candidate may stop; all of it otherwise
ERROR = 0.05  # probability, over all rungs and rivals, to stop a candidate that is not dominated
RIVALS = 8
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Rival:
    """A finished trial that is no larger and no slower, with its per-sample scores on the whole split."""

    number: int
    scores: Scores


def metric_is_mean(task: Task, outputs: Tensor, targets: Any, samples: int = 32) -> bool:
    """Whether the metric of a batch is the mean of the metric of its samples, as accuracy is and F1 is not."""
    if targets is None or len(outputs) < 2:
        return False
    count = min(samples, len(outputs))
    try:
        single = [float(task.metric(outputs[i : i + 1], targets[i : i + 1])) for i in range(count)]
        whole = float(task.metric(outputs[:count], targets[:count]))
    except Exception:
        return False  # a metric that cannot judge one sample is not a mean over samples
    return bool(np.isfinite(single).all()) and abs(float(np.mean(single)) - whole) < 1e-6 * max(1.0, abs(whole))


def sample_scores(task: Task, outputs: Tensor, targets: list[Any], teacher: Tensor, by_metric: bool) -> Scores:
    """(n,) higher is better: the metric of each sample, or minus the divergence from the teacher where the metric is no mean."""
    if by_metric:
        joined = join_targets(targets)
        return np.array([float(task.metric(outputs[i : i + 1], joined[i : i + 1])) for i in range(len(outputs))], dtype=np.float32)
    return -task.output_divergence(outputs, teacher).numpy().astype(np.float32)


def surely_dominated(scores: Scores, rivals: Sequence[Rival]) -> int | None:
    """The number of a rival whose mean score is higher beyond doubt, by the paired difference on the same first samples."""
    n = len(scores)
    best = sorted(rivals, key=lambda rival: -float(rival.scores.mean()))[:RIVALS]
    if not best or n < 2:
        return None
    z = float(norm.ppf(1 - ERROR / (len(PARTS) * len(best))))
    for rival in best:
        difference = rival.scores[:n] - scores
        mean = float(difference.mean())
        deviation = np.sqrt(max(float(difference.var()), 1 / n) / n)
        if mean - z * deviation > 0:
            return rival.number
    return None


def surely_below(scores: Scores, floor: float) -> bool:
    """Whether the mean of the whole split is below `floor` beyond doubt, for scores of the metric itself."""
    n = len(scores)
    deviation = np.sqrt(max(float(scores.var()), 1 / n) / n)
    return bool(float(scores.mean()) + float(norm.ppf(1 - ERROR / len(PARTS))) * float(deviation) < floor)


def encode_scores(scores: Scores) -> str:
    """Text for a study attribute: 16-bit floats, deflated."""
    return base64.b64encode(zlib.compress(scores.astype(np.float16).tobytes())).decode()


def decode_scores(text: str) -> Scores:
    """Reverse of `encode_scores`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.float16).astype(np.float32)

"""Stop a candidate early that is surely dominated or surely over the accuracy limit, on growing parts of the validation split."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t
from torch import Tensor

from autocompress.measure.accuracy import join_targets
from autocompress.task.task import Task

PARTS = (
    0.0625,
    0.125,
    0.25,
    0.5,
)  # parts of the split after which a candidate may stop; all of it otherwise
ERROR = 0.05  # probability, over all rungs and rivals, to stop a candidate that is not dominated
RIVALS = 8
NEAR = 1.01  # a rival may be this much larger or slower: less than latencies and small files can be told apart by
LEAST_BATCHES = 3  # batches seen before a candidate may stop, where these are not mixed: a first one may hold one class only
ALIKE = 4.0  # variance between the means of batches, against that of random samples, up to which batches are taken for such
MOST_BATCH = 1024  # a race looks at the first samples up to a batch beyond a part
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Per sample (n,), in the order of the race: the metric where it is a mean over samples (None where it is not), higher is better; and
    the divergence from the teacher, lower is better.
    """

    metric: Array | None
    divergence: Array

    def __len__(self) -> int:
        return len(self.divergence)

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Those of consecutive batches; without the metric where one of them has none."""
        metrics = [part.metric for part in parts if part.metric is not None]
        return cls(
            np.concatenate(metrics) if len(metrics) == len(parts) else None,
            np.concatenate([part.divergence for part in parts]),
        )

    def encoded(self, total: int) -> dict[str, str]:
        """Text for a study attribute, as far as races on `total` samples look: 16-bit floats, deflated."""
        found = {"divergence": self.divergence} | (
            {} if self.metric is None else {"metric": self.metric}
        )
        last = int(PARTS[-1] * total) + MOST_BATCH
        packed = {
            name: zlib.compress(values[:last].astype(np.float16).tobytes())
            for name, values in found.items()
        }
        return {name: base64.b64encode(values).decode() for name, values in packed.items()}

    @classmethod
    def decoded(cls, texts: Mapping[str, str]) -> Scores:
        """Reverse of `encoded`."""
        found = {
            name: np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.float16).astype(
                np.float32
            )
            for name, text in texts.items()
        }
        return cls(found.get("metric"), found["divergence"])


@dataclass(frozen=True)
class Rival:
    """A finished trial that is no larger and no slower."""

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
    return bool(np.isfinite(single).all()) and abs(float(np.mean(single)) - whole) < 1e-6 * max(
        1.0, abs(whole)
    )


def metric_is_top1(task: Task, outputs: Tensor, targets: Any, samples: int = 32) -> bool:
    """Whether a metric that is a mean over samples is the share of right classes: checked on outputs and on outputs of other samples."""
    if (
        not isinstance(targets, Tensor)
        or targets.is_floating_point()
        or targets.dim() != 1
        or outputs.dim() != 2
    ):
        return False
    if outputs.shape[1] == 1:
        return False  # one logit: its sign decides
    count = min(samples, len(outputs))
    rows = [*range(count), *np.roll(np.arange(count), 1)]
    asked = [*range(count), *range(count)]
    right = (outputs[rows].argmax(1) == targets[asked]).tolist()
    try:
        found = [
            float(task.metric(outputs[row : row + 1], targets[i : i + 1]))
            for row, i in zip(rows, asked, strict=True)
        ]
    except Exception:
        return False  # it cannot judge what was not seen before
    return found == [float(value) for value in right]


def sample_scores(task: Task, outputs: Tensor, target: Any, teacher: Tensor, scored: str) -> Scores:
    """Of one batch; the metric of each sample where `scored` is "metric", the same by the class where it is "top1", none otherwise, nor
    where it cannot be computed of one of the samples.
    """
    divergence = task.output_divergence(outputs, teacher).numpy().astype(np.float32)
    if scored == "top1":
        return Scores((outputs.argmax(1) == target.cpu()).numpy().astype(np.float32), divergence)
    if scored == "metric":
        joined = join_targets([target])
        try:
            single = np.array(
                [
                    float(task.metric(outputs[i : i + 1], joined[i : i + 1]))
                    for i in range(len(outputs))
                ],
                dtype=np.float32,
            )
        except Exception:
            return Scores(None, divergence)
        return Scores(single if np.isfinite(single).all() else None, divergence)
    return Scores(None, divergence)


def scoring_of(task: Task, outputs: Tensor, targets: Any) -> str:
    """How samples are scored: see `sample_scores`."""
    if not metric_is_mean(task, outputs, targets):
        return "divergence"
    return "top1" if metric_is_top1(task, outputs, targets) else "metric"


def surely_dominated(
    scores: Scores, rivals: Sequence[Rival], sizes: Sequence[int] = ()
) -> int | None:
    """The number of a rival that is better beyond doubt on the same first samples, by the paired difference: in the metric; or in the
    divergence, which tells near equals apart where a metric of right and wrong needs many times the samples, if the metric does not
    say the contrary. `sizes` are those of the batches, where samples of a batch may be more alike than others.
    """
    n = len(scores)
    best = sorted(rivals, key=lambda rival: float(rival.scores.divergence[:n].mean()))[:RIVALS]
    if n < 2:
        return None
    for rival in best:
        z = float(norm.ppf(1 - ERROR / (len(PARTS) * len(best))))
        better = 0.0
        if scores.metric is not None and rival.scores.metric is not None:
            difference = rival.scores.metric[:n] - scores.metric
            if _surely_positive(difference, z, sizes):
                return rival.number
            better = float(difference.mean())
        if better >= 0 and _surely_positive(
            scores.divergence - rival.scores.divergence[:n], z, sizes
        ):
            return rival.number
    return None


def _surely_positive(difference: Array, z: float, sizes: Sequence[int]) -> bool:
    """Whether the mean is above 0 by `z` standard errors. Few samples may all agree: the variance is at least that of one more that
    differs as much as any did."""
    n = len(difference)
    margin = z * float(
        np.sqrt(max(float(difference.var()), float(np.abs(difference).max()) ** 2 / n) / n)
    )
    return float(difference.mean()) > max(margin, _batch_margin(difference, z, sizes))


def _batch_margin(values: Array, z: float, sizes: Sequence[int]) -> float:
    """By how much the mean of whole batches may be off at `z`, where samples of a batch are more alike than others; else 0."""
    if len(sizes) < 2:
        return 0.0
    means = np.array([part.mean() for part in np.split(values, np.cumsum(sizes)[:-1])])
    between = float(means.var(ddof=1))
    if between <= ALIKE * float(values.var()) / float(np.mean(sizes)):
        return 0.0
    return float(t.isf(norm.sf(z), len(sizes) - 1)) * float(np.sqrt(between / len(sizes)))


def surely_below(scores: Array, floor: float, sizes: Sequence[int] = ()) -> bool:
    """Whether the mean of the whole split is below `floor` beyond doubt, for scores of the metric itself."""
    n = len(scores)
    deviation = np.sqrt(max(float(scores.var()), 1 / n) / n)
    z = float(norm.ppf(1 - ERROR / len(PARTS)))
    return float(scores.mean()) + max(z * float(deviation), _batch_margin(scores, z, sizes)) < floor

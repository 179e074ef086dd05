"""Logits, numbers or an embedding: what a model's output holds, and the loss and the divergence that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import TaskError

IGNORED = -100  # the target of a sample or position that does not count
MASKED = 1e4  # larger logits, as the infinities of masked classes, are this large: their softmax is the same, and never NaN


@dataclass(frozen=True)
class OutputKind:
    """What an output holds.

    Attributes:
        kind: "softmax" (classes), "bernoulli" (one logit per yes or no), "values" (one number per sample) or "embedding".
        class_dim: the dimension of the classes (1 or -1) of "softmax"; None otherwise.
        normalised: whether the output holds probabilities already, so that its logits are their logarithms.
    """

    kind: Literal["softmax", "bernoulli", "values", "embedding"]
    class_dim: int | None = None
    normalised: bool = False

    @property
    def is_logits(self) -> bool:
        """Whether the output gives probabilities."""
        return self.kind in ("softmax", "bernoulli")

    def logits(self, output: Tensor) -> Tensor:
        """Finite logits of an output that gives probabilities; classes are the last dimension of "softmax"."""
        if self.normalised:
            tiny = (
                torch.finfo(output.dtype).tiny
                if self.kind == "softmax"
                else torch.finfo(output.dtype).eps
            )
            output = output.clamp(tiny, 1 if self.kind == "softmax" else 1 - tiny)
            output = output.log() if self.kind == "softmax" else output.logit()
        output = output.clamp(-MASKED, MASKED)
        return output if self.class_dim is None else output.movedim(self.class_dim, -1)


VALUES, EMBEDDING, BERNOULLI = (
    OutputKind("values"),
    OutputKind("embedding"),
    OutputKind("bernoulli"),
)


def as_labels(target: Any) -> Tensor | None:
    """A target as a tensor: arrays and lists of numbers become one; None for what has no default loss, as strings."""
    if isinstance(target, Tensor):
        return target.long() if target.dtype == torch.uint8 else target  # a byte of 156 equals -100
    if isinstance(target, np.ndarray) and target.dtype.kind in "biuf":
        return as_labels(torch.from_numpy(np.ascontiguousarray(target)))
    if (
        isinstance(target, (list, tuple))
        and target
        and all(isinstance(item, (bool, int, float, np.number)) for item in target)
    ):
        return torch.tensor(
            [item.item() if isinstance(item, np.number) else item for item in target]
        )
    return None


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """`shape` without its dimensions of size 1."""
    return tuple(size for size in shape if size != 1)


def one_each(output: Tensor, labels: Tensor) -> bool:
    """Whether there is one label per element, up to dimensions of size 1."""
    return squeezed(output.shape) == squeezed(labels.shape)


def outside(labels: Tensor, classes: int) -> float | None:
    """A label that counts and is not between 0 and `classes` - 1; None when there is none."""
    wrong = labels[~((labels >= 0) & (labels <= classes - 1)) & (labels != IGNORED)]
    return wrong[0].item() if wrong.numel() else None


def shapes_of(output: Tensor, labels: Tensor) -> str:
    """Output and labels in words."""
    return f"outputs {tuple(output.shape)} with {str(labels.dtype).removeprefix('torch.')} targets {tuple(labels.shape)}"


def labels_fit(kind: OutputKind, output: Tensor, labels: Tensor) -> bool:
    """Whether `default_loss` can be computed of such shapes."""
    indexed = (
        kind.kind == "softmax"
        and labels.numel() * output.shape[kind.class_dim or -1] == output.numel()
    )
    return one_each(output, labels) or indexed


def default_loss(kind: OutputKind, output: Tensor, labels: Tensor) -> Tensor:
    """The scalar cross-entropy, binary cross-entropy or squared error of an output; targets of -100 do not count.

    Raises:
        TaskError: the labels do not fit the output in shape or value.
    """
    labels = labels.to(output.device)
    if not labels_fit(kind, output, labels):
        raise TaskError(f"task: {shapes_of(output, labels)} fit no loss of {kind.kind}; give loss")
    if not kind.is_logits:
        return F.mse_loss(output, labels.to(output.dtype).reshape(output.shape))
    logits = kind.logits(output)
    if one_each(output, labels):
        shaped = labels.reshape(output.shape)
        counts = shaped != IGNORED
        wanted = shaped.to(logits.dtype) * counts
        if kind.kind == "bernoulli":
            losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        else:
            assert kind.class_dim is not None
            counts = counts.all(kind.class_dim)
            losses = -(wanted.movedim(kind.class_dim, -1) * logits.log_softmax(-1)).sum(-1)
        return (losses * counts).sum() / counts.sum().clamp_min(1)
    labels = labels.flatten().long()
    wrong = outside(labels, logits.shape[-1])
    if wrong is not None:
        raise TaskError(
            f"task: target {wrong} is none of the {logits.shape[-1]} classes; nearest: {IGNORED} for what does not count"
        )
    total = F.cross_entropy(logits.flatten(0, -2), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp_min(1)


def position_divergence(
    kind: OutputKind, student: Tensor, teacher: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student) of two outputs that give probabilities, at each position (n, ...); classes are summed over."""
    student, teacher = kind.logits(student) / temperature, kind.logits(teacher) / temperature
    if kind.kind == "softmax":
        return F.kl_div(
            student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    return yes + (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))


def sample_divergence(kind: OutputKind, student: Tensor, teacher: Tensor) -> Tensor:
    """(n,) distance of two outputs, 0 when equal: KL, the squared difference of numbers, or 1 - cosine of embeddings."""
    if kind.is_logits:
        return (
            position_divergence(kind, student, teacher)
            .reshape(len(student), -1)
            .mean(1)
            .clamp_min(0)
        )
    student, teacher = student.reshape(len(student), -1), teacher.reshape(len(teacher), -1)
    if teacher.shape[1] == 1:
        return (student - teacher).square().mean(1)
    return 1 - F.cosine_similarity(student, teacher, dim=1)


def relative_difference(found: NDArray[Any], expected: NDArray[Any], least: float) -> float:
    """The largest difference of two outputs against the largest value, or `least`; infinite where shapes or infinities differ.

    What masks classes (-inf, -1e9) is compared by itself, so that its size hides no difference of the others.
    """
    if found.shape != expected.shape or not np.array_equal(
        found[np.isinf(expected)], expected[np.isinf(expected)]
    ):
        return float("inf")
    found, sizes, expected = (
        found[~np.isinf(expected)],
        np.abs(expected[~np.isinf(expected)]),
        expected[~np.isinf(expected)],
    )
    scale = max(least, float(sizes[sizes < MASKED].max(initial=0.0)))
    return float((np.abs(found - expected) / np.maximum(sizes, scale)).max(initial=0.0))


def counted(labels: Tensor | None, positions: Tensor) -> Tensor | None:
    """Which of `positions` count, of its shape; None where all do or labels do not say."""
    if labels is None or labels.numel() != positions.numel():
        return None
    return (labels != IGNORED).reshape(positions.shape)

"""Compute the default loss and divergence of an output from what it holds.

`output_kinds` finds the kind of each output; recovery, calibration and the checks of files use the
losses and distances here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.errors import TaskError

UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
IGNORED = -100  # the target of a sample or position that does not count
# Larger logits, such as the infinities of masked classes, are clipped to this: their softmax stays
# the same, and is never NaN.
MASKED = 1e4


@dataclass(frozen=True)
class OutputKind:
    """Describe what an output holds.

    Attributes:
        kind: "softmax" (classes), "bernoulli" (one logit per yes or no), "values" (one number per
            sample) or "embedding".
        class_dim: the dimension of the classes (1 or -1) of "softmax"; None otherwise.
        normalised: True if the output holds probabilities already, so that its logits are their
            logarithms.
    """

    kind: Literal["softmax", "bernoulli", "values", "embedding"]
    class_dim: int | None = None
    normalised: bool = False

    @property
    def is_logits(self) -> bool:
        """Return True if the output gives probabilities."""
        return self.kind in ("softmax", "bernoulli")

    def logits(self, output: Tensor) -> Tensor:
        """Return finite logits of an output that gives probabilities.

        Args:
            output: (n, ...) of this kind.

        Returns:
            Of its shape, with the classes of "softmax" moved to the last dimension.
        """
        if self.normalised and self.kind == "softmax":
            output = output.clamp(torch.finfo(output.dtype).tiny, 1).log()
        elif self.normalised:
            least = torch.finfo(output.dtype).eps
            output = output.clamp(least, 1 - least).logit()
        output = output.clamp(-MASKED, MASKED)
        return output if self.class_dim is None else output.movedim(self.class_dim, -1)


VALUES = OutputKind("values")
EMBEDDING = OutputKind("embedding")
BERNOULLI = OutputKind("bernoulli")


def as_labels(target: Any) -> Tensor | None:
    """Return a target as a tensor.

    Args:
        target: a tensor, an array, a list of numbers, or anything else.

    Returns:
        The labels, unsigned integers as signed ones; None for targets that no default loss reads,
        such as strings and complex numbers.
    """
    if isinstance(target, Tensor):
        if target.is_complex():
            return None
        # A byte of 156 equals -100, and PyTorch compares no wider unsigned integers.
        return target.long() if target.dtype in UNSIGNED else target
    if isinstance(target, np.ndarray) and target.dtype.kind in "biuf":
        return as_labels(torch.from_numpy(np.ascontiguousarray(target)))
    if not isinstance(target, (list, tuple)) or not target:
        return None
    if not all(isinstance(item, (bool, int, float, np.number)) for item in target):
        return None
    numbers = [item.item() if isinstance(item, np.number) else item for item in target]
    return as_labels(torch.tensor(numbers))


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without its dimensions of size 1.

    Args:
        shape: of a tensor.

    Returns:
        The other sizes in their order.
    """
    return tuple(size for size in shape if size != 1)


def one_each(output: Tensor, labels: Tensor) -> bool:
    """Return True if there is one label per element, up to dimensions of size 1.

    Args:
        output: (n, ...).
        labels: of the same batch.

    Returns:
        False if labels are indices of classes.
    """
    return squeezed(output.shape) == squeezed(labels.shape)


def outside(labels: Tensor, classes: int) -> float | None:
    """Return a label that counts and is not between 0 and `classes` - 1.

    Args:
        labels: of any shape; -100 does not count.
        classes: number of classes.

    Returns:
        The first such label; None if there is none.
    """
    wrong = labels[~((labels >= 0) & (labels <= classes - 1)) & (labels != IGNORED)]
    return wrong[0].item() if wrong.numel() else None


def shapes_of(output: Tensor, labels: Tensor) -> str:
    """Return the shapes of an output and its labels in words, for messages.

    Args:
        output: (n, ...).
        labels: of the same batch.

    Returns:
        Such as "outputs (8, 10) with int64 targets (8,)".
    """
    kind = str(labels.dtype).removeprefix("torch.")
    return f"outputs {tuple(output.shape)} with {kind} targets {tuple(labels.shape)}"


def labels_fit(kind: OutputKind, output: Tensor, labels: Tensor) -> bool:
    """Return True if `default_loss` can be computed from these shapes.

    Args:
        kind: of the output.
        output: (n, ...).
        labels: of the same batch.

    Returns:
        True if there is one label per element, or one index of a class per position.
    """
    if one_each(output, labels):
        return True
    if kind.kind != "softmax":
        return False
    return labels.numel() * output.shape[kind.class_dim or -1] == output.numel()


def default_loss(kind: OutputKind, output: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy, binary cross-entropy or squared error of an output.

    Args:
        kind: of the output.
        output: (n, ...).
        labels: one per element, or one index of a class per position; -100 does not count, but
            where a sample has a single value.

    Returns:
        Scalar, the mean over the labels that count.

    Raises:
        TaskError: the labels do not fit the output in shape or value.
    """
    labels = labels.to(output.device)
    if not labels_fit(kind, output, labels):
        raise TaskError(f"task: {shapes_of(output, labels)} fit no loss of {kind.kind}; give loss")
    if not kind.is_logits:
        wanted = labels.to(output.dtype).reshape(output.shape)
        errors = F.mse_loss(output, wanted, reduction="none")
        if output[:1].numel() == 1:  # a value per sample may be any number
            return errors.mean()
        counts = wanted != IGNORED
        return (errors * counts).sum() / counts.sum().clamp_min(1)
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
            f"task: target {wrong} is none of the {logits.shape[-1]} classes; "
            f"nearest: {IGNORED} for what does not count"
        )
    total = F.cross_entropy(logits.flatten(0, -2), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp_min(1)


def position_divergence(
    kind: OutputKind, student: Tensor, teacher: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return KL(teacher || student) at each position of two outputs that give probabilities.

    Args:
        kind: of both outputs, "softmax" or "bernoulli".
        student: (n, ...) output of the student.
        teacher: the same of the teacher.
        temperature: divides the logits of both (Hinton et al. 2015).

    Returns:
        (n, ...) without the dimension of the classes, which are summed over.
    """
    student, teacher = kind.logits(student) / temperature, kind.logits(teacher) / temperature
    if kind.kind == "softmax":
        logs = student.log_softmax(-1), teacher.log_softmax(-1)
        return F.kl_div(*logs, reduction="none", log_target=True).sum(-1)
    yes = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    return yes + (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))


def sample_divergence(kind: OutputKind, student: Tensor, teacher: Tensor) -> Tensor:
    """Return the distance of two outputs per sample.

    Args:
        kind: of both outputs.
        student: (n, ...) output of the student.
        teacher: the same of the teacher.

    Returns:
        (n,), 0 where equal: KL, the squared difference of numbers, or 1 - cosine of embeddings.
    """
    if kind.is_logits:
        positions = position_divergence(kind, student, teacher).reshape(len(student), -1)
        return positions.mean(1).clamp_min(0)
    student, teacher = student.reshape(len(student), -1), teacher.reshape(len(teacher), -1)
    if teacher.shape[1] == 1:
        return (student - teacher).square().mean(1)
    return 1 - F.cosine_similarity(student, teacher, dim=1)


def counted(labels: Tensor | None, positions: Tensor) -> Tensor | None:
    """Return a mask of the positions that count.

    Args:
        labels: of the batch, or None.
        positions: of any shape; its values are not read.

    Returns:
        Boolean mask of the shape of `positions`; None if all count or the labels do not tell.
    """
    if labels is None or labels.numel() != positions.numel():
        return None
    return (labels != IGNORED).reshape(positions.shape)

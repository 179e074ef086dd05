"""Compute the loss of recovery: the task's own and the distance from the teacher's answers.

Source: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", sec. 2.
`cycle.py` calls it for every batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.candidate import Distillation
from autocompress.compress.recover.teacher import Outputs, TopLogits
from autocompress.task.calls import target_of
from autocompress.task.outputs import OutputKind, as_labels, counted, position_divergence
from autocompress.task.task import Task


def distillation_loss(
    task: Task,
    student: Mapping[str, Tensor],
    teacher: Outputs,
    target: Any,
    distillation: Distillation,
) -> Tensor:
    """Return alpha * task loss + (1 - alpha) * T^2 * KL(teacher || student at temperature T).

    Both terms are weighted sums over all outputs. Without a target that gives a loss, only the
    second term is left, whatever alpha is. The second term is the task's divergence for outputs
    that are not logits, and for the primary output if the task has a divergence of its own.

    Args:
        task: gives loss, divergence and weights of outputs.
        student: outputs of the student by name.
        teacher: answers of the teacher by name; may be empty at alpha = 1.
        target: target of the batch; None without labels.
        distillation: gives alpha and the temperature T.

    Returns:
        () loss, minimised.
    """
    if not task.teaches(target):
        return soft_loss(task, student, teacher, target, distillation.temperature)
    hard = task.training_loss(student, target)
    if distillation.alpha == 1:
        return hard
    soft = soft_loss(task, student, teacher, target, distillation.temperature)
    return distillation.alpha * hard + (1 - distillation.alpha) * soft


def soft_loss(
    task: Task, student: Mapping[str, Tensor], teacher: Outputs, target: Any, temperature: float
) -> Tensor:
    """Return the weighted distance of all outputs from the teacher's.

    Args:
        task: gives divergence and weights of outputs.
        student: outputs of the student by name.
        teacher: answers of the teacher by name, at least one.
        target: positions whose label is -100 do not count; None counts all.
        temperature: T; logits are divided by it, and their KL is multiplied by T^2.

    Returns:
        () loss, minimised.
    """
    weights = task.output_weights or {"": 1.0}
    losses = []
    for name, answer in teacher.items():
        has_own_divergence = task.divergence is not None and name == task.primary_name
        if not has_own_divergence and task.is_logits(name):
            labels = as_labels(target_of(target, name))
            divergence = _divergence(task.kind_of(name), student[name], answer, labels, temperature)
            losses.append(weights[name] * temperature**2 * divergence)
        else:
            assert isinstance(answer, Tensor)
            divergence = task.output_divergence(student[name], answer, name).mean()
            losses.append(weights[name] * divergence)
    return torch.stack(losses).sum()


def _divergence(
    kind: OutputKind,
    student: Tensor,
    teacher: Tensor | TopLogits,
    labels: Tensor | None,
    temperature: float,
) -> Tensor:
    """Return the mean over samples (and positions) of KL(teacher || student)."""
    if isinstance(teacher, TopLogits):
        # All classes but the largest form one class, so that the student cannot gain by spreading
        # probability over them.
        log_q = (kind.logits(student) / temperature).log_softmax(-1).gather(-1, teacher.indices)
        log_p, log_q = _with_rest(teacher.log_probabilities(temperature)), _with_rest(log_q)
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    else:
        divergence = position_divergence(kind, student, teacher, temperature)
    counts = counted(labels, divergence)
    if counts is None:
        return divergence.mean()
    counts = counts.to(divergence.device)
    return (divergence * counts).sum() / counts.sum().clamp_min(1)


def _with_rest(log_probabilities: Tensor) -> Tensor:
    """Return (..., k + 1): the log of the remaining probability is the last class."""
    rest = torch.log1p(-log_probabilities.exp().sum(-1, keepdim=True).clamp_max(1 - 1e-6))
    return torch.cat([log_probabilities, rest], -1)

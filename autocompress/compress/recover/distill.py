"""The loss of recovery: the task's own and the distance from the original's answers (Hinton, Vinyals and Dean 2015, sec. 2)."""

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
    """alpha * task loss + (1 - alpha) * T^2 * KL(teacher || student at temperature T), both over all outputs with their weights.

    Without a target that gives a loss only the second term is left, whatever alpha is; at alpha = 1 `teacher` may be empty. Outputs
    that are not logits, and the primary one where the task has a divergence of its own, use the task's divergence for the second term.
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
    """The distance of all outputs from the teacher's, weighted; positions whose target is -100 do not count."""
    weights = task.output_weights or {"": 1.0}
    losses = []
    for name, answer in teacher.items():
        own = task.divergence is not None and name == task.primary_name
        if not own and task.is_logits(name):
            labels = as_labels(target_of(target, name))
            losses.append(
                weights[name]
                * temperature**2
                * _divergence(task.kind_of(name), student[name], answer, labels, temperature)
            )
        else:
            assert isinstance(answer, Tensor)
            losses.append(
                weights[name] * task.output_divergence(student[name], answer, name).mean()
            )
    return torch.stack(losses).sum()


def _divergence(
    kind: OutputKind,
    student: Tensor,
    teacher: Tensor | TopLogits,
    labels: Tensor | None,
    temperature: float,
) -> Tensor:
    """Mean over samples (and positions) of KL(teacher || student)."""
    if isinstance(teacher, TopLogits):
        # What is not among the kept classes is one class more, so that a student cannot gain by spreading mass over the rest.
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
    """(..., k + 1) with the log of what is left to 1 as the last class."""
    rest = torch.log1p(-log_probabilities.exp().sum(-1, keepdim=True).clamp_max(1 - 1e-6))
    return torch.cat([log_probabilities, rest], -1)

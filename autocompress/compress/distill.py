"""Recovery of a compressed model by distillation from the original (Hinton, Vinyals and Dean 2015, sec. 2)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.candidate import Distillation
from autocompress.errors import NotComputableError
from autocompress.task import Task, call_model, map_inputs


def distillation_loss(task: Task, student: Tensor, teacher: Tensor, target: Any, distillation: Distillation) -> Tensor:
    """alpha * task loss + (1 - alpha) * T^2 * KL(teacher || student at temperature T).

    Without a target only the second term is left, whatever alpha is. Outputs that are not logits use the task's divergence.
    """
    temperature = distillation.temperature
    if task.classifies and task.divergence is None:
        divergence = F.kl_div(
            (student / temperature).log_softmax(-1),
            (teacher / temperature).log_softmax(-1),
            reduction="none",
            log_target=True,
        )
        soft = temperature**2 * divergence.sum(-1).mean()
    else:
        soft = task.output_divergence(student, teacher).mean()
    if target is None:
        return soft
    hard = task.training_loss(student, target)
    return distillation.alpha * hard + (1 - distillation.alpha) * soft


def distil(
    task: Task,
    student: nn.Module,
    teacher: nn.Module,
    distillation: Distillation,
    device: torch.device,
    learning_rate: float = 2e-4,
) -> None:
    """Train the parameters of `student` in place for `distillation.steps` batches, AdamW with a cosine schedule.

    Both models stay in eval mode: batch statistics are frozen and dropout is off. A loss that is not finite raises
    NotComputableError.
    """
    parameters = [p for p in student.parameters() if p.is_floating_point()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, distillation.steps))
    step = 0
    while step < distillation.steps:
        for inputs, target in task.training_batches():
            inputs = map_inputs(inputs, lambda tensor: tensor.to(device))
            target = target.to(device) if isinstance(target, Tensor) else target
            with torch.no_grad():
                reference = call_model(teacher, inputs)
            loss = distillation_loss(task, call_model(student, inputs), reference, target, distillation)
            if not math.isfinite(float(loss.detach())):
                raise NotComputableError(f"recovery: loss is {float(loss.detach())} at step {step} of {distillation.steps}")
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if step >= distillation.steps:
                break
    for parameter in parameters:
        parameter.requires_grad_(False)

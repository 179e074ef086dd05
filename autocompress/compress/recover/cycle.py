"""The training of recovery: one cosine cycle over any student, from the teacher's answers, resumable at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.candidate import Distillation
from autocompress.compress.recover.context import (
    Trainer,
    out_of_memory,
    parameter_groups,
    recomputing,
    stream,
)
from autocompress.compress.recover.distill import distillation_loss
from autocompress.compress.recover.features import FeatureMatcher
from autocompress.compress.recover.sequences import as_batch
from autocompress.compress.recover.teacher import Outputs, TopLogits
from autocompress.errors import DamagedFileError, NotComputableError
from autocompress.results.tensor_files import read_state, write_state
from autocompress.task.batches import Inputs, batch_size, cut, seeded, target_to_device, to_device

SCALE_RATE = (
    1.0  # learning rate of scales (relative to what calibration found) against the weights'
)
FLOAT_RATE = 1.0  # of biases, normalisations and what else stays float
PROJECTION_RATE = 10.0  # of the features' projections, which start from nothing
CLIP = 1.0
BETAS = (
    0.9,
    0.95,
)  # short trainings start from a good model: the first steps must not throw it about
WARM_UP = 10
CHECKS = 5  # looks at the validation divergence per cycle
LEAST_GAP = 20  # steps between two looks
PATIENCE = 3  # looks without improvement until a cycle ends
SAVE_S = 60.0  # seconds between checkpoints


def rate(step: int, steps: int) -> float:
    """Share of the learning rate at a step of a cycle: a linear warm-up over a third of it, WARM_UP steps at most, times the cosine."""
    return (
        min(1.0, (step + 1) / max(1, min(WARM_UP, steps // 3)))
        * 0.5
        * (1 + math.cos(math.pi * step / steps))
    )


@dataclass
class Cycle:
    """One run of the cosine schedule: `steps` optimizer steps on `student`, in place, from `start` on in the stream of batches.

    The student stays in eval mode: batch statistics are frozen and dropout is off. Every few steps it is compared with the teacher on
    validation inputs; the best weights are what is left at the end, and a cycle that does not get better ends early. With a
    `checkpoint` path the state is kept there once a minute, and taken up from there.
    """

    trainer: Trainer
    student: nn.Module
    distillation: Distillation
    steps: int
    start: int = 0
    matcher: FeatureMatcher | None = None
    checkpoint: Path | None = None
    stop: Callable[[], bool] = lambda: False
    step: int = 0
    parts: int = 1
    best: dict[str, Tensor] = field(default_factory=dict)
    best_divergence: float = float("inf")
    stale: int = 0
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    scaler: torch.amp.GradScaler = field(
        default_factory=lambda: torch.amp.GradScaler(enabled=False)
    )

    def run(self) -> int:
        """Train; returns the steps taken. NotComputableError for a loss or a gradient that is not finite."""
        if self.steps <= 0:
            return 0
        groups = parameter_groups(self.student)
        self.parameters = {
            f"{name}{i}": p for name, group in groups.items() for i, p in enumerate(group)
        }
        if self.matcher is not None:
            self.parameters |= {
                f"projection {name}": p for name, p in self.matcher.named_parameters()
            }
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        try:
            with (
                seeded(self.trainer.seed),
                recomputing(self.student, self.distillation.checkpointing),
            ):
                self._run(self._optimizer(groups))
        finally:
            for parameter in self.parameters.values():
                parameter.requires_grad_(False)
                parameter.grad = None
        return self.step

    def _optimizer(self, groups: Mapping[str, list[nn.Parameter]]) -> torch.optim.Optimizer:
        base = self.distillation.learning_rate
        rates = {"weights": base, "scales": SCALE_RATE * base, "float": FLOAT_RATE * base}
        found = [{"params": group, "lr": rates[name]} for name, group in groups.items() if group]
        if self.matcher is not None and list(self.matcher.parameters()):
            found.append({"params": list(self.matcher.parameters()), "lr": PROJECTION_RATE * base})
        return torch.optim.AdamW(found, betas=BETAS, weight_decay=0.0, fused=True)

    def _run(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler = torch.amp.GradScaler(
            self.trainer.device.type, enabled=self.trainer.dtype == torch.float16
        )
        bases = [group["lr"] for group in optimizer.param_groups]
        if not self._resume(optimizer):
            self._look()
        every = max(LEAST_GAP, -(-self.steps // CHECKS))
        saved = time.monotonic()
        accumulation = self.distillation.accumulation
        batches = stream(
            self.trainer.task, self.trainer.seed, (self.start + self.step) * accumulation
        )
        while self.step < self.steps and self.stale < PATIENCE:
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = base * rate(self.step, self.steps)
            self._gradients([next(batches) for _ in range(accumulation)])
            self._update(optimizer)
            self.step += 1
            stopped = self.stop()
            if self.step % every == 0 or self.step == self.steps or stopped:
                self._look()
            if stopped:
                break
            if self.checkpoint is not None and time.monotonic() - saved > SAVE_S:
                self.save(optimizer)
                saved = time.monotonic()
        if self.checkpoint is not None:
            self.save(optimizer)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.best[name])

    def _look(self) -> None:
        divergence = self.trainer.divergence(self.student)
        self.stale += 1
        if divergence < self.best_divergence or not self.best:
            self.best_divergence, self.stale = divergence, 0
            self.best = {
                name: parameter.detach().clone() for name, parameter in self.parameters.items()
            }

    def _update(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler.unscale_(optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP))
        # With float16 the scaler leaves out a step whose gradients overflowed, and tries a smaller scale.
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise NotComputableError(
                f"recovery: gradient is {norm} at step {self.step} of {self.steps}"
            )
        self.scaler.step(optimizer)
        self.scaler.update()

    def _gradients(self, batches: list[tuple[Inputs, Any]]) -> None:
        """Gradients of the mean loss of `batches`; where memory is short, of smaller and smaller parts of them."""
        while True:
            for parameter in self.parameters.values():
                parameter.grad = None
            try:
                for inputs, target in batches:
                    self._backward(inputs, target, 1 / len(batches))
                return
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                size = min(
                    batch_size(inputs) if self.trainer.task.can_cut(inputs, target) else 1
                    for inputs, target in batches
                )
                if self.parts >= size:
                    raise NotComputableError(
                        f"recovery: out of memory at step {self.step} with {-(-size // self.parts)} sample at a time; "
                        "nearest: distillation: {checkpointing: true}, or a smaller model"
                    ) from error
                self.parts = min(2 * self.parts, size)
            if self.trainer.device.type == "cuda":
                torch.cuda.empty_cache()

    def _backward(self, inputs: Inputs, target: Any, weight: float) -> None:
        trainer, teacher = self.trainer, self.trainer.teacher
        share, step = self.distillation.sequences, self.start + self.step
        if int((step + 1) * share) > int(step * share):
            inputs, target = as_batch(inputs, teacher.continued(inputs), trainer.shifted)
        asks = target is None or self.distillation.alpha < 1
        answers = teacher.outputs(inputs) if asks and self.matcher is None else {}
        size = batch_size(inputs)
        length = -(-size // self.parts)
        for first in range(0, size, length):
            rows = slice(first, first + length)
            some, wanted = (inputs, target) if self.parts == 1 else cut(inputs, target, rows)
            some, wanted = to_device(some, trainer.device), target_to_device(wanted, trainer.device)
            known = (
                answers
                if self.parts == 1
                else {name: _rows(answer, rows, size) for name, answer in answers.items()}
            )
            loss = self._loss(some, wanted, known)
            if not math.isfinite(float(loss.detach())):
                raise NotComputableError(
                    f"recovery: loss is {float(loss.detach())} at step {self.step} of {self.steps}"
                )
            torch.autograd.backward(self.scaler.scale(loss * (weight * batch_size(some) / size)))

    def _loss(self, inputs: Inputs, target: Any, answers: Outputs) -> Tensor:
        trainer = self.trainer
        with torch.autocast(
            trainer.device.type, trainer.dtype, enabled=trainer.dtype != torch.float32
        ):
            outputs = trainer.task.outputs_of(self.student, inputs)
        if self.matcher is not None:
            with torch.no_grad():
                found = trainer.task.outputs_of(trainer.teacher.model, inputs)
            answers = {
                name: trainer.teacher.reduced(name, output) for name, output in found.items()
            }
        outputs = {name: output.float() for name, output in outputs.items()}
        loss = distillation_loss(trainer.task, outputs, answers, target, self.distillation)
        return (
            loss
            if self.matcher is None
            else loss + self.distillation.features * self.matcher.loss()
        )

    def save(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the checkpoint, whole or not at all."""
        assert self.checkpoint is not None
        state = {
            "settings": [self.steps, self.start, self.trainer.seed, self.distillation.to_json()],
            "progress": [self.step, self.parts, self.best_divergence, self.stale],
            "parameters": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "best": self.best,
            "optimizer": optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        write_state(self.checkpoint, state)

    def _resume(self, optimizer: torch.optim.Optimizer) -> bool:
        if self.checkpoint is None or not self.checkpoint.is_file():
            return False
        try:
            state = read_state(self.checkpoint, self.trainer.device)
        except DamagedFileError:
            return False  # the steps are made again
        if state["settings"] != [
            self.steps,
            self.start,
            self.trainer.seed,
            self.distillation.to_json(),
        ]:
            return False
        self.step, self.parts, self.best_divergence, self.stale = state["progress"]
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.best = state["best"]
        optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        return True


def _rows(answer: Tensor | TopLogits, samples: slice, size: int) -> Tensor | TopLogits:
    """The answers to some samples of a batch of `size`; a sample may have several rows of output."""
    each = (len(answer) if isinstance(answer, Tensor) else len(answer.values)) // size
    rows = slice(samples.start * each, samples.stop * each)
    if isinstance(answer, Tensor):
        return answer[rows]
    return TopLogits(
        answer.values[rows], answer.indices[rows], answer.log_sums[rows], answer.temperatures
    )

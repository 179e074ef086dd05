"""Train a student from the teacher's answers in one cosine cycle that can resume at any step.

`recover.py` runs cycles over candidates, `student.py` one over a student of another architecture.
"""

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
    LEAST_BATCH,
    Trainer,
    learning,
    parameter_groups,
    recomputing,
    stream,
    with_batch_statistics,
)
from autocompress.compress.recover.distill import distillation_loss
from autocompress.compress.recover.features import FeatureMatcher
from autocompress.compress.recover.sequences import as_batch
from autocompress.compress.recover.teacher import Outputs, TopLogits
from autocompress.errors import DamagedFileError, NotComputableError
from autocompress.results.tensor_files import read_state, write_state
from autocompress.task.batches import Inputs, batch_size, cut, seeded, target_to_device, to_device
from autocompress.task.user_code import out_of_memory

# Learning rates, relative to the weights' rate.
SCALE_RATE = 1.0  # of scales, which are factors of the calibrated ones
FLOAT_RATE = 1.0  # of biases, normalisations and other float parameters
PROJECTION_RATE = 10.0  # of the features' projections, which start from random values
CLIP = 1.0  # largest norm of the gradient
# The second beta is low, because a short training has few steps to average gradients over.
BETAS = (0.9, 0.95)
WARM_UP = 10  # steps, at most a third of the cycle
CHECKS = 5  # measurements of the validation divergence per cycle
LEAST_GAP = 20  # steps between two measurements
PATIENCE = 3  # measurements without improvement until a cycle ends
VIEWS = 1_000_003  # apart are the seeds of views of two trainings
SAVE_S = 60.0  # seconds between checkpoints


def rate(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: linear warm-up times cosine.

    Source of the cosine: Loshchilov and Hutter 2017, eq. 5, with one cycle down to 0.

    Args:
        step: 0 to steps - 1.
        steps: steps of the cycle.

    Returns:
        Factor in (0, 1].
    """
    warm_up = min(1.0, (step + 1) / max(1, min(WARM_UP, steps // 3)))
    return warm_up * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass
class Cycle:
    """Run the cosine schedule once: AdamW steps on a student, in place.

    The student stays in eval mode, so that dropout is off. Batch normalisations keep their
    statistics; with `renew` they take those of each batch. Every
    few steps its divergence from the teacher is measured on validation inputs. The weights with the
    lowest divergence are restored at the end. A cycle that does not improve ends early.

    Attributes:
        trainer: data, teacher, floating-point type and seed.
        student: the model that learns.
        distillation: gives loss, learning rate, accumulation and checkpointing.
        steps: optimizer steps of the cycle's schedule.
        start: optimizer steps before this cycle; the stream of batches goes on from there.
        matcher: adds the loss of matched features; None for none.
        checkpoint: file to which the state is written once a minute, and from which an interrupted
            cycle resumes; None for none.
        stop: called after each step; True ends the cycle.
        renew: estimates the statistics of batch normalisations for the weights of now; called
            before each measurement and at the end. None freezes them.
        end: steps after which the cycle ends, before its schedule does; 0 for none.
        step: optimizer steps so far.
        parts: number of parts that batches are cut into, because memory is short.
        best: parameters at the lowest divergence so far.
        best_divergence: the lowest divergence so far.
        stale: measurements since the lowest divergence.
        parameters: the parameters that learn, by name.
        scaler: scales the loss of float16 training.
    """

    trainer: Trainer
    student: nn.Module
    distillation: Distillation
    steps: int
    start: int = 0
    matcher: FeatureMatcher | None = None
    checkpoint: Path | None = None
    stop: Callable[[], bool] = lambda: False
    renew: Callable[[], None] | None = None
    end: int = 0
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
        """Train the student.

        Returns:
            Optimizer steps so far, those before a resume included.

        Raises:
            NotComputableError: if a loss or a gradient is not finite, or memory is too short for
                one sample.
        """
        if self.steps <= 0:
            return 0
        groups = parameter_groups(self.student)
        self.parameters = {}
        for name, group in groups.items():
            for i, parameter in enumerate(group):
                self.parameters[f"{name}{i}"] = parameter
        if self.matcher is not None:
            for name, parameter in self.matcher.named_parameters():
                self.parameters[f"projection {name}"] = parameter
        with (
            learning(self.parameters.values()),
            seeded(self.trainer.seed),
            recomputing(self.student, self.distillation.checkpointing),
        ):
            self._run(self._optimizer(groups))
        return self.step

    def _optimizer(self, groups: Mapping[str, list[nn.Parameter]]) -> torch.optim.Optimizer:
        base = self.distillation.learning_rate
        rates = {"weights": base, "scales": SCALE_RATE * base, "float": FLOAT_RATE * base}
        options = [{"params": group, "lr": rates[name]} for name, group in groups.items() if group]
        projections = [] if self.matcher is None else list(self.matcher.parameters())
        if projections:
            options.append({"params": projections, "lr": PROJECTION_RATE * base})
        return torch.optim.AdamW(options, betas=BETAS, weight_decay=0.0, fused=True)

    def _run(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler = torch.amp.GradScaler(
            self.trainer.device.type, enabled=self.trainer.arithmetic == torch.float16
        )
        bases = [group["lr"] for group in optimizer.param_groups]
        if not self._resume(optimizer):
            self._measure()
        every = max(LEAST_GAP, -(-self.steps // CHECKS))
        saved = time.monotonic()
        accumulation = self.distillation.accumulation
        skip = (self.start + self.step) * accumulation
        batches = stream(self.trainer.task, self.trainer.seed, skip)
        measured_at = 0
        while self.step < (self.end or self.steps) and self.stale < PATIENCE:
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = base * rate(self.step, self.steps)
            self._gradients([self._view(*next(batches), i) for i in range(accumulation)])
            self._update(optimizer)
            self.step += 1
            stopped = self.stop()
            if self.step % every == 0 or self.step == self.steps:
                self._measure()
                measured_at = self.step
            if stopped:
                break
            if self.checkpoint is not None and time.monotonic() - saved > SAVE_S:
                self.save(optimizer)
                saved = time.monotonic()
        if self.checkpoint is not None:
            self.save(optimizer)
        # Not part of the checkpoint: a cycle that was never stopped has no such measurement.
        if 0 < self.step != measured_at:
            self._measure()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.best[name])
        if self.renew is not None:
            self.renew()

    def _view(self, inputs: Inputs, target: Any, i: int) -> tuple[Inputs, Any]:
        """Return batch i of this step as student and teacher see it; it depends on the step."""
        at = (self.start + self.step) * self.distillation.accumulation + i
        seed = (VIEWS * (self.trainer.seed + 1) + at) % (1 << 63)
        return self.trainer.task.view(inputs, seed), target

    def _measure(self) -> None:
        """Measure the divergence and remember the parameters if it is the lowest."""
        if self.renew is not None:
            self.renew()
        divergence = self.trainer.divergence(self.student)
        self.stale += 1
        if divergence < self.best_divergence or not self.best:
            self.best_divergence, self.stale = divergence, 0
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}

    def _update(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler.unscale_(optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP))
        # With float16 the scaler skips a step whose gradients overflowed and lowers its scale.
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise NotComputableError(
                f"recovery: gradient is {norm} at step {self.step} of {self.steps}"
            )
        self.scaler.step(optimizer)
        self.scaler.update()

    def _gradients(self, batches: list[tuple[Inputs, Any]]) -> None:
        """Compute gradients of the batches' mean loss; halve the parts until memory suffices."""
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
                size = min(self._samples(inputs, target) for inputs, target in batches)
                if self.parts >= size:
                    raise NotComputableError(
                        f"recovery: out of memory at step {self.step} "
                        f"with {-(-size // self.parts)} sample at a time; "
                        "nearest: distillation: {checkpointing: true}, or a smaller model"
                    ) from error
                self.parts = min(2 * self.parts, size)
            if self.trainer.device.type == "cuda":
                torch.cuda.empty_cache()

    def _samples(self, inputs: Inputs, target: Any) -> int:
        """Return the number of parts that a batch can be cut into."""
        return batch_size(inputs) if self.trainer.task.can_cut(inputs, target) else 1

    def _backward(self, inputs: Inputs, target: Any, weight: float) -> None:
        trainer, teacher = self.trainer, self.trainer.teacher
        share, step = self.distillation.sequences, self.start + self.step
        if int((step + 1) * share) > int(step * share):
            inputs, target = as_batch(inputs, teacher.continued(inputs), trainer.shifted)
        needs_answers = self.distillation.alpha < 1 or not trainer.task.teaches(target)
        answers = teacher.outputs(inputs) if needs_answers and self.matcher is None else {}
        size = batch_size(inputs)
        length = -(-size // self.parts)
        for first in range(0, size, length):
            rows = slice(first, first + length)
            part, labels, part_answers = inputs, target, answers
            if self.parts > 1:
                part, labels = cut(inputs, target, rows)
                part_answers = {name: _rows(a, rows, size) for name, a in answers.items()}
            part, labels = to_device(part, trainer.device), target_to_device(labels, trainer.device)
            own = batch_size(part)
            normed = self.renew is not None and own >= LEAST_BATCH
            # Blocks may be computed again in the backward pass.
            with with_batch_statistics(self.student, normed):
                loss = self._loss(part, labels, part_answers)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise NotComputableError(
                        f"recovery: loss is {value} at step {self.step} of {self.steps}"
                    )
                torch.autograd.backward(self.scaler.scale(loss * (weight * own / size)))

    def _loss(self, inputs: Inputs, target: Any, answers: Outputs) -> Tensor:
        trainer = self.trainer
        dtype = trainer.arithmetic
        with torch.autocast(trainer.device.type, dtype, enabled=dtype != torch.float32):
            outputs = trainer.task.outputs_of(self.student, inputs)
        if self.matcher is not None:
            # The matcher needs the teacher's own forward pass, so that answers are not read from
            # disk.
            with torch.no_grad():
                originals = trainer.task.outputs_of(trainer.teacher.model, inputs)
            answers = {name: trainer.teacher.reduced(name, o) for name, o in originals.items()}
        outputs = {name: output.float() for name, output in outputs.items()}
        loss = distillation_loss(trainer.task, outputs, answers, target, self.distillation)
        if self.matcher is None:
            return loss
        return loss + self.distillation.features * self.matcher.loss()

    def save(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the checkpoint, whole or not at all.

        Args:
            optimizer: its state is part of the checkpoint.
        """
        assert self.checkpoint is not None
        state = {
            "settings": self._settings(),
            "progress": [self.step, self.parts, self.best_divergence, self.stale],
            "parameters": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "best": self.best,
            "optimizer": optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        write_state(self.checkpoint, state)

    def _settings(self) -> list[Any]:
        """Return the settings with which a checkpoint must agree."""
        return [self.steps, self.start, self.trainer.seed, self.distillation.to_json()]

    def _resume(self, optimizer: torch.optim.Optimizer) -> bool:
        """Take up the checkpoint; return False if there is none that fits."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return False
        try:
            state = read_state(self.checkpoint, self.trainer.device)
        except DamagedFileError:
            return False  # train from the start again
        if state["settings"] != self._settings():
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
    """Return the answers to some samples of a batch; a sample may have several rows of output."""
    each = (len(answer) if isinstance(answer, Tensor) else len(answer.values)) // size
    rows = slice(samples.start * each, samples.stop * each)
    if isinstance(answer, Tensor):
        return answer[rows]
    return TopLogits(
        answer.values[rows], answer.indices[rows], answer.log_sums[rows], answer.temperatures
    )

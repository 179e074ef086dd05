"""Hold the shared parts of all trainings of a task: ordered data, teacher, floating-point type.

It also picks the parameters that learn and recomputes activations. `cycle.py` trains with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from autocompress.compress.assemble.calls import Calls
from autocompress.compress.assemble.fake_quant import SimulatedModule
from autocompress.compress.calibrate.batch_norm import NORMS
from autocompress.compress.quantize.activation import RangeQuantizer
from autocompress.compress.recover.precision import known_dtype, training_dtype
from autocompress.compress.recover.sequences import check_causal
from autocompress.compress.recover.teacher import Teacher
from autocompress.spill import SpilledRows
from autocompress.task.batches import Inputs, seed_all, target_to_device, to_device
from autocompress.task.calls import call_model, target_of
from autocompress.task.outputs import as_labels, counted, position_divergence
from autocompress.task.task import Task

LEAST_BATCH = 16  # samples with which a batch's own statistics may normalise it
WATCHED = 128  # validation samples on which the student is compared with the teacher


@dataclass
class Trainer:
    """Hold the parts that the recovery of all candidates of a task shares.

    Attributes:
        task: gives training and validation data.
        teacher: the original model and its answers.
        dtype: floating-point type of the forward pass; float32, bfloat16 or float16. None lets the
            first training choose (`settle`).
        seed: seed of the order of batches and of training.
        timings: cache of the measurements that choose the type; None for none.
    """

    task: Task
    teacher: Teacher
    dtype: torch.dtype | None = torch.float32
    seed: int = 0
    timings: Path | None = None

    @property
    def device(self) -> torch.device:
        """Return the device of training."""
        return self.teacher.device

    @property
    def arithmetic(self) -> torch.dtype:
        """Return the type in which this or another process on this machine trains.

        It is float32 as long as no training has chosen.
        """
        if self.dtype is not None:
            return self.dtype
        return known_dtype(self.task, self.device, self.timings) or torch.float32

    def settle(self, student: nn.Module) -> None:
        """Choose the floating-point type if no training has; it may take a few seconds.

        Args:
            student: the first model to be trained; it is not changed.
        """
        if self.dtype is None:
            self.dtype = training_dtype(self.task, student, self.device, self.timings)

    @cached_property
    def watched(self) -> tuple[list[tuple[Inputs, Tensor | None]], SpilledRows[Inputs]]:
        """Return batches of validation inputs with their labels, and the teacher's outputs."""
        batches: list[tuple[Inputs, Tensor | None]] = []
        answers = SpilledRows(self._answered)
        for inputs, target in self.task.first_samples(self.task.validation, WATCHED):
            own, labels = to_device(inputs, self.device), None
            if target is not None:
                labels = as_labels(target_of(target, self.task.primary_name))
            batches.append((own, labels))
            answers.add(self._answered(own))
        return batches, answers

    @torch.no_grad()
    def _answered(self, inputs: Inputs) -> Tensor:
        answer = self.task.rows(call_model(self.teacher.model, inputs))
        return answer.to("cpu", torch.float32, copy=True)  # the model may write over it

    @torch.no_grad()
    def divergence(self, student: nn.Module) -> float:
        """Return the mean distance of a student from the teacher on the watched samples.

        Positions whose label is -100 do not count, as in the loss of training.

        Args:
            student: a model on the device, in eval mode.

        Returns:
            Mean divergence of the primary output, at least 0.
        """
        divergences, seen = list[Tensor](), 0
        batches, answers = self.watched
        for inputs, labels in batches:
            output = self.task.rows(call_model(student, inputs)).float()
            reference = answers.take(range(seen, seen + len(output)), inputs).to(self.device)
            divergences.append(self._distances(output, reference, labels))
            seen += len(output)
        distances = torch.cat(divergences)
        return float(distances.mean()) if len(distances) else 0.0

    def _distances(self, output: Tensor, reference: Tensor, labels: Tensor | None) -> Tensor:
        """Return the distance of each sample, or of each position that counts if labels tell."""
        task, name = self.task, self.task.primary_name
        if task.divergence is None and task.is_logits(name):
            positions = position_divergence(task.kind_of(name), output, reference)
            counts = counted(labels, positions)
            if counts is not None:
                return positions[counts.to(positions.device)].clamp_min(0)
        return task.output_divergence(output, reference)

    @cached_property
    def shifted(self) -> bool:
        """Return True if the causal language model's targets are its inputs shifted by one.

        Raises:
            TaskError: if the model is no causal language model.
        """
        inputs, target = next(iter(self.task.training_batches()))
        return check_causal(
            self.teacher.model,
            to_device(inputs, self.device),
            target_to_device(target, self.device),
        )


def parameter_groups(
    student: nn.Module, model: nn.Module | None = None
) -> dict[str, list[nn.Parameter]]:
    """Return the parameters that learn, each once, by kind.

    Parameters that the user froze, such as tables of positions, stay as they are, unless the whole
    model is frozen. Weights of simulated modules always learn, since they were rounded.

    Args:
        student: a simulated or a plain model, or a part of one.
        model: of which the student is a part; None for the student itself.

    Returns:
        "weights": master weights of simulated modules, or all parameters of a plain model.
        "scales": steps of weights and of activation ranges.
        "float": other parameters of a simulated model.
    """
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "scales": [], "float": []}
    seen: set[int] = set()
    simulated = any(isinstance(module, SimulatedModule) for module in student.modules())
    frozen = _frozen(student if model is None else model)

    def add(group: str, parameters: Any) -> None:
        for parameter in parameters:
            if (
                parameter is not None
                and parameter.is_floating_point()
                and parameter.numel()
                and id(parameter) not in seen
                and id(parameter) not in frozen
            ):
                seen.add(id(parameter))
                groups[group].append(parameter)

    for module in student.modules():
        if isinstance(module, SimulatedModule):
            add("weights", module.trained or ())
            add("scales", module.trained_steps or ())
        elif isinstance(module, RangeQuantizer):
            add("scales", (module.factor,))
    add("float" if simulated else "weights", student.parameters())
    return groups


def _frozen(model: nn.Module) -> set[int]:
    """Return the identities of the parameters that the user froze; none if all are frozen."""
    made: set[int] = set()  # for the training
    learns = False
    for module in model.modules():
        if isinstance(module, SimulatedModule):
            learns = learns or module.source_learns
            made |= {id(parameter) for parameter in module.parameters()}
        elif isinstance(module, RangeQuantizer):
            made |= {id(parameter) for parameter in module.parameters()}
    others = [parameter for parameter in model.parameters() if id(parameter) not in made]
    frozen = {id(parameter) for parameter in others if not parameter.requires_grad}
    return frozen if learns or len(frozen) < len(others) else set()


@contextlib.contextmanager
def learning(parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """Let parameters have gradients inside the context.

    Args:
        parameters: they have no gradients behind the context, and may learn again if they could.
    """
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, learns in zip(parameters, before, strict=True):
            parameter.requires_grad_(learns)
            parameter.grad = None


def stream(task: Task, seed: int, skip: int) -> Iterator[tuple[Inputs, Any]]:
    """Yield training batches without end; their order depends on the seed alone.

    Args:
        task: gives the training batches.
        seed: seed of the first pass; each further pass adds 1.
        skip: number of batches to leave out at the start.

    Yields:
        Inputs and target.
    """
    passes = 0
    while True:
        seed_all(seed + passes)
        for batch in task.training_batches():
            if skip > 0:
                skip -= 1
                continue
            yield batch
        passes += 1


@contextlib.contextmanager
def recomputing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Store only the inputs of each repeated block and recompute the block in the backward pass.

    The model is changed inside the context only. Source: Chen et al. 2016.

    Args:
        model: a model whose repeated blocks are elements of ModuleLists.
        wanted: False changes nothing.
    """
    simulated: dict[str, SimulatedModule] = {}
    for name, module in model.named_modules():
        if isinstance(module, SimulatedModule):
            simulated[name] = module
    calls = next(iter(simulated.values())).calls if simulated else Calls()
    blocks = _repeated_blocks(model, tuple(f"{name}." for name in simulated)) if wanted else []
    for block in blocks:
        block.forward = partial(
            recomputed, block.forward, use_reentrant=False, context_fn=calls.recomputing
        )
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextlib.contextmanager
def with_batch_statistics(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Normalise each batch by its own statistics inside the context.

    The statistics that the model holds are not changed.

    Args:
        model: a model in eval mode.
        wanted: False changes nothing.
    """
    norms: list[Any] = []
    for module in model.modules():
        if wanted and isinstance(module, NORMS) and module.track_running_stats:
            norms.append(module)
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm in norms:
            norm.training, norm.track_running_stats = False, True


def _repeated_blocks(model: nn.Module, inside: tuple[str, ...]) -> list[nn.Module]:
    """Return the elements of the outermost ModuleLists outside of the prefixes `inside`."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not name.startswith(inside):
            lists[name] = module
    blocks: list[nn.Module] = []
    for name, elements in lists.items():
        if not any(name.startswith(f"{other}.") for other in lists):
            blocks += elements
    return blocks

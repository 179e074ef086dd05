"""What the recovery of all candidates of a task shares: data in a fixed order, teacher, type of arithmetic, parameters that learn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from autocompress.compress.assemble.calls import Calls
from autocompress.compress.assemble.fake_quant import SimulatedModule
from autocompress.compress.quantize.activation import RangeQuantizer
from autocompress.compress.recover.sequences import check_causal
from autocompress.compress.recover.teacher import Teacher
from autocompress.task.batches import Inputs, seed_all, target_to_device, to_device
from autocompress.task.calls import call_model
from autocompress.task.task import Task

WATCHED = 128  # validation samples


@dataclass
class Trainer:
    """What the recovery of all candidates of a task shares: data, teacher, type of arithmetic, seed."""

    task: Task
    teacher: Teacher
    dtype: torch.dtype = torch.float32
    seed: int = 0

    @property
    def device(self) -> torch.device:
        """Where training runs."""
        return self.teacher.device

    @cached_property
    def watched(self) -> list[tuple[Inputs, Tensor]]:
        """Validation inputs and the teacher's primary outputs."""
        batches = [
            to_device(inputs, self.device)
            for inputs, _ in self.task.first_samples(self.task.validation, WATCHED)
        ]
        with torch.no_grad():
            return [(inputs, call_model(self.teacher.model, inputs).float()) for inputs in batches]

    @torch.no_grad()
    def divergence(self, student: nn.Module) -> float:
        """Mean distance of `student` from the teacher on the watched samples."""
        found = [
            self.task.output_divergence(call_model(student, inputs).float(), reference)
            for inputs, reference in self.watched
        ]
        return float(torch.cat(found).mean())

    @cached_property
    def shifted(self) -> bool:
        """Whether the targets of the causal language model are its inputs shifted by one; TaskError when it is none."""
        inputs, target = next(iter(self.task.training_batches()))
        return check_causal(
            self.teacher.model,
            to_device(inputs, self.device),
            target_to_device(target, self.device),
        )


def parameter_groups(student: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters that learn, each once: "weights", "scales" and "float" parts (those of a plain model are all weights)."""
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "scales": [], "float": []}
    seen: set[int] = set()
    simulated = any(isinstance(module, SimulatedModule) for module in student.modules())

    def add(group: str, parameters: Any) -> None:
        for parameter in parameters:
            if (
                parameter is not None
                and parameter.is_floating_point()
                and parameter.numel()
                and id(parameter) not in seen
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


def stream(task: Task, seed: int, skip: int) -> Iterator[tuple[Inputs, Any]]:
    """Training batches without end, the first `skip` left out; a pass of a loader that shuffles depends on the seed alone."""
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
    """Inside the block every repeated block of `model` keeps its inputs only and is computed again in the backward pass."""
    calls = next(
        (module.calls for module in model.modules() if isinstance(module, SimulatedModule)), Calls()
    )
    inside = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, SimulatedModule)
    )
    named = model.named_modules() if wanted else ()
    lists = {
        name: module
        for name, module in named
        if isinstance(module, nn.ModuleList) and not name.startswith(inside)
    }
    outermost = [
        found
        for name, found in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists)
    ]
    blocks = [block for found in outermost for block in found]
    for block in blocks:
        block.forward = partial(
            recomputed, block.forward, use_reentrant=False, context_fn=calls.recomputing
        )
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in main memory."""
    text = str(error)
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in text
        or "can't allocate memory" in text
    )

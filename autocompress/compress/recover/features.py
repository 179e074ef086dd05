"""Distil features: match outputs of modules of student and teacher (Romero et al. 2015, "FitNets").

`cycle.py` adds the loss to that of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compress.prune.masks import Masks
from autocompress.compress.recover.context import Trainer
from autocompress.errors import TaskError
from autocompress.model.modules import ModuleMap
from autocompress.task.batches import to_device
from autocompress.task.calls import call_model

SPATIAL = (nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)


def matched_by_name(module_map: ModuleMap, teacher: nn.Module) -> dict[str, str]:
    """Match the last compressible module of each block to the teacher's module of the same name.

    A block is the innermost numbered part of the name (an element of a list or a sequence), else
    the parent. The head is left out.

    Args:
        module_map: the compressible modules of the student.
        teacher: the original model.

    Returns:
        Teacher's module by student's module, both by qualified name.
    """
    last: dict[str, str] = {}
    names = dict(teacher.named_modules())
    for module in module_map:
        if module.role == "head" or module.name not in names:
            continue
        parts = module.name.split(".")[:-1]
        while parts and not parts[-1].isdigit() and any(part.isdigit() for part in parts):
            parts.pop()
        last[".".join(parts)] = module.name
    return {name: name for name in last.values()}


class FeatureMatcher(nn.Module):
    """Measure the distance of matched modules' outputs in the last forward passes of two models.

    Hooks on both models store the outputs. Channels that pruning removed are not compared. If
    widths differ, a linear projection of the student's channels is trained with the student and not
    kept.

    Args:
        student: the model that learns.
        teacher: the original model.
        pairs: teacher's module by student's module.
        masks: channels of the student that pruning keeps.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, pairs: Mapping[str, str], masks: Masks
    ) -> None:
        super().__init__()
        self._seen: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self._pairs: dict[str, str] = {}
        self._masks = masks
        self._dimensions: dict[str, int] = {}  # of the channels
        self.projections = nn.ModuleDict()
        self._hooks = []
        for name, matched in pairs.items():
            if masks.dropped(name):
                continue
            learns, teaches = student.get_submodule(name), teacher.get_submodule(matched)
            self._pairs[name] = matched
            self._dimensions[name] = 1 if isinstance(teaches, SPATIAL) else -1
            for module, seen in zip((learns, teaches), self._seen, strict=True):
                hook = partial(_store, seen, name)
                self._hooks.append(module.register_forward_hook(hook))

    def remove(self) -> None:
        """Take the hooks off both models."""
        for hook in self._hooks:
            hook.remove()

    def prepare(self, run: Callable[[], Any]) -> None:
        """Make a projection for each pair whose widths differ.

        Args:
            run: calls both models once.

        Raises:
            TaskError: if the outputs of a pair differ in more than the number of channels.
        """
        with torch.no_grad():
            run()
        # The weights of recurrent layers are not called as modules, so that they have no output.
        called = [name for name in self._pairs if all(name in seen for seen in self._seen)]
        self._pairs = {name: self._pairs[name] for name in called}
        for name in self._pairs:
            student, teacher = self._compared(name, project=False)
            if student.shape == teacher.shape:
                continue
            if student.shape[:-1] != teacher.shape[:-1]:
                raise TaskError(
                    f"task: matched module {name} gives {tuple(student.shape)} "
                    f"where {self._pairs[name]} gives {tuple(teacher.shape)} "
                    "(channels last); only the number of channels may differ"
                )
            generator = torch.Generator().manual_seed(0)
            projection = nn.Linear(student.shape[-1], teacher.shape[-1], bias=False)
            with torch.no_grad():
                noise = torch.randn(projection.weight.shape, generator=generator)
                projection.weight.copy_(noise / student.shape[-1] ** 0.5)
            self.projections[_key(name)] = projection.to(student.device)

    def loss(self) -> Tensor:
        """Return the mean over pairs of ||student - teacher||^2 / ||teacher||^2.

        Returns:
            () loss of the last forward passes of both models; 0 without a pair.
        """
        losses = []
        for name in self._pairs:
            student, teacher = self._compared(name, project=True)
            energy = teacher.square().sum().clamp_min(1e-12)
            losses.append((student - teacher).square().sum() / energy)
        return torch.stack(losses).mean() if losses else torch.zeros(())

    def _compared(self, name: str, project: bool) -> tuple[Tensor, Tensor]:
        """Return the outputs of both modules of a pair as (..., channels)."""
        channels = self._dimensions[name]
        student, teacher = (seen[name].float().transpose(channels, -1) for seen in self._seen)
        key = _key(name)
        if project and key in self.projections:
            return self.projections[key](student), teacher
        mask = self._masks.of(name, "out")
        if mask is None:
            mask = self._masks.of(name, "channel")
        if mask is not None and student.shape == teacher.shape and len(mask) == student.shape[-1]:
            stays = torch.from_numpy(mask).to(student.device)
            return student[..., stays], teacher[..., stays]
        return student, teacher


def _key(name: str) -> str:
    """Return a distinct name without dots, because a ModuleDict allows none."""
    return name.replace("%", "%25").replace(".", "%2E")


def prepared_matcher(
    trainer: Trainer, student: nn.Module, pairs: Mapping[str, str], masks: Masks
) -> FeatureMatcher:
    """Return a matcher of a student and the trainer's teacher, prepared on two training samples.

    Args:
        trainer: gives teacher, data and device.
        student: the model that learns, on the device.
        pairs: teacher's module by student's module.
        masks: channels of the student that pruning keeps.

    Returns:
        The matcher; its hooks stay until `remove`.

    Raises:
        TaskError: if a pair cannot be matched; all hooks are removed.
    """
    teacher = trainer.teacher.model
    matcher = FeatureMatcher(student, teacher, pairs, masks)
    ((inputs, _),) = trainer.task.first_samples([next(iter(trainer.task.training_batches()))], 2)
    inputs = to_device(inputs, trainer.device)
    try:
        matcher.prepare(lambda: (call_model(student, inputs), call_model(teacher, inputs)))
    except TaskError:
        matcher.remove()
        raise
    return matcher


def _store(seen: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    """Store the output of a matched module; called by a forward hook."""
    if not isinstance(output, Tensor):
        raise TaskError(
            f"task: matched module {name} returns {type(output).__name__}; "
            "only modules that return one tensor can be matched"
        )
    seen[name] = output

"""Feature distillation: outputs of matched modules of student and teacher are held together (Romero et al. 2015)."""

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
    """The last compressible module of each block that the teacher has under the same name, but for the head.

    A block is the innermost numbered part of the name (an element of a list or a sequence), else the parent.
    """
    last: dict[str, str] = {}
    known = dict(teacher.named_modules())
    for module in module_map:
        if module.role == "head" or module.name not in known:
            continue
        parts = module.name.split(".")[:-1]
        while parts and not parts[-1].isdigit() and any(part.isdigit() for part in parts):
            parts.pop()
        last[".".join(parts)] = module.name
    return {name: name for name in last.values()}


class FeatureMatcher(nn.Module):
    """Hooks on the matched modules of two models, and the distance of what passed them last.

    Channels that pruning removed are not compared. Widths that differ are matched by a learned linear projection of the student's
    channels, which is trained with the student and thrown away with the matcher.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, pairs: Mapping[str, str], masks: Masks
    ) -> None:
        super().__init__()
        self._seen: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self._pairs = {
            learns: teaches for learns, teaches in pairs.items() if not masks.dropped(learns)
        }
        self._masks = masks
        self._dimensions = {
            name: 1 if isinstance(teacher.get_submodule(at), SPATIAL) else -1
            for name, at in self._pairs.items()
        }
        self.projections = nn.ModuleDict()
        self._hooks = []
        for learns, teaches in self._pairs.items():
            self._hooks.append(
                student.get_submodule(learns).register_forward_hook(
                    partial(_keep, self._seen[0], learns)
                )
            )
            self._hooks.append(
                teacher.get_submodule(teaches).register_forward_hook(
                    partial(_keep, self._seen[1], learns)
                )
            )

    def remove(self) -> None:
        """Take the hooks off both models."""
        for hook in self._hooks:
            hook.remove()

    def prepare(self, run: Callable[[], Any]) -> None:
        """Make the projections that the widths ask for; `run` calls both models once."""
        with torch.no_grad():
            run()
        # Weights of recurrent layers are read, not called: nothing passes them.
        self._pairs = {
            learns: teaches
            for learns, teaches in self._pairs.items()
            if all(learns in seen for seen in self._seen)
        }
        for name in self._pairs:
            student, teacher = self._compared(name, project=False)
            if student.shape == teacher.shape:
                continue
            if student.shape[:-1] != teacher.shape[:-1]:
                raise TaskError(
                    f"task: matched module {name} gives {tuple(student.shape)} where {self._pairs[name]} gives {tuple(teacher.shape)} "
                    "(channels last); only the number of channels may differ"
                )
            generator = torch.Generator().manual_seed(0)
            projection = nn.Linear(student.shape[-1], teacher.shape[-1], bias=False)
            with torch.no_grad():
                projection.weight.copy_(
                    torch.randn(projection.weight.shape, generator=generator)
                    / student.shape[-1] ** 0.5
                )
            self.projections[_key(name)] = projection.to(student.device)

    def loss(self) -> Tensor:
        """Mean over the pairs of |student - teacher|^2 / |teacher|^2 in the last forward passes of both models; 0 without a pair."""
        losses = []
        for name in self._pairs:
            student, teacher = self._compared(name, project=True)
            losses.append(
                (student - teacher).square().sum() / teacher.square().sum().clamp_min(1e-12)
            )
        return torch.stack(losses).mean() if losses else torch.zeros(())

    def _compared(self, name: str, project: bool) -> tuple[Tensor, Tensor]:
        """(..., channels) of both sides."""
        student, teacher = (
            seen[name].float().transpose(self._dimensions[name], -1) for seen in self._seen
        )
        key = _key(name)
        if project and key in self.projections:
            return self.projections[key](student), teacher
        mask = next(
            (
                found
                for side in ("out", "channel")
                if (found := self._masks.of(name, side)) is not None
            ),
            None,
        )
        if mask is not None and student.shape == teacher.shape and len(mask) == student.shape[-1]:
            kept = torch.from_numpy(mask).to(student.device)
            return student[..., kept], teacher[..., kept]
        return student, teacher


def _key(name: str) -> str:
    """A name of its own without dots, which a ModuleDict refuses."""
    return name.replace("%", "%25").replace(".", "%2E")


def prepared_matcher(
    trainer: Trainer, student: nn.Module, pairs: Mapping[str, str], masks: Masks
) -> FeatureMatcher:
    """A matcher of `student` and the trainer's teacher that has seen two training samples; TaskError leaves no hook behind."""
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


def _keep(seen: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    if not isinstance(output, Tensor):
        raise TaskError(
            f"task: matched module {name} returns {type(output).__name__}; only modules that return one tensor can be matched"
        )
    seen[name] = output

"""Describe the training that recovers the accuracy of a compressed model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from autocompress.argument_types import set_typed
from autocompress.errors import SpaceError

SCHEDULES = ("one_shot", "linear", "cubic")
BATCH_NORMS = ("frozen", "train", "auto")


@dataclass(frozen=True)
class Distillation:
    """Describe recovery: training of a compressed model (the student) with the original as teacher.

    The loss is `alpha * task loss + (1 - alpha) * temperature^2 * KL(teacher, student)` (Hinton et
    al. 2015).

    Attributes:
        alpha: weight of the task's own loss, in [0, 1]; 0 if there are no targets.
        temperature: of the softmax of teacher and student.
        steps: optimizer steps; 0 does not train.
        schedule: "one_shot", or "linear" or "cubic": pruning ratios and sparsities grow to their
            values over `rounds` parts of the steps.
        rounds: parts of the steps of a growing schedule.
        restarts: steps after which the cosine schedule starts anew (Loshchilov and Hutter 2017); a
            search decides there whether to go on.
        features: weight of the relative squared error between matched modules' outputs (Romero et
            al. 2015).
        sequences: share of the steps on sequences that the teacher of a causal language model
            continues (Kim and Rush 2016).
        learning_rate: of the weights; scales and float parts have theirs in proportion.
        accumulation: batches per optimizer step.
        checkpointing: compute repeated blocks again in the backward pass, to save memory.
        batch_norm: "frozen": batch normalisations keep their statistics; "train": they take those
            of each batch, and statistics are estimated again for the trained weights; "auto": a
            short training of each kind decides.
        blocks: train block after block, each for `steps`, to give the original's hidden outputs (Li
            et al. 2021, "BRECQ"). Labels, `alpha`, `temperature`, `features`, `sequences`,
            `schedule` and `restarts` are not read then.
        planned_steps: steps at which the last cosine schedule would have ended, where training
            ended before; 0 if it ended with the schedule.
    """

    alpha: float = 0.5
    temperature: float = 2.0
    steps: int = 0
    schedule: str = "one_shot"
    rounds: int = 4
    restarts: tuple[int, ...] = ()
    features: float = 0.0
    sequences: float = 0.0
    learning_rate: float = 2e-4
    accumulation: int = 1
    checkpointing: bool = False
    batch_norm: str = "frozen"
    blocks: bool = False
    planned_steps: int = 0

    def __post_init__(self) -> None:
        if self.restarts or tuple(map(type, self.__dict__.values())) != TYPES:
            set_typed(self, SpaceError)
        planned = self.planned_steps
        if planned and planned < max(1, self.steps):
            raise SpaceError(
                f"Distillation: planned_steps must be 0, or at least steps ({self.steps}), got "
                f"{planned}; nearest valid value: {0 if planned < 0 else self.steps}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return alpha, temperature, steps, and the fields that differ from the defaults.

        `from_json` reverses it.
        """
        always = ("alpha", "temperature", "steps")
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
        return {
            k: v
            for k, v in values.items()
            if k in always or getattr(self, k) != getattr(UNTRAINED, k)
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Distillation:
        """Read a distillation, the reverse of `to_json`.

        Args:
            data: fields; missing ones take their defaults.
        """
        return cls(**{**data, "restarts": tuple(data.get("restarts", ()))})


TYPES = tuple(type(field.default) for field in fields(Distillation))
UNTRAINED = Distillation()

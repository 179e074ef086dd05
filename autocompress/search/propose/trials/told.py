"""Describe told trials in the terms of the sampler's model, and find those of the front."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from autocompress.candidate import Candidate
from autocompress.results.limits import are_kept
from autocompress.results.pareto import non_dominated
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.allocation import Allocator, Choices
from autocompress.space.search_space import BoundSpace

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Told:
    """Describe a trial in the terms of the model; NaN for what is not known.

    Attributes:
        trial: as Optuna stores it.
        indices: (knobs,) index of each knob, in the order of the space.
        choices: (modules + groups,) its allocation.
        losses: (features,) losses by the table.
        costs: (2,) size and latency by the table, as shares of the baseline's.
        divergence: mean divergence of the outputs before recovery.
        left: share of the divergence that its training left.
        seen: share of the validation split that was evaluated.
        lost: loss of each quality of the goal.
        size, latency: as shares of the baseline's.
        metrics: extra metrics by name.
        feasible: True if it violates no limit.
    """

    trial: TrialRecord
    indices: Choices
    choices: Choices
    losses: Array
    costs: Array
    divergence: float
    left: float
    seen: float
    lost: tuple[float, ...]
    size: float
    latency: float
    metrics: Mapping[str, float]
    feasible: bool

    @cached_property
    def whole(self) -> bool:
        """Return True if the losses of all qualities are known."""
        return not math.isnan(sum(self.lost))

    @cached_property
    def final(self) -> float:
        """Return the divergence of the weights that its losses are of."""
        return final_divergence(self.trial, self.divergence)

    @cached_property
    def running(self) -> bool:
        """Return True if it has not ended yet."""
        return not self.trial.state.is_finished()

    @cached_property
    def key(self) -> bytes:
        """Return a key that trials with the same choices share."""
        return self.choices.tobytes()


def final_divergence(trial: TrialRecord, divergence: float) -> float:
    """Return the divergence of the weights that the losses of a trial are of.

    Args:
        trial: says whether its trained weights were taken.
        divergence: before recovery.
    """
    return divergence * trial.left if trial.recovered and trial.left is not None else divergence


def lost_of(trial: TrialRecord, goal: Goal) -> tuple[float, ...]:
    """Return the loss of each quality of a trial.

    Args:
        trial: any trial.
        goal: the levels of the float model.

    Returns:
        (qualities,) losses; NaN for a trial that was ended early.
    """
    if not trial.is_complete:
        return (math.nan,) * len(goal.levels)
    return tuple(level - value for level, value in zip(goal.levels, trial.qualities, strict=True))


@dataclass
class TrialReader:
    """Describe the trials of studies, each once while its state is the same.

    Attributes:
        space: its knobs.
        allocator: the tables.
        goal: the baseline and the limits.
        latency_ms: predicts the latency of a candidate as the latency model does now, which may
            have learned since trials were told; None takes what they were told.
        activations: returns the memory of a candidate's activations, for trials that were told
            before a limit asked for it; None leaves it unjudged.
    """

    space: BoundSpace
    allocator: Allocator
    goal: Goal
    latency_ms: Callable[[Candidate], float] | None = None
    activations: Callable[[Candidate], int] | None = None
    _known: dict[tuple[str, int], Told] = field(default_factory=dict)

    def told(self, study: optuna.Study, trial: FrozenTrial) -> Told | None:
        """Return a trial in the terms of the model; None if it is incomplete or repeats another.

        Args:
            study: of the trial.
            trial: in any state.
        """
        key = study.study_name, trial.number
        known = self._known.get(key)
        if known is not None and known.trial.state == trial.state:
            return known
        names = dict.fromkeys(knob.parameter for knob in self.space.knobs)
        if not names.keys() <= trial.params.keys():
            return None
        record = TrialRecord.from_trial(trial)
        if record.repeats is not None:
            return None
        if known is None:
            choices = self.allocator.choices(trial.params)
            losses = self.allocator.losses(choices[None])[0].astype(np.float32)
            costs = self.allocator.costs(choices[None])[0]
            indices = np.array([int(trial.params[name]) for name in names], dtype=np.intp)
        else:
            indices, choices, losses = known.indices, known.choices, known.losses
            costs = known.costs
        record = self._with_memory(record)
        base, latency_ms = self.goal.baseline, record.latency_ms
        if self.latency_ms is not None and record.candidate_json is not None:
            latency_ms = self.latency_ms(record.candidate)
        self._known[key] = described = Told(
            record,
            indices,
            choices,
            losses,
            costs,
            math.nan if record.divergence is None else record.divergence,
            math.nan if record.left is None else record.left,
            1.0 if record.seen is None else record.seen,
            lost_of(record, self.goal),
            record.size_bytes / base.size_bytes,
            latency_ms / base.latency_ms,
            record.metrics or {},
            are_kept(record.missed(self.goal.limits, base.accuracy, self.activations, latency_ms)),
        )
        return described

    def _with_memory(self, record: TrialRecord) -> TrialRecord:
        """Return a record with the memory that a limit asks for, if its run had no such limit."""
        is_known = self.goal.limits.max_memory_bytes is None or record.activation_bytes is not None
        if is_known or self.activations is None or not record.qualities:
            return record
        return replace(record, activation_bytes=self.activations(record.candidate))


def told_front(trials: list[Told]) -> list[Told]:
    """Return the complete, feasible trials that no other dominates.

    Args:
        trials: any trials.
    """
    done = [t for t in trials if t.trial.is_complete and t.whole and t.feasible]
    mask = non_dominated([(t.size, t.latency, *(max(lost, 0.0) for lost in t.lost)) for t in done])
    return [t for t, keep in zip(done, mask, strict=True) if keep]

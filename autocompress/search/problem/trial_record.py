"""Describe one trial: everything that a search writes to it and reads from it.

Only this file knows the names of Optuna's user attributes and the order of its values. Records
are made from Optuna's trials, and give the attributes, constraints and values to be told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from autocompress.candidate import Candidate
from autocompress.results.limits import Limits, are_kept

# Names of attributes in the storage, by field. Old studies hold them, so they must not change.
NAMES: Mapping[str, str] = {
    "candidate_json": "candidate",
    "digest": "key_full",
    "untrained_digest": "key",
    "worker": "worker",
    "attempt": "attempt",
    "retry_of": "retry_of",
    "samples": "samples",
    "seen": "seen",
    "divergence": "divergence",
    "scores": "scores",
    "race": "race",
    "accuracy_before_recovery": "accuracy_before_recovery",
    "trained": "trained",
    "recovered": "recovered",
    "left": "divergence_left",
    "rungs": "rungs",
    "metrics": "metrics",
    "cause": "cause",
    "row": "row",
    "activation_bytes": "activation_bytes",
    "limits": "limits",
}
BEFORE = ("worker", "candidate_json", "digest", "untrained_digest")  # written before judging
AFTER = (
    "samples",
    "seen",
    "divergence",
    "scores",
    "race",
    "accuracy_before_recovery",
    "recovered",
    "trained",
    "left",
    "rungs",
    "metrics",
    "cause",
    "row",
    "activation_bytes",
    "limits",
)
REPEATS = "repeats"  # holds the number + 1, so that a repeat of trial 0 is true as well


@dataclass(frozen=True)
class TrialRecord:
    """Hold what is known of one trial; None or NaN where it is not known.

    Attributes:
        number: of the trial in its study.
        state: COMPLETE when all was judged, PRUNED when it was stopped or is over a limit.
        params: Optuna's parameters.
        size_bytes: size of the file, exact.
        latency_ms: predicted latency.
        qualities: accuracy, then the extra metrics that are objectives; all maximised. Empty
            unless the trial is complete.
        violations: by limit, how far it is missed; at most 0 is within the limit.
        candidate_json: the candidate in plain types.
        digest: hash of the candidate.
        untrained_digest: hash of the candidate without its recovery.
        worker: id of the worker that judges it.
        attempt: how often it was taken from a dead worker before.
        retry_of: number of the trial that it tries again.
        samples: validation samples that were looked at.
        seen: the same as a share of the split.
        divergence: mean distance from the teacher on these samples, before recovery.
        scores: encoded scores by sample, of a trial that has seen the whole split.
        race: digest of the race of these scores.
        accuracy_before_recovery: accuracy of the untrained candidate.
        trained: True if recovery was tried.
        recovered: True if its trained weights are better.
        left: share of its divergence that training left, also if its weights are not better.
        rungs: accuracy by number of training steps.
        metrics: extra metrics of the task.
        repeats: number of the trial of the same candidate whose outcome was taken over.
        cause: why it ended early, or what happened; "" otherwise.
        row: its row of trials.csv.
        seconds: duration, where it has ended.
        activation_bytes: memory of its activations, where a limit asked for it.
        limits: fields of the `Limits` under which it was stopped, unless it was over one of them.
    """

    number: int
    state: TrialState = TrialState.RUNNING
    params: Mapping[str, Any] = field(default_factory=dict)
    size_bytes: float = math.nan
    latency_ms: float = math.nan
    qualities: tuple[float, ...] = ()
    violations: Mapping[str, float] = field(default_factory=dict)
    candidate_json: Mapping[str, Any] | None = None
    digest: str | None = None
    untrained_digest: str | None = None
    worker: str | None = None
    attempt: int = 0
    retry_of: int | None = None
    samples: int | None = None
    seen: float | None = None
    divergence: float | None = None
    scores: Mapping[str, str] | None = None
    race: str | None = None
    accuracy_before_recovery: float | None = None
    trained: bool | None = None
    recovered: bool | None = None
    left: float | None = None
    rungs: Mapping[str, float] | None = None
    metrics: Mapping[str, float] | None = None
    repeats: int | None = None
    cause: str | None = None
    row: Mapping[str, Any] | None = None
    seconds: float | None = None
    activation_bytes: int | None = None
    limits: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, number: int, candidate: Candidate, worker: str | None = None) -> TrialRecord:
        """Start the record of a trial that is about to be judged.

        Args:
            number: of the trial.
            candidate: what is judged.
            worker: id of the worker that judges it.

        Returns:
            A record without an outcome.
        """
        return cls(
            number,
            candidate_json=candidate.to_json(),
            digest=candidate.digest,
            untrained_digest=Candidate(candidate.modules).digest,
            worker=worker,
        )

    @classmethod
    def from_trial(cls, trial: FrozenTrial) -> TrialRecord:
        """Read a trial of a study.

        Args:
            trial: in any state, of this or an earlier version.

        Returns:
            Its record.
        """
        attributes = trial.user_attrs
        values = {}
        for name, key in NAMES.items():
            if key in attributes:
                values[name] = attributes[key]
        if not isinstance(values.get("scores", {}), Mapping):
            del values["scores"]  # of an early version
        row = attributes.get("row", {})
        size, latency, *qualities = trial.values or (
            row.get("size_bytes", math.nan),
            row.get("latency_ms", math.nan),
        )
        repeats = attributes.get(REPEATS)
        return cls(
            trial.number,
            trial.state,
            trial.params,
            float(size),
            float(latency),
            tuple(qualities),
            trial.constraints,
            repeats=repeats - 1 if repeats else None,
            seconds=trial.duration.total_seconds() if trial.duration else None,
            **values,
        )

    @cached_property
    def candidate(self) -> Candidate:
        """Candidate of the trial; it must have one."""
        assert self.candidate_json is not None
        return Candidate.from_json(self.candidate_json)

    @property
    def accuracy(self) -> float:
        """Accuracy on the validation split, recovery included; NaN unless complete."""
        return self.qualities[0] if self.qualities else math.nan

    @property
    def is_complete(self) -> bool:
        """Return True if all of it was judged."""
        return self.state == TrialState.COMPLETE

    @property
    def feasible(self) -> bool:
        """Return True if no limit was missed when the trial was told."""
        return are_kept(self.violations)

    def missed(
        self,
        limits: Limits,
        accuracy: float,
        activations: Callable[[Candidate], int] | None,
        latency_ms: float | None = None,
    ) -> Mapping[str, float]:
        """Return by how far limits are missed; a resumed search may have others than before.

        Args:
            limits: absolute limits.
            accuracy: of the float model.
            activations: returns the memory of a candidate's activations, where the trial was told
                before a limit asked for it; None leaves it unjudged then.
            latency_ms: as it is predicted now; None takes the trial's.

        Returns:
            As `Limits.violations`; as they were told for a trial that was not judged to its end.
        """
        if not self.qualities:
            return self.violations
        latency_ms = self.latency_ms if latency_ms is None else latency_ms
        drop, memory = accuracy - self.accuracy, self.activation_bytes
        if memory is None and limits.max_memory_bytes is not None and activations is not None:
            memory = activations(self.candidate)
        return limits.violations(self.size_bytes, latency_ms, drop, self.metrics or {}, memory)

    def stands(self, limits: Limits) -> bool:
        """Return True if nothing would come of judging its candidate again.

        A trial that was over a budget, or was stopped for what others and limits made of it, may
        end otherwise under other limits.

        Args:
            limits: absolute limits; a resumed search may have others than before.
        """
        if self.qualities or not self.state.is_finished():
            return True
        if not self.feasible:
            memory = self.activation_bytes
            costs = limits.violations(self.size_bytes, self.latency_ms, None, None, memory)
            return not are_kept(costs)
        return self.limits is None or self.limits == asdict(limits)

    @property
    def ended_itself(self) -> bool:
        """Return True if its worker told how it ended.

        A worker that was killed meanwhile has left no row, or one of another state.
        """
        return (self.row or {}).get("state") == self.state.name

    @property
    def values(self) -> tuple[float, ...]:
        """Values of Optuna's objectives."""
        return float(self.size_bytes), self.latency_ms, *self.qualities

    def attributes_before(self) -> dict[str, Any]:
        """Return the user attributes that are written before the trial is judged."""
        return {NAMES[name]: getattr(self, name) for name in BEFORE}

    def attributes_after(self) -> dict[str, Any]:
        """Return the user attributes that are written with the outcome."""
        attributes = {NAMES[name]: getattr(self, name) for name in AFTER}
        if self.repeats is not None:
            attributes[REPEATS] = self.repeats + 1
        return {name: value for name, value in attributes.items() if value is not None}

    def attributes_failed(self) -> dict[str, Any]:
        """Return the user attributes of a trial that failed."""
        return {NAMES["row"]: self.row}

    def retry_attributes(self) -> dict[str, Any]:
        """Return the user attributes of a trial that tries this one again."""
        return {NAMES["attempt"]: self.attempt + 1, NAMES["retry_of"]: self.number}

    def ended(self, state: TrialState, seconds: float) -> TrialRecord:
        """Return the record with its state, cause and row of trials.csv.

        Args:
            state: COMPLETE, PRUNED or FAIL.
            seconds: duration.
        """
        row: dict[str, Any] = {"number": self.number, "state": state.name}
        if state != TrialState.FAIL:
            row["size_bytes"] = self.size_bytes
            row["latency_ms"] = round(self.latency_ms, 6)
            row["accuracy"] = self.accuracy if self.qualities else ""
        row |= {"seconds": round(seconds, 3), "cause": self.cause or ""}
        return replace(self, state=state, cause=self.cause or "", row=row)

    def taken_over(self) -> TrialRecord:
        """Return the record of a trial that another worker has taken over meanwhile."""
        cause = "another worker took the trial over while this one was slow"
        row = {**(self.row or {}), "state": TrialState.FAIL.name, "cause": cause}
        return replace(self, state=TrialState.FAIL, cause=cause, row=row)

    def killed(self) -> TrialRecord:
        """Return the record of a trial whose process was killed, with its row of trials.csv."""
        cause = "its process was killed; its parameters are tried again"
        row = {"number": self.number, "state": self.state.name, "cause": cause}
        return replace(self, cause=cause, row=row)


def records_of(
    study: optuna.Study, states: Sequence[TrialState] | None = None
) -> list[TrialRecord]:
    """Read the trials of a study.

    Args:
        study: the study.
        states: only trials in these states; None reads all.

    Returns:
        Records by ascending number.
    """
    trials = study.get_trials(deepcopy=False, states=None if states is None else tuple(states))
    return [TrialRecord.from_trial(trial) for trial in trials]

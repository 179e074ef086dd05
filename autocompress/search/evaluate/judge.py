"""Judge one candidate, the cheapest test first.

Size and latency are known before any weight is touched. Then the candidate races on growing parts
of the validation split. Only candidates that survive are trained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import optuna
import torch
from optuna.trial import TrialState

from autocompress.candidate import Candidate
from autocompress.errors import NotComputableError
from autocompress.measure.accuracy import metric_outputs
from autocompress.measure.tally import Scores, Tally
from autocompress.results.limits import Limits, are_kept
from autocompress.search.evaluate.racing import (
    LEAST_BATCHES,
    NEAR,
    PARTS,
    Rival,
    raced_samples,
    surely_below,
    surely_dominated,
)
from autocompress.search.evaluate.recovery import recover_candidate, untrained
from autocompress.search.evaluate.training_choice import (
    TRAINING_SHARE,
    affords_training,
    beaten,
    goes_on,
    least_loss,
    worth_training,
)
from autocompress.search.evaluate.training_plan import ENOUGH, for_lossy
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.problem import Problem
from autocompress.search.problem.scoring import SampleScores, sample_scores
from autocompress.search.problem.trial_record import TrialRecord, records_of
from autocompress.search.propose.sampler import PriceSampler
from autocompress.search.propose.trial_model import worth_finishing

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass
class Judge:
    """Evaluate the candidates of one study in one process.

    Attributes:
        problem: task, target and space.
        limits: limits of size, latency, memory and qualities.
        folder: the run folder.
        parts: shares of the validation split after which a candidate may be stopped; () sees all.
        deadline: of the last trial, by the monotonic clock; None is unlimited.
        n_trials: finished trials that the study shall hold.
        first_s: seconds of the steps to the first rung; None if a step was not timed.
    """

    problem: Problem
    limits: Limits
    folder: Path
    parts: tuple[float, ...] = PARTS
    deadline: float | None = None
    n_trials: int = ENOUGH
    first_s: float | None = None
    _decoded: dict[int, Rival] = field(default_factory=dict)
    _latencies: dict[int, float] = field(default_factory=dict)

    @property
    def goal(self) -> Goal:
        """Objectives and limits."""
        return Goal(self.problem.baseline, self.limits, self.problem.space.objectives)

    def judge(self, study: optuna.Study, number: int, candidate: Candidate) -> TrialRecord:
        """Judge a candidate; exceptions of the model and of the metric pass through.

        Args:
            study: the study with the earlier trials.
            number: of the trial.
            candidate: what is judged.

        Returns:
            The record with its outcome. It has qualities if and only if the trial is complete.
        """
        size, latency = self.problem.size_bytes(candidate), self.problem.latency_ms(candidate)
        violations, memory = self.limits.violations(size, latency, None), None
        if are_kept(violations) and self.limits.max_memory_bytes is not None:
            memory = self.problem.activation_bytes(candidate)
            violations = self.limits.violations(size, latency, None, None, memory)
        record = replace(
            TrialRecord.of(number, candidate),
            size_bytes=size,
            latency_ms=latency,
            violations=violations,
            cause="",
            activation_bytes=memory,
        )
        if not are_kept(violations):
            missed = [f"{name} by {by:.1%}" for name, by in violations.items() if by > 0]
            return replace(record, cause=f"over budget: {', '.join(missed)}")
        done = records_of(study, ENDED)
        earlier = _same_candidate(done, record, self.limits)
        if earlier is not None:
            return _repeated(record, earlier, self.goal, self.problem)
        model = self.problem.stitcher.apply(candidate)
        sampler = study.sampler
        left = sampler.left(number) if isinstance(sampler, PriceSampler) else None
        try:
            scores, tally, cause = self._race(model, done, record, left)
        except NotComputableError as error:  # the sampler must know that it was tried
            return replace(record, cause=str(error), limits=asdict(self.limits))
        total = self.problem.race.samples
        record = replace(
            record,
            samples=len(scores),
            seen=len(scores) / total,
            divergence=float(scores.divergence.mean()),
            cause=cause,
        )
        if cause:
            return replace(record, limits=asdict(self.limits))
        race = self.problem.race
        accuracy = tally.scores_of(race.joined(tally.outputs), race.answers)
        record = replace(
            record,
            scores=scores.encoded(raced_samples(total)),
            race=race.digest,
            accuracy_before_recovery=accuracy.accuracy,
        )
        pass_s = self.problem.float_files.pass_s
        # Training all of a large model takes several times its memory.
        by_blocks = self.problem.space.recovery.by_blocks
        is_lossy = self.goal.baseline.accuracy - self.goal.worth(accuracy) > self.goal.near
        given = (done, self.n_trials, self._left_s(), pass_s, self.first_s, is_lossy)
        if by_blocks or not affords_training(*given):
            candidate = untrained(candidate)
        elif is_lossy:
            lesson = for_lossy(candidate.distillation, self.problem.space.recovery)
            candidate = replace(candidate, distillation=lesson)
        return self._recovered(record, candidate, model, accuracy, self._comparable(done))

    def _left_s(self) -> float | None:
        return None if self.deadline is None else self.deadline - time.monotonic()

    def _recovered(
        self,
        record: TrialRecord,
        candidate: Candidate,
        model: torch.nn.Module,
        scores: Scores,
        rivals: list[TrialRecord],
    ) -> TrialRecord:
        """Return the record after recovery, where the candidate is worth it."""
        goal, size, latency = self.goal, record.size_bytes, record.latency_ms
        if worth_training(goal, candidate, scores, rivals, size, latency):
            before = self.problem.trainer.divergence(model)
            left_s = self._left_s()
            until = math.inf if left_s is None else time.monotonic() + TRAINING_SHARE * left_s
            lesson = recover_candidate(
                self.problem,
                self.folder,
                record.number,
                candidate,
                scores,
                goal,
                least_loss(goal),
                partial(self._stops, rivals, size, latency),
                lambda: time.monotonic() > until,
                is_resumed=False,
            )
            record = replace(
                record,
                trained=True,
                recovered=lesson.improved,
                left=_left(before, lesson.divergence),
                rungs={"0": scores.accuracy, **lesson.rungs},
                cause=lesson.cause,
            )
            scores = lesson.scores
        drop = self.problem.baseline.accuracy - scores.accuracy
        return replace(
            record,
            metrics=dict(scores.metrics),
            violations=self.limits.violations(
                size, latency, drop, scores.metrics, record.activation_bytes
            ),
            qualities=goal.qualities(scores),
        )

    def _stops(
        self, rivals: list[TrialRecord], size: float, latency: float, steps: int, accuracy: float
    ) -> bool:
        """Return True if a candidate's training ends at a rung."""
        if beaten(rivals, size, latency, steps, accuracy):
            return True
        plans = self.problem.space.recovery.plans_steps
        return plans and not goes_on(rivals, self.goal, size, latency, steps, accuracy)

    def _comparable(self, done: list[TrialRecord]) -> list[TrialRecord]:
        """Return the trials that can beat a candidate by accuracy alone.

        There are none where other qualities are objectives too. One that misses the floor of a
        metric, or the limit of memory, can take no candidate's place on the front.
        """
        if self.problem.space.objectives:
            return []
        others = self.limits.beside(())
        if others == Limits():
            return done
        parts = (others, self.problem.baseline.accuracy, self.problem.activation_bytes)
        return [trial for trial in done if are_kept(trial.missed(*parts))]

    def _rivals(self, done: list[TrialRecord], record: TrialRecord) -> list[Rival]:
        rivals = []
        for other in done:
            if not other.is_complete or other.scores is None:
                continue
            accuracy, activations = self.problem.baseline.accuracy, self.problem.activation_bytes
            if not are_kept(other.missed(self.limits, accuracy, activations)):
                continue
            same_race = other.race == self.problem.race.digest
            no_larger = other.size_bytes <= record.size_bytes * NEAR
            if same_race and no_larger and self._latency_ms(other) <= record.latency_ms * NEAR:
                rivals.append(self._rival(other.number, other.scores))
        return rivals

    def _latency_ms(self, other: TrialRecord) -> float:
        """Predict the latency of an earlier trial; the model may have learned since it was told."""
        if other.number not in self._latencies:
            self._latencies[other.number] = self.problem.latency_ms(other.candidate)
        return self._latencies[other.number]

    def with_problem(self, problem: Problem) -> Judge:
        """Return the same judge with another latency model.

        Args:
            problem: of the same task, target and space.
        """
        return replace(self, problem=problem, _latencies={})

    def _rival(self, number: int, scores: Mapping[str, str]) -> Rival:
        if number not in self._decoded:
            self._decoded[number] = Rival(number, SampleScores.decoded(scores))
        return self._decoded[number]

    def _race(
        self,
        model: torch.nn.Module,
        done: list[TrialRecord],
        record: TrialRecord,
        left: float | None,
    ) -> tuple[SampleScores, Tally, str]:
        """Return (scores, tally, cause to stop or "") on growing parts of the split."""
        task, race = self.problem.task, self.problem.race
        rivals = self._rivals(self._comparable(done), record)
        total = race.samples
        rungs = [int(part * total) for part in self.parts]
        tally = Tally(task)
        scores: list[SampleScores] = []
        for inputs, target in race.batches:
            outputs = metric_outputs(task, model, inputs, self.problem.device)
            output = outputs[""]
            expected = race.expected(tally.samples, len(output), inputs)
            tally.add(outputs, target)
            scores.append(sample_scores(task, output, target, expected, race.scored))
            seen = tally.samples
            at_rung = bool(rungs) and rungs[0] <= seen < total
            if at_rung and (race.mixed or len(scores) >= LEAST_BATCHES):
                rungs = [rung for rung in rungs if rung > seen]
                joined = SampleScores.joined(scores)
                sizes = [] if race.mixed else [len(part) for part in scores]
                cause = self._stop(joined, rivals, sizes) or self._hopeless(
                    joined, done, record, left
                )
                if cause:
                    return joined, tally, cause
        return SampleScores.joined(scores), tally, ""

    def _stop(self, scores: SampleScores, rivals: list[Rival], sizes: list[int]) -> str:
        winner = surely_dominated(scores, rivals, sizes)
        if winner is not None:
            return f"dominated by trial {winner} after {len(scores)} samples"
        drop = self.limits.largest_drop
        # Recovery may lift a candidate over the limit, so only the untrained are stopped for it.
        untrained = self.problem.space.recovery.steps == 0
        if scores.metric is not None and drop is not None and untrained:
            floor = self.problem.baseline.accuracy - drop
            if surely_below(scores.metric, floor, sizes):
                return f"below accuracy {floor:.4f} after {len(scores)} samples"
        return ""

    def _hopeless(
        self, scores: SampleScores, done: list[TrialRecord], record: TrialRecord, left: float | None
    ) -> str:
        size, latency = record.size_bytes, record.latency_ms
        activations = self.problem.activation_bytes
        parts = (size, latency, scores.divergence, left, activations)
        if worth_finishing(done, self.goal, *parts):
            return ""
        return f"expected to add nothing to the front after {len(scores)} samples"


def _left(before: float, after: float | None) -> float | None:
    """Return the share of a divergence that training left; None where it is not known."""
    return None if after is None or before <= 0 else after / before


def _same_candidate(
    done: list[TrialRecord], record: TrialRecord, limits: Limits
) -> TrialRecord | None:
    """Return the first trial of the same candidate; recovery counts only where it was tried.

    One that was over an earlier budget was not judged, and one that was stopped under other limits
    is judged again.
    """
    for other in done:
        if not other.qualities and not (other.feasible and other.stands(limits)):
            continue
        same = other.digest == record.digest
        same = same or (other.untrained_digest == record.untrained_digest and not other.trained)
        if same and other.repeats is None:
            return other
    return None


def _repeated(
    record: TrialRecord, earlier: TrialRecord, goal: Goal, problem: Problem
) -> TrialRecord:
    """Return the record with the outcome of an earlier trial of the same candidate."""
    parts = (goal.limits, goal.baseline.accuracy, problem.activation_bytes)
    missed = earlier.missed(*parts, record.latency_ms)
    cause = f"repeats trial {earlier.number}"
    if not earlier.qualities:
        cause = f"{cause}: {earlier.cause or ''}"
    return replace(
        record,
        repeats=earlier.number,
        cause=cause,
        violations=missed,
        qualities=earlier.qualities,
        accuracy_before_recovery=earlier.accuracy_before_recovery if earlier.qualities else None,
        metrics=earlier.metrics if earlier.qualities else None,
    )

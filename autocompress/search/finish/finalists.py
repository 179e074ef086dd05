"""Choose the trials that become files, and give them their long recovery."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState

from autocompress.candidate import Candidate
from autocompress.errors import AutocompressError, NotComputableError
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.tally import Scores
from autocompress.results.limits import are_kept, distance
from autocompress.results.pareto import hypervolume, hypervolume_subset, non_dominated
from autocompress.search.evaluate.recovery import read_recovered, untrained
from autocompress.search.evaluate.training_plan import LEAST_STEPS, LongPlan
from autocompress.search.finish.long_recovery import (
    LongRecovery,
    fall,
    hopes_after,
    recover_front,
)
from autocompress.search.problem.clock import MOST_FILES
from autocompress.search.problem.goal import Goal, signs
from autocompress.search.problem.problem import Problem
from autocompress.search.problem.trial_record import TrialRecord, records_of
from autocompress.search.propose.sampler import PriceSampler
from autocompress.search.propose.trial_model import WORTH
from autocompress.task.user_code import UserCodeError

GAIN = 0.9  # size or latency that a longer training pays for, relative to the best without it
# A forecast may be so many times the loss that users take: forecasts from a few steps of training
# err by as much, and points that have lost less gain little by training.
LIKELY = 2.0
TRIED = 8  # stopped trials that are judged, where the outputs of the nearest are not finite
HOPEFULS = 3  # trials that are trained in the hope that they reach the front


@dataclass(frozen=True)
class Finalist:
    """Hold a trial that becomes a file.

    Attributes:
        number: of the trial.
        candidate: with the training that its weights have had.
        size_bytes: size of its file.
        latency_ms: predicted now; the latency model may have learned since the trial was told.
            NaN before there is a latency model.
        qualities: simulated accuracy, then the extra metrics that are objectives; NaN where
            nothing was simulated.
        is_uniform: True for one of the first files, which no trial chose.
        hoped: accuracy that it is expected to have after its recovery, for which alone it was
            chosen; None if it was chosen as it is.
        activation_bytes: memory of its activations; None where no limit asks for it.
        metrics: simulated extra metrics by name, which may have floors.
    """

    number: int
    candidate: Candidate
    size_bytes: float
    latency_ms: float
    qualities: tuple[float, ...]
    is_uniform: bool = False
    hoped: float | None = None
    activation_bytes: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def accuracy(self) -> float:
        """Simulated accuracy on the validation split."""
        return self.qualities[0]

    @property
    def expected(self) -> float:
        """Accuracy, or what it is hoped to be."""
        return self.accuracy if self.hoped is None else self.hoped

    @property
    def hoped_values(self) -> tuple[float, ...]:
        """Size, latency and qualities, the accuracy as it is hoped to be."""
        return self.size_bytes, self.latency_ms, self.expected, *self.qualities[1:]

    @property
    def values(self) -> tuple[float, ...]:
        """Size, latency and qualities, as trials tell them."""
        return self.size_bytes, self.latency_ms, *self.qualities


def choose_finalists(
    study: optuna.Study,
    problem: Problem,
    goal: Goal,
    before: Collection[int] = (),
    count: int = MOST_FILES,
    or_nearest: bool = True,
) -> list[Finalist]:
    """Choose feasible, non-dominated trials that span the most hypervolume.

    Args:
        study: the study.
        problem: predicts latencies.
        goal: objectives and limits.
        before: numbers of the trials that an earlier front of this run had. Their feasible ones
            come first, so that the front never gets worse by changed predictions.
        count: most trials beside them.
        or_nearest: False returns none when no trial is feasible.

    Returns:
        Finalists, those that a user would take first. When no trial is feasible, the one that is
        nearest to the limits.
    """
    feasible, accuracy = [], goal.baseline.accuracy
    for trial in records_of(study, (TrialState.COMPLETE,)):
        if trial.candidate_json is None:
            continue
        latency_ms = problem.latency_ms(trial.candidate)
        parts = (goal.limits, accuracy, problem.activation_bytes)
        if are_kept(trial.missed(*parts, latency_ms)):
            feasible.append(trial)
    if not feasible:
        return [] if not or_nearest else _nearest(study, problem, goal)
    values = np.array([_finalist(trial, problem, goal).values for trial in feasible])
    keep = np.flatnonzero(non_dominated(values * signs(problem.space.objectives)))
    chosen = hypervolume_subset(goal.losses(values[keep]), goal.reference_point, count)
    by_number = {trial.number: trial for trial in feasible}
    numbers = [*before, *(feasible[int(keep[i])].number for i in chosen)]
    wanted = [number for number in dict.fromkeys(numbers) if number in by_number]
    finalists = [_finalist(by_number[number], problem, goal) for number in wanted]
    known = [finalist for finalist in finalists if finalist.number in before]
    new = [finalist for finalist in finalists if finalist.number not in before]
    return [*by_use(known, goal), *by_use(new, goal)]


def choose_hopefuls(
    study: optuna.Study,
    problem: Problem,
    goal: Goal,
    finalists: Sequence[Finalist],
    hopes: Mapping[int, float],
    count: int = HOPEFULS,
) -> list[Finalist]:
    """Choose trials that a longer recovery is expected to bring to the front.

    Args:
        study: the study.
        problem: predicts latencies.
        goal: objectives and limits.
        finalists: those that were chosen as they are.
        hopes: as `hopes_of` returns them.
        count: most trials.

    Returns:
        Those that are expected to add most hypervolume to the finalists.
    """
    chosen = {finalist.number for finalist in finalists}
    hopefuls = []
    for trial in records_of(study, (TrialState.COMPLETE,)):
        if trial.number in hopes and trial.number not in chosen:
            lost = hopes[trial.number]
            finalist = _finalist(trial, problem, goal)
            finalist = replace(finalist, hoped=goal.baseline.accuracy - lost)
            if _keeps(finalist, goal, lost):
                hopefuls.append(finalist)
    values = [finalist.values for finalist in finalists]
    best: list[Finalist] = []
    while hopefuls and len(best) < count:
        volumes = [volume([*values, hopeful.hoped_values], goal) for hopeful in hopefuls]
        if max(volumes) <= volume(values, goal) + WORTH:
            break
        best.append(hopefuls.pop(int(np.argmax(volumes))))
        values.append(best[-1].hoped_values)
    return best


def hopes_of(study: optuna.Study, goal: Goal, steps: int) -> Mapping[int, float]:
    """Return the accuracy that trials are expected to lose after a longer recovery, by number.

    Args:
        study: the study; its sampler knows what told trials say of recovery.
        goal: has the baseline.
        steps: of the longer recovery; 0 gives no hopes.
    """
    if steps == 0:
        return {}
    longer, sampler = hopes_after(study, goal.baseline.accuracy, steps), study.sampler
    if not isinstance(sampler, PriceSampler):
        return longer
    hopes = {}
    for number, lost in sampler.hopes(study).items():
        if LongRecovery.read(study, number) is None:
            # What told trials say of recovery is of their short trainings.
            hopes[number] = lost * fall(LEAST_STEPS, steps)
    return {**hopes, **longer}


def volume(values: Sequence[Sequence[float]], goal: Goal) -> float:
    """Return the hypervolume of trials.

    Args:
        values: of each, as `Finalist.values`.
        goal: has the reference point.
    """
    return hypervolume(goal.losses(values), goal.reference_point)


def without_disappointing(finalists: Sequence[Finalist], goal: Goal) -> list[Finalist]:
    """Return finalists without those that recovery did not bring to the front as hoped.

    Args:
        finalists: after their recovery.
        goal: objectives and limits.

    Returns:
        The others, in their order.
    """
    values = np.array([finalist.values for finalist in finalists])
    best = non_dominated(values * signs(goal.objectives))
    left = []
    for finalist, is_best in zip(finalists, best, strict=True):
        lost = goal.baseline.accuracy - finalist.accuracy
        if finalist.hoped is None or (
            is_best
            and lost < goal.reference_point[2]
            and _keeps(finalist, goal, lost, finalist.metrics)
        ):
            left.append(finalist)
    return left


def _keeps(
    finalist: Finalist, goal: Goal, lost: float, metrics: Mapping[str, float] | None = None
) -> bool:
    """Return True if a finalist that loses some accuracy keeps the limits.

    Its extra metrics are not judged where they are None: a recovery may still raise them.
    """
    parts = (finalist.size_bytes, finalist.latency_ms, lost, metrics, finalist.activation_bytes)
    return are_kept(goal.limits.violations(*parts))


def by_use(
    finalists: list[Finalist], goal: Goal, hopes: Mapping[int, float] | None = None
) -> list[Finalist]:
    """Put the finalists first that a user would take: they are trained first.

    Args:
        finalists: in any order.
        goal: has the baseline.
        hopes: loss of accuracy that is expected after recovery, by number of the trial.

    Returns:
        The smallest and the fastest ones that lose at most `goal.near` (or are hoped to come near
        it), the most accurate one, and the others in their order.
    """
    if not finalists:
        return []
    most_accurate = max(finalists, key=lambda f: f.accuracy)
    return list(dict.fromkeys([*_taken(finalists, goal, hopes), most_accurate, *finalists]))


def training_pays(
    study: optuna.Study, problem: Problem, goal: Goal, hopes: Mapping[int, float]
) -> bool:
    """Return True if a longer training is expected to give a user a smaller or faster file.

    Args:
        study: the study.
        problem: predicts latencies.
        goal: objectives and limits.
        hopes: loss of accuracy that is expected after it, by number of the trial.

    Returns:
        True if a trial at most GAIN times as large, or as slow, is likely to come within the drop
        of accuracy that users take, or any trial where none is within it.
    """
    finalists = choose_finalists(study, problem, goal, or_nearest=False)
    finalists += choose_hopefuls(study, problem, goal, finalists, hopes)
    base, limit = goal.baseline.accuracy, goal.limits.max_accuracy_drop
    limit = np.inf if limit is None else limit
    now = [f for f in finalists if base - f.accuracy <= min(goal.near, limit)]
    likely = min(LIKELY * goal.near, limit)
    hoped = [f for f in finalists if f in now or hopes.get(f.number, np.inf) <= likely]
    if not now or not hoped:
        return bool(hoped)
    smaller = min(f.size_bytes for f in hoped) <= GAIN * min(f.size_bytes for f in now)
    return smaller or min(f.latency_ms for f in hoped) <= GAIN * min(f.latency_ms for f in now)


def _taken(
    finalists: list[Finalist], goal: Goal, hopes: Mapping[int, float] | None
) -> list[Finalist]:
    """Return the smallest and the fastest of those that lose little, or of all if none does."""

    def is_near(finalist: Finalist) -> bool:
        lost = goal.baseline.accuracy - finalist.accuracy
        hoped = goal.baseline.accuracy - finalist.expected
        hoped = min(hoped, (hopes or {}).get(finalist.number, hoped))
        return lost <= goal.near or (hoped < lost and hoped <= LIKELY * goal.near)

    near = [finalist for finalist in finalists if is_near(finalist)] or finalists
    return [min(near, key=lambda f: f.size_bytes), min(near, key=lambda f: f.latency_ms)]


def members_first(finalists: list[Finalist], goal: Goal) -> list[Finalist]:
    """Put the finalists first that no other one dominates, in the order of `by_use`.

    Args:
        finalists: in any order; one without a latency counts as dominated.
        goal: has the baseline and the objectives.
    """
    signed = signs(goal.objectives)
    on_front = non_dominated([np.array(f.values) * signed for f in finalists])
    members = [f for f, is_member in zip(finalists, on_front, strict=True) if is_member]
    return list(dict.fromkeys([*by_use(members, goal), *finalists]))


def _nearest(study: optuna.Study, problem: Problem, goal: Goal) -> list[Finalist]:
    """Return the trial nearest to the limits; a complete one if there is any.

    Trials that were not judged are judged here; those whose outputs are not finite are left out.
    """
    for state in (TrialState.COMPLETE, TrialState.PRUNED):
        trials = [t for t in records_of(study, (state,)) if t.candidate_json is not None]
        if trials:
            base = goal.baseline
            ordered = sorted(
                trials,
                key=lambda trial: distance(
                    trial.missed(
                        goal.limits,
                        base.accuracy,
                        problem.activation_bytes,
                        problem.latency_ms(trial.candidate),
                    ),
                    base.accuracy_scale,
                ),
            )
            failed: AutocompressError | None = None
            for trial in ordered[:TRIED]:
                try:
                    return [_finalist(trial, problem, goal)]
                except (NotComputableError, UserCodeError) as error:
                    failed = error
            if failed is not None:
                raise failed
    return []


def _finalist(trial: TrialRecord, problem: Problem, goal: Goal) -> Finalist:
    candidate = trial.candidate
    latency_ms = problem.latency_ms(candidate)
    memory = trial.activation_bytes
    if memory is None and goal.limits.max_memory_bytes is not None:
        memory = problem.activation_bytes(candidate)
    size, qualities, metrics = trial.size_bytes, trial.qualities, trial.metrics or {}
    if not qualities:
        model = problem.stitcher.apply(candidate)
        scores = evaluate_model(problem.task, model, problem.task.validation, problem.device)[0]
        size, metrics = problem.size_bytes(candidate), scores.metrics
        qualities = goal.qualities(scores)
    parts = (size, latency_ms, qualities)
    return Finalist(trial.number, candidate, *parts, activation_bytes=memory, metrics=metrics)


def recover_finalists(
    finalists: list[Finalist],
    problem: Problem,
    study: optuna.Study,
    goal: Goal,
    folder: Path,
    plan: LongPlan,
    stop: Callable[[], bool],
    report: Callable[[str, float], None],
) -> list[Finalist]:
    """Give finalists their long recovery.

    Args:
        finalists: as chosen.
        problem: task, stitcher and trainer.
        study: keeps what was done.
        goal: objectives and limits.
        folder: the run folder.
        plan: how long they are trained; 0 steps train nothing.
        stop: True interrupts.
        report: called with a step and the share of it that is done.

    Returns:
        The finalists, with the training that their best weights have had, or none.
    """
    trials = {}
    for finalist in finalists:
        objectives = dict(zip(goal.objectives, finalist.qualities[1:], strict=True))
        scores = Scores(finalist.accuracy, {**finalist.metrics, **objectives})
        trials[finalist.number] = finalist.candidate, scores
    recover_front(study, trials, problem, goal, folder, plan, stop, report)
    return [with_best_weights(finalist, goal, folder) for finalist in finalists]


def with_best_weights(finalist: Finalist, goal: Goal, folder: Path) -> Finalist:
    """Return a finalist with the training that its best weights have had, or none.

    Args:
        finalist: as chosen.
        goal: names the qualities.
        folder: the run folder, which holds recovered weights.
    """
    trained = read_recovered(folder, finalist.number, finalist.candidate)
    if trained is None:
        return replace(finalist, candidate=untrained(finalist.candidate))
    candidate = replace(finalist.candidate, distillation=trained.distillation)
    metrics, qualities = trained.scores.metrics, goal.qualities(trained.scores)
    return replace(finalist, candidate=candidate, qualities=qualities, metrics=metrics)

"""Choose the trials that become files, and give them their long recovery."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from autocompress.candidate import Candidate
from autocompress.measure.accuracy import Scores, evaluate_model
from autocompress.results.pareto import hypervolume_subset, non_dominated
from autocompress.search.evaluate.recovery import read_recovered, recover_front, untrained
from autocompress.search.problem.bench import Bench
from autocompress.search.problem.clock import MOST_FILES
from autocompress.search.problem.goal import Goal, signs


@dataclass(frozen=True)
class Finalist:
    """A trial that becomes a file."""

    number: int
    candidate: Candidate
    values: tuple[float, ...]


def choose_finalists(
    study: optuna.Study,
    bench: Bench,
    goal: Goal,
    before: Collection[int] = (),
    count: int = MOST_FILES,
) -> list[Finalist]:
    """At most `count` feasible, non-dominated trials, one per candidate, those that span most hypervolume, and the feasible ones of
    `before`: trials that an earlier front of the same run had, which must not get worse by predictions that have changed.

    When no trial is feasible, the one that misses the limits least, so that nobody is left empty-handed.
    """
    complete = [
        t
        for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if "candidate" in t.user_attrs
    ]
    feasible = [t for t in complete if all(v <= 0 for v in t.constraints.values())]
    if not feasible:
        nearest = complete or [
            t
            for t in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
            if "candidate" in t.user_attrs
        ]
        if not nearest:
            return []
        return [
            _finalist(
                min(nearest, key=lambda t: sum(max(0.0, v) for v in t.constraints.values())), bench
            )
        ]
    # Predicted now: the latency model may have learned since the trial was told.
    values = np.array([_finalist(t, bench).values for t in feasible])
    keep = np.flatnonzero(non_dominated(values * signs(bench.space.objectives)))
    chosen = hypervolume_subset(goal.losses(values[keep]), goal.reference_point, count)
    by_number = {trial.number: trial for trial in feasible}
    numbers = [feasible[int(keep[i])].number for i in chosen]
    return [
        _finalist(by_number[number], bench)
        for number in dict.fromkeys([*before, *numbers])
        if number in by_number
    ]


def _finalist(trial: FrozenTrial, bench: Bench) -> Finalist:
    candidate = Candidate.from_json(trial.user_attrs["candidate"])
    if trial.values is not None:
        return Finalist(
            trial.number,
            candidate,
            (trial.values[0], bench.latency_ms(candidate), *trial.values[2:]),
        )
    scores = evaluate_model(
        bench.task, bench.stitcher.apply(candidate), bench.task.validation, bench.device
    )[0]
    qualities = scores.accuracy, *(scores.metrics[name] for name in bench.space.objectives)
    return Finalist(
        trial.number,
        candidate,
        (bench.size_bytes(candidate), bench.latency_ms(candidate), *qualities),
    )


def recovered(
    study: optuna.Study,
    finalists: list[Finalist],
    bench: Bench,
    goal: Goal,
    folder: Path,
    steps: int,
    stop: Callable[[], bool],
    report: Callable[[str, float], None],
) -> list[Finalist]:
    """The finalists after their long recovery of `steps`: with the training that their best weights have had, or none."""
    names = bench.space.objectives
    scores = [Scores(f.values[2], dict(zip(names, f.values[3:], strict=True))) for f in finalists]
    given = [(f.number, f.candidate, found) for f, found in zip(finalists, scores, strict=True)]
    recover_front(study, given, bench, goal, folder, steps, stop, report)
    found = []
    for finalist in finalists:
        kept = read_recovered(folder, finalist.number)
        if kept is None:
            found.append(replace(finalist, candidate=untrained(finalist.candidate)))
        else:
            candidate = replace(finalist.candidate, distillation=kept.distillation)
            qualities = kept.scores.accuracy, *(kept.scores.metrics[name] for name in names)
            found.append(Finalist(finalist.number, candidate, (*finalist.values[:2], *qualities)))
    return found

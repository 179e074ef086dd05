"""Say what told trials lost, and which of them are the front."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from autocompress.candidate import Candidate
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.trials.told import TrialReader, lost_of, told_front
from tests.search.propose.told_trials import BOTH, GOAL, told, trial


def test_each_quality_is_lost_against_the_baseline() -> None:
    assert lost_of(trial([1, 1, 0.7]), GOAL) == pytest.approx((0.2,))
    assert lost_of(trial([1, 1, 0.95, 0.5]), BOTH) == pytest.approx((-0.05, 0.3))


def test_stopped_trials_show_nothing() -> None:
    (found,) = lost_of(trial(state=TrialState.PRUNED), GOAL)
    assert math.isnan(found)
    assert len(lost_of(trial(state=TrialState.FAIL), BOTH)) == 2


def test_the_divergence_of_a_trained_trial_is_what_training_left() -> None:
    assert told(1.0, 1.0, 0.3).final == 0.3
    better, no_better = (trial(recovered=is_better, left=0.25) for is_better in (True, False))
    assert told(1.0, 1.0, 0.3, trial=better).final == pytest.approx(0.075)
    assert told(1.0, 1.0, 0.3, trial=no_better).final == 0.3, "it kept its untrained weights"


def test_the_front_is_of_feasible_whole_trials() -> None:
    trials = [
        told(1.0, 1.0, 0.01),
        told(0.5, 0.5, 0.02),
        told(0.6, 0.5, 0.02),
        told(0.1, 0.1, 0.0, feasible=False),
        told(0.1, 0.1, math.nan),
        told(0.1, 0.1, 0.0, trial=trial(state=TrialState.PRUNED)),
        told(0.4, 2.0, -0.5),
        told(0.4, 2.0, -0.1),
    ]
    assert told_front(trials) == [trials[0], trials[1], trials[6]], (
        "what is better than the model has lost nothing, so that the last two are equal"
    )
    assert told_front([]) == []


def test_told_trials_know_their_state_and_choices() -> None:
    running = told(1.0, 1.0, math.nan, trial=trial(state=TrialState.RUNNING))
    assert (running.running, running.whole) == (True, False)
    assert (told(1.0, 1.0, 0.1).running, told(1.0, 1.0, 0.1, 0.2).whole) == (False, True)
    assert not told(1.0, 1.0, 0.1, math.nan).whole
    one, two = (told(1.0, 1.0, 0.1, choices=np.array([i])) for i in (1, 2))
    assert one.key != two.key
    assert one.key == told(0.2, 1.0, 0.3, choices=np.array([1])).key


def test_trials_of_a_run_without_a_limit_of_memory_get_theirs() -> None:
    nothing: Any = None
    limited = replace(GOAL, limits=replace(GOAL.limits, max_memory_bytes=100.0))
    done = replace(TrialRecord.of(0, Candidate()), qualities=(0.7,))
    for goal, expected in ((limited, 200), (GOAL, None)):
        reader = TrialReader(nothing, nothing, goal, activations=lambda candidate: 200)
        assert reader._with_memory(done).activation_bytes == expected
    known = replace(done, activation_bytes=50)
    reader = TrialReader(nothing, nothing, limited, activations=lambda candidate: 200)
    assert reader._with_memory(known).activation_bytes == 50

"""Make told trials for the tests of the sampler's model."""

from __future__ import annotations

import math

import numpy as np
from optuna.trial import TrialState

from autocompress.results.limits import Limits
from autocompress.results.measurement import Measurement
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.trials.told import Told

BASE = Measurement(1000, 2.0, 0.9, metrics={"f1": 0.8})
GOAL, BOTH = Goal(BASE, Limits()), Goal(BASE, Limits(), ("f1",))


def trial(
    values: list[float] | None = None,
    state: TrialState = TrialState.COMPLETE,
    constraints: dict[str, float] | None = None,
    **attributes: object,
) -> TrialRecord:
    size, latency, *qualities = values or (math.nan, math.nan)
    return TrialRecord(
        0,
        state,
        size_bytes=size,
        latency_ms=latency,
        qualities=tuple(qualities),
        violations=constraints or {},
        **attributes,
    )


def told(size: float, latency: float, *lost: float, **changes: object) -> Told:
    """A finished trial; its table says half of what its divergence is."""
    given = {
        "trial": trial(),
        "indices": np.zeros(1, np.intp),
        "choices": np.zeros(1, np.intp),
        "losses": np.array([max(lost[0], 0.001) / 2]),
        "costs": np.array([size, latency]),
        "divergence": max(lost[0], 0.001),
        "left": math.nan,
        "seen": 1.0,
        "lost": lost,
        "size": size,
        "latency": latency,
        "metrics": {},
        "feasible": True,
    }
    return Told(**{**given, **changes})

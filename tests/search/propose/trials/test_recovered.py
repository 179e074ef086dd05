"""Learn from trained trials what recovery leaves of each kind of change."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autocompress.search.propose.trials.recovered import LEAST, RecoveryModel
from autocompress.search.propose.trials.told import Told
from tests.search.propose.told_trials import told

KINDS = np.array([0, 1, 0, 1], np.intp)  # of four features
ONES = np.ones(4)


def trained(count: int, of_kind: tuple[float, float], noise: float = 0.0) -> list[Told]:
    """Trials of random losses, of which training leaves a share for each kind."""
    generator, trials = np.random.default_rng(0), []
    for _ in range(count):
        losses = generator.uniform(0, 1, 4)
        left = float(losses @ np.array(of_kind)[KINDS] / losses.sum())
        left += float(generator.normal(0, noise)) if noise else 0.0
        trials.append(told(1.0, 1.0, 0.1, losses=losses, left=left))
    return trials


def test_without_trained_trials_recovery_brings_nothing_back() -> None:
    untrained = [told(1.0, 1.0, 0.1, losses=ONES, left=math.nan)]
    for trials in ([], untrained):
        assert (RecoveryModel.fitted(trials, ONES, KINDS).shares == 1).all()


def test_one_trained_trial_speaks_for_all_kinds() -> None:
    """A kind that it does not show is expected to be like the others."""
    only = told(1.0, 1.0, 0.1, losses=np.array([1.0, 0.0, 1.0, 0.0]), left=0.2)
    shares = RecoveryModel.fitted([only], ONES, KINDS).shares
    assert shares[0] == pytest.approx(0.2, abs=0.05)
    assert 0.2 < shares[1] < 0.5


def test_each_kind_gets_its_share() -> None:
    shares = RecoveryModel.fitted(trained(40, (0.1, 0.8), noise=0.05), ONES, KINDS).shares
    assert shares[0] == shares[2] == pytest.approx(0.1, abs=0.1)
    assert shares[1] == shares[3] == pytest.approx(0.8, abs=0.1)


def test_corrected_losses_decide_which_kind_a_divergence_is_of() -> None:
    """The table makes the second kind ten times too large."""
    trials, weights = [], np.array([1.0, 0.1, 1.0, 0.1])
    for t in trained(40, (0.1, 0.8)):
        trials.append(told(1.0, 1.0, 0.1, losses=t.losses / weights, left=t.left))
    right = RecoveryModel.fitted(trials, weights, KINDS).shares
    wrong = RecoveryModel.fitted(trials, ONES, KINDS).shares
    assert abs(right[1] - 0.8) < abs(wrong[1] - 0.8)


def test_shares_stay_within_bounds() -> None:
    assert (RecoveryModel.fitted(trained(40, (-0.5, -0.5)), ONES, KINDS).shares == LEAST).all()
    assert (RecoveryModel.fitted(trained(40, (2.0, 2.0)), ONES, KINDS).shares == 1).all()


def test_an_allocation_is_left_the_mean_of_its_kinds() -> None:
    model = RecoveryModel(np.array([0.2, 1.0, 0.2, 1.0]))
    losses = np.array([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    assert model.left(losses, ONES) == pytest.approx([0.2, 0.6, 1.0])
    assert model.left(losses, np.array([3.0, 1, 1, 1]))[1] == pytest.approx(0.4)

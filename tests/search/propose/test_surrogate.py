from __future__ import annotations

import numpy as np
import pytest

from autocompress.results.pareto import hypervolume
from autocompress.search.propose.surrogate import DivergenceModel, LossModel, expected_improvement

RNG = np.random.default_rng


@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_improvement_of_a_sure_point_is_the_hypervolume_it_adds(count: int) -> None:
    generator = RNG(count)
    front, points, reference = (
        generator.random((count, 3)),
        generator.random((8, 3)),
        (0.9, 1.0, 0.8),
    )
    found = expected_improvement(points[:, :2], points[:, 2], np.full(8, 1e-9), front, reference)
    # `hypervolume` is a share of the box.
    whole = np.prod(reference)
    added = [
        (hypervolume(np.vstack([front, p]), reference) - hypervolume(front, reference)) * whole
        for p in points
    ]
    np.testing.assert_allclose(found, added, atol=1e-8)


@pytest.mark.parametrize("level", [0.0, 0.1, 0.5, 5.5])
def test_improvement_of_an_unsure_point_is_the_mean_over_what_it_may_be(level: float) -> None:
    """And what is below 0 is worth no more than 0."""
    generator = RNG(3)
    front, point = (
        generator.random((6, 3)) + np.array([0, 0, np.floor(level)]),
        np.array([0.2, 0.3, level]),
    )
    reference = (1.0, 1.0, np.floor(level) + 1.0)
    found = expected_improvement(point[None, :2], point[2:], np.array([0.2]), front, reference)[0]
    drawn = [
        np.array([*point[:2], max(level + 0.2 * z, 0.0)]) for z in generator.standard_normal(4000)
    ]
    mean = np.mean([hypervolume(np.vstack([front, p]), reference) for p in drawn]) - hypervolume(
        front, reference
    )
    assert found == pytest.approx(mean * reference[2], rel=0.05)


def test_what_cannot_lose_less_promises_nothing() -> None:
    """A point that is no smaller and no faster than one that loses nothing, however unsure its loss
    is.
    """
    front = np.array([[0.3, 0.3, 0.0], [0.1, 0.6, 0.02]])
    found = expected_improvement(
        np.array([[0.31, 0.3]]), np.array([0.0]), np.array([0.5]), front, (1.0, 1.0, 1.0)
    )
    assert found[0] == pytest.approx(0.0, abs=1e-12)


def told(count: int, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(losses, divergence, true factors, groups).

    Sums of features of which each is wrong by a factor, and those of group 1 by another.
    """
    generator = RNG(0)
    groups = np.arange(30) % 3
    losses = generator.exponential(1.0, (count, 30)) * generator.exponential(1.0, 30)
    factors = np.exp(generator.normal(0, spread, 30)) * np.where(groups == 1, 2.0, 0.7)
    divergence = 0.01 * losses @ factors * np.exp(generator.normal(0, 0.05, count))
    return losses, divergence, factors, groups


def fitted(losses, divergence, groups) -> DivergenceModel:
    return DivergenceModel.fitted(
        losses,
        groups,
        divergence,
        np.ones(len(losses)),
        float(np.median(divergence)) if len(losses) else 1.0,
    )


def test_the_table_is_believed_until_trials_say_otherwise() -> None:
    losses, divergence, _, groups = told(200, 0.4)
    nothing = fitted(losses[:0], divergence[:0], groups)
    np.testing.assert_array_equal(nothing.mean, np.ones(30))
    few, many = (fitted(losses[:n], divergence[:n], groups) for n in (15, 150))
    unseen = slice(150, 200)

    def error(model: DivergenceModel) -> float:
        return float(np.abs(np.log(model.predict(losses[unseen])[0] / divergence[unseen])).mean())

    scaled = np.exp(np.median(np.log(divergence[:150] / losses[:150].sum(1))))
    table = float(np.abs(np.log(losses[unseen].sum(1) * scaled / divergence[unseen])).mean())
    assert error(many) < error(few) < table
    assert error(many) < 0.1


def test_predictions_say_how_sure_they_are() -> None:
    losses, divergence, _, groups = told(160, 0.4)
    model = fitted(losses[:100], divergence[:100], groups)
    mean, deviation = model.predict(losses[100:])
    inside = np.abs(mean - divergence[100:]) < 2 * deviation
    assert inside.mean() > 0.85
    assert (
        fitted(losses[:10], divergence[:10], groups).predict(losses[100:])[1].mean()
    ) > deviation.mean()


def test_draws_spread_around_the_mean_and_stay_positive() -> None:
    losses, divergence, _, groups = told(40, 0.4)
    model = fitted(losses, divergence, groups)
    drawn = model.draws(400, RNG(0))
    assert (drawn > 0).all()
    np.testing.assert_allclose(drawn.mean(0), model.mean, atol=0.15)


def test_a_loss_never_falls_with_the_divergence() -> None:
    generator = RNG(0)
    divergence = np.exp(generator.normal(-3, 2, 60))
    lost = divergence / (1 + divergence) + generator.normal(0, 0.01, 60)
    model = LossModel.fitted(divergence, lost, 0.001)
    at = np.geomspace(divergence.min() / 10, divergence.max() * 100, 200)
    mean, deviation = model.predict(at, np.full(200, 1e-9))
    assert (np.diff(mean) >= -1e-9).all()
    assert (deviation >= 0.001 * (1 - 1e-9)).all()
    middle = (at > np.quantile(divergence, 0.1)) & (at < np.quantile(divergence, 0.9))
    assert np.abs(mean - at / (1 + at))[middle].max() < 0.1
    assert model.divergence_at(0.5) == pytest.approx(1.0, rel=0.8)
    unsure = model.predict(at, at)[1]
    assert (unsure[middle] > deviation[middle]).mean() > 0.9

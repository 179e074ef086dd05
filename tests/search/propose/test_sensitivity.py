"""Estimate, measure and complete the table of sensitivities, and keep it."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from torch import Tensor, nn

from autocompress import Task
from autocompress.candidate import ModuleConfig
from autocompress.errors import TaskError
from autocompress.search.propose import sensitivity
from autocompress.search.propose.estimate.probe_board import ProbeBoard
from autocompress.search.propose.estimate.probe_meter import ProbeMeter
from autocompress.search.propose.sensitivity import check_seen, measure_sensitivity, probes
from autocompress.search.propose.sensitivity_table import Sensitivity, divergences
from autocompress.space.recovery import RecoverySpace
from autocompress.space.search_space import BoundSpace, Knob

BITS8, BITS4 = (ModuleConfig(weight_bits=bits) for bits in (8, 4))
RANK, ZEROS = ModuleConfig(rank_ratio=0.5), ModuleConfig(sparsity=0.5)
HALF = ModuleConfig(pruning_ratio=0.5)


def test_each_axis_is_probed_apart_and_nothing_untouched() -> None:
    knobs = (
        Knob("a", "weight_bits", (32, 8)),
        Knob("a", "rank_ratio", (1.0, 0.5)),
        Knob("a", "sparsity", (0.0, 0.5)),
        Knob("a", "pruning_ratio", (0.0, 0.5)),
    )
    kinds = {"a": "linear", "b": "linear"}
    space = BoundSpace(knobs, {("b", "weight_bits"): 8}, kinds, (), RecoverySpace(), {})
    found = probes(space)
    assert set(found) == {("a", c) for c in (BITS8, RANK, ZEROS, HALF)} | {("b", BITS8)}
    assert len(found) == 5
    none = BoundSpace((), {("b", "weight_bits"): 32}, {"b": "linear"}, (), RecoverySpace(), {})
    assert probes(none) == []


def seen(divergence: object = None) -> SimpleNamespace:
    return SimpleNamespace(name="t", divergence=divergence)


def test_a_divergence_that_sees_nothing_move_is_refused() -> None:
    zeros = {("a", BITS8): 0.0, ("a", BITS4): 0.0}
    with pytest.raises(TaskError) as caught:
        check_seen(seen(), zeros, 0.35)
    assert str(caught.value) == (
        "task t: the default divergence is 0 for all 2 choices, though the outputs change by up "
        "to 35%: "
        "it does not see them change; give a divergence that does"
    )
    with pytest.raises(TaskError, match="task t: divergence is 0 for all 2 choices"):
        check_seen(seen(abs), zeros, 0.35)


def test_choices_that_change_nothing_or_are_seen_are_no_error() -> None:
    check_seen(seen(), {("a", BITS8): 0.0}, 0.01)
    check_seen(seen(), {("a", BITS8): 0.0, ("a", BITS4): 1e-9}, 0.5)
    check_seen(seen(), {}, 0.5)


class Scaled(nn.Module):
    """Multiply by what the probes make of the weights."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 1, bias=False)
        self.fc.weight.data[:] = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


FACTORS = {BITS8: 1.1, BITS4: 1.5, RANK: 2.0}
ESTIMATES = {("a", BITS8): 0.01, ("b", BITS8): 0.02, ("a", BITS4): 0.1, ("b", BITS4): 0.2}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch):
    """Measure made-up models.

    The divergence of a config is its factor minus 1, whatever the module.
    """
    todo = [(name, config) for name in ("a", "b") for config in (BITS8, BITS4, RANK)]
    monkeypatch.setattr(sensitivity, "probes", lambda space: todo)
    estimate = lambda module, config: ESTIMATES.get((module, config))  # noqa: E731
    curvature = lambda *_, deadline: SimpleNamespace(estimate=estimate)  # noqa: E731
    monkeypatch.setattr(sensitivity, "Curvature", curvature)
    batches = [(torch.ones(4, 1), torch.zeros(4))]
    task = Task(
        "t",
        Scaled(1.0),
        torch.ones(1, 1),
        batches,
        lambda outputs, targets: 0.0,
        divergence=lambda outputs, expected: (outputs - expected).abs().sum(1),
    )
    applied = []

    def apply(candidate) -> nn.Module:
        ((name, config),) = candidate.modules
        applied.append((name, config))
        return Scaled(FACTORS[config])

    stitcher = SimpleNamespace(teacher=Scaled(1.0), apply=apply)

    def measure(
        chosen: dict, deadline: float | None = None, board: ProbeBoard | None = None
    ) -> tuple[Sensitivity, list]:
        found = measure_sensitivity(
            task,
            stitcher,
            None,
            torch.device("cpu"),
            lambda module, config: (7, 0.5),
            lambda estimates: chosen,
            deadline,
            lambda what, share: None,
            board,
        )
        return found, applied

    return measure


def test_what_has_no_estimate_and_what_is_chosen_most_is_measured(measured) -> None:
    found, applied = measured({("b", BITS8): 1, ("a", BITS4): 3, ("a", BITS8): 0})
    assert applied == [("a", RANK), ("b", RANK), ("a", BITS4), ("b", BITS8)]
    assert found.measured == 4
    table = divergences(found.rows)
    for probe in applied:
        assert table[probe] == pytest.approx(FACTORS[probe[1]] - 1)
    # Measured against estimated: 0.5 / 0.1 and 0.1 / 0.02, so that the others are five times
    # theirs, whatever the bits.
    assert table["a", BITS8] == pytest.approx(0.05)
    assert table["b", BITS4] == pytest.approx(1.0)
    assert all((row.size_bytes, row.latency_ms) == (7, 0.5) for row in found.rows)
    assert found.rank_correlation is None, "two pairs show no correlation"


def test_a_search_that_shares_and_one_that_is_alone_measure_the_same(measured) -> None:
    chosen = {("b", BITS8): 1, ("a", BITS4): 3}
    alone, applied = measured(chosen)
    order = list(applied)
    applied.clear()
    shared, applied = measured(chosen, board=ProbeBoard(optuna.create_study(), "first"))
    assert applied == order
    assert shared.rows == alone.rows
    assert shared.measured == alone.measured


def test_the_estimate_is_held_to_what_was_measured(measured) -> None:
    found, _ = measured(dict.fromkeys(ESTIMATES, 1))
    assert found.measured == 6
    scale = np.exp(np.median(np.log([0.1 / 0.01, 0.1 / 0.02, 0.5 / 0.1, 0.5 / 0.2])))
    pairs = [(scale * e, FACTORS[c] - 1) for (_, c), e in ESTIMATES.items()]
    off = np.exp(np.median([abs(np.log(a / b)) for a, b in pairs]))
    assert found.factor == pytest.approx(off, rel=1e-5)
    assert found.rank_correlation == pytest.approx(
        0.894427, abs=1e-5
    )  # 1 2 3 4 and 1.5 1.5 3.5 3.5


def test_without_time_every_choice_is_as_bad_as_the_worst(measured) -> None:
    found, applied = measured({}, deadline=-1.0)
    assert applied == []
    assert found.measured == 0
    assert {row.divergence for row in found.rows} == {1.0}


def test_gradients_leave_time_for_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model takes all of a deadline for its gradients: then nothing was estimated."""
    begun = time.monotonic()
    ends = []

    def curvature(*_: object, deadline: float) -> SimpleNamespace:
        ends.append(deadline)
        return SimpleNamespace(estimate=lambda module, config: 0.25)

    monkeypatch.setattr(sensitivity, "probes", lambda space: [("a", BITS8), ("b", BITS4)])
    monkeypatch.setattr(sensitivity, "Curvature", curvature)
    batches = [(torch.ones(4, 1), torch.zeros(4))]
    task = Task("t", Scaled(1.0), torch.ones(1, 1), batches, lambda outputs, targets: 0.0)
    stitcher = SimpleNamespace(teacher=Scaled(1.0))
    costs, chosen = (lambda *_: (7, 0.5)), (lambda estimates: {})
    end = begun + 100.0
    found = measure_sensitivity(
        task, stitcher, None, torch.device("cpu"), costs, chosen, end, lambda *_: None
    )
    assert begun + 40 < ends[0] < begun + 60
    assert found.estimated == 2
    assert {row.divergence for row in found.rows} == {0.25}


def test_a_technique_needs_measurements_of_its_own_to_leave_the_median_of_all() -> None:
    names = [f"m{i}" for i in range(40)]
    estimates = {(name, config): 1.0 for name in names for config in (BITS8, RANK, HALF)}
    many = {(name, BITS8): 2.0 for name in names[:30]}
    scaled = sensitivity._scaled(estimates, {**many, ("m0", RANK): 1000.0})
    assert scaled["m39", BITS8] == pytest.approx(2.0)
    assert scaled["m39", HALF] == pytest.approx(2.0), "nothing was measured of it"
    assert 2.0 < scaled["m39", RANK] < 4.0
    ranks = {(name, RANK): 1000.0 for name in names}
    assert sensitivity._scaled(estimates, {**many, **ranks})["m0", RANK] > 100
    assert sensitivity._scaled(estimates, {}) == estimates


class Filled(Scaled):
    """Write -1e4 beside the answer, as a mask of classes does."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return torch.cat([y, torch.full_like(y, -1e4)], 1)


def test_fillers_of_a_mask_hide_no_change_of_the_outputs() -> None:
    x = torch.ones(4, 1)
    blind = lambda outputs, expected: torch.zeros(len(outputs))  # noqa: E731
    metric = lambda outputs, targets: 0.0  # noqa: E731
    task = Task("t", Filled(1.0), x, [(x, torch.zeros(4))], metric, divergence=blind)
    stitcher = SimpleNamespace(teacher=Filled(1.0), apply=lambda candidate: Filled(1.5))
    effect = ProbeMeter(task, stitcher, torch.device("cpu")).measure("a", BITS8)
    with pytest.raises(TaskError, match="though the outputs change by up to 50%"):
        check_seen(task, {("a", BITS8): effect.divergence}, effect.moved)


def test_what_is_chosen_nowhere_is_not_counted() -> None:
    class Prices:
        """Probes of the row are the number of the price's column that is larger."""

        price_ranges = np.array([(1.0, 100.0), (1.0, 100.0)])
        features = (("a", "quantized"),)

        def allocate(self, prices: np.ndarray, weights: np.ndarray) -> np.ndarray:
            assert len(prices) == len(weights) == sensitivity.GRID**2
            assert prices.min() > 1
            assert prices.max() < 100
            return (prices[:, 0] > prices[:, 1]).astype(np.intp)[:, None]

        def probes(self, row: np.ndarray) -> list:
            return [("a", BITS8)] if row[0] else []

    counts = sensitivity.often_chosen(Prices())
    pairs = sensitivity.GRID * (sensitivity.GRID - 1) // 2
    assert counts == {("a", BITS8): sensitivity.DRAWS * pairs}

from __future__ import annotations

import itertools
import sys
from dataclasses import asdict, replace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from autocompress import ModuleConfig, find_modules
from autocompress.export.prepare import prepare
from autocompress.export.subject import layout_of, subject_of
from autocompress.results.limits import Limits
from autocompress.results.measurement import Measurement
from autocompress.results.pareto import hypervolume
from autocompress.search.problem.goal import Goal, directions
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.allocation import Allocator
from autocompress.search.propose.sampler import (
    FASTEST_EVERY,
    ROOM,
    PriceSampler,
    distributions,
)
from autocompress.search.propose.sensitivity import probes
from autocompress.search.propose.trial_model import GUIDED_AFTER, Model
from autocompress.search.propose.trials.told import TrialReader
from autocompress.search.propose.uniform import enqueue, nearest_parameters
from autocompress.search.workers.storage import open_study
from autocompress.search.workers.worker import ask
from autocompress.space.recovery import ALPHA
from autocompress.space.search_space import BoundSpace, SearchSpace
from autocompress.targets.kernels import KernelChoice
from autocompress.targets.latency_model.stored_tables import cached_table
from autocompress.targets.target import find_target
from tests.search.propose import told_trials

SPACE = {
    "modules": [
        {
            "match": "*",
            "weight_bits": [4, 8, 16],
            "activation_bits": [8, 32],
            "rank_ratio": [0.25, 1.0],
            "pruning_ratio": {"low": 0.0, "high": 0.5, "step": 0.25},
        }
    ],
    "distillation": {"alpha": {"low": 0.2, "high": 0.8}, "steps": 5},
}
LOSS = {16: 1e-6, 8: 1e-4, 4: 1e-2}
GOAL = Goal(Measurement(1_000_000, 2.0, 0.95), Limits(None, None, 0.2))


@pytest.fixture(scope="module")
def parts(cnn_task) -> tuple[BoundSpace, Allocator]:
    """An allocator over made-up sensitivities, in which fewer bits, channels and ranks always lose
    more.
    """
    # Of a device whose times are computed: no proposal hangs on a clock.
    kernels = KernelChoice(weight_only=False, present=False)
    builder = prepare(cnn_task, find_modules(cnn_task.model, cnn_task.example_inputs), kernels)
    target = find_target("analytic:phone-npu")
    space = SearchSpace.load(SPACE).bind(builder.module_map, target)
    layout = layout_of(builder)
    table = cached_table(subject_of(cnn_task, builder, layout, space), target)
    losses = {
        (name, config): LOSS.get(config.weight_bits, 0.0)
        + 0.05 * config.pruning_ratio
        + 0.01 * (1 - config.rank_ratio)
        for name, config in probes(space)
    }
    return space, Allocator.of(space, layout, table, losses, len(builder.baseline))


def test_every_choice_is_probed_one_axis_at_a_time(parts: tuple[BoundSpace, Allocator]) -> None:
    space, _ = parts
    found = probes(space)
    assert len(found) == len(set(found))
    for module, config in found:
        changed = set(config.to_json()) - {"activation_bits"}
        assert len(changed) == 1, (module, config)
    assert ("stem.0", ModuleConfig(pruning_ratio=0.25)) in found
    assert ("fc", ModuleConfig(rank_ratio=0.25)) in found


def configs_of(space: BoundSpace, allocator: Allocator, choices) -> dict[str, ModuleConfig]:
    return dict(space.candidate(allocator.parameters(choices) | {ALPHA: 0.5}).modules)


def test_without_prices_nothing_is_lost_and_higher_prices_save_more(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    space, allocator = parts
    dear = [0.0, 1e-3, 1e-2, 1e-1, 1.0, 100.0]
    choices = allocator.allocate(np.array([(price, 0.0) for price in dear]))
    configs = configs_of(space, allocator, choices[0])
    assert all(
        (c.weight_bits, c.rank_ratio, c.pruning_ratio) == (16, 1.0, 0.0) for c in configs.values()
    )
    sizes = allocator.costs(choices)[:, 0]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(sizes))
    assert sizes[-1] < sizes[0] / 3
    for low, high in allocator.price_ranges:
        assert 0 < low < high


def test_an_allocation_is_the_cheapest_of_all_at_its_prices(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    """Against every single change of one choice: sweeps end where none of them pays."""
    _, allocator = parts
    prices = np.array([(0.02, 0.05), (0.5, 0.01)])
    for price, choices in zip(prices, allocator.allocate(prices), strict=True):
        counts = [len(t.configs) for t in allocator.modules.values()] + [
            len(c) for c in allocator.group_configs.values()
        ]
        others = [choices]
        for column, count in enumerate(counts):
            for choice in range(count):
                others.append(choices.copy())
                others[-1][column] = choice
        rows = np.stack(others)
        size, latency = allocator.costs(rows).T
        total = allocator.losses(rows).sum(1) + price[0] * size + price[1] * latency
        assert total.argmin() == 0 or total[0] == pytest.approx(total.min())


def test_choices_and_parameters_are_two_names_of_one_allocation(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    space, allocator = parts
    generator = np.random.default_rng(0)
    for _ in range(20):
        given = {knob.parameter: int(generator.integers(len(knob.choices))) for knob in space.knobs}
        choices = allocator.choices(given)
        again = allocator.parameters(choices)
        assert (
            space.candidate(again | {ALPHA: 0.5}).modules
            == space.candidate(given | {ALPHA: 0.5}).modules
        )
        assert (allocator.choices(again) == choices).all()


def test_weights_on_a_part_move_the_allocation_away_from_it(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    _, allocator = parts
    weights = np.ones((1, len(allocator.features)))
    weights[0, [part == "quantized" for _, part in allocator.features]] = 1e4
    prices = np.array([(0.5, 0.0)])
    plain, careful = (allocator.losses(allocator.allocate(prices, w))[0] for w in (None, weights))
    bits = np.array([part == "quantized" for _, part in allocator.features])
    assert careful[bits].sum() < plain[bits].sum()


def test_proposals_depend_on_seed_and_storage_only(
    parts: tuple[BoundSpace, Allocator], tmp_path
) -> None:
    space, allocator = parts

    def proposals(seed: int, path: str) -> list[dict]:
        found = []
        for _ in range(26):  # past the point from which told trials guide it
            study = open_study(
                str(tmp_path / path)
            )  # a resumed search has another sampler object and the same storage
            study.sampler = PriceSampler(space, allocator, GOAL, seed)
            found.append(told(study, space, allocator).params)
        return found

    first = proposals(0, "a")
    assert first == proposals(0, "b")
    assert first != proposals(1, "c")
    assert all(0.2 <= params[ALPHA] <= 0.8 for params in first)
    assert all(set(params) == set(distributions(space)) for params in first)


def told(
    study: optuna.Study, space: BoundSpace, allocator: Allocator, factors: np.ndarray | None = None
) -> optuna.Trial:
    """One trial whose divergence is the table's sum, each feature times its factor, and whose
    accuracy falls with it.
    """
    trial = ask(study, space)
    choices = allocator.choices(trial.params)[None]
    losses = allocator.losses(choices)[0]
    divergence = float(losses @ (np.ones(len(losses)) if factors is None else factors))
    size, latency = allocator.costs(choices).T
    trial.set_user_attr("divergence", divergence)
    lost = 1 - np.exp(-divergence)
    trial.set_constraint("max_accuracy_drop", lost - GOAL.drop)
    study.tell(
        trial,
        [
            size[0] * GOAL.baseline.size_bytes,
            latency[0] * GOAL.baseline.latency_ms,
            GOAL.baseline.accuracy - lost,
        ],
    )
    return trial


def volume(study: optuna.Study) -> float:
    kept = [
        t.values for t in study.trials if t.values and all(v <= 0 for v in t.constraints.values())
    ]
    return hypervolume(GOAL.losses(kept), GOAL.reference_point) if kept else 0.0


@pytest.mark.slow
def test_it_learns_where_the_table_is_wrong(parts: tuple[BoundSpace, Allocator]) -> None:
    """With a table that is wrong by factors of 1/4 to 4 it finds more than prices over that table,
    and than random search in five times the trials.
    """
    space, allocator = parts
    factors = np.exp(np.random.default_rng(0).normal(0, 1.0, len(allocator.features)))

    def search(sampler: optuna.samplers.BaseSampler, count: int) -> float:
        study = optuna.create_study(
            directions=["minimize", "minimize", "maximize"], sampler=sampler
        )
        for _ in range(count):
            told(study, space, allocator, factors)
        return volume(study)

    guided = np.mean([search(PriceSampler(space, allocator, GOAL, seed), 60) for seed in range(3)])
    prices = [search(OnlyPrices(space, allocator, GOAL, seed), 60) for seed in range(3)]
    assert guided > np.mean(prices)
    assert guided > search(optuna.samplers.RandomSampler(seed=0), 300)


class OnlyPrices(PriceSampler):
    def _described(self, study, states, without=-1):
        return []


def test_running_trials_count_as_what_is_predicted_of_them(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    """Workers that ask one after the other without an answer are given different candidates."""
    space, allocator = parts
    study = optuna.create_study(
        directions=["minimize", "minimize", "maximize"],
        sampler=PriceSampler(space, allocator, GOAL, 0),
    )
    for _ in range(24):
        told(study, space, allocator)
    asked = [tuple(allocator.choices(ask(study, space).params)) for _ in range(6)]
    assert len(set(asked)) == 6
    before = {tuple(allocator.choices(t.params)) for t in study.trials if t.state.is_finished()}
    assert not before & set(asked), "nor what was told already"


@pytest.mark.slow
def test_it_looks_for_each_of_several_qualities(parts: tuple[BoundSpace, Allocator]) -> None:
    """One that falls with the divergence at once, and one that holds long.

    The front over both is larger than random search's in five times the trials, and its box in each
    quality is larger than what trials for accuracy alone would leave.
    """
    space, allocator = parts
    goal = Goal(
        replace(GOAL.baseline, metrics={"late": 2.0}),
        Limits(None, None, 0.2, {"late": 1.5}),
        ("late",),
    )

    def search(sampler: optuna.samplers.BaseSampler, count: int) -> float:
        study = optuna.create_study(directions=directions(goal.objectives), sampler=sampler)
        for _ in range(count):
            trial = ask(study, space)
            choices = allocator.choices(trial.params)[None]
            divergence = float(allocator.losses(choices)[0].sum())
            size, latency = allocator.costs(choices).T
            accuracy, late = 0.95 - (1 - np.exp(-divergence)), 2.0 - 2 * divergence**2
            trial.set_user_attr("divergence", divergence)
            trial.set_user_attr("metrics", {"late": late})
            for name, missed in goal.limits.violations(
                1, 1, 0.95 - accuracy, {"late": late}
            ).items():
                trial.set_constraint(name, missed)
            study.tell(
                trial,
                [
                    size[0] * GOAL.baseline.size_bytes,
                    latency[0] * GOAL.baseline.latency_ms,
                    accuracy,
                    late,
                ],
            )
        kept = [t.values for t in study.trials if all(v <= 0 for v in t.constraints.values())]
        return hypervolume(goal.losses(kept), goal.reference_point)

    guided = search(PriceSampler(space, allocator, goal, 0), 60)
    assert guided > search(optuna.samplers.RandomSampler(seed=0), 300)


def test_limits_of_size_are_respected_once_it_is_guided(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    space, allocator = parts
    goal = Goal(GOAL.baseline, Limits(0.3 * GOAL.baseline.size_bytes, None, 0.2))
    study = optuna.create_study(
        directions=["minimize", "minimize", "maximize"],
        sampler=PriceSampler(space, allocator, goal, 0),
    )
    for _ in range(50):
        told(study, space, allocator)
    sizes = [t.values[0] / GOAL.baseline.size_bytes for t in study.trials[20:]]
    assert np.mean(np.array(sizes) <= 0.3) > 0.8


def test_the_first_proposal_is_the_most_accurate_one_within_the_limits(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    space, allocator = parts
    limits = Limits(0.3 * GOAL.baseline.size_bytes, 0.9 * GOAL.baseline.latency_ms)
    sampler = PriceSampler(space, allocator, Goal(GOAL.baseline, limits), 0)
    study = optuna.create_study(directions=["minimize", "minimize", "maximize"], sampler=sampler)
    first = allocator.choices(ask(study, space).params)[None]
    size, latency = map(float, allocator.costs(first)[0])
    assert size <= 0.3
    assert latency <= 0.9
    generator = np.random.default_rng(0)
    others = np.stack(
        [
            allocator.choices(
                {k.parameter: int(generator.integers(len(k.choices))) for k in space.knobs}
            )
            for _ in range(2000)
        ]
    )
    sizes, latencies = allocator.costs(others).T
    within = (sizes <= 0.3) & (latencies <= 0.9)
    assert within.sum() > 10
    assert allocator.losses(first).sum() <= np.quantile(
        allocator.losses(others[within]).sum(1), 0.02
    ), "nearly all that keep them lose more"


def test_fast_proposals_follow_where_trials_are_trained(
    parts: tuple[BoundSpace, Allocator], monkeypatch: pytest.MonkeyPatch
) -> None:
    space, allocator = parts
    module = sys.modules[PriceSampler.__module__]
    least = float(allocator.costs(allocator.least_lossy(np.array([np.inf, 0.0]))[None])[0, 1])
    first, second = (least + share * (1 - least) for share in (0.7, 0.35))
    monkeypatch.setattr(module, "FAST", (first, second))  # operators have fixed times here

    def latencies(
        rungs: tuple[int, ...], blocks: bool | None = None, goal: Goal = GOAL
    ) -> list[float]:
        recovery = replace(space.recovery, rungs=rungs, blocks=blocks)
        own = replace(space, recovery=recovery)
        study = optuna.create_study(
            directions=["minimize", "minimize", "maximize"],
            sampler=PriceSampler(own, allocator, goal, 0),
        )
        trials = [told(study, own, allocator) for _ in range(4)]
        chosen = np.stack([allocator.choices(trial.params) for trial in trials])
        return [float(latency) for latency in allocator.costs(chosen)[:, 1]]

    _, fast, faster, later = latencies((30,))
    assert second < fast <= ROOM * first
    assert least < faster <= ROOM * second
    untrained = latencies(())
    assert untrained == latencies((30,), blocks=True), "block by block, trials are not trained"
    assert untrained[1:3] != [fast, faster]
    assert untrained[3] == later
    smallest = float(allocator.costs(allocator.allocate(np.array([(1e4, 0.0)])))[0, 0])
    small = replace(GOAL, limits=Limits(0.9 * smallest * GOAL.baseline.size_bytes))
    assert latencies((30,), goal=small) == latencies((), goal=small), "none keeps the limit"
    monkeypatch.setattr(module, "FAST", (first, 0.9 * least))
    _, same, between, _ = latencies((30,))
    assert same == fast
    assert least < between <= ROOM * (first + least) / 2, "nothing is as fast"


def test_trials_without_numbers_do_not_spoil_the_first_proposals(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    space, allocator = parts
    limits = Limits(0.3 * GOAL.baseline.size_bytes, 0.9 * GOAL.baseline.latency_ms)
    sampler = PriceSampler(space, allocator, Goal(GOAL.baseline, limits), 0, 1)
    study = optuna.create_study(directions=["minimize", "minimize", "maximize"], sampler=sampler)
    study.tell(ask(study, space), state=optuna.trial.TrialState.PRUNED)
    first = allocator.choices(ask(study, space).params)[None]
    assert (allocator.costs(first)[0] <= (0.3, 0.9)).all()


def test_bounds_hold_where_the_untouched_model_costs_more_than_one(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    """A table may predict more than the float file takes."""
    _, allocator = parts
    dear = {name: replace(t, costs=3 * t.costs) for name, t in allocator.modules.items()}
    allocator = replace(allocator, modules=dear)
    untouched = allocator.least_lossy(np.array([np.inf, np.inf]))
    assert allocator.costs(untouched[None])[0, 0] > 1.1
    assert allocator.costs(allocator.least_lossy(np.array([1.1, np.inf]))[None])[0, 0] <= 1.1


def test_pruning_pays_for_the_fast_proposals(parts: tuple[BoundSpace, Allocator]) -> None:
    """Training brings back what pruning changes, so that it is preferred to fewer bits."""
    _, allocator = parts
    left = np.ones(len(allocator.features))
    pruned = np.array([part == "pruned" for _, part in allocator.features])
    left[pruned] = 1e-4
    bounds = np.array([0.2, np.inf])
    plain, hoped = allocator.least_lossy(bounds), allocator.least_lossy(bounds, left)
    losses = allocator.losses(np.stack([plain, hoped]))
    assert losses[1, pruned].sum() > losses[0, pruned].sum()
    assert losses[1].sum() > losses[0].sum(), "before training it loses more"
    assert (allocator.costs(np.stack([plain, hoped]))[:, 0] <= 0.2).all()


def test_light_losses_give_way_at_low_prices(parts: tuple[BoundSpace, Allocator]) -> None:
    """Of pruned candidates that keep a bound, the one that is pruned least is found."""
    _, allocator = parts
    pruned = np.array([part == "pruned" for _, part in allocator.features])
    least = float(allocator.costs(allocator.least_lossy(np.array([np.inf, 0.0]))[None])[0, 1])
    bounds = np.array([np.inf, least + 0.7 * (1 - least)])
    for share in (1.0, 0.25, 0.02):
        left = np.where(pruned, share, 1.0)
        row = allocator.least_lossy(bounds, left)[None]
        assert allocator.costs(row)[0, 1] <= bounds[1]
        losses = allocator.losses(row)[0]
        assert losses[pruned].sum() == pytest.approx(0.025), "one group loses a half"


def test_the_first_proposal_leaves_room_for_the_rest_of_the_graph(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    """What told trials have cost beyond the table is part of each candidate."""
    space, allocator = parts
    limits, rest = Limits(0.5 * GOAL.baseline.size_bytes), 0.2
    sizes = {}
    for beyond in (0.0, rest):
        sampler = PriceSampler(space, allocator, Goal(GOAL.baseline, limits), 0, 1)
        study = optuna.create_study(
            directions=["minimize", "minimize", "maximize"], sampler=sampler
        )
        enqueue(study, [nearest_parameters(space, dict.fromkeys(space.kinds, ModuleConfig(8, 8)))])
        trial = study.ask(distributions(space))
        size, latency = allocator.costs(allocator.choices(trial.params)[None])[0]
        record = TrialRecord.of(trial.number, space.candidate(trial.params))
        for name, value in record.attributes_before().items():
            trial.set_user_attr(name, value)
        values = ((size + beyond) * GOAL.baseline.size_bytes, latency * GOAL.baseline.latency_ms)
        study.tell(trial, [*values, GOAL.baseline.accuracy])
        params = study.ask(distributions(space)).params
        sizes[beyond] = float(allocator.costs(allocator.choices(params)[None])[0, 0])
    assert 0.4 < sizes[0.0] <= 0.5
    assert sizes[rest] + rest <= 0.5


def test_told_latencies_are_those_of_the_latency_model_of_today(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    space, allocator = parts
    study = optuna.create_study(directions=["minimize", "minimize", "maximize"])
    trial = study.ask(distributions(space))
    record = TrialRecord.of(trial.number, space.candidate(trial.params))
    for name, value in record.attributes_before().items():
        trial.set_user_attr(name, value)
    study.tell(trial, [100.0, 7.0, GOAL.baseline.accuracy])
    goal = Goal(GOAL.baseline, Limits(max_latency_ms=2.0))
    (told_trial,) = study.trials
    then = TrialReader(space, allocator, goal).told(study, told_trial)
    now = TrialReader(space, allocator, goal, lambda candidate: 1.5).told(study, told_trial)
    assert then.latency == pytest.approx(7.0 / GOAL.baseline.latency_ms)
    assert now.latency == pytest.approx(1.5 / GOAL.baseline.latency_ms)
    assert (then.feasible, now.feasible) == (False, True)


def test_the_most_accurate_model_follows_the_enqueued_uniform_ones(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    space, allocator = parts
    study = optuna.create_study(
        directions=["minimize", "minimize", "maximize"],
        sampler=PriceSampler(space, allocator, GOAL, 0, 2),
    )
    uniform = [dict.fromkeys(space.kinds, ModuleConfig(bits, 8)) for bits in (8, 4)]
    enqueue(study, [nearest_parameters(space, configs) for configs in uniform])
    expected = [(8, 8), (4, 8), (16, None)]
    for bits, activation_bits in expected:
        params = study.ask(distributions(space)).params
        candidate = space.candidate(params)
        for name, config in candidate.modules:
            assert config.weight_bits == bits
            assert config.pruning_ratio == 0.0
            if activation_bits is not None and space.kinds[name] != "embedding":
                assert config.activation_bits == activation_bits


class OnePrice(PriceSampler):
    """A sampler whose prices all give the same allocation."""

    def _prices(self, units):
        return np.full((len(units), 2), 0.05)


def test_prices_that_give_one_allocation_still_give_new_candidates(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    space, allocator = parts
    study = optuna.create_study(
        directions=["minimize", "minimize", "maximize"],
        sampler=OnePrice(space, allocator, GOAL, 0),
    )
    for _ in range(8):
        told(study, space, allocator)
    assert len({tuple(allocator.choices(trial.params)) for trial in study.trials}) == 8


def test_what_was_stopped_under_other_limits_is_proposed_again(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    space, allocator = parts
    sampler, point = OnePrice(space, allocator, GOAL, 0), np.zeros(8)
    first = sampler._new_by_price(point, [], 5)
    losses = allocator.losses(first[None])[0]
    for limits, is_new in ((GOAL.limits, True), (Limits(None, None, 0.1), False)):
        record = TrialRecord(0, TrialState.PRUNED, limits=asdict(limits))
        stopped = told_trials.told(0.5, 0.5, 0.1, trial=record, choices=first, losses=losses)
        again = sampler._new_by_price(point, [stopped], 5)
        assert (again != first).any() == is_new


def trained(study: optuna.Study, space: BoundSpace, allocator: Allocator) -> optuna.Trial:
    """One trial of which training leaves all that rounding changes, and nearly nothing of pruning.

    Its accuracy falls with what is left.
    """
    pruned = np.array([part == "pruned" for _, part in allocator.features])
    trial = ask(study, space)
    choices = allocator.choices(trial.params)[None]
    losses = allocator.losses(choices)[0]
    final = float(losses @ np.where(pruned, 0.05, 1.0))
    size, latency = allocator.costs(choices)[0]
    trial.set_user_attr("divergence", float(losses.sum()))
    trial.set_user_attr("divergence_left", final / max(float(losses.sum()), 1e-12))
    trial.set_user_attr("trained", True)
    trial.set_user_attr("recovered", True)
    base = GOAL.baseline
    values = [size * base.size_bytes, latency * base.latency_ms, base.accuracy + np.exp(-final) - 1]
    study.tell(trial, values)
    return trial


def pruned_share(space: BoundSpace, trials: list[optuna.trial.FrozenTrial]) -> float:
    """The mean pruning ratio of all groups."""
    ratios = []
    for trial in trials:
        for _, config in space.candidate(trial.params).modules:
            ratios.append(config.pruning_ratio)
    return float(np.mean(ratios))


def test_what_recovery_repairs_is_not_avoided(parts: tuple[BoundSpace, Allocator]) -> None:
    space, allocator = parts
    studies = []
    for tell in (told, trained):
        sampler = PriceSampler(space, allocator, GOAL, 0)
        study = optuna.create_study(
            directions=["minimize", "minimize", "maximize"], sampler=sampler
        )
        for _ in range(32):
            tell(study, space, allocator)
        studies.append(study)
    plain, repaired = (pruned_share(space, study.trials[16:]) for study in studies)
    assert repaired > plain
    assert studies[1].sampler.left(31) < 0.9
    assert studies[0].sampler.left(31) == pytest.approx(1.0), "nothing was trained"
    assert studies[0].sampler.left(99) is None, "it was not proposed here"
    assert studies[1].sampler.left(3) is None, "it was not guided yet"


def test_untrained_trials_are_hoped_to_lose_less(parts: tuple[BoundSpace, Allocator]) -> None:
    space, allocator = parts
    sampler = PriceSampler(space, allocator, GOAL, 0)
    study = optuna.create_study(directions=["minimize", "minimize", "maximize"], sampler=sampler)
    assert sampler.hopes(study) == {}
    for _ in range(20):
        trained(study, space, allocator)
    assert sampler.hopes(study) == {}, "all had their training"
    passed = told(study, space, allocator)
    lost = GOAL.baseline.accuracy - study.trials[passed.number].values[2]
    (number,) = sampler.hopes(study)
    assert number == passed.number
    assert 0 <= sampler.hopes(study)[number] < lost


def test_recovery_is_hoped_for_before_any_trial_was_trained(
    parts: tuple[BoundSpace, Allocator],
) -> None:
    space, allocator = parts
    sampler = PriceSampler(space, allocator, GOAL, 0)
    study = optuna.create_study(directions=["minimize", "minimize", "maximize"], sampler=sampler)
    for _ in range(20):
        told(study, space, allocator)
    hopes = sampler.hopes(study)
    assert hopes
    for number, hoped in hopes.items():
        lost = GOAL.baseline.accuracy - study.trials[number].values[2]
        assert 0 <= hoped < lost
    assert sampler.left(19) == 1.0, "proposals do not count on it"


def test_every_fourth_proposal_asks_for_the_fastest(
    parts: tuple[BoundSpace, Allocator], monkeypatch: pytest.MonkeyPatch
) -> None:
    space, allocator = parts
    asked: list[np.ndarray] = []
    tried: set[bytes] = set()

    def likes_the_last(model: Model, choices: np.ndarray, drop: float) -> np.ndarray:
        is_new = np.array([row.tobytes() not in tried for row in choices])
        best = int(np.flatnonzero(is_new)[-1])
        asked.append(choices[best])
        return (np.arange(len(choices)) == best).astype(float)

    monkeypatch.setattr(Model, "speedup", likes_the_last)
    study = optuna.create_study(
        directions=["minimize", "minimize", "maximize"],
        sampler=PriceSampler(space, allocator, GOAL, 0),
    )
    for _ in range(GUIDED_AFTER + 8):
        before = len(asked)
        trial = told(study, space, allocator)
        choices = allocator.choices(trial.params)
        if len(asked) > before:
            assert trial.number % FASTEST_EVERY == FASTEST_EVERY - 1
            assert (choices == asked[-1]).all()
        tried.add(choices.tobytes())
    assert len(asked) == 2

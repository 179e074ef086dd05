"""Hold allocations to sums and searches over small tables."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from autocompress.candidate import ModuleConfig
from autocompress.model.channel_group import ChannelGroup, Member, all_of
from autocompress.search.propose.allocation import Allocator
from autocompress.search.propose.tables.joined_products import JoinedProducts
from autocompress.search.propose.tables.module_table import ModuleTable
from autocompress.space.recovery import RecoverySpace
from autocompress.space.search_space import BoundSpace, Knob

BITS = (32, 8, 4)
RATIOS = (0.0, 0.5)
CONFIGS = tuple(ModuleConfig(weight_bits=bits) for bits in BITS)
PRUNED = (ModuleConfig(), ModuleConfig(pruning_ratio=0.5, importance="l2"))
# Of a layout without data between its modules.
ALONE = {
    "conv_edges": (),
    "readers": {},
    "computes_integers": lambda module, config: False,
    "joined": (),
}


def space() -> BoundSpace:
    """Two linear modules; the first is the root of the group that the second reads."""
    knobs = (
        Knob("a", "weight_bits", BITS),
        Knob("b", "weight_bits", BITS),
        Knob("a", "pruning_ratio", RATIOS),
    )
    kinds = {"a": "linear", "b": "linear"}
    return BoundSpace(knobs, {("a", "importance"): "l2"}, kinds, ("linear",), RecoverySpace(), {})


def table(seed: int, out: str | None, into: str | None) -> ModuleTable:
    generator = np.random.default_rng(seed)
    losses = np.zeros((3, len(CONFIGS)))
    losses[0] = [0.0, 0.01, 0.1]
    shape = (2 if out else 1, 2 if into else 1, 2, len(CONFIGS))
    return ModuleTable(CONFIGS, out, into, losses, generator.random(shape))


@pytest.fixture
def allocator() -> Allocator:
    tables = {"a": table(0, "a", None), "b": table(1, None, "a")}
    return Allocator(space(), tables, {"a": PRUNED}, {"a": np.array([0.0, 0.05])}, {})


EVERY = np.array(list(product(range(3), range(3), range(2))), dtype=np.intp)


def test_costs_and_losses_are_sums_over_the_tables(allocator: Allocator) -> None:
    a, b = allocator.modules.values()
    costs, losses = allocator.costs(EVERY), allocator.losses(EVERY)
    assert allocator.width == 3
    assert allocator.features == (
        *(("a", part) for part in ("quantized", "factorised", "sparsified")),
        *(("b", part) for part in ("quantized", "factorised", "sparsified")),
        ("a", "pruned"),
    )
    for (i, j, g), cost, loss in zip(EVERY, costs, losses, strict=True):
        np.testing.assert_allclose(cost, a.costs[g, 0, :, i] + b.costs[0, g, :, j])
        expected = [a.losses[0, i], 0, 0, b.losses[0, j], 0, 0, [0.0, 0.05][g]]
        np.testing.assert_allclose(loss, expected)
    assert allocator.costs(EVERY[:0]).shape == (0, 2)


@pytest.mark.parametrize("price", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.01, 0.02), (50.0, 3.0)])
def test_no_single_change_of_an_allocation_is_cheaper(
    allocator: Allocator, price: tuple[float, float]
) -> None:
    (chosen,) = allocator.allocate(np.array([price]))
    total = allocator.losses(EVERY).sum(1) + allocator.costs(EVERY) @ np.array(price)
    one_away = (chosen != EVERY).sum(1) <= 1
    own = total[(chosen == EVERY).all(1)][0]
    assert own <= total[one_away].min() + 1e-12


def test_a_group_is_pruned_where_only_another_config_gains_by_it() -> None:
    """One group, and modules whose configs have costs that do not follow the width."""
    prices = np.exp(np.random.default_rng(3).uniform(-4, 1, (200, 2)))
    for seed in range(5):
        tables = {"a": table(seed, "a", None), "b": table(seed + 50, None, "a")}
        allocator = Allocator(space(), tables, {"a": PRUNED}, {"a": np.array([0.0, 0.05])}, {})
        chosen = allocator.allocate(prices)
        totals = allocator.losses(EVERY).sum(1)[:, None] + allocator.costs(EVERY) @ prices.T
        own = allocator.losses(chosen).sum(1) + (allocator.costs(chosen) * prices).sum(1)
        np.testing.assert_allclose(own, totals.min(0), err_msg="it is the cheapest of all")


def test_prices_of_nothing_choose_what_loses_nothing(allocator: Allocator) -> None:
    np.testing.assert_array_equal(allocator.allocate(np.zeros((2, 2))), np.zeros((2, 3)))


def test_rows_of_prices_and_weights_do_not_mix(allocator: Allocator) -> None:
    prices = np.array([(0.05, 0.1), (2.0, 0.0), (0.0, 0.3)])
    weights = np.random.default_rng(2).random((3, 7)) * 3
    together = allocator.allocate(prices, weights)
    for i in range(3):
        np.testing.assert_array_equal(
            allocator.allocate(prices[i : i + 1], weights[i : i + 1])[0], together[i]
        )


def test_towers_keep_their_shares_of_the_loss() -> None:
    tables = {"a": table(0, "a", None), "b": table(1, None, "a")}
    prices = np.exp(np.random.default_rng(3).uniform(-4, 1, (200, 2)))
    parts = (tables, {"a": PRUNED}, {"a": np.array([0.0, 0.05])}, {"a": "vision", "b": "text"})
    free = Allocator(space(), *parts)
    limited = Allocator(replace(space(), constraints={"tower_loss": {"vision": 0.3}}), *parts)
    vision = np.array([name == "a" for name, _ in free.features])
    shares = []
    for one in (free, limited):
        losses = one.losses(one.allocate(prices))
        shares.append(losses[:, vision].sum(1) / np.maximum(losses.sum(1), 1e-12))
    assert shares[0].max() > 0.5
    assert shares[1].max() <= 0.3 + 1e-9
    kept = shares[0] <= 0.3
    assert 0 < kept.sum() < len(prices)
    own = free.allocate(prices)
    np.testing.assert_array_equal(limited.within_budget(own), kept)
    assert free.within_budget(own).all()
    np.testing.assert_array_equal(own[kept], limited.allocate(prices)[kept])


def test_a_heavy_feature_is_avoided(allocator: Allocator) -> None:
    prices, weights = np.array([(0.3, 0.3)]), np.ones((1, 7))
    weights[0, :] = 1e6
    np.testing.assert_array_equal(allocator.allocate(prices, weights), [[0, 0, 0]])


def test_parameters_and_choices_are_reverses(allocator: Allocator) -> None:
    for choices in EVERY:
        parameters = allocator.parameters(choices)
        assert parameters == {
            "a/weight_bits": choices[0],
            "b/weight_bits": choices[1],
            "a/pruning_ratio": choices[2],
        }
        np.testing.assert_array_equal(allocator.choices(parameters), choices)


def test_moved_knobs_change_their_own_columns(allocator: Allocator) -> None:
    choices, indices = np.array([0, 1, 0]), np.array([0, 1, 0])
    found = allocator.moved(choices, indices, {0: 2, 2: 1})
    np.testing.assert_array_equal(found, [2, 1, 1])
    np.testing.assert_array_equal(choices, [0, 1, 0])
    np.testing.assert_array_equal(allocator.moved(choices, indices, {}), choices)


def test_probes_are_the_single_changes(allocator: Allocator) -> None:
    assert allocator.probes(np.array([0, 0, 0])) == []
    assert allocator.probes(np.array([1, 2, 1])) == [
        ("a", CONFIGS[1]),
        ("b", CONFIGS[2]),
        ("a", PRUNED[1]),
    ]


def test_price_ranges_begin_where_something_moves_and_end_where_most_is_saved(
    allocator: Allocator,
) -> None:
    for axis, (low, high) in enumerate(allocator.price_ranges):
        assert 0 < 10 * low <= high
        at = np.zeros((3, 2))
        at[:, axis] = 1e-5, high, 1e4
        first, end, last = allocator.costs(allocator.allocate(at))[:, axis]
        assert end <= last + 0.1 * (first - last) + 1e-9


def test_tables_hold_bytes_times_and_losses_of_every_choice() -> None:
    """A group of 8 neurons: at one half, `a` has 4 rows and `b` 4 columns left."""
    bound = space()
    sizes = {"a": (8, 6), "b": (5, 8)}
    members = (
        Member("a", "out", all_of(8), all_of(8)),
        Member("b", "in", all_of(8), all_of(8)),
    )
    groups = [
        ChannelGroup("a", "neurons", 8, 1, members),
        ChannelGroup("b", "neurons", 5, 1, (), reason="it is an output"),
    ]
    modules = [
        SimpleNamespace(
            name=name,
            kind="linear",
            weight_shape=shape,
            factorisable=True,
            tower=f"of {name}",
            positions=1,
        )
        for name, shape in sizes.items()
    ]

    class Modules(list):
        def __init__(self) -> None:
            super().__init__(modules)
            self.groups = groups

    asked = []

    def microseconds(layout, module, config, rows, columns) -> float:
        asked.append((module.name, rows, columns))
        return rows * columns * config.weight_bits

    layout = SimpleNamespace(
        module_map=Modules(), form=lambda m, c: c.weight_bits, integer_form=lambda m: None, **ALONE
    )
    times = SimpleNamespace(
        module_us=microseconds, around_us=lambda features: 100.0, baseline_ms=2.0
    )
    losses = {("a", CONFIGS[1]): 0.1, ("b", CONFIGS[2]): 0.2, ("a", PRUNED[1]): 0.3}
    found = Allocator.of(bound, layout, times, losses, 1000)
    a, b = found.modules["a"], found.modules["b"]
    assert (a.out_group, a.in_group, b.out_group, b.in_group) == ("a", None, None, "a")
    assert a.costs.shape == (2, 1, 2, 3)
    assert b.costs.shape == (1, 2, 2, 3)
    np.testing.assert_allclose(a.costs[1, 0, 0], [4 * 6 * 4 / 1000, (24 + 16) / 1000, 28 / 1000])
    np.testing.assert_allclose(b.costs[0, 0, 1], [5 * 8 * bits / 2000 for bits in BITS])
    np.testing.assert_allclose(a.losses, [[0, 0.1, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(b.losses[0], [0, 0, 0.2])
    np.testing.assert_allclose(found.group_loss["a"], [0, 0.3])
    assert list(found.group_configs) == ["a"], "a group with a reason is not pruned"
    assert found.towers == {"a": "of a", "b": "of b"}
    first = np.zeros((1, found.width), dtype=np.intp)
    alone = a.costs[0, 0, :, 0] + b.costs[0, 0, :, 0]
    np.testing.assert_allclose(found.costs(first)[0] - alone, [0.0, 100 / 2000])
    assert len(asked) == len(set(asked)) * 3, "once per form and width"


def test_of_criteria_with_one_ratio_the_one_that_moves_outputs_least_is_taken() -> None:
    knobs = (
        Knob("a", "importance", ("l1", "l2")),
        Knob("a", "pruning_ratio", (0.0, 0.5)),
    )
    bound = BoundSpace(knobs, {}, {"a": "linear"}, (), RecoverySpace(), {})

    class Modules(list):
        groups = (ChannelGroup("a", "neurons", 8, 1, (Member("a", "out", all_of(8), all_of(8)),)),)

    layout = SimpleNamespace(
        module_map=Modules(
            [
                SimpleNamespace(
                    name="a",
                    kind="linear",
                    weight_shape=(8, 6),
                    factorisable=True,
                    tower="",
                    positions=1,
                )
            ]
        ),
        form=lambda m, c: "float",
        integer_form=lambda m: None,
        **ALONE,
    )
    times = SimpleNamespace(module_us=lambda *_: 1.0, around_us=lambda _: 0.0, baseline_ms=1.0)
    l1, l2 = (ModuleConfig(pruning_ratio=0.5, importance=name) for name in ("l1", "l2"))
    for worse, better in ((l1, l2), (l2, l1)):
        losses = {("a", worse): 0.2, ("a", better): 0.1}
        found = Allocator.of(bound, layout, times, losses, 1)
        assert found.group_configs["a"] == (ModuleConfig(), better)
        assert found.parameters(np.array([0, 1]))["a/importance"] == (0 if better is l1 else 1)


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_chosen_for_the_configs_of_their_modules(seed: int) -> None:
    tables = {"a": table(2 * seed, "a", None), "b": table(2 * seed + 1, None, "a")}
    given = Allocator(space(), tables, {"a": PRUNED}, {"a": np.array([0.0, 0.05])}, {})
    prices = np.random.default_rng(seed).random((20, 2))
    for price, chosen in zip(prices, given.allocate(prices), strict=True):
        total = given.losses(EVERY).sum(1) + given.costs(EVERY) @ price
        other = [*chosen[:2], 1 - chosen[2]]
        own, flipped = (total[(row == EVERY).all(1)][0] for row in (chosen, other))
        assert own <= flipped + 1e-12


def test_joined_modules_take_one_config_where_it_saves_more_than_it_loses() -> None:
    """Modules without groups: every allocation is compared."""
    names = ("a", "b", "c")
    knobs = tuple(Knob(name, "weight_bits", BITS) for name in names)
    bound = BoundSpace(knobs, {}, dict.fromkeys(names, "linear"), ("linear",), RecoverySpace(), {})
    every = np.array(list(product(range(3), repeat=3)), dtype=np.intp)
    prices = np.exp(np.random.default_rng(5).uniform(-4, 1, (100, 2)))
    changed = 0
    for seed in range(4):
        tables = {name: table(9 * seed + i, None, None) for i, name in enumerate(names)}
        apart = Allocator(bound, tables, {}, {}, {})
        joined = (JoinedProducts((0, 2), np.array([0.0, 0.2, 0.3])),)
        found = replace(apart, joined=joined)
        for row, own, before in zip(every, found.costs(every), apart.costs(every), strict=True):
            saved = joined[0].saved[row[0]] if row[0] == row[2] else 0.0
            np.testing.assert_allclose(own, before - [0.0, saved])
        chosen = found.allocate(prices)
        totals = found.losses(every).sum(1)[:, None] + found.costs(every) @ prices.T
        own = found.losses(chosen).sum(1) + (found.costs(chosen) * prices).sum(1)
        np.testing.assert_allclose(own, totals.min(0), err_msg="it is the cheapest of all")
        changed += int((chosen != apart.allocate(prices)).any(1).sum())
    assert changed > 0

"""Tabulate costs for every width of a module's groups."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from autocompress.candidate import ModuleConfig
from autocompress.model.channel_group import ChannelGroup, Member, all_of
from autocompress.search.propose.tables.module_table import ModuleTable, kept_share, module_tables


def group(units: int, unit_size: int = 1, multiple: int = 1) -> ChannelGroup:
    count = units * unit_size
    member = Member("a", "out", all_of(count), all_of(count))
    return ChannelGroup("a", "neurons", count, unit_size, (member,), multiple=multiple)


@pytest.mark.parametrize(
    ("ratio", "units", "multiple", "share"),
    [
        (0.0, 8, 1, 1.0),
        (0.5, 8, 1, 0.5),
        (0.99, 8, 1, 1 / 8),
        (0.25, 1, 1, 1.0),
        (0.4, 16, 8, 1.0),
        (0.5, 16, 8, 0.5),
    ],
)
def test_the_kept_share_counts_whole_units(
    ratio: float, units: int, multiple: int, share: float
) -> None:
    assert kept_share(group(units, 4, multiple), ModuleConfig(pruning_ratio=ratio)) == share


def test_views_of_the_costs_put_the_configs_last() -> None:
    costs = np.random.default_rng(0).random((2, 3, 2, 4))
    table = ModuleTable((ModuleConfig(),) * 4, "a", "b", np.zeros((3, 4)), costs)
    for out, into, i in np.ndindex(2, 3, 4):
        for axis in (0, 1):
            assert table.by_groups[axis][out * 3 + into, i] == costs[out, into, axis, i]


def test_each_width_is_judged_by_its_cheapest_config() -> None:
    generator = np.random.default_rng(0)
    costs, losses, prices = (generator.random(shape) for shape in ((2, 3, 2, 4), (5, 4), (5, 2)))
    table = ModuleTable((ModuleConfig(),) * 4, "a", "b", np.zeros((3, 4)), costs)
    into, out = np.array([0, 1, 2, 1, 0]), np.array([0, 1, 1, 0, 1])
    by_out = table.cheapest("out", into, losses, prices)
    by_in = table.cheapest("in", out, losses, prices)
    assert (by_out.shape, by_in.shape) == ((5, 2), (5, 3))
    for n in range(5):
        for o, i in np.ndindex(2, 3):
            least = min(losses[n, c] + prices[n] @ costs[o, i, :, c] for c in range(4))
            if i == into[n]:
                assert by_out[n, o] == pytest.approx(least)
            if o == out[n]:
                assert by_in[n, i] == pytest.approx(least)


def test_a_pruned_expert_costs_the_share_of_its_rows_that_is_left() -> None:
    """A group of 4 experts removes half of itself; on average each loses half of its rows."""
    members = (Member("a", "whole", all_of(4), all_of(4)),)

    class Modules(list):
        groups = (ChannelGroup("a", "experts", 4, 1, members),)

        def __getitem__(self, name: str) -> SimpleNamespace:
            return module

    module = SimpleNamespace(
        name="a", kind="linear", weight_shape=(8, 6), factorisable=True, tower=""
    )
    layout = SimpleNamespace(
        module_map=Modules([module]), form=lambda m, c: "float", integer_form=lambda m: None
    )
    latencies = SimpleNamespace(module_us=lambda *args: args[3] * args[4], baseline_ms=1.0)
    space = SimpleNamespace(configs=lambda name: (ModuleConfig(),))
    groups = {"a": (ModuleConfig(), ModuleConfig(pruning_ratio=0.5))}
    tables = module_tables(space, groups, layout, latencies, {}, 192, latencies.baseline_ms)
    np.testing.assert_allclose(tables["a"].costs[:, 0, 0, 0], [1.0, 0.5])
    np.testing.assert_allclose(tables["a"].costs[:, 0, 1, 0], [0.048, 0.024])

"""Allocations below a limit of memory, on a chain of three convolutions."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.export.parts.activations import OTHERS, Activations
from autocompress.model.channel_group import ChannelGroup
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.search.propose.allocation import Allocator
from autocompress.search.propose.tables.memory_budget import ROOM, MemoryBudget
from autocompress.search.propose.tables.module_table import ModuleTable
from autocompress.space.recovery import RecoverySpace
from autocompress.space.search_space import BoundSpace

CONFIGS = (ModuleConfig(), ModuleConfig(weight_bits=8, activation_bits=8))
PRUNED = tuple(ModuleConfig(pruning_ratio=ratio) for ratio in (0.0, 0.5, 0.75))
NAMES = ("a", "b", "c")
MODULES = [CompressibleModule(n, "conv", (8, 8, 3, 3), False, 0, 1, "", "conv", n) for n in NAMES]
# input -> a -> "p" -> b -> "q" -> c -> output; a's channels are a group, b's another one.
ACTIVATIONS = Activations(
    np.array([10.0, 100.0, 60.0, 4.0]),
    np.full(4, 4.0),
    np.array([[0, 0], [0, 1], [1, 2], [2, 3]]),
    4,
    ({}, {"a": 1.0}, {"b": 1.0}, {"c": 1.0}),
    tuple(frozenset({name}) for name in (OTHERS, "a", "b", "c")),
    tuple(frozenset({name}) for name in ("a", "b", "c", OTHERS)),
)
PEAK = 4 * (100 + 60)


def budget(limit: float, losses: tuple[float, float, float] = (0.1, 0.1, 0.1)) -> MemoryBudget:
    """A budget where 8 bits lose 0.01 in each module, and pruning what `losses` say."""
    tables = {}
    for i, name in enumerate(NAMES):
        loss = np.zeros((3, len(CONFIGS)))
        loss[0] = [0.0, 0.01]
        out, into = (name if i < 2 else None), (NAMES[i - 1] if i > 0 else None)
        costs = np.zeros((3 if out else 1, 3 if into else 1, 2, len(CONFIGS)))
        tables[name] = ModuleTable(CONFIGS, out, into, loss, costs)
    group_loss = {n: np.array([0.0, x, 3 * x]) for n, x in zip("ab", losses, strict=False)}
    space = BoundSpace((), {}, dict.fromkeys(NAMES, "conv"), ("conv",), RecoverySpace(), {})
    allocator = Allocator(space, tables, dict.fromkeys("ab", PRUNED), group_loss, {})
    groups = tuple(ChannelGroup(n, "filters", 8, 1, ()) for n in "ab")
    layout = SimpleNamespace(
        module_map=ModuleMap(tuple(MODULES), groups, (), 0, 0),
        form=lambda module, config: "int8" if config.activation_bits == 8 else "float",
    )
    exact = lambda candidate: 100 * candidate.config("a").weight_bits  # noqa: E731
    return MemoryBudget.of(allocator, ACTIVATIONS, layout, limit, exact, flat=False)


FLOATS = np.zeros((1, 5), dtype=np.intp)


def row(*choices: int) -> np.ndarray:
    return np.array([choices], dtype=np.intp)


def test_the_memory_of_allocations() -> None:
    own = budget(1e9)
    assert own.peaks(FLOATS) == [PEAK]
    assert own.peaks(row(0, 0, 0, 1, 0)) == [4 * (50 + 60)], "half of the channels of a"
    assert own.peaks(row(1, 0, 0, 0, 0)) == [PEAK], "b reads floats"
    assert own.peaks(row(1, 1, 0, 0, 0)) == [100 + 4 * 60]
    assert own.peaks(row(1, 1, 1, 0, 0)) == [100 + 60]
    assert own.peaks(row(1, 1, 1, 2, 2)) == [4 * 10 + 25], "the input stays a tensor of floats"
    np.testing.assert_array_equal(own.within(np.concatenate([FLOATS, FLOATS])), [True, True])
    assert not budget(PEAK).within(FLOATS)[0], "some room is left"
    assert budget(PEAK / ROOM + 1).within(FLOATS)[0]


def test_what_keeps_the_limit_stays_as_it_is() -> None:
    every = np.array(list(product(range(2), range(2), range(2), range(3), range(3))))
    own = budget(300.0)
    relieved = own.relieved(every)
    kept = own.within(every)
    assert 0 < kept.sum() < len(every)
    np.testing.assert_array_equal(relieved[kept], every[kept])
    assert own.within(relieved).all()
    assert (own.allocator.losses(relieved) >= own.allocator.losses(every) - 1e-12).all()


def test_the_cheaper_change_is_made_and_no_more_than_needed() -> None:
    limit = 4 * (50 + 60) / ROOM + 1  # pruning half of a is enough, as 8 bits in a and b are
    np.testing.assert_array_equal(budget(limit).relieved(FLOATS), row(1, 1, 0, 0, 0))
    cheap = budget(limit, (0.001, 0.1, 0.1))
    np.testing.assert_array_equal(cheap.relieved(FLOATS), row(0, 0, 0, 1, 0))
    weights = np.ones((1, len(cheap.allocator.features)))
    weights[0, cheap.allocator.features.index(("a", "pruned"))] = 1e6
    np.testing.assert_array_equal(cheap.relieved(FLOATS, weights), row(1, 1, 0, 0, 0))


def test_what_nothing_brings_below_the_limit_comes_as_near_as_changes_bring_it() -> None:
    own = budget(1.0)
    least = min(
        own.peaks(np.array(list(product(range(2), range(2), range(2), range(3), range(3)))))
    )
    assert own.peaks(own.relieved(FLOATS)) == [least]


def test_files_of_trials_correct_the_prediction() -> None:
    own = budget(1000.0)
    assert own.corrected([]) is own
    told = [(FLOATS[0], 2 * PEAK), (row(1, 1, 1, 0, 0)[0], 320), (row(1, 1, 0, 0, 0)[0], 340)]
    corrected = own.corrected(told)
    assert corrected.factor == pytest.approx(2.0), "of 2, 2 and 1"
    assert own.within(FLOATS)[0]
    assert not corrected.within(FLOATS)[0]
    assert corrected.within(corrected.relieved(FLOATS))[0]


def test_files_decide() -> None:
    own = budget(1000.0)
    assert own.keeps(Candidate.of({"a": ModuleConfig(weight_bits=8)}))
    assert not own.keeps(Candidate())

"""Choose the kernel of each module by what the target's kernels answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_builder import CONV, TABLE, A, Kernels, builder

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.variant import Variant
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import CompressibleModule
from autocompress.targets.kernel_timing import FOLDED

GROUPED = ModuleConfig(4, group_size=32)


@pytest.mark.parametrize(
    ("module", "config", "level", "expected"),
    [
        (A, GROUPED, 4, 4),
        (A, GROUPED, 0, 0),
        (A, GROUPED, FOLDED, None),
        (A, ModuleConfig(4), 4, None),
        (A, ModuleConfig(3, group_size=32), 4, None),
        (A, ModuleConfig(4, 8, group_size=32), 4, None),
        (A, ModuleConfig(4, group_size=32, sparsity=0.5), 4, None),
        (CONV, GROUPED, 4, None),
    ],
)
def test_weight_only_kernels_are_for_float_inputs_and_groups(
    module: CompressibleModule, config: ModuleConfig, level: int, expected: int | None
) -> None:
    kernels = Kernels(level)
    assert builder(kernels).module_kernels.weight_only_level(module, config) == expected
    if expected is not None:
        assert kernels.asked == [(6, 8, 16, 4, 32)], "rows of one of two calls, columns, outputs"


def test_only_kernels_that_round_inputs_say_so() -> None:
    assert builder(Kernels(4)).module_kernels.rounds_blocks(A, GROUPED)
    assert not builder(Kernels(1)).module_kernels.rounds_blocks(A, GROUPED)
    assert not builder(Kernels(4)).module_kernels.rounds_blocks(A, ModuleConfig())


@pytest.mark.parametrize(
    ("module", "config", "packed", "block"),
    [
        (TABLE, ModuleConfig(4), True, 32),
        (TABLE, ModuleConfig(4, group_size=16), True, 16),
        (TABLE, ModuleConfig(4), False, None),
        (TABLE, ModuleConfig(3), True, None),
        (TABLE, ModuleConfig(4, rank_ratio=0.5), True, None),
        (TABLE, ModuleConfig(4, sparsity=0.5), True, None),
        (TABLE, ModuleConfig(4, group_size=-1), True, None),
        (A, ModuleConfig(4), True, None),
    ],
)
def test_whole_tables_stay_packed_where_that_is_as_fast(
    module: CompressibleModule, config: ModuleConfig, packed: bool, block: int | None
) -> None:
    kernels = Kernels(packed=packed)
    assert builder(kernels).module_kernels.table_block(module, config) == block
    if block is not None:
        assert kernels.asked == [(6, 100, 32, 4, block)]


def test_a_table_that_a_head_shares_is_stored_once() -> None:
    made = builder(Kernels(packed=True))
    config, sites = ModuleConfig(4), dict(made.lowered.sites)
    sites[TABLE.name] = (*sites[TABLE.name], *sites[A.name])
    shared = replace(made, lowered=replace(made.lowered, sites=sites))
    assert made.module_kernels.table_block(TABLE, config) == 32
    assert shared.module_kernels.table_block(TABLE, config) is None


def test_forms_are_those_of_a_table_else_the_kernels() -> None:
    assert builder().module_kernels.integer_form(A) is IntegerForm.REDUCED
    assert builder().module_kernels.integer_form(CONV) is IntegerForm.SIGNED
    given = builder(forms={"a": IntegerForm.UNSIGNED})
    assert given.module_kernels.integer_form(A) is IntegerForm.UNSIGNED


def test_trained_integers_that_need_more_bits_keep_them() -> None:
    class Stored:
        def __init__(self, largest: int) -> None:
            self.values = np.array([largest, -1], np.int8)

        def int8(self) -> torch.Tensor:
            return torch.from_numpy(self.values)

    candidate = Candidate.of({"a": ModuleConfig(8, 8), "conv": ModuleConfig(8)})
    for largest, form in ((63, IntegerForm.REDUCED), (64, IntegerForm.UNSIGNED)):
        variants = {"a": Variant((Stored(largest),), None)}
        assert forms_of(candidate, variants) == {"a": form}, "the convolution is in float"
    assert forms_of(candidate, {}) == {"a": IntegerForm.REDUCED}


def forms_of(candidate: Candidate, variants: dict[str, Variant]) -> dict[str, IntegerForm]:
    given = builder()
    return given.module_kernels.integer_forms(given.module_map, candidate, variants)


def test_kernels_of_a_candidate_are_by_module() -> None:
    given = builder()
    candidate = Candidate.of({"a": GROUPED, "table": ModuleConfig(4), "conv": ModuleConfig(4)})
    assert given.module_kernels.levels(given.module_map, candidate) == {"a": 4}
    assert given.module_kernels.blocks(given.module_map, candidate) == {"table": 32}

"""Count the bytes of weights and scales by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from autocompress.candidate import ModuleConfig
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import CompressibleModule
from autocompress.search.propose.tables.stored_size import smallest_candidate, stored_bytes


def module(name: str, kind: str, *shape: int, groups: int = 1) -> CompressibleModule:
    return CompressibleModule(name, kind, shape, False, 0, 1, "", "mlp", None, groups=groups)


LINEAR = module("fc", "linear", 8, 20)
CONV = module("conv", "conv", 8, 4, 3, 3)


@pytest.mark.parametrize(
    ("config", "bytes_"),
    [
        (ModuleConfig(), 160 * 4),
        (ModuleConfig(weight_bits=16), 160 * 2),
        # One float32 scale per row.
        (ModuleConfig(weight_bits=8), 160 + 8 * 4),
        (ModuleConfig(weight_bits=4), 80 + 8 * 4),
        # One for all, and a zero point of a byte each where they have one.
        (ModuleConfig(weight_bits=4, group_size=-1), 80 + 4),
        (ModuleConfig(weight_bits=4, group_size=-1, symmetric=False), 80 + 5),
        (ModuleConfig(weight_bits=4, symmetric=False), 80 + 8 * 5),
        # Two groups of up to 16 in each row of 20, each with a float16 share.
        (ModuleConfig(weight_bits=4, group_size=16), 80 + 16 * 2),
        (ModuleConfig(weight_bits=4, group_size=16, symmetric=False), 80 + 16 * 3),
        # The largest rank is 8: factors (2, 20) and (8, 2).
        (ModuleConfig(rank_ratio=0.25), (40 + 16) * 4),
        (ModuleConfig(rank_ratio=0.25, weight_bits=8), 40 + 16 + (2 + 8) * 4),
        # A bit per weight says which are kept.
        (ModuleConfig(sparsity=0.75), 160 / 8 + 40 * 4),
        (ModuleConfig(weight_bits=4, sparsity=0.75), 160 / 8 + 40 / 2 + 8 * 4),
        # All of two bits are smaller than half of two bits and the mask.
        (ModuleConfig(weight_bits=2, sparsity=0.5, sparsity_pattern="2:4"), 160 / 4 + 8 * 4),
    ],
)
def test_bytes_of_a_linear_module(config: ModuleConfig, bytes_: float) -> None:
    assert stored_bytes(LINEAR, config, IntegerForm.SIGNED, 8, 20) == bytes_


def test_only_kept_channels_count() -> None:
    config = ModuleConfig(weight_bits=8)
    assert stored_bytes(LINEAR, config, IntegerForm.SIGNED, 4, 10) == 40 + 4 * 4
    assert stored_bytes(CONV, config, IntegerForm.SIGNED, 4, 2) == 4 * 2 * 9 + 4 * 4


def test_a_form_of_seven_bits_stores_seven() -> None:
    config = ModuleConfig(weight_bits=8, activation_bits=8)
    reduced = stored_bytes(LINEAR, config, IntegerForm.REDUCED, 8, 20)
    assert reduced == 160 * 7 / 8 + 8 * 4
    assert stored_bytes(LINEAR, config, IntegerForm.UNSIGNED, 8, 20) == 160 + 8 * 4


def test_what_has_no_rank_is_stored_whole() -> None:
    grouped = module("dw", "conv", 8, 1, 3, 3, groups=8)
    config = ModuleConfig(rank_ratio=0.25)
    assert stored_bytes(grouped, config, IntegerForm.SIGNED, 8, 1) == 72 * 4
    gates = module("lstm", "recurrent", 8, 20)
    assert stored_bytes(gates, config, IntegerForm.SIGNED, 8, 20) == 160 * 4


def test_the_smallest_candidate_takes_the_fewest_bytes_and_prunes_most() -> None:
    configs = {
        "fc": (ModuleConfig(), ModuleConfig(weight_bits=4), ModuleConfig(rank_ratio=0.25)),
        "table": (ModuleConfig(weight_bits=8), ModuleConfig()),
    }
    ratios = {"fc": (0.0, 0.5, 0.25), "table": (0.0,)}
    space = SimpleNamespace(configs=configs.__getitem__, numbers=lambda name, axis: ratios[name])
    modules = [LINEAR, module("table", "embedding", 100, 4)]
    layout = SimpleNamespace(module_map=modules, integer_form=lambda m: IntegerForm.SIGNED)
    found = dict(smallest_candidate(space, layout).modules)
    assert found == {
        "fc": ModuleConfig(weight_bits=4, pruning_ratio=0.5),
        "table": ModuleConfig(weight_bits=8),
    }

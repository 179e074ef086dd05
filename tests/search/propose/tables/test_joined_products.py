"""Tabulate what one kernel for several modules saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from small_layout import MAP, layout, module

from autocompress.candidate import ModuleConfig
from autocompress.search.propose.tables.joined_products import JoinedProducts, joined_products
from autocompress.search.propose.tables.module_table import ModuleTable
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.workload import Kernel, Layout

CONFIGS = (ModuleConfig(), ModuleConfig(8, group_size=32), ModuleConfig(4, group_size=32))
MODULES = (
    module("q", "linear", 16, 8),
    module("other", "linear", 8, 8),
    module("v", "linear", 8, 8),
)


def joining() -> Layout:
    return layout(
        module_map=replace(MAP, modules=MODULES),
        signatures={one.name: f"linear {one.weight_shape[0]}x8" for one in MODULES},
        packed=lambda module, config: config.weight_bits < 16,
        edges=(),
        joined=(("q", "v"),),
    )


def tables(**changed: ModuleTable) -> dict[str, ModuleTable]:
    plain = ModuleTable(CONFIGS, None, None, np.zeros((3, 3)), np.zeros((1, 1, 2, 3)))
    return {**{one.name: plain for one in MODULES}, **changed}


def microseconds(kernel: Kernel) -> float:
    """Each kernel takes 5 us and 1 us per output."""
    return 5.0 + kernel.kept_out


def table() -> LatencyTable:
    model = SimpleNamespace(
        kernel_us=microseconds, around_us=lambda amounts: 2.0 * amounts.get("after linear nbits", 0)
    )
    made = LatencyTable.__new__(LatencyTable)
    made.__dict__.update(model=model, target="a target")
    return made


def test_one_kernel_saves_what_each_takes_beside_its_outputs() -> None:
    (found,) = joined_products(tables(), joining(), table(), 2.0)
    assert found.columns == (0, 2)
    np.testing.assert_allclose(found.saved, [0.0, 7 / 2000, 7 / 2000], err_msg="5 us and 2 around")


@pytest.mark.parametrize(
    "changes",
    [{"configs": CONFIGS[:2]}, {"out_group": "q"}, {"in_group": "q"}],
    ids=["other configs", "pruned outputs", "pruned inputs"],
)
def test_modules_that_choose_otherwise_are_left_out(changes: dict[str, object]) -> None:
    changed = replace(tables()["v"], **changes)  # type: ignore[arg-type]
    assert joined_products(tables(v=changed), joining(), table(), 2.0) == ()


def totals(*rows: Sequence[float]) -> list[np.ndarray]:
    return [np.array([row], float) for row in rows]


def test_modules_differ_where_that_is_cheaper() -> None:
    products = JoinedProducts((0, 2), np.array([0.0, 0.5]))
    cheap, dear = np.array([1.0]), np.array([10.0])
    parts = totals([0, 1], [4, 1])
    np.testing.assert_array_equal(products.chosen(parts, cheap), [[0], [1]])
    np.testing.assert_array_equal(products.chosen(parts, dear), [[1], [1]])
    choices = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 0]])
    np.testing.assert_allclose(products.saved_by(choices), [0.0, 0.5, 0.0])

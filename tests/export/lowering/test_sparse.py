"""Zeros in the file: a bitmap and the kept values where that is smaller, spread by the runtime when
a session is created.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from fixture import Fixture, optimized, relative_difference
from torch import nn

from autocompress import Candidate, ModuleConfig, Task
from autocompress.compress.prune.sparsify import kept_count
from autocompress.export.lowering.sparse import sparse_pays
from autocompress.integer_form import IntegerForm


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
    x = torch.randn(48, 24) @ torch.randn(24, 96)
    return Fixture(
        Task("two", model, x[:1], [(x, torch.zeros(48, dtype=torch.int64))], lambda o, t: 0.0)
    )


def sparse(
    sparsity: float,
    bits: int,
    activation_bits: int = 32,
    pattern: str = "unstructured",
    **axes: object,
) -> Candidate:
    config = ModuleConfig(
        bits, activation_bits, sparsity=sparsity, sparsity_pattern=pattern, **axes
    )
    return Candidate.of({"0": config, "2": config})


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 16, 32])
@pytest.mark.parametrize("activation_bits", [8, 32])
def test_files_hold_a_bit_per_weight_and_the_kept_values(
    fixture: Fixture, bits: int, activation_bits: int
) -> None:
    weights = 96 * 128 + 128 * 64
    for form, sparsity in itertools.product(
        (IntegerForm.REDUCED, IntegerForm.UNSIGNED), (0.5, 0.9)
    ):
        fixture = fixture.formed(form)
        stored = min(bits, form.bits) if activation_bits == 8 and bits <= 8 else bits
        dense = fixture.builder.size_bytes(sparse(0.0, bits, activation_bits))
        candidate = sparse(sparsity, bits, activation_bits)
        proto = fixture.build(candidate)
        assert proto.ByteSize() == fixture.builder.size_bytes(candidate)
        assert relative_difference(fixture.run(proto), fixture.simulate(candidate)) <= 1e-3
        if activation_bits == 8 and bits <= 8:
            assert (
                relative_difference(
                    fixture.run_as(proto, saturates=True), fixture.simulate(candidate)
                )
                <= 1e-3
            )
        saved = dense - proto.ByteSize()
        expected = weights * (sparsity * stored - 1) / 8
        assert saved == pytest.approx(max(expected, 0), abs=1400), (
            "the function that spreads is stored once"
        )
        assert (saved != 0) == sparse_pays(weights, round(weights * (1 - sparsity)), stored)


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
@pytest.mark.parametrize("group_size", [0, 32, 40])
def test_patterns_and_groups_go_together(fixture: Fixture, pattern: str, group_size: int) -> None:
    if group_size == 40:
        group_size = 64  # does not divide the rows of 96
    for bits in (4, 8):
        for activation_bits in (8, 32):
            candidate = sparse(0.5, bits, activation_bits, pattern, group_size=group_size)
            proto = fixture.build(candidate)
            assert relative_difference(fixture.run(proto), fixture.simulate(candidate)) <= 1e-3
            if activation_bits == 8:
                assert (
                    relative_difference(
                        fixture.run_as(proto, saturates=True), fixture.simulate(candidate)
                    )
                    <= 1e-3
                )
            assert proto.ByteSize() == fixture.builder.size_bytes(candidate)


def test_nothing_of_it_is_left_at_run_time(fixture: Fixture) -> None:
    proto = fixture.formed(IntegerForm.REDUCED).build(sparse(0.7, 4, 8))
    assert [f.name for f in proto.functions].count("Spread") == 1
    operators = {node.op_type for node in optimized(proto).node}
    assert not {"Spread", "CumSum", "Gather", "BitShift", "Cast"} & operators
    assert "DynamicQuantizeMatMul" in operators
    zeros = [t for t in optimized(proto).initializer if list(t.dims) == [96, 128]]
    assert len(zeros) == 1
    values = (
        np.frombuffer(zeros[0].raw_data, np.int8)
        if zeros[0].raw_data
        else np.array(zeros[0].int32_data)
    )
    assert (values == 0).mean() >= 0.7


def test_the_latency_model_promises_nothing_for_zeros(fixture: Fixture) -> None:
    from autocompress.search.problem.bench import layout_of
    from autocompress.targets.latency_model.latency_table import workload

    layout = layout_of(fixture.builder)
    assert workload(layout, sparse(0.9, 8, 8)) == workload(layout, sparse(0.0, 8, 8))


def test_counts_are_known_before_any_weight_is_touched() -> None:
    assert kept_count((10, 10), ModuleConfig(sparsity=0.37)) == 63
    assert kept_count((10, 10), ModuleConfig(sparsity=0.37, sparsity_criterion="wanda")) == 60
    assert kept_count((3, 10), ModuleConfig(sparsity=0.5, sparsity_pattern="2:4")) == 3 * 5
    assert kept_count((3, 9, 3, 3), ModuleConfig(sparsity=0.5, sparsity_pattern="4:8")) == 3 * 41

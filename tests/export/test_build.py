"""Name what a kernel's time depends on, follow what flows between modules, and remember sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from onnx import ModelProto
from small_builder import CONV, TABLE, A, builder

from autocompress.candidate import Candidate, Distillation, ModuleConfig
from autocompress.export.build import Builder
from autocompress.integer_form import IntegerForm


def test_what_flows_from_module_to_module_through_other_operators() -> None:
    assert set(builder().edges) == {
        ("", "table"),
        ("", "conv"),
        ("table", "conv"),
        ("conv", "a"),
        ("a", "a"),
    }


def test_a_signature_is_all_that_a_kernels_time_depends_on() -> None:
    given = builder()
    assert given.signature(TABLE) == "embedding 100x32"
    assert given.signature(A) == "linear 16x8 2 calls"
    assert given.signature(CONV) == (
        "conv 8x3x3x3 group 1 strides 2x1 BatchNormalization Relu bias"
    )


def test_groups_keep_multiples_of_what_their_kernel_likes() -> None:
    given = builder()
    given._sizes[Candidate()] = 5
    found = given.with_multiples({"linear": 8, "conv": 4})
    assert replace(given, forms={"a": IntegerForm.SIGNED})._sizes == {}
    assert [g.multiple for g in found.module_map.groups] == [8, 4, 1]
    assert found.multiples == {"linear": 8, "conv": 4}
    assert found._sizes == {}
    assert [g.multiple for g in given.module_map.groups] == [1, 1, 1]


def test_the_size_of_a_file_is_computed_once_and_not_by_its_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Candidate] = []

    def placeholder_graph(self: Builder, candidate: Candidate, noise: bool = True):
        made.append(candidate)
        assert not noise
        return ModelProto(producer_name="a" * 75), {}

    monkeypatch.setattr(Builder, "placeholder_graph", placeholder_graph)
    given = builder()
    modules = {"a": ModuleConfig(4)}
    long = Candidate.of(modules, Distillation(steps=100))
    assert [given.size_bytes(c) for c in (Candidate.of(modules), long, long)] == [77] * 3
    assert made == [Candidate.of(modules)]

"""Equal compressions are equal candidates; what is no candidate is refused in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress import Candidate, Distillation, ModuleConfig
from autocompress.errors import SpaceError

configs = st.builds(
    ModuleConfig,
    st.sampled_from([4, 8, 16, 32]),
    st.sampled_from([8, 32]),
    rank_ratio=st.sampled_from([0.25, 1.0]),
    pruning_ratio=st.sampled_from([0.0, 0.5]),
)


@given(
    st.dictionaries(st.sampled_from("abcd"), configs), st.floats(0, 1), st.sampled_from([1.0, 2.0])
)
def test_json_round_trip(
    modules: dict[str, ModuleConfig], alpha: float, temperature: float
) -> None:
    candidate = Candidate.of(modules, Distillation(alpha, temperature, 10))
    again = Candidate.from_json(json.loads(json.dumps(candidate.to_json())))
    assert again == candidate
    assert hash(again) == hash(candidate)


def test_equal_compressions_are_equal_candidates() -> None:
    assert Candidate.of({"a": ModuleConfig(16, 8), "b": ModuleConfig()}) == Candidate.of(
        {"a": ModuleConfig(16, 32)}
    )


@pytest.mark.parametrize(
    ("modules", "text"),
    [
        (
            {"c1": {"weight_bits": 4}},
            "candidate: module 'c1': expected a ModuleConfig, got {'weight_bits': 4}; "
            "nearest: ModuleConfig(weight_bits=4)",
        ),
        (
            ["c1"],
            "candidate: modules must be a mapping from names to configs, got ['c1']; "
            "nearest: {'name': ModuleConfig(weight_bits=8)}",
        ),
        (
            {3: ModuleConfig(8)},
            "candidate: names of modules must be texts, got 3; nearest: '3'",
        ),
    ],
)
def test_what_is_no_config_is_one_line(modules: Any, text: str) -> None:
    with pytest.raises(SpaceError) as caught:
        Candidate.of(modules)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("modules", "distillation", "text"),
    [
        (
            {"a": ModuleConfig(8)},
            Distillation(),
            "candidate: modules must be pairs of names and configs, got {'a': ModuleConfig(",
        ),
        ([("a", ModuleConfig(8))], Distillation(), "candidate: modules must be pairs of names"),
        ((("a", 8),), Distillation(), "candidate: modules must be pairs of names and configs, got"),
        (("a", "b"), Distillation(), "candidate: modules must be pairs of names and configs, got"),
        (None, Distillation(), "candidate: modules must be pairs of names and configs, got None; "),
        ((), 3, "candidate: expected a Distillation, got 3; nearest: Distillation()"),
    ],
)
def test_the_constructor_takes_pairs(modules: Any, distillation: Any, text: str) -> None:
    with pytest.raises(SpaceError) as caught:
        Candidate(modules, distillation)
    assert str(caught.value).startswith(text)
    assert "; nearest: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_field_is_named() -> None:
    with pytest.raises(ValueError, match="module a has unknown fields \\['bits'\\]"):
        Candidate.from_json({"modules": {"a": {"bits": 4}}})

"""Configs hold plain types; fields without effect take their defaults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autocompress import ModuleConfig
from autocompress.errors import SpaceError


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("weight_bits", "4", "a whole number, got '4'; nearest valid value: 4"),
        ("weight_bits", 4.0, "a whole number, got 4.0; nearest valid value: 4"),
        ("weight_bits", None, "a whole number, got None; nearest valid value: 32"),
        ("activation_bits", True, "a whole number, got True; nearest valid value: 1"),
        ("group_size", [32], "a whole number, got [32]; nearest valid value: 0"),
        ("rank_ratio", "0.5", "a number, got '0.5'; nearest valid value: 0.5"),
        ("pruning_ratio", {}, "a number, got {}; nearest valid value: 0.0"),
        ("smoothing", False, "a number, got False; nearest valid value: 0.0"),
        ("symmetric", "no", "True or False, got 'no'; nearest valid value: False"),
        ("reconstruction", 1, "True or False, got 1; nearest valid value: True"),
        ("algorithm", None, "a text, got None; nearest valid value: 'auto'"),
        ("importance", 3, "a text, got 3; nearest valid value: 'obs'"),
    ],
)
def test_wrong_types_are_refused(field: str, value: Any, rule: str) -> None:
    with pytest.raises(SpaceError) as caught:
        ModuleConfig(**{field: value})
    assert str(caught.value) == f"ModuleConfig: {field} must be {rule}"


def test_numbers_become_plain() -> None:
    config = ModuleConfig(np.int64(8), np.int32(8), rank_ratio=np.float32(0.5), smoothing=1)
    assert config == ModuleConfig(8, 8, rank_ratio=0.5, smoothing=1.0)
    kinds = [type(value) for value in config.to_json().values()]
    assert kinds == [int, int, float, float]


def test_fields_without_effect_take_their_defaults() -> None:
    wide = ModuleConfig(16, 8, 32, algorithm="gptq", activation_mode="static", smoothing=0.5)
    assert wide.effective() == ModuleConfig(16)
    whole = ModuleConfig(8, decomposition="svd", importance="l1", sparsity_pattern="2:4")
    assert whole.effective() == ModuleConfig(8)
    zeros = ModuleConfig(4, symmetric=False, sparsity=0.1, sparsity_pattern="2:4").effective()
    assert (zeros.symmetric, zeros.sparsity) == (True, 0.5)
    assert ModuleConfig(8, 32, smoothing=0.5).effective() == ModuleConfig(8)

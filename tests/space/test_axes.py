"""Check the values that a rule gives an axis.

Their order, their bounds, and what a target leaves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autocompress.errors import AutocompressError, SpaceError, TargetError
from autocompress.space.axes import AXES, check_keys, choices_of, listed, spread
from autocompress.targets.target import find_target

TARGET = find_target("onnxruntime-cpu")
NARROW = replace(TARGET, weight_bits=(8, 32), activation_bits=(32,), sparsity=False)


def choices(axis: str, value: Any, target: Any = TARGET) -> tuple[Any, ...]:
    return choices_of("space: rule 1", axis, value, target)


@pytest.mark.parametrize(
    ("axis", "value", "expected"),
    [
        ("weight_bits", [4, 32, 8], (32, 8, 4)),
        ("activation_bits", [8, 32, 16], (32, 16, 8)),
        ("group_size", [-1, 0, 64, 16], (16, 64, 0, -1)),
        ("rank_ratio", [0.25, 1, 0.5], (1, 0.5, 0.25)),
        ("pruning_ratio", [0.5, 0, 0.25], (0, 0.25, 0.5)),
        ("sparsity", [0.9, 0.0], (0.0, 0.9)),
        ("smoothing", [1, 0.5, 0], (0, 0.5, 1)),
        ("algorithm", ["gptq", "auto", "nearest"], ("gptq", "auto", "nearest")),
        ("symmetric", [False, True], (False, True)),
        ("weight_bits", 4, (4,)),
        ("weight_bits", [4, 4, 8], (8, 4)),
        ("pruning_ratio", {"low": 0, "high": 0.5, "step": 0.25}, (0.0, 0.25, 0.5)),
        ("importance", "l2", ("l2",)),
    ],
)
def test_choices_go_from_careful_to_small(axis: str, value: Any, expected: tuple[Any, ...]) -> None:
    assert choices(axis, value) == expected


def test_what_a_target_cannot_hold_is_left_out_unless_nothing_remains() -> None:
    assert choices("weight_bits", [4, 8, 32], NARROW) == (32, 8)
    assert choices("sparsity", [0, 0.5], NARROW) == (0,)
    with pytest.raises(
        TargetError,
        match=r"^space: rule 1: weight_bits 4 cannot be stored by target onnxruntime-cpu; nearest "
        r"valid value: 8$",
    ):
        choices("weight_bits", [4, 2], NARROW)
    with pytest.raises(TargetError, match=r"activation_bits 8 .* nearest valid value: 32"):
        choices("activation_bits", 8, NARROW)


@pytest.mark.parametrize(
    ("axis", "value", "text"),
    [
        ("algorithm", "gtpq", "algorithm 'gtpq' is unknown; nearest: gptq"),
        ("sparsity_pattern", "2:3", "sparsity_pattern '2:3' is unknown; nearest: 2:4"),
        ("symmetric", "yes", "symmetric must be true or false, got 'yes'"),
        ("reconstruction", 1, "reconstruction must be true or false, got 1"),
        ("weight_bits", "8", "weight_bits must hold numbers, got '8'"),
        ("pruning_ratio", True, "pruning_ratio must hold numbers, got True"),
        ("group_size", 48, "group_size 48 is not one of (-1, 0, 16, 32, 64, 128, 256); nearest"),
        ("group_size", 1000, "nearest valid value: 256"),
        ("rank_ratio", 0, "rank_ratio 0 is outside 0 < ratio <= 1; nearest valid value: 0.05"),
        ("rank_ratio", 1.5, "rank_ratio 1.5 is outside 0 < ratio <= 1; nearest valid value: 1.0"),
        (
            "pruning_ratio",
            1,
            "pruning_ratio 1 is outside 0 <= ratio < 1; nearest valid value: 0.95",
        ),
        ("sparsity", -0.5, "sparsity -0.5 is outside 0 <= ratio < 1; nearest valid value: 0.0"),
        ("smoothing", 1.5, "smoothing 1.5 is outside 0 <= alpha <= 1; nearest valid value: 1.0"),
        ("smoothing", float("nan"), "smoothing nan is outside 0 <= alpha <= 1"),
    ],
)
def test_wrong_choices_are_named_with_the_nearest(axis: str, value: Any, text: str) -> None:
    with pytest.raises(SpaceError) as caught:
        choices(axis, value)
    assert str(caught.value).startswith("space: rule 1: ")
    assert text in str(caught.value)


def test_a_width_that_no_target_knows_is_refused() -> None:
    with pytest.raises(AutocompressError, match="weight_bits 9 cannot be stored"):
        choices("weight_bits", [8, 9])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, [3]),
        ([3, "a"], [3, "a"]),
        ({"low": 0, "high": 1, "step": 0.5}, [0.0, 0.5, 1.0]),
        ({"low": 0.1, "high": 0.35, "step": 0.1}, [0.1, 0.2, 0.3]),
        ({"low": 0, "high": 0.3, "step": 0.1}, [0.0, 0.1, 0.2, 0.3]),  # 0.1 * 3 > 0.3
        ({"low": 2, "high": 2, "step": 1}, [2.0]),
        ({"low": "1", "high": "2", "step": "1"}, [1.0, 2.0]),
    ],
)
def test_ranges_are_spread(value: Any, expected: list[Any]) -> None:
    assert spread("here", value) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"low": 0, "high": 1}, r"^here needs numbers low, high and step, got \{"),
        ({"low": 0, "high": "a", "step": 1}, r"^here needs numbers low, high and step, got \{"),
        ({"low": 0, "high": None, "step": 1}, r"^here needs numbers low, high and step, got \{"),
        ({"low": 1, "high": 0, "step": 1}, r"^here needs low <= high and step > 0, got \{"),
        ({"low": 0, "high": 1, "step": 0}, r"^here needs low <= high and step > 0, got \{"),
        ({"low": 0, "high": float("nan"), "step": 1}, r"^here needs finite numbers low, high and "),
        ({"low": 0, "high": float("inf"), "step": 1}, r"^here needs finite numbers low, high and "),
        ({"low": 0, "high": 1, "step": float("nan")}, r"^here needs finite numbers low, high and "),
        ({"low": 0, "hi": 1, "step": 1}, r"^here: unknown key 'hi'; nearest: high$"),
    ],
)
def test_wrong_ranges_are_named(value: dict[str, Any], text: str) -> None:
    with pytest.raises(SpaceError, match=text):
        spread("here", value)


def test_keys_are_checked() -> None:
    check_keys("here", {"a": 1}, ("a", "b"))
    check_keys("here", {}, ())
    with pytest.raises(SpaceError, match=r"^here: unknown key 'weights'; nearest: weight_bits$"):
        check_keys("here", {"weights": 1}, AXES)
    with pytest.raises(SpaceError, match=r"^here: expected a mapping, got \['a'\]$"):
        check_keys("here", ["a"], ("a",))
    assert listed(None) == [None]
    assert listed([]) == []

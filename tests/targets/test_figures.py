"""Read and check the figures of an analytic device."""

from __future__ import annotations

import pytest

from autocompress.errors import TargetError
from autocompress.targets.figures import Figures, check_keys, parse_figures

VALUES = {"float_gops": 10, "int8_gops": 40.0, "bandwidth_gb_s": 8.0, "overhead_us": 0}


def data(**changes: object) -> dict[str, object]:
    entries = {name: {"value": value, "source": "its maker"} for name, value in VALUES.items()}
    return {**entries, **changes}


def test_figures_are_numbers_with_sources() -> None:
    figures = parse_figures("phone.yaml", data())
    assert figures == Figures(10.0, 40.0, 8.0, 0.0)
    assert figures.sources == dict.fromkeys(VALUES, "its maker")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"int8_gops": 40.0}, "int8_gops needs a value and its source, got 40.0"),
        ({"int8_gops": {"value": 40.0}}, "int8_gops needs a value and its source"),
        (
            {"overhead_us": {"value": -1, "source": "me"}},
            "overhead_us -1 is impossible; nearest valid value: 0$",
        ),
        (
            {"float_gops": {"value": 1e9, "source": "me"}},
            r"float_gops 1000000000\.0 is impossible; nearest valid value: 1e\+06$",
        ),
        (
            {"float_gops": {"value": True, "source": "me"}},
            "float_gops True is impossible",
        ),
        (
            {"float_gops": {"value": float("nan"), "source": "me"}},
            "float_gops nan is impossible; nearest valid value: 0.0001$",
        ),
        ({"int8_gop": {}}, "unknown key 'int8_gop'; nearest: int8_gops"),
    ],
)
def test_figures_that_cannot_be_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TargetError, match=f"^phone.yaml: {message}"):
        parse_figures("phone.yaml", data(**changes))


def test_a_part_of_a_file_is_a_mapping_with_known_keys() -> None:
    check_keys("phone.yaml", {"a": 1}, ("a", "b"))
    with pytest.raises(TargetError, match=r"^phone.yaml: expected a mapping with the keys a, b, "):
        check_keys("phone.yaml", [1], ("a", "b"))

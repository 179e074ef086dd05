"""One line names an argument of the wrong type, what came, and the nearest valid value."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autocompress.argument_types import number, path, shown, switch, text, texts, whole_number
from autocompress.errors import ArgumentError, SpaceError


def test_numbers_are_plain() -> None:
    for value in (3, np.int64(3), np.uint8(3)):
        assert type(whole_number("f", "n", value)) is int
    assert number("f", "x", 3) == 3
    assert type(number("f", "x", np.float32(0.5))) is float
    assert type(number("f", "x", np.int32(2))) is int
    assert switch("f", "b", np.True_) is True
    assert texts("f", "names", ["a", "b"], "c") == ("a", "b")
    assert text("f", "name", "a", "b") == "a"
    assert path("f", "out", Path("a"), "b") == Path("a")


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (whole_number, "2", "a whole number, got '2'; nearest valid value: 2"),
        (whole_number, 1.5, "a whole number, got 1.5; nearest valid value: 2"),
        (whole_number, 8.0, "a whole number, got 8.0; nearest valid value: 8"),
        (whole_number, True, "a whole number, got True; nearest valid value: 1"),
        (whole_number, None, "a whole number, got None; nearest valid value: 1"),
        (whole_number, math.nan, "a whole number, got nan; nearest valid value: 1"),
        (whole_number, [3], "a whole number, got [3]; nearest valid value: 1"),
        (number, "0.5", "a number, got '0.5'; nearest valid value: 0.5"),
        (number, math.inf, "a number, got inf; nearest valid value: 1.0"),
        (number, math.nan, "a number, got nan; nearest valid value: 1.0"),
        (number, 1j, "a number, got 1j; nearest valid value: 1.0"),
        (number, False, "a number, got False; nearest valid value: 0.0"),
        (switch, "no", "True or False, got 'no'; nearest valid value: False"),
        (switch, 1, "True or False, got 1; nearest valid value: True"),
        (switch, None, "True or False, got None; nearest valid value: False"),
    ],
)
def test_what_is_no_number_or_switch(check: Callable[..., Any], value: Any, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check("search", "n", value)
    assert str(caught.value) == f"search: n must be {message}"


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (text, 3, "a text, got 3; nearest valid value: 'cpu'"),
        (text, Path("a.yaml"), "a text, got PosixPath('a.yaml'); nearest valid value: 'a.yaml'"),
        (path, 3, "a path, got 3; nearest valid value: 'cpu'"),
        (path, "", "a path, got ''; nearest valid value: 'cpu'"),
        (texts, "f1", "a list of texts, got 'f1'; nearest valid value: ['f1']"),
        (texts, ["f1", 3], "a list of texts, got ['f1', 3]; nearest valid value: ['f1', '3']"),
        (texts, {"f1"}, "a list of texts, got {'f1'}; nearest valid value: ['f1']"),
        (texts, None, "a list of texts, got None; nearest valid value: ['cpu']"),
    ],
)
def test_what_is_no_text(check: Callable[..., Any], value: Any, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check("f", "name", value, "cpu")
    assert str(caught.value) == f"f: name must be {message}"


def test_no_number_is_too_large_to_be_refused() -> None:
    with pytest.raises(ArgumentError, match=r"got 1000.*\.\.\..*; nearest valid value: 1\.0$"):
        number("f", "x", 10**400)


def test_the_class_of_the_error_is_the_callers() -> None:
    with pytest.raises(SpaceError):
        whole_number("f", "n", "x", error=SpaceError)


class Wide:
    def __repr__(self) -> str:
        return "a\nb" * 1000


def test_values_are_shown_in_one_short_line() -> None:
    for value in (Wide(), "x" * 1000, list(range(1000)), np.zeros((40, 40))):
        words = shown(value)
        assert "\n" not in words
        assert len(words) < 200

"""Keys beside the rules of a space are checked by name and form."""

from __future__ import annotations

from typing import Any

import pytest

from autocompress.errors import SpaceError
from autocompress.space.keys import parse_constraints, parse_objectives, parse_range


def test_valid_keys() -> None:
    assert parse_constraints("s", {"max_size": "25%", "min_metric": {"f1": 0.9}})["max_size"]
    assert parse_objectives("s", ["f1", "auc", "f1"]) == ("f1", "auc")
    assert parse_range("s", {}) == "squared_error"
    assert parse_range("s", {"range": "entropy"}) == "entropy"


@pytest.mark.parametrize(
    ("parse", "value", "message"),
    [
        (parse_constraints, ["max_size"], "s: constraints: expected a mapping, got ['max_size']"),
        (parse_constraints, {"size": 1}, "s: constraints: unknown key 'size'; nearest: max_size"),
        (
            parse_constraints,
            {"min_metric": ["f1"]},
            "s: constraints: min_metric must be a mapping from names of metrics to limits, got "
            "['f1']; nearest: {f1: 0.9}",
        ),
        (
            parse_objectives,
            "f1",
            "s: objectives must be a list of names of extra metrics, got 'f1'",
        ),
        (
            parse_range,
            {"range": "minmax"},
            "s: calibration: range 'minmax' is unknown; nearest: mi",
        ),
        (parse_range, {"rnge": 1}, "s: calibration: unknown key 'rnge'; nearest: range"),
    ],
)
def test_wrong_keys_are_one_line(parse: Any, value: Any, message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        parse("s", value)
    assert str(caught.value).startswith(message)

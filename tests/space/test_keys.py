"""Keys beside the rules of a space are checked by name and form."""

from __future__ import annotations

from typing import Any

import pytest

from autocompress.errors import SpaceError
from autocompress.space.keys import check_towers, parse_constraints, parse_objectives, parse_range


def test_valid_keys() -> None:
    assert parse_constraints("s", {"max_size": "25%", "min_metric": {"f1": 0.9}})["max_size"]
    shares = {"tower_loss": {"vision": "30%", "text": 0.5}}
    assert parse_constraints("s", shares) == {"tower_loss": {"vision": 0.3, "text": 0.5}}
    check_towers("s", parse_constraints("s", shares), {"vision", "text", "head"})
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
            parse_constraints,
            {"tower_loss": 0.3},
            "s: constraints: tower_loss must be a mapping from towers to shares of the loss, got "
            "0.3; nearest: {vision: 0.3}",
        ),
        (
            parse_constraints,
            {"tower_loss": {"vision": "130%"}},
            "s: constraints: tower_loss: vision must be a share between 0 and 1, got '130%'; "
            "nearest: 0.3",
        ),
        (
            lambda where, value: check_towers(where, value, {"vision", "language"}),
            {"tower_loss": {"visoin": 0.3}},
            "s: constraints: tower_loss: the model has no tower 'visoin'; nearest: vision",
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

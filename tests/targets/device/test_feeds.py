"""Several inputs whose times count as one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autocompress.targets.device import profiler
from autocompress.targets.device.feeds import WeightedFeeds, parts_of, read_feed, run_once
from autocompress.targets.device.profiler import WARM_UP, profiled_session
from autocompress.targets.device.sessions import DEFAULT
from autocompress.targets.device.timing import time_pair

LONG, SHORT = {"x": np.ones((1, 8))}, {"x": np.ones((1, 1))}
MIXED = WeightedFeeds(((0.25, LONG), (0.5, SHORT)))


class Counter:
    """Stands in for a session; its clock moves by one second per row of `x`."""

    def __init__(self) -> None:
        self.now, self.rows = 0.0, list[int]()

    def get_inputs(self) -> list[Any]:
        return []

    def run(self, output_names: None, input_feed: dict[str, Any]) -> list[Any]:
        self.rows.append(input_feed["x"].shape[1])
        self.now += self.rows[-1]
        return []


def test_names_tell_weights_and_inputs() -> None:
    assert {name: array.shape for name, array in MIXED.items()} == {
        "0.25 x x": (1, 8),
        "0.5 x x": (1, 1),
    }
    assert len(MIXED) == 2
    assert parts_of(LONG) == ((1.0, LONG),)


def test_a_file_keeps_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "feed.npz", **dict(MIXED), allow_pickle=False)
    with np.load(tmp_path / "feed.npz") as arrays:
        again = read_feed({name: arrays[name] for name in arrays.files})
    assert [(weight, part["x"].shape) for weight, part in parts_of(again)] == [
        (0.25, (1, 8)),
        (0.5, (1, 1)),
    ]
    assert read_feed(LONG) is LONG


def test_parts_of_equal_weights_stay_apart(tmp_path: Path) -> None:
    equal = WeightedFeeds(((0.125, LONG), (0.125, SHORT), (0.5, SHORT)))
    assert {name: array.shape for name, array in equal.items()} == {
        "0.125 x x": (1, 8),
        "1: 0.125 x x": (1, 1),
        "0.5 x x": (1, 1),
    }
    np.savez(tmp_path / "feed.npz", **dict(equal), allow_pickle=False)
    with np.load(tmp_path / "feed.npz") as arrays:
        again = read_feed({name: arrays[name] for name in arrays.files})
    found = [(weight, part["x"].shape) for weight, part in parts_of(again)]
    assert found == [(0.125, (1, 8)), (0.125, (1, 1)), (0.5, (1, 1))]


def test_all_inputs_are_run() -> None:
    session = Counter()
    assert run_once(session, MIXED) >= 0
    assert session.rows == [8, 1]


def test_times_are_added_with_their_weights() -> None:
    session = Counter()
    rounds = (3, np.random.default_rng(0), 2)
    seconds = time_pair(session, session, MIXED, *rounds, clock=lambda: session.now)
    assert seconds[..., 0].tolist() == [[2.5, 2.5]] * 3


def test_profiles_add_them_too(
    layered: bytes, layered_feed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durations of the profile are replaced by those of runs of 4 and 10 microseconds."""
    feeds = WeightedFeeds(((0.25, layered_feed), (0.5, layered_feed)))
    read = profiler.json.loads

    def loads(text: str) -> Any:
        events = read(text)
        for name in {event["name"] for event in events}:
            turns = itertools.cycle((4, 10))
            for event in events:
                if event["name"] == name:
                    event["dur"] = next(turns)
        return events

    monkeypatch.setattr(profiler.json, "loads", loads)
    nodes, _ = profiled_session(layered, feeds, DEFAULT, lambda seconds: 3)
    assert WARM_UP > 0
    assert {node.microseconds for node in nodes} == {0.25 * 4 + 0.5 * 10}

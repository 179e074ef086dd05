"""Check which points are on a front, which one is picked, and that all of it comes back from a
file.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autocompress import Candidate, Distillation, ModuleConfig
from autocompress.errors import LimitError, RunFolderError
from autocompress.results.files import FRONT_FILE, write_json
from autocompress.results.front import (
    ParetoFront,
    Pick,
    SearchResult,
    earlier_front,
    read_front,
)
from autocompress.results.front_point import FrontPoint, ModulePart
from autocompress.results.limits import Limits
from autocompress.results.measurement import Measurement

CANDIDATE = Candidate.of({"fc": ModuleConfig(4, 8)}, Distillation(0.5, 2.0, 10))
BASELINE = Measurement(1000, 10.0, 0.9, metrics={"f1": 0.8})


def point(trial: int, size: int, ms: float, accuracy: float, **more: Any) -> FrontPoint:
    measured = Measurement(size, ms, accuracy, metrics={"f1": more.pop("f1", 0.5)}, verified=True)
    return FrontPoint(trial, CANDIDATE, measured, Measurement(size, ms, accuracy), "a", **more)


def front_of(*points: FrontPoint, objectives: tuple[str, ...] = ()) -> ParetoFront:
    return ParetoFront.of(BASELINE, points, objectives)


SMALL, MIDDLE, GOOD = point(1, 100, 8.0, 0.7), point(2, 200, 4.0, 0.8), point(3, 400, 6.0, 0.9)
FRONT = front_of(GOOD, SMALL, MIDDLE)


def trials(points: Any) -> list[int]:
    return [p.trial for p in points]


def test_points_are_sorted_by_size_and_split_by_dominance() -> None:
    worse = point(9, 300, 9.0, 0.75)
    found = front_of(GOOD, worse, SMALL, MIDDLE)
    assert trials(found) == [1, 2, 3]
    assert trials(found.dominated) == [9]
    assert len(found) == 3


def test_an_objective_keeps_points_that_are_best_in_it() -> None:
    other = point(9, 300, 9.0, 0.75, f1=0.9)
    assert trials(front_of(GOOD, other, MIDDLE).dominated) == [9]
    assert trials(front_of(GOOD, other, MIDDLE, objectives=("f1",))) == [2, 9, 3]


def test_of_equal_points_the_earlier_trial_stays() -> None:
    found = front_of(point(5, 100, 1.0, 0.5), point(4, 100, 1.0, 0.5))
    assert (trials(found), trials(found.dominated)) == ([4], [5])


def test_points_aside_hide_nothing() -> None:
    better, worse = point(3, 100, 1.0, 0.9), point(4, 200, 2.0, 0.8)
    assert trials(front_of(better, worse)) == [3]
    found = ParetoFront.of(BASELINE, (better, worse), aside={3})
    assert (trials(found), trials(found.dominated)) == ([4], [3])


def test_a_point_that_keeps_a_floor_is_found_behind_one_that_misses_it() -> None:
    better, worse = point(3, 100, 1.0, 0.9, f1=0.7), point(4, 200, 2.0, 0.8, f1=0.9)
    largest = point(5, 300, 3.0, 0.7, f1=0.95)
    found = front_of(better, largest, worse)
    assert trials(found) == [3]
    assert found.smallest().trial == 3
    assert found.pick("smallest", floors={"f1": 0.85}) == Pick(worse)
    assert found.pick("smallest", floors={"f1": 0.92}) == Pick(largest)
    assert found.within(floors={"f1": 0.85}) == (worse,), "it dominates the largest"
    assert found.pick("smallest", floors={"f1": 0.99}).point == better
    assert found.within(floors={"f1": 0.99}) == ()
    under = found.under(floors={"f1": 0.85}, max_size_bytes=10.0)
    assert (trials(under), trials(under.dominated)) == ([4], [5, 3])
    assert found.under(floors={"f1": 0.99}) is found.under(max_size_bytes=10.0) is found
    objective = front_of(better, largest, worse, objectives=("f1",))
    assert trials(objective) == [3, 4, 5]
    assert trials(objective.within(floors={"f1": 0.85})) == [4, 5]


def test_the_knee_is_that_of_the_front_under_the_limits() -> None:
    hides = point(0, 10, 0.1, 0.95, f1=0.1)
    kept = [point(1, 100, 9.0, 0.90, f1=0.9), point(2, 120, 2.0, 0.89, f1=0.9)]
    kept.append(point(3, 900, 1.9, 0.80, f1=0.9))
    alone = front_of(*kept).knee()
    assert front_of(hides, *kept).pick("knee", floors={"f1": 0.5}) == Pick(alone)


def test_picks() -> None:
    assert FRONT.smallest().trial == 1
    assert FRONT.fastest().trial == 2
    assert FRONT.most_accurate().trial == 3
    # Shares of the spans (log size, log latency, accuracy): 1: (0, 1, 1), 2: (.5, 0, .5), 3: (1,
    # .58, 0)
    assert FRONT.knee().trial == 2
    equal = front_of(point(1, 100, 8.0, 0.9), point(2, 200, 4.0, 0.9))
    assert equal.most_accurate().trial == 1, "the smaller of two equally accurate points"
    assert front_of(SMALL).knee().trial == 1


def test_limits_leave_points_out() -> None:
    assert FRONT.smallest(max_accuracy_drop=0.1).trial == 2
    assert FRONT.smallest(max_latency_ms=6.0, max_accuracy_drop=0.0).trial == 3
    assert FRONT.most_accurate(max_size_bytes=200).trial == 2
    assert FRONT.fastest(max_size_bytes=150, max_latency_ms=None).trial == 1
    better = front_of(point(1, 100, 1.0, 0.5, f1=0.3), point(2, 200, 2.0, 0.6, f1=0.7))
    assert better.smallest(floors={"f1": 0.7}).trial == 2


def test_without_a_point_within_the_limits_the_nearest_is_told_with_what_it_misses() -> None:
    pick = FRONT.pick("smallest", max_size_bytes=80, max_latency_ms=6)
    assert pick.point.trial == 1, "25 % and 33 % are less than 150 % and 400 %"
    assert pick.shortfall == (
        "no point meets the limits; the nearest has 100 B, 20 B above the limit; "
        "8.000 ms, 2 ms above the limit"
    )
    pick = FRONT.pick("fastest", max_accuracy_drop=-0.05, floors={"f1": 0.75})
    assert pick.point.trial == 3
    assert pick.shortfall == (
        "no point meets the limits; the nearest has accuracy drop 0.0000, 0.0500 above the "
        "limit; f1 0.5000, 0.2500 below the limit"
    )
    assert FRONT.pick("knee").shortfall == ""
    better = front_of(point(1, 100, 1.0, 0.5, f1=0.3), point(2, 200, 2.0, 0.6, f1=0.7))
    assert better.smallest(floors={"f1": 0.9}).trial == 2
    assert better.smallest(floors={"f1": 0.9}, max_size_bytes=20).trial == 1, "4 + 6 < 9 + 2"


def test_points_within_a_limit_of_memory() -> None:
    points = []
    for trial, size, memory in ((1, 100, 900), (2, 200, 500), (3, 300, None)):
        one = point(trial, size, 10.0 - trial, 0.5 + trial / 10)
        points.append(replace(one, measured=replace(one.measured, activation_bytes=memory)))
    front = front_of(*points)
    assert trials(front.within(max_memory_bytes=500)) == [2]
    assert front.smallest(max_memory_bytes=600).trial == 2
    pick = front.pick("smallest", max_memory_bytes=400)
    assert pick.shortfall == (
        "no point meets the limits; the nearest has 500 B of activations, 100 B above the limit"
    )
    alone = front_of(points[2]).pick("smallest", max_memory_bytes=400)
    assert alone.shortfall.endswith("the nearest has an unknown memory of activations")
    with pytest.raises(LimitError, match="max_memory_bytes must be above 0, got 0; nearest: bytes"):
        front.smallest(max_memory_bytes=0)
    assert ParetoFront.of(front.baseline, points).to_json()["points"][1]["activation_bytes"] == 500


def test_points_within_limits() -> None:
    assert trials(FRONT.within()) == [1, 2, 3]
    assert trials(FRONT.within(max_accuracy_drop=0.1, max_size_bytes=None)) == [2, 3]
    assert trials(FRONT.within(max_size_bytes=80)) == []
    assert front_of().within() == ()
    with pytest.raises(LimitError, match="unknown limit"):
        FRONT.within(size=3)


def test_wrong_picks_are_named() -> None:
    with pytest.raises(
        LimitError,
        match=r"^front: pick 'best' is unknown; valid: smallest, fastest, accurate, knee$",
    ):
        FRONT.pick("best")
    with pytest.raises(LimitError, match=r"^front: unknown limit \['size'\]; valid: max_size_byt"):
        FRONT.smallest(size=3)
    with pytest.raises(LimitError, match=r"^front: there is no point; run more trials or loosen"):
        front_of().smallest()


def test_a_front_comes_back_from_its_file(tmp_path: Path) -> None:
    parts = {"fc": ModulePart(40, 2.5), "out": ModulePart(10)}
    fragile = point(4, 50, 3.0, 0.6, deployed_gap=-0.01, fragile=("noise",), parts=parts)
    front = front_of(fragile, GOOD, point(9, 500, 9.0, 0.1), objectives=("f1",))
    write_json(tmp_path / FRONT_FILE, front.to_json())
    found = read_front(tmp_path)
    assert found == front
    assert found.points[0].candidate == CANDIDATE
    assert found.points[0].fragile == ("noise",)
    assert earlier_front(tmp_path) == front
    assert json.loads((tmp_path / FRONT_FILE).read_text())["points"][0]["marked"] is True


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            "{}",
            r"front.json: damaged \(KeyError: 'baseline'\); run the search again to rebuild it$",
        ),
        ("[]", r"front.json: damaged \(TypeError: "),
        ("{", r"front.json: damaged \("),
        (None, "front.json: not found"),
    ],
)
def test_a_front_that_cannot_be_read_is_said(
    content: str | None, text: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / FRONT_FILE).write_text(content)
    with pytest.raises(RunFolderError, match=text):
        read_front(str(tmp_path))
    assert earlier_front(tmp_path) is None


def test_a_result_says_by_how_much_its_limits_are_missed(tmp_path: Path) -> None:
    assert SearchResult(FRONT, tmp_path, Limits(max_size_bytes=100)).shortfall == ""
    alone = ParetoFront.of(FRONT.baseline, ())
    assert SearchResult(alone, tmp_path, Limits()).shortfall.startswith(
        "there is no compressed file"
    )
    assert SearchResult(FRONT, tmp_path, Limits(90, None, None)).shortfall == (
        "no point meets the limits; the nearest has 100 B, 10 B above the limit"
    )


def test_the_knee_and_the_nearest_point_of_perplexities() -> None:
    """A ruined point does not make the others equal, and a drop is a share of the perplexity."""
    points = [
        point(0, 900, 9.0, -56.0),
        point(1, 300, 4.0, -58.0),
        point(2, 200, 3.5, -400.0),
        point(3, 190, 3.4, -12000.0),
    ]
    front = ParetoFront.of(Measurement(1000, 10.0, -55.0), points)
    assert front.knee().trial == 1
    pick = front.pick("smallest", max_size_bytes=100, max_accuracy_drop=0.55)
    assert pick.point.trial == 1, "twice too large by 5 % of perplexity, not the largest file"

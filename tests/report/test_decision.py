"""Recommend what `ParetoFront.pick` chooses, at every loss of accuracy."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import pairwise

import pytest
import report_runs

from autocompress import ParetoFront
from autocompress.cli.arguments import build_parser
from autocompress.cli.values import limits_of
from autocompress.report.decision import decide, recommended, use_limits
from autocompress.results.limits import parse_limits

MODULES = report_runs.names(3)


def test_points_are_recommended_within_a_hundredth(front: ParetoFront) -> None:
    assert recommended(front) == {2: "smallest, fastest, knee", 1: "accurate"}
    assert recommended(front, {"max_accuracy_drop": 0.0}) == {
        1: "smallest, fastest, accurate, knee"
    }
    assert recommended(ParetoFront.of(front.baseline, [])) == {}


def test_limits_are_those_of_the_search(front: ParetoFront) -> None:
    def drop(asked: dict, **limits: object) -> float:
        return use_limits({"limits": limits, "asked": asked}, front)["max_accuracy_drop"]

    assert drop({}) == 0.01
    assert drop({}, max_accuracy_drop=0.05) == 0.01, "of the space, not of the user"
    assert drop({}, max_accuracy_drop=0.005) == 0.005
    assert drop({"max_accuracy_drop": "0.05"}, max_accuracy_drop=0.05) == 0.05
    limits = {"max_size_bytes": 300.0, "floors": {"f1": 0.5}}
    found = use_limits({"limits": limits}, front)
    assert found["max_size_bytes"] == 300.0
    assert found["floors"] == {}, "no point has this metric"
    perplexity = replace(front.baseline, accuracy=-90.0)
    assert use_limits({}, replace(front, baseline=perplexity))["max_accuracy_drop"] == 0.9


@pytest.mark.parametrize("accuracy", [0.9, -20.0])
@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("limits", [{}, {"max_size_bytes": 5e6, "max_latency_ms": 20.0}])
def test_all_recommendations_are_picks_of_the_front(
    count: int, accuracy: float, limits: dict
) -> None:
    front = report_runs.front(count, MODULES, accuracy)
    decision = decide({"limits": limits}, front, "run")
    drops = [stop.drop for stop in decision.stops]
    assert drops == sorted(set(drops))
    assert drops[0] == 0
    assert drops[decision.start] == 0.01 * front.baseline.accuracy_scale
    assert len(decision.stops) <= count + 14
    ends = [*pairwise(drops), (drops[-1], 2 * drops[-1])]
    for stop, (low, high) in zip(decision.stops, ends, strict=True):
        uses = [use for choice in stop.choices for use in choice.uses]
        assert sorted(uses) == ["accurate", "fastest", "knee", "smallest"]
        assert stop.choices[0].uses[0] == "knee"
        for choice in stop.choices:
            for use in choice.uses:
                for drop in (low, (low + high) / 2):
                    pick = front.pick(use, max_accuracy_drop=drop, **limits)
                    assert pick.point.trial == choice.trial, (use, drop)
                    assert choice.is_within == (not pick.shortfall)


@pytest.mark.parametrize("limits", [{}, {"max_size_bytes": 5e6 + 0.5, "max_latency_ms": 20.25}])
def test_commands_export_what_is_recommended(limits: dict) -> None:
    front = report_runs.front(12, MODULES)
    base = front.baseline
    for stop in decide({"limits": limits}, front, "a run's folder").stops:
        for choice in stop.choices:
            arguments = build_parser().parse_args(shlex.split(choice.command)[1:])
            given = limits_of(arguments)
            asked = parse_limits(given, base.size_bytes, base.latency_ms, base.accuracy)
            pick = front.pick(arguments.pick, **asked.pick_limits())
            assert arguments.folder == "a run's folder"
            assert pick.point.trial == choice.trial


def why(front: ParetoFront, drop: float, run: dict | None = None) -> list[str]:
    """Sentences of the choices at one position."""
    (stop,) = [stop for stop in decide(run or {}, front, "run").stops if stop.drop == drop]
    return [choice.why for choice in stop.choices]


def test_sentences_say_why(front: ParetoFront) -> None:
    assert why(front, 0.01) == [
        "The best balanced, the smallest and the fastest of the 2 points that lose at most 0.01; "
        "trial 3 is 20% smaller, but loses 0.2000.",
        "The most accurate of the 2 points that lose at most 0.01.",
    ]
    assert why(front, 0.0) == [
        "The only point that loses nothing; trial 2 is 50% smaller, but loses 0.0050."
    ]
    limits = {"limits": {"max_latency_ms": 0.95}}
    assert why(front, 0.01, limits) == [
        "The only point that loses at most 0.01 and meets the other limits; trial 3 is 20% "
        "smaller, but loses 0.2000."
    ]


def test_what_no_point_meets_is_said(front: ParetoFront) -> None:
    run = {"limits": {"max_size_bytes": 100.0}}
    choices = [c for stop in decide(run, front, "run").stops for c in stop.choices]
    for choice in choices:
        assert choice.why.startswith("No point meets the limits; the nearest has ")
        assert not choice.is_within


def test_errors_are_added(front: ParetoFront) -> None:
    errors = report_runs.front(3, MODULES, -20.0)
    sentence = why(errors, 0.2, {"metric": "perplexity"})[0]
    assert sentence.startswith("The only point that adds at most 0.2 perplexity; trial ")


def test_a_front_without_points_has_no_recommendation(front: ParetoFront) -> None:
    assert decide({}, ParetoFront.of(front.baseline, []), "run").stops == ()

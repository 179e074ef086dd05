"""Decide which points are recommended, for each loss of accuracy that a user can accept.

`ParetoFront.pick` chooses all of them. The page shows what is computed here and has no rule of its
own.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from autocompress.report.words import MetricWords, metric_words
from autocompress.results.front import ParetoFront, Pick
from autocompress.results.front_point import FrontPoint

PICKS = ("smallest", "fastest", "accurate", "knee")
PICK_DROP = 0.01  # largest accuracy loss of a recommended point, of a metric up to 1
# Pick -> (name of the use, letter in figures, superlative), as the page lists them.
USES = {
    "knee": ("Balanced", "B", "best balanced"),
    "smallest": ("Smallest", "S", "smallest"),
    "fastest": ("Fastest", "F", "fastest"),
    "accurate": ("Most accurate", "A", "most accurate"),
}
STEPS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Choice(NamedTuple):
    """Hold a recommended point.

    Attributes:
        trial: its number.
        uses: picks that it stands for.
        why: one sentence.
        command: exports it.
        is_within: True if it meets the limits.
    """

    trial: int
    uses: tuple[str, ...]
    why: str
    command: str
    is_within: bool


class Stop(NamedTuple):
    """Hold the recommendations at one position of the slider.

    Attributes:
        drop: largest loss of accuracy.
        choices: the balanced point first.
    """

    drop: float
    choices: tuple[Choice, ...]


class Decision(NamedTuple):
    """Hold all recommendations of a run.

    Attributes:
        stops: positions of the slider, by growing loss; empty for a front without points.
        start: position at first.
    """

    stops: tuple[Stop, ...]
    start: int


def use_limits(run: Mapping[str, Any], front: ParetoFront) -> dict[str, Any]:
    """Return the limits of recommended points, as keywords of `ParetoFront.pick`.

    Args:
        run: content of run.json.
        front: verified points.

    Returns:
        The limits of the search. Where the user gave no limit of the accuracy, a point may lose
        PICK_DROP (of a larger metric: this share of its value).
    """
    limits, asked = run.get("limits") or {}, run.get("asked") or {}
    drop, own = PICK_DROP * front.baseline.accuracy_scale, limits.get("max_accuracy_drop")
    if own is not None:
        drop = own if "max_accuracy_drop" in asked else min(drop, own)
    floors = {}
    for name, least in (limits.get("floors") or {}).items():
        if name in front.baseline.metrics:
            floors[name] = least
    return {
        "max_size_bytes": limits.get("max_size_bytes"),
        "max_latency_ms": limits.get("max_latency_ms"),
        "max_memory_bytes": limits.get("max_memory_bytes"),
        "max_accuracy_drop": drop,
        "floors": floors,
    }


def recommended(front: ParetoFront, limits: Mapping[str, Any] | None = None) -> dict[int, str]:
    """Return the picks that each recommended trial stands for.

    Args:
        front: verified points.
        limits: from `use_limits`; None limits accuracy alone. A pick is within them, or nearest to
            them.

    Returns:
        Names of picks, joined by commas, by trial.
    """
    picks: dict[int, list[str]] = {}
    limits = use_limits({}, front) if limits is None else limits
    for what in PICKS if front.points else ():
        picks.setdefault(front.pick(what, **limits).point.trial, []).append(what)
    return {trial: ", ".join(names) for trial, names in picks.items()}


def decide(run: Mapping[str, Any], front: ParetoFront, folder: str) -> Decision:
    """Return the recommended points at each loss of accuracy at which they change.

    Args:
        run: content of run.json.
        front: verified points.
        folder: run folder, as commands name it.
    """
    if not front.points:
        return Decision((), 0)
    limits, metric = use_limits(run, front), metric_words(run)
    drops = _drops(front, limits["max_accuracy_drop"])
    stops = []
    for drop in drops:
        stops.append(Stop(drop, _choices(front, {**limits, "max_accuracy_drop": drop}, metric)))
    stops = [stop._replace(choices=_with_commands(stop, limits, folder)) for stop in stops]
    return Decision(tuple(stops), drops.index(limits["max_accuracy_drop"]))


def _drops(front: ParetoFront, start: float) -> list[float]:
    """Return the positions of the slider: round numbers, and the losses of all points."""
    base = front.baseline
    lost = [base.accuracy - point.measured.accuracy for point in front.points]
    drops = {start, *(_rounded_up(drop) for drop in lost if drop > 0)}
    most = max(drops)
    for step in STEPS:
        drops.add(step * base.accuracy_scale)
        if step * base.accuracy_scale >= most:
            break
    return sorted(drops)


def _rounded_up(drop: float) -> float:
    """Return the next number of three digits."""
    digits = 2 - math.floor(math.log10(drop))
    return float(f"{math.ceil(drop * 10.0**digits - 1e-9) / 10.0**digits:.3g}")


def _choices(
    front: ParetoFront, limits: Mapping[str, Any], metric: MetricWords
) -> tuple[Choice, ...]:
    """Return the choices within some limits, without their commands."""
    picks = {use: front.pick(use, **limits) for use in USES}
    by_trial: dict[int, list[str]] = {}
    for use, pick in picks.items():
        by_trial.setdefault(pick.point.trial, []).append(use)
    choices = []
    for trial, uses in by_trial.items():
        pick = picks[uses[0]]
        why = _why(front, pick, uses, limits, metric)
        choices.append(Choice(trial, tuple(uses), why, "", not pick.shortfall))
    return tuple(choices)


def _why(
    front: ParetoFront,
    pick: Pick,
    uses: Sequence[str],
    limits: Mapping[str, Any],
    metric: MetricWords,
) -> str:
    """Return why a point is recommended, and what more accuracy would buy."""
    if pick.shortfall:
        return f"{pick.shortfall[0].upper()}{pick.shortfall[1:]}."
    within = front.within(**limits)
    most = metric.most(limits["max_accuracy_drop"], len(within) == 1)
    given = ("max_size_bytes", "max_latency_ms", "max_memory_bytes", "floors")
    others = any(limits.get(name) for name in given)
    meet = " and meet" + ("" if len(within) > 1 else "s") + " the other limits" if others else ""
    rule = most + meet
    if len(within) == 1:
        return f"The only point that {rule}{_beyond(front, pick, uses, limits, metric)}."
    names = [f"the {USES[use][2]}" for use in uses]
    joined = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
    words = f"{joined[0].upper()}{joined[1:]} of the {len(within)} points that {rule}"
    return words + _beyond(front, pick, uses, limits, metric) + "."


def _beyond(
    front: ParetoFront,
    pick: Pick,
    uses: Sequence[str],
    limits: Mapping[str, Any],
    metric: MetricWords,
) -> str:
    """Return what the next loss of accuracy would buy, for the smallest and the fastest point."""
    base = front.baseline
    for use, figure, adjective in (
        ("smallest", "size_bytes", "smaller"),
        ("fastest", "latency_ms", "faster"),
    ):
        own = getattr(pick.point.measured, figure)
        better: list[FrontPoint] = []
        for point in front.within(**{**limits, "max_accuracy_drop": None}):
            if getattr(point.measured, figure) < own:
                better.append(point)
        if use not in uses or not better:
            continue
        point = max(better, key=lambda p: p.measured.accuracy)
        share = 1 - getattr(point.measured, figure) / own
        lost = metric.lost(base.accuracy - point.measured.accuracy)
        return f"; trial {point.trial} is {share:.0%} {adjective}, but {lost}"
    return ""


def _with_commands(stop: Stop, limits: Mapping[str, Any], folder: str) -> tuple[Choice, ...]:
    """Return choices with the commands that export them."""
    words = [f"--max-accuracy-drop {np.format_float_positional(stop.drop, trim='-')}"]
    if limits["max_size_bytes"]:
        words.append(f"--max-size {math.floor(limits['max_size_bytes'])}B")
    if limits["max_latency_ms"]:
        words.append(f"--max-latency {limits['max_latency_ms']!r}ms")
    if limits["max_memory_bytes"]:
        words.append(f"--max-memory {math.floor(limits['max_memory_bytes'])}B")
    for name, least in limits["floors"].items():
        words.append(f"--min-metric {shlex.quote(f'{name}={least!r}')}")
    choices = []
    for choice in stop.choices:
        begin = f"autocompress export {shlex.quote(folder)} --pick {choice.uses[0]}"
        choices.append(choice._replace(command=" ".join([begin, *words, "--to best"])))
    return tuple(choices)

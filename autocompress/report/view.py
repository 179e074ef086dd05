"""Collect what the page's scripts show: recommendations, cards of points, and modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.report.decision import USES, Choice, Stop, decide
from autocompress.report.front_csv import front_csv
from autocompress.report.info import RunInfo
from autocompress.report.module_rows import (
    FEW,
    module_facts,
    module_rows,
    rows_of_float,
    rows_of_point,
)
from autocompress.report.words import (
    MetricWords,
    bytes_words,
    done_words,
    metric_words,
    ms_words,
    times_words,
)
from autocompress.results.files import model_path
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import Measurement

NO_POINT = "The search has no point yet; run more trials or loosen the limits."


def view_of(info: RunInfo) -> dict[str, Any]:
    """Return the data of the page's scripts, in plain types.

    Args:
        info: content of a run folder.

    Returns:
        {"stops": positions of the slider with their recommendations, "start": the first position,
        "order": trials by size, "points": cards by trial, "uses": names and letters, "baseline":
        numbers of the float model, "rows": of the table of modules, "columns": of each point by
        trial, "few": modules that are shown unfolded, "csv": content of front.csv}.
    """
    front, metric = info.front, metric_words(info.run)
    decision = decide(info.run, front, info.folder)
    facts = module_facts(info)
    rows = module_rows(facts)
    base = front.baseline
    return {
        "stops": [_stop(stop, info, metric) for stop in decision.stops],
        "start": decision.start,
        "none": NO_POINT,
        "order": [str(point.trial) for point in front],
        "points": {str(p.trial): _card(p, info, metric) for p in front},
        "uses": {use: {"name": name, "letter": letter} for use, (name, letter, _) in USES.items()},
        "baseline": {"bytes": base.size_bytes, "ms": base.latency_ms},
        "rows": rows_of_float(rows, facts),
        "columns": {str(point.trial): rows_of_point(point, rows, facts) for point in front},
        "few": FEW,
        "csv": front_csv(info),
    }


def _stop(stop: Stop, info: RunInfo, metric: MetricWords) -> dict[str, Any]:
    return {
        "drop": stop.drop,
        "words": f"at most {stop.drop:.4g}" if stop.drop > 0 else "nothing",
        "answer": _answer(stop.choices[0], info, metric),
        "choices": [choice._asdict() for choice in stop.choices],
    }


def _answer(choice: Choice, info: RunInfo, metric: MetricWords) -> str:
    """Return the first line of the page."""
    point = next(point for point in info.front if point.trial == choice.trial)
    ratios = _ratios(point.measured, info.front.baseline, metric)
    begin = "Take" if choice.is_within else "No point meets the limits. The nearest is"
    # "loses nothing" and "adds 0.3 perplexity" need no name.
    named = metric.sign < 0 or ratios.endswith("nothing")
    name = "" if named else f" of {metric.name}"
    return f"{begin} trial {choice.trial}: {ratios}{name}."


def _ratios(measured: Measurement, base: Measurement, metric: MetricWords) -> str:
    smaller = times_words(base.size_bytes, measured.size_bytes, "smaller", "larger")
    faster = times_words(base.latency_ms, measured.latency_ms, "faster", "slower")
    return f"{smaller}, {faster}, {metric.lost(base.accuracy - measured.accuracy)}"


def _card(point: FrontPoint, info: RunInfo, metric: MetricWords) -> dict[str, Any]:
    """Return what the page says of a point."""
    base, m = info.front.baseline, point.measured
    parameters = {row["module"]: row["parameters"] for row in info.run.get("modules") or []}
    file = f"{point.artifact}/{model_path(Path(info.folder) / point.artifact).name}"
    return {
        "label": f"trial {point.trial}: {bytes_words(m.size_bytes)}, {ms_words(m.latency_ms)}, "
        f"{metric.lost(base.accuracy - m.accuracy)}",
        "ratios": _ratios(m, base, metric),
        "facts": _facts(m, base, metric),
        "done": done_words(point.candidate, parameters or None),
        "notes": _notes(point, metric),
        "file": file,
        "exists": (Path(info.folder) / file).is_file(),
        "bytes": m.size_bytes,
        "ms": m.latency_ms,
        "lost": base.accuracy - m.accuracy,
    }


def _facts(m: Measurement, base: Measurement, metric: MetricWords) -> list[list[str]]:
    """Return rows of (name, before, after, ratio)."""
    rows = [
        [
            "size",
            bytes_words(base.size_bytes),
            bytes_words(m.size_bytes),
            times_words(base.size_bytes, m.size_bytes, "smaller", "larger"),
        ],
        [
            "latency",
            ms_words(base.latency_ms),
            ms_words(m.latency_ms),
            times_words(base.latency_ms, m.latency_ms, "faster", "slower"),
        ],
    ]
    if base.memory_bytes and m.memory_bytes:
        ratio = times_words(base.memory_bytes, m.memory_bytes, "smaller", "larger")
        words = [bytes_words(base.memory_bytes), bytes_words(m.memory_bytes), ratio]
        rows.append(["in memory", *words])
    if base.activation_bytes and m.activation_bytes:
        ratio = times_words(base.activation_bytes, m.activation_bytes, "smaller", "larger")
        words = [bytes_words(base.activation_bytes), bytes_words(m.activation_bytes), ratio]
        rows.append(["activations", *words])
    scores = [(metric.name, base.accuracy, m.accuracy)]
    if base.test_accuracy is not None and m.test_accuracy is not None:
        scores.append((f"{metric.name} (test)", base.test_accuracy, m.test_accuracy))
    for name, before, after in scores:
        lost = metric.lost(before - after).removesuffix(f" {metric.name}")
        rows.append([name, metric.value(before), metric.value(after), lost])
    return rows


def _notes(point: FrontPoint, metric: MetricWords) -> list[str]:
    """Return what a user should know before taking a point."""
    notes = []
    if point.fragile:
        names = ", ".join(name.replace("_", " ") for name in point.fragile)
        notes.append(f"fragile under {names}")
    if point.marked:
        gap = metric.gap(point.deployed_gap)
        notes.append(f"{metric.name} differs from the simulated one by {gap}")
    if point.measured.latency_source != "measured":
        notes.append("latency was not measured on the device")
    return notes

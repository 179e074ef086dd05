"""Draw the front: accuracy lost against size and against latency, and in three dimensions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from autocompress.report.figures.style import ACCENT, BASE, GREY, layout
from autocompress.report.info import RunInfo
from autocompress.report.words import (
    MetricWords,
    bytes_words,
    done_words,
    metric_words,
    ms_words,
)
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import Measurement

HOVER = "%{customdata[1]}<extra></extra>"
SHOWN_TRIALS = 2000
LEAST_SPAN = 0.01  # of losses that an axis holds
# Marks of a logarithmic axis, from the coarsest.
STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.7, 2, 2.5, 3, 4, 5, 6, 8))
SIZE, LATENCY = "size_bytes", "latency_ms"


class Dots(NamedTuple):
    """Hold markers of one kind.

    Attributes:
        x: size in bytes or latency in ms.
        lost: accuracy lost.
        data: (trial, text to show) of each; -1 for the float model.
    """

    x: list[float]
    lost: list[float]
    data: list[tuple[int, str]]


def front_figure(info: RunInfo, figure_of: str) -> go.Figure:
    """Draw the accuracy that trials and points lose over their size or latency.

    Trials are grey, at predicted values; points are coloured by the other figure. The page fills
    the last two traces: letters of the recommended points, and a ring around the chosen one.

    Args:
        info: content of a run folder.
        figure_of: SIZE or LATENCY.
    """
    metric, base = metric_words(info.run), info.front.baseline
    trials, points = _trials(info, figure_of, metric), _points(info, figure_of, metric)
    baseline = Dots(
        [getattr(base, figure_of)], [0.0], [(-1, _text("float baseline", base, base, metric))]
    )
    other = LATENCY if figure_of == SIZE else SIZE
    colours = [getattr(point.measured, other) for point in info.front]
    unit, factor = "ms", 1.0
    if other == SIZE:
        unit, factor = ("MB", 1e6) if max(colours, default=0) >= 2e6 else ("KB", 1e3)
    coloured = {
        "size": 13,
        "color": [value / factor for value in colours],
        "colorscale": "Viridis",
        "line": {"width": 1, "color": "rgba(128,128,128,.8)"},
        "showscale": len(info.front) > 1,
        "colorbar": {"title": {"text": unit}, "thickness": 8, "outlinewidth": 0},
    }
    figure = go.Figure()
    for name, dots, marker in (
        ("trials (predicted)", trials, {"color": GREY, "size": 5, "opacity": 0.6}),
        ("points (measured files)", points, coloured),
        ("float model", baseline, {"color": BASE, "size": 12, "symbol": "diamond"}),
    ):
        figure.add_trace(_markers(name, dots, marker))
    marker = {"size": 22, "color": ACCENT, "opacity": 1, "line": {"width": 1, "color": "white"}}
    letters = _markers("recommended", Dots([], [], []), marker)
    letters.update(mode="markers+text", textfont={"color": "white", "size": 12, "weight": "bold"})
    ring = {"size": 30, "color": ACCENT, "symbol": "circle-open", "line": {"width": 2}}
    figure.add_trace(letters)
    figure.add_trace(_markers("chosen", Dots([], [], []), ring))
    for trace in figure.data[3:]:
        trace.update(hoverinfo="skip", hovertemplate=None, showlegend=False)
    _axes(figure, figure_of, [*points.x, *baseline.x], metric)
    return layout(figure, 400)


def _axes(figure: go.Figure, figure_of: str, values: Sequence[float], metric: MetricWords) -> None:
    """Set axes that hold all points; trials beyond them are shown by a double click."""
    low, high = min(values), max(values)
    ticks = _ticks(low, high)
    words = bytes_words if figure_of == SIZE else ms_words
    figure.update_xaxes(
        title="file size" if figure_of == SIZE else "latency",
        type="log",
        tickvals=ticks,
        ticktext=[_short(words(tick)) for tick in ticks],
        range=[float(np.log10(low / 1.15)), float(np.log10(high * 1.15))],
    )
    lost = [*figure.data[1].y, *figure.data[2].y]
    room = 0.08 * max(max(lost) - min(lost), LEAST_SPAN)
    figure.update_yaxes(
        title={"text": f"{metric.axis} (validation)", "standoff": 12},
        automargin=True,  # else the title lies on numbers of many digits
        range=[min(lost) - room, max(lost) + room],
    )
    line = {"color": ACCENT, "width": 1, "dash": "dot"}
    figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=0, y1=0, line=line)
    figure.update_layout(legend={"orientation": "h", "y": -0.24}, clickmode="event")


def _short(words: str) -> str:
    """Return a number and its unit without zeros behind the point."""
    return re.sub(r"(\.\d*?)0+ ", r"\1 ", words).replace(". ", " ")


def _ticks(low: float, high: float) -> list[float]:
    """Return round values of a logarithmic axis: as many as possible, but at most seven."""
    first, last = int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high)))
    best: list[float] = []
    for steps in STEPS:
        ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        inside = [tick for tick in ticks if low / 1.15 <= tick <= high * 1.15]
        if len(inside) <= 7:
            best = inside
    return best


def _markers(name: str, dots: Dots, marker: dict[str, object]) -> go.Scatter:
    return go.Scatter(
        x=dots.x,
        y=dots.lost,
        customdata=dots.data,
        hovertemplate=HOVER,
        mode="markers",
        marker=marker,
        name=name,
    )


def _trials(info: RunInfo, figure_of: str, metric: MetricWords) -> Dots:
    """Return the last SHOWN_TRIALS trials."""
    base, dots = info.front.baseline, Dots([], [], [])
    columns = ["number", "size_bytes", "latency_ms", "accuracy"]
    rows = info.trials.tail(SHOWN_TRIALS)[columns].itertuples(index=False)
    for number, size, ms, accuracy in rows:
        predicted = Measurement(int(size), float(ms), float(accuracy))
        dots.x.append(getattr(predicted, figure_of))
        dots.lost.append(base.accuracy - predicted.accuracy)
        name = f"trial {int(number)}, as predicted"
        dots.data.append((int(number), _text(name, predicted, base, metric)))
    return dots


def _points(info: RunInfo, figure_of: str, metric: MetricWords) -> Dots:
    base, dots = info.front.baseline, Dots([], [], [])
    parameters = {row["module"]: row["parameters"] for row in info.run.get("modules") or []}
    for point in info.front:
        dots.x.append(getattr(point.measured, figure_of))
        dots.lost.append(base.accuracy - point.measured.accuracy)
        text = _text(f"trial {point.trial}", point.measured, base, metric)
        done = done_words(point.candidate, parameters or None).replace(", ", "<br>")
        dots.data.append((point.trial, f"{text}<br>{done}"))
    return dots


def _text(name: str, measured: Measurement, base: Measurement, metric: MetricWords) -> str:
    """Return what is shown where the mouse points at a model."""
    size, ms = bytes_words(measured.size_bytes), ms_words(measured.latency_ms)
    words = f"<b>{name}</b><br>{size}, {ms}<br>{metric.name} {metric.value(measured.accuracy)}"
    if measured is base:
        return words
    return f"{words} ({metric.lost(base.accuracy - measured.accuracy)})"


def front_3d(info: RunInfo) -> go.Figure:
    """Draw size, latency and accuracy of the points and the float model.

    Args:
        info: content of a run folder.
    """
    metric, base = metric_words(info.run), info.front.baseline
    texts = _points(info, SIZE, metric).data
    points: list[FrontPoint] = list(info.front.points)
    values = [metric.sign * point.measured.accuracy for point in points]
    figure = go.Figure(
        [
            go.Scatter3d(
                x=[point.measured.size_bytes / 1e3 for point in points],
                y=[point.measured.latency_ms for point in points],
                z=values,
                customdata=texts,
                hovertemplate=HOVER,
                mode="markers",
                marker={"size": 6, "color": values, "colorscale": "Viridis"},
                name="points",
            ),
            go.Scatter3d(
                x=[base.size_bytes / 1e3],
                y=[base.latency_ms],
                z=[metric.sign * base.accuracy],
                mode="markers",
                marker={"size": 6, "color": BASE, "symbol": "diamond"},
                name="float model",
            ),
        ]
    )
    figure.update_layout(
        scene={
            "xaxis": {"title": "KB", "type": "log"},
            "yaxis": {"title": "ms"},
            "zaxis": {"title": metric.name},
        },
        legend={"orientation": "h"},
    )
    return layout(figure, 520)

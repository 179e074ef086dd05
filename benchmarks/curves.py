"""Compare and draw curves of hypervolume over time.

A curve holds (seconds, value) by ascending seconds. A value holds until the next one; before the
first one it is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import plotly.graph_objects as go

Curve = list[tuple[float, float]]


def least_lead(here: Curve, there: Curve) -> float:
    """Return the least difference of two curves over time; below 0 where the second is higher.

    Args:
        here: (seconds, hypervolume), each value until the next; 0 before the first.
        there: another such curve.
    """
    times = sorted({seconds for seconds, _ in (*here, *there)})
    return min((value_at(here, t) - value_at(there, t) for t in times), default=0.0)


def value_at(curve: Curve, seconds: float) -> float:
    """Return the value of a curve at a time."""
    return next((value for at, value in reversed(curve) if at <= seconds), 0.0)


def plot(curves: Mapping[str, Curve], path: Path) -> None:
    """Draw the curves as a page."""
    figure = go.Figure()
    for name, curve in curves.items():
        times, values = zip((0.0, 0.0), *curve, strict=True)
        figure.add_scatter(x=times, y=values, name=name, mode="lines+markers", line_shape="hv")
    figure.update_layout(xaxis_title="seconds", yaxis_title="hypervolume")
    figure.write_html(path, include_plotlyjs=True)

"""Draw the front: accuracy against size and latency, in two and three dimensions."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autocompress.report.figures import BASE, GREY, layout
from autocompress.report.info import RunInfo, recommended
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import score_words

HOVER = (
    "%{customdata[5]}<br>%{customdata[1]:.0f} KB, %{customdata[2]:.3f} ms<br>"
    "accuracy %{customdata[6]}<br>%{customdata[4]}<extra></extra>"
)
Row = tuple[int, float, float, float, str, str, str]
SHOWN_TRIALS = 2000


def front_2d(info: RunInfo) -> go.Figure:
    """Draw accuracy loss over size and over latency.

    Complete trials are grey; verified points are coloured by the third objective.

    Args:
        info: content of a run folder.
    """
    front, base = info.front, info.front.baseline
    picks = recommended(front)
    figure = make_subplots(
        1, 2, subplot_titles=("size", "latency"), shared_yaxes=True, horizontal_spacing=0.12
    )
    trials = info.trials.tail(SHOWN_TRIALS)
    data = [_hover_row(point, picks) for point in front.points]
    columns = trials[["number", "size_bytes", "latency_ms", "accuracy"]].itertuples(index=False)
    everything = [_row(int(n), size, ms, a, "searched") for n, size, ms, a in columns]
    baseline = [_row(None, base.size_bytes, base.latency_ms, base.accuracy, "")]
    for column, (axis, other, unit) in enumerate(((1, 2, "ms"), (2, 1, "KB")), 1):
        coloured = {
            "size": 12,
            "color": [row[other] for row in data],
            "colorscale": "Viridis",
            "symbol": ["star" if row[4] else "circle" for row in data],
            "line": {"width": 1, "color": "white"},
            "colorbar": {"title": unit, "x": 0.445 if column == 1 else 1.0, "thickness": 10},
        }
        for name, rows, marker in (
            ("trials (predicted)", everything, {"color": GREY, "size": 6}),
            ("verified front (star: recommended)", data, coloured),
            ("float baseline", baseline, {"color": BASE, "size": 12, "symbol": "diamond"}),
        ):
            figure.add_trace(
                go.Scatter(
                    x=[row[axis] for row in rows],
                    y=[base.accuracy - row[3] for row in rows],
                    customdata=rows,
                    hovertemplate=HOVER,
                    mode="markers",
                    marker=marker,
                    name=name,
                    showlegend=column == 1,
                ),
                1,
                column,
            )
    figure.update_xaxes(title="file size (KB, log)", type="log", row=1, col=1)
    figure.update_xaxes(title="latency (ms)", row=1, col=2)
    figure.update_yaxes(title="accuracy lost (validation)", row=1, col=1)
    figure.update_layout(legend={"orientation": "h", "y": -0.22})
    return layout(figure, 460)


def _row(trial: int | None, size: float, ms: float, accuracy: float, note: str) -> Row:
    """Return (trial, KB, ms, accuracy, note, name, accuracy in words) for HOVER.

    The float model is of no trial.
    """
    name = "float baseline" if trial is None else f"trial {trial}"
    number = -1 if trial is None else trial
    return number, size / 1e3, ms, accuracy, note, name, score_words(accuracy)


def _hover_row(point: FrontPoint, picks: Mapping[int, str]) -> Row:
    """Return the row of a point, with the picks that it stands for."""
    measured, pick = point.measured, picks.get(point.trial, "")
    return _row(point.trial, measured.size_bytes, measured.latency_ms, measured.accuracy, pick)


def front_3d(info: RunInfo) -> go.Figure:
    """Draw size, latency and accuracy of the verified points and the baseline.

    Args:
        info: content of a run folder.
    """
    base = info.front.baseline
    picks = recommended(info.front)
    data = [_hover_row(point, picks) for point in info.front.points]
    figure = go.Figure(
        [
            go.Scatter3d(
                x=[row[1] for row in data],
                y=[row[2] for row in data],
                z=[row[3] for row in data],
                customdata=data,
                hovertemplate=HOVER,
                mode="markers",
                marker={"size": 6, "color": [row[3] for row in data], "colorscale": "Viridis"},
                name="verified front",
            ),
            go.Scatter3d(
                x=[base.size_bytes / 1e3],
                y=[base.latency_ms],
                z=[base.accuracy],
                mode="markers",
                marker={"size": 6, "color": BASE, "symbol": "diamond"},
                name="float baseline",
            ),
        ]
    )
    figure.update_layout(
        scene={
            "xaxis": {"title": "KB", "type": "log"},
            "yaxis": {"title": "ms"},
            "zaxis": {"title": "accuracy"},
        },
        legend={"orientation": "h"},
    )
    return layout(figure, 520)

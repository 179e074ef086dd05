"""Draw the report's figures on latency: prediction errors, and the breakdown of time."""

from __future__ import annotations

import plotly.graph_objects as go

from autocompress.report.figures.style import ACCENT, BASE, GREY, layout
from autocompress.report.info import RunInfo
from autocompress.report.latency_info import PredictionInfo, TimeInfo, predictions, time_info


def prediction_scatter(info: RunInfo) -> go.Figure:
    """Draw predicted over measured latency, of held-out candidates and of the front.

    Args:
        info: content of a run folder.
    """
    data: PredictionInfo = predictions(info)
    figure = go.Figure()
    values = [*data.check[0], *data.check[1], *data.front[0], *data.front[1]]
    ends = [min(values, default=0) * 0.95, max(values, default=1) * 1.05]
    figure.add_trace(
        go.Scatter(
            x=ends,
            y=ends,
            mode="lines",
            line={"color": GREY, "dash": "dot"},
            showlegend=False,
            hoverinfo="skip",
        )
    )
    for name, (predicted, measured), colour in (
        ("random candidates", data.check, BASE),
        ("final front", data.front, ACCENT),
    ):
        figure.add_trace(
            go.Scatter(
                x=measured,
                y=predicted,
                mode="markers",
                marker={"color": colour, "size": 8},
                name=name,
                hovertemplate="measured %{x:.3f} ms<br>predicted %{y:.3f} ms<extra></extra>",
            )
        )
    figure.update_layout(legend={"orientation": "h", "y": -0.2})
    figure.update_xaxes(title="measured (ms)")
    figure.update_yaxes(title="predicted (ms)")
    return layout(figure, 400)


def prediction_words(info: RunInfo) -> str:
    """Return the mean errors of predicted latencies.

    Args:
        info: content of a run folder.
    """
    data, errors = predictions(info), []
    for name, mape in (("random candidates", data.check_mape), ("front", data.front_mape)):
        if mape is not None:
            errors.append(f"{name} {mape:.1%}")
    if not errors:
        return "No prediction was compared with a measurement."
    return f"Mean absolute relative error when they were predicted: {', '.join(errors)}."


def time_bars(info: RunInfo) -> go.Figure:
    """Draw the milliseconds of the float model by module, and by operator that no module owns.

    Args:
        info: content of a run folder.
    """
    data: TimeInfo = time_info(info)
    figure = go.Figure()
    for name, rows, colour in (
        ("modules (compressible)", data.modules, BASE),
        ("operators between them (not compressible)", data.operators, GREY),
    ):
        figure.add_trace(
            go.Bar(
                y=[row.name for row in rows],
                x=[row.milliseconds for row in rows],
                customdata=[(row.share, row.others) for row in rows],
                orientation="h",
                marker={"color": colour},
                name=name,
                hovertemplate="%{y}<br>%{x:.4f} ms, %{customdata[0]:.1%}%{customdata[1]}"
                "<extra></extra>",
            )
        )
    figure.update_xaxes(title="ms of the float model")
    figure.update_yaxes(autorange="reversed", tickfont={"size": 10}, automargin=True)
    figure.update_layout(legend={"orientation": "h", "y": 1.06})
    return layout(figure, 160 + 16 * (len(data.modules) + len(data.operators)))

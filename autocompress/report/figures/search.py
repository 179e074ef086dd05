"""Draw the report's figures on sensitivity, recovery and search progress.

Each figure draws the values that `report.info` has decided on.
"""

from __future__ import annotations

import json

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from autocompress.report.figures.style import ACCENT, layout
from autocompress.report.info import RunInfo, hypervolume_history, recovery
from autocompress.report.words import metric_words

MOST_MODULES = 40  # that sensitivities are drawn of
LEAST_LOST = 1e-4  # smaller accuracy losses are drawn here, since the axis is logarithmic


def sensitivity_bars(info: RunInfo) -> go.Figure:
    """Draw the divergence of the outputs when one module alone is compressed.

    Args:
        info: content of a run folder; of many modules the MOST_MODULES most sensitive are drawn.
    """
    figure = go.Figure()
    table = most_sensitive(info.sensitivity)
    for config in dict.fromkeys(table["config"]) if len(table) else ():
        rows = table[table["config"] == config]
        choices = json.loads(config).items()
        label = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in choices)
        figure.add_trace(
            go.Bar(
                x=rows["module"],
                y=rows["divergence"].clip(lower=1e-9),
                name=label,
                visible=True if config in _shown(table) else "legendonly",
                hovertemplate="%{x}<br>" + label + "<br>divergence %{y:.3g}<extra></extra>",
            )
        )
    figure.update_yaxes(
        type="log", title="divergence (log)", exponentformat="power", automargin=True
    )
    figure.update_xaxes(tickangle=60, tickfont={"size": 9}, automargin=True)
    figure.update_layout(barmode="group", legend={"title": "module alone under (click to add)"})
    return layout(figure, 520)


def most_sensitive(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the modules with the largest divergences, in their order.

    Args:
        table: rows of sensitivity.csv.
    """
    if not len(table) or table["module"].nunique() <= MOST_MODULES:
        return table
    largest = table.groupby("module")["divergence"].max().nlargest(MOST_MODULES)
    return table[table["module"].isin(largest.index)]


def _shown(table: pd.DataFrame) -> set[str]:
    """Return the configs with the largest mean divergence per axis, which are visible at first."""
    means: dict[str, float] = {}
    best: dict[tuple[str, ...], str] = {}
    for key, value in table.groupby("config")["divergence"].mean().items():
        config, mean = str(key), float(value)
        means[config] = mean
        axes = tuple(json.loads(config))
        if axes not in best or mean > means[best[axes]]:
            best[axes] = config
    return set(best.values())


def recovery_curves(info: RunInfo) -> go.Figure:
    """Draw accuracy loss over training steps: a line per trained trial, coloured by alpha.

    Args:
        info: content of a run folder.
    """
    data = recovery(info)
    figure = go.Figure()
    for trial, alpha, temperature, curve in zip(
        data.trials, data.alphas, data.temperatures, data.curves, strict=True
    ):
        label = f"trial {trial}<br>alpha {alpha:g}, temperature {temperature:g}"
        figure.add_trace(
            go.Scatter(
                x=[steps for steps, _ in curve],
                y=[max(lost, LEAST_LOST) for _, lost in curve],
                mode="lines+markers",
                line={"color": sample_colorscale("Viridis", [alpha])[0], "width": 1.5},
                marker={"size": 6},
                showlegend=False,
                customdata=[lost for _, lost in curve],
                hovertemplate=label + "<br>%{x} steps: %{customdata:.4f} lost<extra></extra>",
            )
        )
    # An invisible marker carries the colour scale, since lines have none.
    scale = {
        "colorscale": "Viridis",
        "cmin": 0,
        "cmax": 1,
        "color": [0],
        "showscale": True,
        "colorbar": {"title": "alpha", "thickness": 10},
    }
    figure.add_trace(
        go.Scatter(
            x=[None], y=[None], mode="markers", marker=scale, showlegend=False, hoverinfo="skip"
        )
    )
    figure.update_xaxes(title="steps")
    figure.update_yaxes(type="log", title=f"{metric_words(info.run).axis} (log)")
    return layout(figure, 420)


def hypervolume_curve(info: RunInfo) -> go.Figure:
    """Draw the hypervolume of the predicted front after each complete trial.

    Args:
        info: content of a run folder.
    """
    history = hypervolume_history(info)
    figure = go.Figure(
        go.Scatter(
            x=info.trials["number"],
            y=history,
            mode="lines+markers",
            line={"shape": "hv", "color": ACCENT},
            name="hypervolume",
        )
    )
    figure.update_xaxes(title="trial")
    figure.update_yaxes(title="hypervolume (share)", rangemode="tozero")
    return layout(figure, 440)

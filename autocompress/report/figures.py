"""Draw the report's figures on allocation, sensitivity, recovery and search progress.

Each figure draws the values that `report.info` has decided on.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from autocompress.report.info import (
    AllocationInfo,
    RunInfo,
    allocation,
    hypervolume_history,
    recovery,
)

GREY, ACCENT, BASE = "#b8bec6", "#d6336c", "#1864ab"
LEAST_LOST = 1e-4  # smaller accuracy losses are drawn here, since the axis is logarithmic


def layout(figure: go.Figure, height: int) -> go.Figure:
    """Set the size, margins and fonts that all figures share.

    Args:
        figure: changed in place.
        height: in pixels.
    """
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        font={"family": "system-ui, sans-serif"},
    )
    return figure


def allocation_maps(info: RunInfo) -> go.Figure:
    """Draw heat maps of weight bits, pruning ratio, rank ratio and, if used, sparsity.

    Rows are modules, columns are points.

    Args:
        info: content of a run folder.
    """
    data: AllocationInfo = allocation(info)
    maps = [
        ("weight bits", data.weight_bits, "Viridis", 2, 16),
        ("pruning ratio", data.pruning_ratio, "Reds", 0, 0.8),
        ("rank ratio", data.rank_ratio, "Blues_r", 0, 1),
    ]
    if not np.isnan(data.sparsity).all():
        maps.append(("sparsity", data.sparsity, "Purples", 0, 1))
    figure = make_subplots(
        1,
        len(maps),
        subplot_titles=[title for title, *_ in maps],
        shared_yaxes=True,
        horizontal_spacing=0.06,
    )
    for column, (_, values, scale, low, high) in enumerate(maps, 1):
        text = np.where(np.isnan(values), "", np.char.mod("%g", np.nan_to_num(values)))
        figure.add_trace(
            go.Heatmap(
                z=values,
                x=data.labels,
                y=data.modules,
                text=text,
                texttemplate="%{text}",
                textfont={"size": 9},
                colorscale=scale,
                zmin=low,
                zmax=high,
                showscale=False,
                hovertemplate="%{y}<br>trial %{x}<br>%{z}<extra></extra>",
                xgap=1,
                ygap=1,
            ),
            1,
            column,
        )
    figure.update_yaxes(autorange="reversed", tickfont={"size": 10}, automargin=True)
    figure.update_xaxes(tickangle=60, tickfont={"size": 9}, type="category", title="trial (size)")
    return layout(figure, max(320, 130 + 18 * len(data.modules)))


def sensitivity_bars(info: RunInfo) -> go.Figure:
    """Draw the divergence of the outputs when one module alone is compressed.

    Args:
        info: content of a run folder.
    """
    figure = go.Figure()
    table = info.sensitivity
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
    figure.update_yaxes(type="log", title="divergence (log)", exponentformat="power")
    figure.update_xaxes(tickangle=60, tickfont={"size": 9}, automargin=True)
    figure.update_layout(barmode="group", legend={"title": "module alone under (click to add)"})
    return layout(figure, 520)


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
    figure.update_yaxes(type="log", title="accuracy lost (log)")
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

"""Give all figures the same size, margins and colours."""

from __future__ import annotations

import plotly.graph_objects as go

# Readable on white and on black.
GREY, ACCENT, BASE = "#98a1ab", "#d6457f", "#3f83cc"


def layout(figure: go.Figure, height: int) -> go.Figure:
    """Set the size, margins and fonts that all figures share.

    Args:
        figure: changed in place.
        height: in pixels.
    """
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 64, "r": 16, "t": 24, "b": 48},
        font={"family": "system-ui, sans-serif"},
    )
    return figure

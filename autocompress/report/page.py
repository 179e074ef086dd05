"""Write report.html, one self-contained page that works offline."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from autocompress.report.figures import (
    allocation_maps,
    hypervolume_curve,
    recovery_curves,
    sensitivity_bars,
)
from autocompress.report.front_figures import front_2d, front_3d
from autocompress.report.info import RunInfo, before_after, read_run
from autocompress.report.latency_figures import prediction_scatter, time_bars
from autocompress.report.latency_info import settings_words, time_info
from autocompress.results.files import REPORT_FILE, write_atomic
from autocompress.results.front import ParetoFront
from autocompress.results.measurement import LATENCY_WORDS, score_words

# Nothing leaves the reader's machine: plotly.js 4 would offer to upload the chart.
CONFIG = {"showSendToCloud": False, "plotlyServerURL": "", "displaylogo": False, "responsive": True}
STYLE = """
body{font-family:system-ui,sans-serif;margin:0 auto;max-width:1240px;padding:24px;color:#212529;
background:#fff}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 4px}
p{color:#495057;margin:4px 0 8px;max-width:900px}
table{border-collapse:collapse;font-size:13px;width:100%}
th,td{padding:6px 10px;text-align:right;border-bottom:1px solid #e9ecef}
th{background:#f8f9fa;font-weight:600}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
tr.baseline td{color:#868e96}tr.pick td{background:#fff9db}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:16px}.wide{overflow-x:auto}
@media(max-width:900px){.pair{grid-template-columns:1fr}}
"""


def write_report(folder: Path) -> Path:
    """Draw the report of a run folder.

    Args:
        folder: run folder.

    Returns:
        Path of the page.

    Raises:
        RunFolderError: if a file is missing or damaged, or the page cannot be written.
    """
    info = read_run(folder)
    path = folder / REPORT_FILE
    write_atomic(path, page(info))
    return path


def page(info: RunInfo) -> str:
    """Return the page as HTML.

    Args:
        info: content of a run folder.
    """
    base, run = info.front.baseline, info.run
    marked = [False, *(point.marked for point in info.front)]
    data = json.dumps({"run": run, "front": info.front.to_json()}).replace("</", "<\\/")
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>",
        f"<title>autocompress: {html.escape(str(run['task']))}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body>",
        f"<h1>{html.escape(str(run['task']))} on {html.escape(str(run['target']))}</h1>",
        f"<p>Float baseline: {base.size_bytes / 1e6:.2f} MB, {base.latency_ms:.3f} ms, accuracy "
        f"{score_words(base.accuracy)} on validation"
        + ("" if base.test_accuracy is None else f" and {score_words(base.test_accuracy)} on test")
        + f". {len(info.front)} verified points. {_source_words(info.front)}</p>",
        f"<div class='wide'>{_table(before_after(info.front), marked)}</div>",
        *(f"<p>{html.escape(words)}</p>" for words in info.front.left_out()),
    ]
    for title, text, figures in _sections(info):
        parts.append(f"<h2>{title}</h2>" + (f"<p>{text}</p>" if text else ""))
        drawn = "".join(f"<div>{_div(figure)}</div>" for figure in figures)
        parts.append(f"<div class='pair'>{drawn}</div>" if len(figures) > 1 else drawn)
    versions = [f"{name} {version}" for name, version in run.get("versions", {}).items()]
    parts.append(f"<p>seed {run.get('seed')}, {html.escape(', '.join(versions))}</p>")
    parts.append(
        f"<script type='application/json' id='autocompress-data'>{data}</script></body></html>"
    )
    return "\n".join(parts)


def _source_words(front: ParetoFront) -> str:
    """Return where the latencies of a front come from; a resumed run may have two sources."""
    sources = [front.baseline, *(point.measured for point in front.points)]
    return " ".join(
        LATENCY_WORDS[name] for name in dict.fromkeys(m.latency_source for m in sources)
    )


def _made_words(front: ParetoFront) -> str:
    """Return how the numbers of the points came about."""
    if all(point.measured.latency_source == "measured" for point in front.points):
        return "that were run and measured"
    return "whose size and accuracy were measured; the text above says where latencies come from"


def _sections(info: RunInfo) -> list[tuple[str, str, list[go.Figure]]]:
    """Return (title, text, figures) of the sections that the run has data for."""
    run = info.run
    sections = [
        (
            "The front",
            f"Coloured points are ONNX files {_made_words(info.front)}. Grey points are trials, "
            "at the values that the search predicted.",
            [front_2d(info)],
        ),
        ("The front in three dimensions", "", [front_3d(info)]),
        (
            "Compression per module",
            "One column per point of the front; empty cells are untouched. A pruning ratio is "
            "shown at the root of its channel group.",
            [allocation_maps(info)],
        ),
        (
            "Sensitivity",
            "Divergence of the outputs when one module alone is compressed, on calibration "
            "samples.",
            [sensitivity_bars(info)],
        ),
    ]
    if run.get("recovery"):
        text = (
            "Each line is a trained trial: its accuracy loss after each rung of training, and "
            "after the final training of the front."
        )
        sections.append(("Recovery", text, [recovery_curves(info)]))
    if run.get("time"):
        share = time_info(info).modules_share
        text = (
            f"Modules, which can be compressed, take {share:.0%} of the float model's time. "
            f"Operators between them take the rest. {html.escape(settings_words(info))}"
        )
        sections.append(("Where the time goes", text, [time_bars(info)]))
    figures = [prediction_scatter(info), hypervolume_curve(info)]
    title = "Latency predictions and search progress"
    return [*sections, (title, html.escape(_refit_words(run)), figures)]


def _refit_words(run: Mapping[str, Any]) -> str:
    """Return a text on the latency model: its quality, a busy machine, a second fit."""
    words = [f"Latency model: {run['latency_note']}."] if run.get("latency_note") else []
    check = run.get("front_check") or {}
    if check.get("warning"):
        words.append(f"While the front was timed, {check['warning']}.")
    refit = run.get("refit") or {}
    before = refit.get("before")
    if before is not None:
        words.append(
            f"The mean prediction error on the front was {before:.1%}, so the "
            f"model was fitted again to the front's measurements (error {refit['mape']:.1%} "
            "on the same points)."
        )
    return " ".join(words)


def _div(figure: go.Figure) -> str:
    return str(plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config=CONFIG))


def _table(table: pd.DataFrame, marked: Sequence[bool]) -> str:
    """Return a table in HTML.

    Args:
        table: of the float baseline and each point.
        marked: rows whose difference between deployed and simulated accuracy is marked.
    """
    formats = {
        "size (KB)": "{:.1f}",
        "in memory (KB)": "{:.1f}",
        "smaller": "{:.2f}x",
        "latency (ms)": "{:.3f}",
        "faster": "{:.2f}x",
        "deployed - simulated": "{:+.4f}",
    }
    rows = [
        "<tr>" + "".join(f"<th>{html.escape(column)}</th>" for column in table.columns) + "</tr>"
    ]
    for i, record in enumerate(table.to_dict("records")):
        cells = []
        for column, value in record.items():
            missing = value is None or (isinstance(value, float) and value != value)
            is_marked = column == "deployed - simulated" and marked[i]
            words = ""
            if not missing and str(column).startswith("accuracy ("):
                words = score_words(value)
            elif not missing:
                words = formats.get(str(column), "{}").format(value)
            cells.append(words + (" (!)" if is_marked else ""))
        kind = "baseline" if i == 0 else "pick" if record["recommended as"] else ""
        rows.append(
            f"<tr class='{kind}'>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            + "</tr>"
        )
    return f"<table>{''.join(rows)}</table>"

"""report.html: one self-contained page that works offline."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from autocompress.measure.robustness import CORRUPTIONS
from autocompress.report.figures import (
    allocation_maps,
    front_2d,
    front_3d,
    hypervolume_curve,
    recovery_curves,
    sensitivity_bars,
)
from autocompress.report.info import RunInfo, before_after, read_run, settings_words, time_info
from autocompress.report.latency_figures import prediction_scatter, time_bars
from autocompress.results.files import REPORT_FILE, write_atomic
from autocompress.results.front_point import MARKED_GAP
from autocompress.results.measurement import LATENCY_WORDS

# Nothing leaves the reader's machine: plotly.js 4 would offer to upload the chart.
CONFIG = {"showSendToCloud": False, "plotlyServerURL": "", "displaylogo": False, "responsive": True}
STYLE = """
body{font-family:system-ui,sans-serif;margin:0 auto;max-width:1240px;padding:24px;color:#212529;background:#fff}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 4px}p{color:#495057;margin:4px 0 8px;max-width:900px}
table{border-collapse:collapse;font-size:13px;width:100%}th,td{padding:6px 10px;text-align:right;border-bottom:1px solid #e9ecef}
th{background:#f8f9fa;font-weight:600}th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
tr.baseline td{color:#868e96}tr.pick td{background:#fff9db}.pair{display:grid;grid-template-columns:1fr 1fr;gap:16px}.wide{overflow-x:auto}
@media(max-width:900px){.pair{grid-template-columns:1fr}}
"""


def write_report(folder: Path) -> Path:
    """Draw the run folder's report; returns its path."""
    info = read_run(folder)
    path = folder / REPORT_FILE
    write_atomic(path, page(info))
    return path


def page(info: RunInfo) -> str:
    """The whole page as text."""
    base, run = info.front.baseline, info.run
    sections = [
        (
            "The front",
            "Each coloured point is an ONNX file that was run; grey points are trials as the search predicted them.",
            [front_2d(info)],
        ),
        ("In three dimensions", "", [front_3d(info)]),
        (
            "What was done where",
            "Per module and point; empty cells are left untouched. A pruning ratio stands on the root of its channel group.",
            [allocation_maps(info)],
        ),
        (
            "Sensitivity",
            "How far the outputs move when one module alone is compressed one way, on calibration samples.",
            [sensitivity_bars(info)],
        ),
        (
            "Recovery",
            "Each line is a trial that was trained: where it stood after each rung, and after the long training of the front.",
            [recovery_curves(info)],
        ),
        (
            "Where the time goes",
            f"{time_info(info).modules_share:.0%} of the float model's time is in modules, which can be compressed, the rest in operators "
            f"between them. {html.escape(settings_words(info))}",
            [time_bars(info)],
        ),
        (
            "Is the latency model right? Did the search still improve?",
            html.escape(_refit_words(run)),
            [prediction_scatter(info), hypervolume_curve(info)],
        ),
    ]
    data = json.dumps({"run": run, "front": info.front.to_json()}).replace("</", "<\\/")
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>autocompress: {html.escape(str(run['task']))}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>",
        f"<h1>{html.escape(str(run['task']))} on {html.escape(str(run['target']))}</h1>",
        f"<p>Float baseline: {base.size_bytes / 1e6:.2f} MB, {base.latency_ms:.3f} ms, accuracy {base.accuracy:.4f} on validation"
        + (f" and {base.test_accuracy:.4f} on test" if base.test_accuracy is not None else "")
        + f". {len(info.front)} verified points. {LATENCY_WORDS[base.latency_source]}</p>",
        f"<div class='wide'>{_table(before_after(info.front))}</div>",
    ]
    without = {
        title
        for title, key in (("Recovery", "recovery"), ("Where the time goes", "time"))
        if not run.get(key)
    }
    sections = [section for section in sections if section[0] not in without]
    for title, text, figures in sections:
        parts.append(f"<h2>{title}</h2>" + (f"<p>{text}</p>" if text else ""))
        drawn = "".join(f"<div>{_div(figure)}</div>" for figure in figures)
        parts.append(f"<div class='pair'>{drawn}</div>" if len(figures) > 1 else drawn)
    versions = ", ".join(
        f"{html.escape(k)} {html.escape(str(v))}" for k, v in run.get("versions", {}).items()
    )
    parts.append(f"<p>seed {run.get('seed')}, {versions}</p>")
    parts.append(
        f"<script type='application/json' id='autocompress-data'>{data}</script></body></html>"
    )
    return "\n".join(parts)


def _refit_words(run: Mapping[str, Any]) -> str:
    """What the search noticed while it measured."""
    words = [f"Latency model: {run['latency_note']}."] if run.get("latency_note") else []
    if (run.get("front_check") or {}).get("warning"):
        words.append(f"While the front was timed, {run['front_check']['warning']}.")
    if run.get("refit"):
        words.append(
            f"The front was predicted {run['front_check']['mape']:.1%} wrong, so the model was fitted again to what was measured there "
            f"({run['refit']['mape']:.1%} on the same points)."
        )
    return " ".join(words)


def _div(figure: go.Figure) -> str:
    return str(plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config=CONFIG))


def _table(table: pd.DataFrame) -> str:
    formats = {
        "size (KB)": "{:.1f}",
        "in memory (KB)": "{:.1f}",
        "smaller": "{:.2f}x",
        "latency (ms)": "{:.3f}",
        "faster": "{:.2f}x",
        "accuracy (validation)": "{:.4f}",
        "accuracy (test)": "{:.4f}",
        "deployed - simulated": "{:+.4f}",
        **{f"accuracy ({name.replace('_', ' ')})": "{:.4f}" for name in CORRUPTIONS},
    }
    rows = [
        "<tr>" + "".join(f"<th>{html.escape(column)}</th>" for column in table.columns) + "</tr>"
    ]
    for i, record in enumerate(table.to_dict("records")):
        cells = []
        for column, value in record.items():
            missing = value is None or (isinstance(value, float) and value != value)
            marked = column == "deployed - simulated" and not missing and abs(value) > MARKED_GAP
            cells.append(
                ""
                if missing
                else formats.get(str(column), "{}").format(value) + (" (!)" if marked else "")
            )
        kind = "baseline" if i == 0 else "pick" if record["recommended as"] else ""
        rows.append(
            f"<tr class='{kind}'>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            + "</tr>"
        )
    return f"<table>{''.join(rows)}</table>"

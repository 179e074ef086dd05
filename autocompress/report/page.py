"""Write report.html, one self-contained page that works offline, and front.csv beside it."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from autocompress.report.figures.front import LATENCY, SIZE, front_3d, front_figure
from autocompress.report.figures.latency import prediction_scatter, time_bars
from autocompress.report.figures.search import hypervolume_curve, recovery_curves, sensitivity_bars
from autocompress.report.front_csv import front_csv
from autocompress.report.info import RunInfo, read_run
from autocompress.report.sections import SECTIONS, baseline_words, sections
from autocompress.report.view import view_of
from autocompress.results.files import FRONT_TABLE_FILE, REPORT_FILE, write_atomic

SCRIPTS = ("page.js", "figures.js", "decision.js", "modules.js", "start.js")
# Nothing leaves the reader's machine, even if a script tried.
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
POLICY += "img-src data: blob:; worker-src blob:"
# The page has its colours before anything is drawn.
THEME = "document.documentElement.dataset.theme = "
THEME += "matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';"


def write_report(folder: Path) -> Path:
    """Draw the report of a run folder, and write the front as CSV.

    Args:
        folder: run folder.

    Returns:
        Path of the page.

    Raises:
        RunFolderError: if a file is missing or damaged, or the page cannot be written.
    """
    info = read_run(folder)
    path = folder / REPORT_FILE
    write_atomic(folder / FRONT_TABLE_FILE, front_csv(info))
    write_atomic(path, page(info))
    return path


def page(info: RunInfo) -> str:
    """Return the page as HTML.

    Args:
        info: content of a run folder.
    """
    run = info.run
    title = html.escape(f"{run['task']} on {run['target']}")
    links = "".join(f"<a href='#{name}'>{label}</a>" for name, label in SECTIONS.items())
    figures = _figures(info)
    versions = [f"{name} {version}" for name, version in run.get("versions", {}).items()]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        "<meta name='color-scheme' content='light dark'><link rel='icon' href='data:,'>",
        f"<title>autocompress: {title}</title><style>{_asset('style.css')}</style>"
        f"<script>{THEME}</script></head><body>"
        "<noscript><p>This page needs JavaScript, which is in it.</p></noscript>",
        f"<header><h1>{title}</h1><p>{baseline_words(info)}</p></header>",
        f"<nav aria-label='sections'>{links}<button id='theme'></button></nav><main>",
        *sections(info, figures),
        "</main><footer>"
        f"<p>seed {run.get('seed')}, {html.escape(', '.join(versions))}</p></footer>",
        f"<script>{get_plotlyjs()}</script>",
        _embedded("data", {"run": run, "front": info.front.to_json()}),
        _embedded("view", view_of(info)),
        _embedded("figures", figures),
        *(f"<script>{_asset(name)}</script>" for name in SCRIPTS),
        "</body></html>",
    ]
    return "\n".join(parts)


def _asset(name: str) -> str:
    return (files("autocompress.report") / "assets" / name).read_text(encoding="utf-8")


def _embedded(name: str, data: Any) -> str:
    """Return data as a script that nothing in it can end."""
    text = json.dumps(data).replace("</", "<\\/").replace("<!--", "<\\u0021--")
    return f"<script type='application/json' id='autocompress-{name}'>{text}</script>"


def _figures(info: RunInfo) -> dict[str, Any]:
    """Return the figures that the run has data for, by name."""
    run = info.run
    figures = {
        "front-size": front_figure(info, SIZE),
        "front-latency": front_figure(info, LATENCY),
        "front-3d": front_3d(info),
        "predictions": prediction_scatter(info),
        "hypervolume": hypervolume_curve(info),
        "sensitivity": sensitivity_bars(info),
    }
    if run.get("recovery"):
        figures["recovery"] = recovery_curves(info)
    if run.get("time"):
        figures["time"] = time_bars(info)
    return {name: json.loads(figure.to_json()) for name, figure in figures.items()}

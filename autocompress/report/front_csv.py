"""Write front.csv: one row for the float model and each point, in plain numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.report.decision import recommended, use_limits
from autocompress.report.info import RunInfo
from autocompress.report.words import own_names
from autocompress.results.files import model_path
from autocompress.results.measurement import Measurement

FIGURES = ("size_bytes", "latency_ms", "accuracy")
FIRST = (
    "point",
    "recommended_as",
    "file",
    *FIGURES,
    "test_accuracy",
    "memory_bytes",
    "activation_bytes",
)
LAST = (
    *("latency_source", *(f"predicted_{figure}" for figure in FIGURES), "deployed_gap"),
    "fragile_under",
)


def front_csv(info: RunInfo) -> str:
    """Return the front as CSV; front.json beside it holds the candidates too.

    Args:
        info: content of a run folder.
    """
    front = info.front
    picks = recommended(front, use_limits(info.run, front))
    everyone = [front.baseline, *(point.measured for point in front)]
    found = dict.fromkeys(name for measured in everyone for name in measured.metrics)
    metrics = own_names(list(found), (*FIRST, *LAST))
    rows = [{**_numbers(front.baseline, metrics), "point": "float model"}]
    for point in front:
        measured = point.measured
        row = {**_numbers(measured, metrics), "point": f"trial {point.trial}"}
        for figure in FIGURES:
            row[f"predicted_{figure}"] = getattr(point.predicted, figure)
        row["recommended_as"] = picks.get(point.trial, "")
        row["fragile_under"] = ", ".join(point.fragile)
        row["deployed_gap"] = point.deployed_gap
        place = Path(info.folder) / point.artifact
        row["file"] = f"{point.artifact}/{model_path(place).name}"
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*FIRST, *metrics.values(), *LAST], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _numbers(measured: Measurement, metrics: Mapping[str, str]) -> dict[str, Any]:
    """Return the measured figures by column; `metrics` has the column of each metric."""
    figures = (*FIGURES, "test_accuracy", "memory_bytes", "activation_bytes", "latency_source")
    row = {figure: getattr(measured, figure) for figure in figures}
    return row | {metrics[name]: value for name, value in measured.metrics.items()}

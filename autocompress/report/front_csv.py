"""Write front.csv: one row for the float model and each point, in plain numbers."""

from __future__ import annotations

import csv
import io

from autocompress.report.decision import recommended, use_limits
from autocompress.report.info import RunInfo
from autocompress.results.files import MODEL_FILE

FIGURES = ("size_bytes", "latency_ms", "accuracy")


def front_csv(info: RunInfo) -> str:
    """Return the front as CSV; front.json beside it holds the candidates too.

    Args:
        info: content of a run folder.
    """
    front = info.front
    picks = recommended(front, use_limits(info.run, front))
    everyone = [front.baseline, *(point.measured for point in front)]
    metrics = list(dict.fromkeys(name for measured in everyone for name in measured.metrics))
    rows = [{**front.baseline.to_json(), **front.baseline.metrics, "point": "float model"}]
    for point in front:
        measured = point.measured
        row = {**measured.to_json(), **measured.metrics, "point": f"trial {point.trial}"}
        for figure in FIGURES:
            row[f"predicted_{figure}"] = getattr(point.predicted, figure)
        row["recommended_as"] = picks.get(point.trial, "")
        row["fragile_under"] = ", ".join(point.fragile)
        row["deployed_gap"] = point.deployed_gap
        row["file"] = f"{point.artifact}/{MODEL_FILE}"
        rows.append(row)
    columns = [
        *("point", "recommended_as", "file", *FIGURES, "test_accuracy", "memory_bytes"),
        *metrics,
        *("latency_source", *(f"predicted_{figure}" for figure in FIGURES), "deployed_gap"),
        "fragile_under",
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

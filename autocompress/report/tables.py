"""Write the tables of the report as HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autocompress.measure.robustness import FRAGILE, PARTS
from autocompress.report.decision import use_limits
from autocompress.report.info import RunInfo, before_after
from autocompress.report.latency_info import trust_rows
from autocompress.report.words import MetricWords, bytes_words, metric_words, ms_words
from autocompress.results.measurement import Measurement, score_words

FORMATS: Mapping[str, Callable[[float], str]] = {
    "smaller": "{:.2f}x".format,
    "faster": "{:.2f}x".format,
    "size (KB)": lambda value: bytes_words(1e3 * value),
    "in memory (KB)": lambda value: bytes_words(1e3 * value),
    "activations (KB)": lambda value: bytes_words(1e3 * value),
    "latency (ms)": ms_words,
}
HEADERS = {
    "size (KB)": "size",
    "in memory (KB)": "in memory",
    "activations (KB)": "activations",
    "latency (ms)": "latency",
}


def html_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    classes: Sequence[str] = (),
    trials: Sequence[int | None] = (),
) -> str:
    """Return a table that scrolls inside itself.

    Args:
        headers: of the columns.
        rows: cells as plain text.
        classes: of the rows; none if empty.
        trials: number of the trial of each row, which can be chosen then.
    """
    head = "".join(f"<th scope='col'>{html.escape(header)}</th>" for header in headers)
    lines = [f"<thead><tr>{head}</tr></thead><tbody>"]
    for i, cells in enumerate(rows):
        kind = f" class='{classes[i]}'" if classes and classes[i] else ""
        trial = f" data-trial='{trials[i]}'" if trials and trials[i] is not None else ""
        words = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells[1:])
        first = f"<th scope='row'>{html.escape(cells[0])}</th>"
        lines.append(f"<tr{kind}{trial}>{first}{words}</tr>")
    return f"<div class='wide'><table>{''.join(lines)}</tbody></table></div>"


def points_table(info: RunInfo) -> str:
    """Return the table of the float model and each point; robustness has its own one.

    Args:
        info: content of a run folder.
    """
    front, metric = info.front, metric_words(info.run)
    frame = before_after(front, use_limits(info.run, front))
    disturbed = [f"accuracy ({name.replace('_', ' ')})" for name in PARTS]
    frame = frame.drop(columns=["fragile under", *disturbed], errors="ignore")
    headers = [metric.label(HEADERS.get(str(name), str(name))) for name in frame.columns]
    rows = []
    for record in frame.to_dict("records"):
        rows.append([_cell(str(column), value, metric) for column, value in record.items()])
    for cells, point in zip(rows[1:], front, strict=True):
        if point.marked:
            cells[headers.index("deployed - simulated")] += " (!)"
    picks = frame["recommended as"][1:]
    classes = ["baseline", *("pick" if pick else "" for pick in picks)]
    return html_table(headers, rows, classes, [None, *(point.trial for point in front)])


def _cell(column: str, value: Any, metric: MetricWords) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, str):
        return value
    if column in FORMATS:
        return FORMATS[column](value)
    if column == "deployed - simulated":
        return metric.gap(value)
    return score_words(metric.sign_of(column) * value)


def robustness_table(info: RunInfo) -> str:
    """Return the metric on disturbed inputs of each model; "" if nothing was run on them.

    Args:
        info: content of a run folder.
    """
    front, metric = info.front, metric_words(info.run)
    models = [front.baseline, *(point.measured for point in front)]
    names = [name for name in PARTS if any(f"accuracy_{name}" in m.metrics for m in models)]
    if not names:
        return ""
    headers = ["model", "clean", *(name.replace("_", " ") for name in names), "fragile under"]
    rows, classes = [], []
    for i, model in enumerate(models):
        point = front.points[i - 1] if i else None
        cells = ["float baseline" if point is None else f"trial {point.trial}"]
        cells += [metric.value(model.accuracy), *(_score(model, name, metric) for name in names)]
        fragile = () if point is None else point.fragile
        rows.append([*cells, ", ".join(name.replace("_", " ") for name in fragile)])
        classes.append("baseline" if point is None else "warn" if fragile else "")
    return html_table(headers, rows, classes, [None, *(point.trial for point in front)])


def _score(model: Measurement, name: str, metric: MetricWords) -> str:
    value = model.metrics.get(f"accuracy_{name}")
    return "not run" if value is None else metric.value(value)


def robustness_words() -> str:
    """Return how points are judged on disturbed inputs."""
    return (
        "The metric on up to 512 disturbed validation inputs. A point is fragile where it loses "
        f"more than {FRAGILE:.0%} of the float model's accuracy beyond its own loss on the same "
        "inputs as they are."
    )


def trust_table(info: RunInfo) -> str:
    """Return the differences between predicted and measured numbers.

    Args:
        info: content of a run folder.
    """
    headers = ["predicted number", "files compared", "mean difference", "largest difference"]
    return html_table(headers, [list(row) for row in trust_rows(info)])


def towers_table(info: RunInfo) -> str:
    """Return what each tower of the recommended points loses alone; "" if it is not known.

    Args:
        info: content of a run folder.
    """
    front, metric = info.front, metric_words(info.run)
    points = [point for point in front if point.tower_losses]
    towers = list(dict.fromkeys(tower for point in points for tower in point.tower_losses))
    if not towers:
        return ""
    headers = ["point", *towers, "all of them"]
    rows = []
    for point in points:
        lost = front.baseline.accuracy - point.measured.accuracy
        own = [point.tower_losses.get(tower) for tower in towers]
        cells = ["" if loss is None else metric.lost(loss) for loss in own]
        rows.append([f"trial {point.trial}", *cells, metric.lost(lost)])
    return html_table(headers, rows, (), [point.trial for point in points])


def steps_table(info: RunInfo) -> str:
    """Return the seconds of each step before the trials; "" if they are not known.

    Args:
        info: content of a run folder.
    """
    seconds = info.run.get("setup_seconds") or {}
    rows = [[name, f"{value:.1f} s"] for name, value in seconds.items() if value >= 0.05]
    return html_table(["step before the trials", "time"], rows) if rows else ""

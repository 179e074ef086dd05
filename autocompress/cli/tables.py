"""Print tables: the front before and after compression, and the modules that can be compressed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from autocompress.model.modules import ModuleMap
from autocompress.report.decision import use_limits
from autocompress.report.info import before_after
from autocompress.results.files import REPORT_FILE, RUN_FILE, read_json
from autocompress.results.front import ParetoFront, SearchResult
from autocompress.results.front_point import MARKED_GAP
from autocompress.results.measurement import score_words
from autocompress.search.problem.ranks import RankVerdict

console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)

SHORT = {
    "recommended as": "pick",
    "size (KB)": "KB",
    "in memory (KB)": "KB in memory",
    "activations (KB)": "KB of activations",
    "latency (ms)": "ms",
    "accuracy (validation)": "validation",
    "accuracy (test)": "test",
    "deployed - simulated": "gap",
    "accuracy (gaussian noise)": "noise",
    "accuracy (contrast)": "contrast",
    "accuracy (blur)": "blur",
    "accuracy (token dropout)": "dropped",
}
STYLES = {
    "smaller": "{:.2f}x",
    "faster": "{:.2f}x",
    "size (KB)": "{:.1f}",
    "in memory (KB)": "{:.1f}",
    "activations (KB)": "{:.1f}",
    "latency (ms)": "{:.3f}",
    "deployed - simulated": "{:.4f}",
}
# Of the printed front, in a terminal: columns that it always has, and those that go after metrics.
KEPT = (
    *("point", "recommended as", "size (KB)", "latency (ms)"),
    *("accuracy (validation)", "accuracy (test)"),
)
LEFT_OUT_LAST = ("in memory (KB)", "activations (KB)", "deployed - simulated", "faster", "smaller")


def notes(result: SearchResult) -> list[str]:
    """Return lines to print below the table of a front.

    They name unmet limits, and points with another accuracy than simulated.

    Args:
        result: of a search.
    """
    lines = [result.shortfall] if result.shortfall else []
    marked = [str(point.trial) for point in result.front if point.marked]
    if marked:
        is_share = result.front.baseline.accuracy_scale == 1
        gap = f"{MARKED_GAP:g}" if is_share else f"{MARKED_GAP:.1%} of the point's own"
        lines.append(
            f"deployed accuracy differs from the simulated one by more than {gap} at trial "
            f"{', '.join(marked)}"
        )
    for point in result.front:
        if point.fragile:
            lines.append(
                f"trial {point.trial} is fragile under {', '.join(point.fragile)}: it loses more "
                f"accuracy there than on clean inputs"
            )
    return lines + latency_notes(result.folder)


def latency_notes(folder: Path) -> list[str]:
    """Return lines on the quality of a run's latency model; none if it is good.

    Args:
        folder: run folder.
    """
    path = folder / RUN_FILE
    words = read_json(path).get("latency_note") if path.is_file() else None
    return [f"latency model: {words}"] if words else []


def print_lines(lines: Sequence[str]) -> None:
    """Print plain lines.

    Args:
        lines: without markup.
    """
    for line in lines:
        console.print(line, highlight=False)


def known_limits(folder: Path, front: ParetoFront) -> Mapping[str, Any]:
    """Return the limits of the points that a run recommends.

    Args:
        folder: run folder.
        front: its verified points.
    """
    path = folder / RUN_FILE
    return use_limits(read_json(path) if path.is_file() else {}, front)


def print_front(front: ParetoFront, limits: Mapping[str, Any] | None = None) -> None:
    """Print the points of a front below the float baseline, and what a terminal has no room for.

    Args:
        front: verified points.
        limits: of the points to recommend, from `known_limits`; None limits accuracy alone.
    """
    cells = _front_cells(front, limits)
    others = [name for name in reversed(cells) if name not in (*KEPT, *LEFT_OUT_LAST)]
    left_out: list[str] = []
    table, least = _front_table(cells)
    for column in (*others, *LEFT_OUT_LAST):
        if not console.is_terminal or least <= console.width:
            break
        if cells.pop(column, None) is None:
            continue
        left_out.append(SHORT.get(column, column))
        table, least = _front_table(cells)
    console.print(table)
    if left_out:
        print_lines([f"no room for: {', '.join(left_out)}; {REPORT_FILE} shows all"])


def _front_cells(front: ParetoFront, limits: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Return the cells of the printed columns."""
    frame = before_after(front, limits)
    # What is left out is said by `notes`, or stands in the report: a terminal has no room for it.
    frame = frame.drop(columns=["fragile under", "accuracy (undisturbed)"], errors="ignore")
    cells = {}
    for column, values in frame.items():
        # The phase that decides is a metric, too.
        if column == "latency (ms)" or not values.equals(frame["latency (ms)"]):
            cells[str(column)] = [_cell(str(column), value) for value in values]
    return cells


def _cell(column: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, str):
        return value
    return STYLES[column].format(value) if column in STYLES else score_words(value)


def _front_table(cells: Mapping[str, Sequence[str]]) -> tuple[Table, int]:
    """Return a table that cuts no number, and the width that it needs at least."""
    table = Table(title="before / after")
    for column, values in cells.items():
        header = SHORT.get(column, column)
        is_wrapped = column == "recommended as"
        table.add_column(
            header,
            justify="left" if column in ("point", "recommended as") else "right",
            no_wrap=not is_wrapped,
            min_width=None if is_wrapped else max(map(cell_len, (header, *values))),
        )
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    widths = console.measure(table, options=console.options.update(max_width=10_000))
    # A file has no width.
    room = console.width if console.is_terminal else widths.maximum
    table.width = max(widths.minimum, min(widths.maximum, room))
    return table, widths.minimum


def print_modules(modules: ModuleMap, ranks: Sequence[RankVerdict]) -> None:
    """Print the compressible modules, channel groups, ranks of the space, and what stays float.

    Args:
        modules: of the model.
        ranks: verdict on each rank of the space; empty for no table.
    """
    table = Table(title=f"{len(modules)} compressible modules")
    for column in (
        "module",
        "kind",
        "shape",
        "parameters",
        "MACs",
        "tower",
        "role",
        "channel group",
        "shares weight with",
    ):
        table.add_column(column, justify="right" if column in ("parameters", "MACs") else "left")
    for m in modules:
        shape = " x ".join(map(str, m.weight_shape))
        table.add_row(
            m.name,
            m.kind,
            shape,
            f"{m.parameters:,}",
            f"{m.macs:,}",
            m.tower,
            m.role,
            m.group or "",
            ", ".join(m.aliases),
        )
    console.print(table)
    console.print(_group_table(modules))
    if ranks:
        console.print(_rank_table(ranks))
    console.print(_uncovered_table(modules))


def _group_table(modules: ModuleMap) -> Table:
    """Return the table of the channel groups."""
    groups = Table(title="channel groups")
    for column in ("root", "kind", "units", "modules", "prunable"):
        groups.add_column(column)
    for g in modules.groups:
        groups.add_row(
            g.name,
            g.kind,
            str(g.units),
            str(len({m.name for m in g.members})),
            "yes" if g.reason is None else f"no: {g.reason}",
        )
    return groups


def _uncovered_table(modules: ModuleMap) -> Table:
    """Return the table of what stays float."""
    rest = Table(title="not covered: stays float")
    for column in ("module", "type", "parameters", "MACs"):
        rest.add_column(column, justify="right" if column in ("parameters", "MACs") else "left")
    for u in modules.uncovered:
        rest.add_row(u.name, u.what, f"{u.parameters_share:.2%}", f"{u.macs_share:.2%}")
    rest.add_row(
        "total",
        "",
        f"{sum(u.parameters_share for u in modules.uncovered):.2%}",
        f"{sum(u.macs_share for u in modules.uncovered):.2%}",
    )
    return rest


def print_latency(latency: Mapping[str, Any]) -> None:
    """Print the shares of modules and operators in the float model's latency.

    Args:
        latency: from `where_time_goes`.
    """
    forms: dict[str, None] = {}  # an ordered set
    for row in latency["modules"]:
        forms.update(dict.fromkeys(form for form in row["forms"] if form != "float"))
    table = Table(title=f"where the time goes: float model, {latency['milliseconds']:.3f} ms")
    for column in ("module or operator", "share", "ms", *(f"as {form}" for form in forms)):
        table.add_column(column, justify="left" if column.startswith("module") else "right")
    for row in latency["modules"]:
        cells = []
        for form in forms:
            ratio = (
                row["forms"][form] / max(row["forms"].get("float", 0.0), 1e-9)
                if form in row["forms"]
                else None
            )
            cells.append(
                "" if ratio is None else f"{ratio:.2f}x" + (" slower" if ratio > 1 else "")
            )
        table.add_row(row["module"], f"{row['share']:.1%}", f"{row['milliseconds']:.4f}", *cells)
    table.add_section()
    for row in latency["operators"]:
        table.add_row(
            f"({row['operator']})",
            f"{row['share']:.1%}",
            f"{row['milliseconds']:.4f}",
            *[""] * len(forms),
        )
    table.add_section()
    share = latency["modules_share"]
    table.add_row(
        "in modules, compressible",
        f"{share:.1%}",
        f"{share * latency['milliseconds']:.4f}",
        *[""] * len(forms),
    )
    table.add_row(
        "in (operators) between them",
        f"{1 - share:.1%}",
        f"{(1 - share) * latency['milliseconds']:.4f}",
        *[""] * len(forms),
    )
    console.print(table)
    if latency["note"]:
        print_lines([f"latency model: {latency['note']}"])


def _rank_table(ranks: Sequence[RankVerdict]) -> Table:
    """Return a table of the effect of each rank on the weights of its module and on its time."""
    table = Table(title="ranks of the space")
    for column in ("module", "rank ratio", "decomposition", "weights", "time", "verdict"):
        table.add_column(
            column, justify="right" if column in ("rank ratio", "weights", "time") else "left"
        )
    for r in ranks:
        time = "" if r.time_ratio is None else f"{r.time_ratio:.2f}x"
        table.add_row(
            r.module,
            f"{r.rank_ratio:g}",
            r.decomposition,
            f"{r.weights / r.whole:.2f}x",
            time,
            r.words,
        )
    return table

"""Convert runs to the rows of a latency table's file, and back."""

from __future__ import annotations

import json

from autocompress.targets.latency_model.run import REST, Known, Run
from autocompress.targets.latency_model.table_rows import COLUMNS, known_of, rows_of, runs_of
from autocompress.targets.workload import Kernel, Work

KERNEL = Kernel(*range(len(Kernel._fields)))
WORK = Work({"a": KERNEL, "b": KERNEL}, {"bytes": 7.0})
PROFILED = Run(
    "profiled",
    WORK,
    2.0,
    (1.9, 2.1),
    {"a": (10.0, 1.0), "b": (20.0, 1.5), REST: (5.0, 2.0)},
    {"Add": 5.0},
)
TIMED = Run("checked", Work({"a": KERNEL}, {}), 3.0, (2.5, 3.5))


def test_runs_come_back_from_their_rows() -> None:
    rows = json.loads(json.dumps(rows_of([PROFILED, TIMED])))
    tables = {}
    for name, columns in COLUMNS.items():
        tables[name] = [dict(zip(columns, row, strict=True)) for row in rows[name]]
    assert runs_of(tables) == (PROFILED, TIMED)


def test_a_model_that_was_only_timed_has_no_microseconds() -> None:
    rows = rows_of([TIMED])
    assert rows["kernels"] == [[0, "a", *KERNEL, None, None]]
    assert rows["rest"] == []


def test_known_kernels_come_back_from_their_rows() -> None:
    known = {("linear 8x8", 4, "int8", 8, 8): Known(7.5, 64.0, 3)}
    rows = json.loads(json.dumps(rows_of([], known)))["known"]
    assert known_of(dict(zip(COLUMNS["known"], row, strict=True)) for row in rows) == known

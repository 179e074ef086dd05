"""Rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autocompress.targets.latency_model.fit import REST, Run
from autocompress.targets.workload import Kernel, Work

# The rows of a table's file, by column; `run` numbers the models. What was not profiled has no microseconds.
COLUMNS = {
    "runs": ("run", "role", "milliseconds", "low", "high"),
    "kernels": (
        "run",
        "module",
        "signature",
        "rows",
        "form",
        "kept_in",
        "kept_out",
        "amount",
        "microseconds",
        "operators",
    ),
    "surroundings": ("run", "feature", "amount"),
    "rest": ("run", "operator", "microseconds", "operators"),
}


def runs_of(tables: Mapping[str, list[dict[str, Any]]]) -> tuple[Run, ...]:
    kernels: dict[int, dict[str, Kernel]] = {}
    spent: dict[int, dict[str, tuple[float, float]]] = {}
    operators: dict[int, dict[str, float]] = {}
    around: dict[int, dict[str, float]] = {}
    for row in tables["kernels"]:
        kernels.setdefault(row["run"], {})[row["module"]] = Kernel(
            *(row[name] for name in Kernel._fields)
        )
        if row["microseconds"] is not None:
            spent.setdefault(row["run"], {})[row["module"]] = (
                float(row["microseconds"]),
                float(row["operators"]),
            )
    for row in tables["rest"]:
        if row["operator"] is None:
            spent.setdefault(row["run"], {})[REST] = (
                float(row["microseconds"]),
                float(row["operators"]),
            )
        else:
            operators.setdefault(row["run"], {})[row["operator"]] = float(row["microseconds"])
    for row in tables["surroundings"]:
        around.setdefault(row["run"], {})[row["feature"]] = float(row["amount"])
    return tuple(
        Run(
            row["role"],
            Work(kernels.get(row["run"], {}), around.get(row["run"], {})),
            float(row["milliseconds"]),
            (float(row["low"]), float(row["high"])),
            spent.get(row["run"], {}),
            operators.get(row["run"], {}),
        )
        for row in tables["runs"]
    )

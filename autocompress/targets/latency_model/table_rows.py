"""Convert the runs of a latency table to the rows of its file, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autocompress.targets.latency_model.run import REST, Known, Place, Run
from autocompress.targets.workload import Kernel, Work

# Columns of each table of the file; `run` numbers the models. `microseconds` is null if a model was
# not profiled. `known` are kernels that other models were measured with.
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
    "known": (
        "signature",
        "rows",
        "form",
        "kept_in",
        "kept_out",
        "microseconds",
        "amount",
        "models",
    ),
}


def rows_of(
    runs: Sequence[Run], known: Mapping[Place, Known] | None = None
) -> dict[str, list[list[Any]]]:
    """Return the rows of each table of the file, in the order of COLUMNS.

    Args:
        runs: of a latency table.
        known: its known kernels.
    """
    rows: dict[str, list[list[Any]]] = {name: [] for name in COLUMNS}
    for number, run in enumerate(runs):
        rows["runs"].append([number, run.role, run.milliseconds, *run.interval])
        for module, kernel in run.work.kernels.items():
            spent = run.spent.get(module, (None, None))
            rows["kernels"].append([number, module, *kernel, *spent])
        for feature, amount in run.work.surroundings.items():
            rows["surroundings"].append([number, feature, amount])
        if run.spent:
            rows["rest"].append([number, None, *run.spent.get(REST, (0.0, 0))])
        for operator, microseconds in run.operators.items():
            rows["rest"].append([number, operator, microseconds, None])
    rows["known"] = [[*place, *times] for place, times in (known or {}).items()]
    return rows


def known_of(rows: Iterable[Mapping[str, Any]]) -> dict[Place, Known]:
    """Return the known kernels of a file.

    Args:
        rows: as {column: value}, by the names of COLUMNS["known"].
    """
    known: dict[Place, Known] = {}
    for row in rows:
        place = (row["signature"], row["rows"], row["form"], row["kept_in"], row["kept_out"])
        known[place] = Known(float(row["microseconds"]), float(row["amount"]), row["models"])
    return known


def runs_of(tables: Mapping[str, list[dict[str, Any]]]) -> tuple[Run, ...]:
    """Return the runs of a table's file.

    Args:
        tables: rows of each table as {column: value}, by the names of COLUMNS.
    """
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
    runs = []
    for row in tables["runs"]:
        number = row["run"]
        run = Run(
            row["role"],
            Work(kernels.get(number, {}), around.get(number, {})),
            float(row["milliseconds"]),
            (float(row["low"]), float(row["high"])),
            spent.get(number, {}),
            operators.get(number, {}),
        )
        runs.append(run)
    return tuple(runs)

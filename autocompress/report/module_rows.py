"""Decide what the report shows of each module: rows by tower and block, and what was done.

Rows of towers and blocks hold sums and means of their modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from autocompress.candidate import ModuleConfig
from autocompress.integer_form import IntegerForm
from autocompress.report.info import RunInfo
from autocompress.results.front_point import FrontPoint

AXES = {
    "weight_bits": 32.0,
    "activation_bits": 32.0,
    "pruning_ratio": 0.0,
    "rank_ratio": 1.0,
    "sparsity": 0.0,
}
FLOAT_BYTES = 4  # of a parameter of the float file
FEW = 40  # so many modules are shown unfolded
Number = float | int | None


class ModuleFacts(NamedTuple):
    """Hold what is known of one module of the float model.

    Attributes:
        name: qualified name.
        tower: its tower; the first part of its name where the run does not say it.
        kind: such as "linear", "" if not known.
        shape: of its weight, such as "256 x 64", "" if not known.
        parameters: None if not known.
        milliseconds: of the float file's latency; None if not known.
        integer_form: of its weights on an integer kernel, "" if not known.
    """

    name: str
    tower: str
    kind: str = ""
    shape: str = ""
    parameters: int | None = None
    milliseconds: float | None = None
    integer_form: str = ""

    @property
    def block(self) -> str:
        """Return the name up to the first number within it, else without its last part."""
        parts = self.name.split(".")
        for i, part in enumerate(parts[:-1]):
            if part.isdigit():
                return ".".join(parts[: i + 1])
        return ".".join(parts[:-1])


class ModuleRow(NamedTuple):
    """Hold a row of the table: a tower, a block or a module.

    Attributes:
        name: unique among rows of the same depth.
        label: what is shown.
        depth: 0 for towers.
        members: positions of its modules in the list of all modules.
        is_module: False for a row of sums.
    """

    name: str
    label: str
    depth: int
    members: tuple[int, ...]
    is_module: bool


def module_facts(info: RunInfo) -> list[ModuleFacts]:
    """Return the modules of a run, in the order of the network where it is known.

    Args:
        info: content of a run folder.
    """
    known = {row["module"]: row for row in info.run.get("modules") or []}
    # Shares are of the student's latency where there is one, the baseline is the original's.
    base_ms = info.front.baseline.latency_ms
    first_ms = (info.run.get("baseline") or {}).get("latency_ms") or base_ms
    base_ms *= (info.run.get("float_ms") or first_ms) / first_ms
    times = {}
    for row in (info.run.get("time") or {}).get("modules", []):
        times[row["module"]] = row["share"] * base_ms
    names = dict.fromkeys(known)
    if len(info.sensitivity):
        names.update(dict.fromkeys(info.sensitivity["module"]))
    for point in info.front:
        names.update(dict.fromkeys(name for name, _ in point.candidate.modules))
    names.update(dict.fromkeys(times))
    facts = []
    for name in names:
        row = known.get(name, {})
        own = name.partition(".")[0] if "." in name else "model"
        shape = " x ".join(map(str, row.get("shape", [])))
        place = (row.get("tower", own), row.get("kind", ""), shape, row.get("parameters"))
        facts.append(ModuleFacts(name, *place, times.get(name), row.get("integer_form", "")))
    return facts


def module_rows(facts: Sequence[ModuleFacts]) -> list[ModuleRow]:
    """Return rows of towers, blocks and modules; each row comes before what it holds.

    Args:
        facts: of all modules. A tower of one block has no row of blocks, and a block of one module
            is the module.
    """
    towers: dict[str, dict[str, list[int]]] = {}
    for i, module in enumerate(facts):
        towers.setdefault(module.tower, {}).setdefault(module.block, []).append(i)
    rows = []
    for tower, blocks in towers.items():
        members = tuple(i for block in blocks.values() for i in block)
        rows.append(ModuleRow(tower, tower, 0, members, False))
        for block, inside in blocks.items():
            has_row = len(blocks) > 1 and len(inside) > 1
            if has_row:
                label = block.removeprefix(f"{tower}.") or tower
                row = ModuleRow(f"{tower}/{block}", label, 1, tuple(inside), False)
                rows.append(row)
            for i in inside:
                name = facts[i].name
                label = name.removeprefix(f"{block if has_row else tower}.")
                rows.append(ModuleRow(name, label, 1 + has_row, (i,), True))
    return rows


def rows_of_float(rows: Sequence[ModuleRow], facts: Sequence[ModuleFacts]) -> list[dict[str, Any]]:
    """Return the columns of each row that are the same for all points.

    Args:
        rows: from `module_rows`.
        facts: of all modules.
    """
    table = []
    for row in rows:
        modules = [facts[i] for i in row.members]
        parameters = _sum([module.parameters for module in modules])
        table.append(
            {
                "name": row.name,
                "label": row.label,
                "depth": row.depth,
                "count": len(row.members),
                "module": row.is_module,
                "about": " ".join((modules[0].kind, modules[0].shape)).strip()
                if row.is_module
                else f"{len(modules)} module" + "s" * (len(modules) > 1),
                "bytes": None if parameters is None else FLOAT_BYTES * parameters,
                "ms": _sum([module.milliseconds for module in modules]),
            }
        )
    return table


def rows_of_point(
    point: FrontPoint, rows: Sequence[ModuleRow], facts: Sequence[ModuleFacts]
) -> dict[str, list[Any]]:
    """Return the columns of a point: a value per row by name of the column.

    Args:
        point: its axes are None where all modules of a row are untouched, else means over
            parameters. `bytes` and `ms` are None where the run folder does not tell them.
        rows: from `module_rows`.
        facts: of all modules.
    """
    configs = [_stored(point.candidate.config(module.name), module) for module in facts]
    weights = np.array([module.parameters or 1 for module in facts], dtype=float)
    columns: dict[str, list[Any]] = {}
    for axis, untouched in AXES.items():
        values = np.array([float(getattr(config, axis)) for config in configs])
        columns[axis] = _means(rows, values, weights, untouched)
    parts = [point.parts.get(module.name) for module in facts]
    sizes = [None if part is None else part.size_bytes for part in parts]
    times = [None if part is None else part.latency_ms for part in parts]
    columns["bytes"] = _sums(rows, sizes)
    columns["ms"] = _sums(rows, times)
    more = [_more(config.to_json()) for config in configs]
    columns["more"] = [more[row.members[0]] if row.is_module else "" for row in rows]
    return columns


def _stored(config: ModuleConfig, module: ModuleFacts) -> ModuleConfig:
    """Return what a file holds of a config, as far as the run tells the module's kernel."""
    if not module.kind:
        return config
    config = config.executed(module.kind)
    if not module.integer_form:
        return config
    return config.for_kernel(module.kind, IntegerForm(module.integer_form))


def _means(
    rows: Sequence[ModuleRow], values: np.ndarray, weights: np.ndarray, untouched: float
) -> list[float | None]:
    """Return weighted means in four digits; None where all values are untouched."""
    means: list[float | None] = []
    for row in rows:
        own = values[list(row.members)]
        mean = float(f"{np.average(own, weights=weights[list(row.members)]):.4g}")
        means.append(None if (own == untouched).all() else mean)
    return means


def _sums(rows: Sequence[ModuleRow], values: Sequence[Number]) -> list[Number]:
    return [_sum([values[i] for i in row.members]) for row in rows]


def _sum(values: Sequence[Number]) -> Number:
    """Return the sum of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _more(config: Mapping[str, Any]) -> str:
    """Return the choices of a config that have no column."""
    words = []
    for name, value in config.items():
        if name not in AXES:
            label = f"{name.replace('_', ' ')} {value}"
            words.append("asymmetric" if label == "symmetric False" else label)
    return ", ".join(words)

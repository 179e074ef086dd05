"""Show what a task offers to a search, before one: `autocompress inspect`.

Modules, groups, ranks, where the time goes, and whether files compute what is simulated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.cache import cache_folder
from autocompress.errors import ExportError
from autocompress.export.build import Builder
from autocompress.export.compressor import Compressor
from autocompress.export.identity import Identity, check_identity
from autocompress.export.subject import builder_for, layout_of, subject_of
from autocompress.model.modules import ModuleMap, find_modules
from autocompress.search.problem.ranks import RankVerdict, rank_verdicts, table_times
from autocompress.space.search_space import SearchSpace
from autocompress.targets.latency_model.breakdown import where_time_goes
from autocompress.targets.latency_model.stored_tables import cached_table
from autocompress.targets.target import Target
from autocompress.task.task import Task


@dataclass(frozen=True)
class Inspection:
    """Hold what an inspection shows.

    Attributes:
        modules: modules, groups and what is not covered; of the exported graph where the model
            can be exported.
        ranks: verdict on each rank of the space.
        latency: where the time goes, if that was asked for.
        identity: how closely simulation and files agree with the model; the error where they do
            not, or where there is no file.
        not_free: a line for each dimension of the file that is fixed.
        without_effect: a line for each axis of the space that changes none of its modules.
    """

    modules: ModuleMap
    ranks: Sequence[RankVerdict]
    latency: Mapping[str, Any] | None
    identity: Identity | ExportError
    not_free: Sequence[str]
    without_effect: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain types."""
        groups = [
            {"name": g.name, "kind": g.kind, "units": g.units, "reason": g.reason}
            for g in self.modules.groups
        ]
        identity: dict[str, Any] = {"error": str(self.identity)}
        not_free: list[str] = []
        if isinstance(self.identity, Identity):
            identity, not_free = self.identity._asdict(), list(self.not_free)
        content = {
            "modules": [{**m.__dict__, "parameters": m.parameters} for m in self.modules],
            "groups": groups,
            "uncovered": [u.__dict__ for u in self.modules.uncovered],
            "ranks": [{**r.__dict__, "verdict": r.words} for r in self.ranks],
            "identity": identity,
            "not_free": not_free,
            "without_effect": list(self.without_effect),
        }
        return content if self.latency is None else {**content, "latency": self.latency}


def inspect_task(
    task: Task,
    target: Target,
    space: SearchSpace,
    table_file: Path | None = None,
    latency: bool = False,
) -> Inspection:
    """Find modules, export the model once (or read its graph from the cache) and check it.

    Args:
        task: prepared, on its student where it has one.
        target: its kernels and bit widths count.
        space: its ranks are judged.
        table_file: a latency table; ranks are then judged by their times too.
        latency: True tells where the time goes. A table is measured where none is given.

    Returns:
        The inspection; errors of the export are part of it.
    """
    modules = find_modules(task.model, task.example_inputs, task.towers)
    try:
        builder = builder_for(task, modules, target, table=table_file)
    except ExportError as error:
        verdicts = rank_verdicts(space.bind(modules, target), modules)
        return Inspection(modules, verdicts, None, error, ())
    modules = builder.module_map
    bound = space.bind(modules, target)
    identity = _identity(builder, target, task)
    times, breakdown = None, None
    if latency or table_file is not None:
        layout = layout_of(builder)
        table = cached_table(subject_of(task, builder, layout, bound), target, table_file)
        times = table_times(layout, table)
        breakdown = where_time_goes(table, layout) if latency else None
    verdicts = rank_verdicts(bound, modules, times)
    fixed = builder.lowered.fixed
    return Inspection(modules, verdicts, breakdown, identity, fixed, bound.without_effect)


def _identity(builder: Builder, target: Target, task: Task) -> Identity | ExportError:
    compressor = Compressor.of(builder, cache_folder() / "variants")
    try:
        return check_identity(compressor, target, task)
    except ExportError as error:
        return error

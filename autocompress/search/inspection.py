"""What a task offers to a search, before one: modules, groups, ranks, where the time goes, and whether files compute what is simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.cache import cache_folder
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.errors import ExportError
from autocompress.export.identity import Identity, check_identity
from autocompress.model.modules import ModuleMap, find_modules
from autocompress.search.problem.bench import builder_for, layout_of, subject_of
from autocompress.search.problem.ranks import RankVerdict, rank_verdicts, table_times
from autocompress.space.search_space import SearchSpace
from autocompress.targets.latency_model.breakdown import where_time_goes
from autocompress.targets.latency_model.stored_tables import cached_table
from autocompress.targets.target import Target
from autocompress.task.task import Task


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        modules: modules, groups and what is not covered; of the exported graph where the model can be exported.
        ranks: what each rank of the space is worth.
        latency: where the time goes, where that was asked for.
        identity: how closely simulation and files agree with the model; the error where they do not, or where there is no file.
        not_free: a line for each dimension of the file that is fixed.
    """

    modules: ModuleMap
    ranks: Sequence[RankVerdict]
    latency: Mapping[str, Any] | None
    identity: Identity | ExportError
    not_free: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        agrees = isinstance(self.identity, Identity)
        return {
            "modules": [{**m.__dict__, "parameters": m.parameters} for m in self.modules],
            "groups": [
                {"name": g.name, "kind": g.kind, "units": g.units, "reason": g.reason}
                for g in self.modules.groups
            ],
            "uncovered": [u.__dict__ for u in self.modules.uncovered],
            "ranks": [{**r.__dict__, "verdict": r.words} for r in self.ranks],
            "identity": self.identity._asdict()
            if isinstance(self.identity, Identity)
            else {"error": str(self.identity)},
            "not_free": list(self.not_free) if agrees else [],
            **({} if self.latency is None else {"latency": self.latency}),
        }


def inspect_task(
    task: Task,
    target: Target,
    space: SearchSpace,
    table_file: Path | None = None,
    latency: bool = False,
) -> Inspection:
    """Find modules, export the model once (or read its graph from the cache) and run the identity check.

    Args:
        task: prepared, on its student where it has one.
        target: whose kernels and bit widths count.
        space: whose ranks are judged.
        table_file: a latency table; ranks are then judged by their times too.
        latency: whether to say where the time goes, for which a table is measured where none is given.
    """
    modules = find_modules(task.model, task.example_inputs, task.towers)
    bound = space.bind(modules, target)
    try:
        builder = builder_for(task, modules, target, table=table_file)
    except ExportError as error:
        return Inspection(modules, rank_verdicts(bound, modules), None, error, ())
    modules, times, found = builder.module_map, None, None
    stitcher = Stitcher(
        builder.teacher, modules, builder.library(cache_folder() / "variants"), builder.plan
    )
    identity: Identity | ExportError
    try:
        identity = check_identity(builder, stitcher, target, task)
    except ExportError as error:
        identity = error
    if latency or table_file is not None:
        layout = layout_of(builder)
        table = cached_table(
            subject_of(task, builder, layout, space.bind(modules, target)), target, table_file
        )
        times, found = (
            table_times(layout, table),
            where_time_goes(table, layout) if latency else None,
        )
    return Inspection(
        modules,
        rank_verdicts(space.bind(modules, target), modules, times),
        found,
        identity,
        builder.lowered.fixed,
    )

"""Run the commands on latency tables: `profile` and `export-probes`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autocompress.cli.folder_options import prepared_task
from autocompress.cli.tables import console, print_lines
from autocompress.compress.recover.student import on_student
from autocompress.errors import RunFolderError, TargetError
from autocompress.export.probes import SCRIPT_FILE, export_probes
from autocompress.export.subject import builder_for, layout_of, subject_of
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import find_modules
from autocompress.search.problem.progress import check_words
from autocompress.space.search_space import SearchSpace
from autocompress.targets.device.job import RESULT_FILE
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.profile import measure_table
from autocompress.targets.latency_model.stored_tables import load_table
from autocompress.targets.target import find_target


def profile_command(arguments: argparse.Namespace) -> int:
    """Run `autocompress profile`.

    Args:
        arguments: from `build_parser`.

    Returns:
        Exit code.

    Raises:
        TargetError: a table to merge does not fit.
        RunFolderError: the table cannot be written.
    """
    target = find_target(arguments.target, portable=arguments.portable)
    SearchSpace.load(arguments.space)  # its errors come before the task is loaded
    task = on_student(prepared_task(arguments, target))
    space = SearchSpace.load(arguments.space, task.pipeline, target.phase)
    builder = builder_for(task, find_modules(task.model, task.example_inputs, task.towers), target)
    bound = space.bind(builder.module_map, target)
    subject = subject_of(task, builder, layout_of(builder), bound)
    others = [load_table(subject, target, Path(other)) for other in arguments.merge]
    table = measure_table(subject, target, is_anew=True)
    _save(table, Path(arguments.out))
    if others:
        table = _merged(table, others, arguments.out)
        _save(table, Path(arguments.out))
    console.print(
        f"{arguments.out}: baseline {table.baseline_ms:.3f} ms; {check_words(table.check)}",
        highlight=False,
    )
    print_lines([words for words in (table.note, table.warning) if words])
    return 0


def _merged(table: LatencyTable, others: Sequence[LatencyTable], out: str) -> LatencyTable:
    """Return a table with the runs of others. Tuned settings are known after measuring only."""
    try:
        for other in others:
            table = table.merged(other)
    except TargetError as error:
        raise TargetError(f"{error}; {out} holds the new table alone") from None
    return table


def _save(table: LatencyTable, path: Path) -> None:
    try:
        table.save(path)
    except RunFolderError as error:
        reason = getattr(error.__cause__, "strerror", None) or error
        raise RunFolderError(
            f"{path}: cannot be written ({reason}); the measured table is lost"
        ) from error


def export_probes_command(arguments: argparse.Namespace) -> int:
    """Run `autocompress export-probes`.

    Args:
        arguments: from `build_parser`.

    Returns:
        Exit code.

    Raises:
        TargetError: the target takes .tflite files, and LiteRT is not installed here.
    """
    target = find_target(arguments.target, present=False, portable=arguments.portable)
    if target.litert:  # its package writes the files too
        find_target(arguments.target)
    SearchSpace.load(arguments.space)  # its errors come before the task is loaded
    task = on_student(prepared_task(arguments, target))
    space = SearchSpace.load(arguments.space, task.pipeline, target.phase)
    modules = find_modules(task.model, task.example_inputs, task.towers)
    # The device's arithmetic is not known here: weights take the form that is exact everywhere. In
    # LiteRT all are.
    forms = {} if target.litert else {module.name: IntegerForm.REDUCED for module in modules}
    builder = replace(builder_for(task, modules, target), forms=forms)
    subject = subject_of(task, builder, layout_of(builder), space.bind(builder.module_map, target))
    count = export_probes(subject, target, Path(arguments.to))
    table = Path(arguments.to) / RESULT_FILE
    console.print(
        f"{arguments.to}: {count} models; on the device: python {SCRIPT_FILE}; then: autocompress "
        f"search TASK --target {arguments.target} --target-table {table}",
        highlight=False,
    )
    return 0

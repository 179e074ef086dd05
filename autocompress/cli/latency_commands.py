"""x"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from autocompress.cli.tables import (
    console,
    print_lines,
)
from autocompress.cli.values import prepared_task
from autocompress.compress.recover.student import on_student
from autocompress.export.probes import SCRIPT_FILE, export_probes
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import find_modules
from autocompress.search.problem.bench import builder_for, layout_of, subject_of
from autocompress.search.problem.describe import check_words
from autocompress.space.search_space import SearchSpace
from autocompress.targets.device.job import RESULT_FILE
from autocompress.targets.latency_model.profile import measure_table
from autocompress.targets.latency_model.stored_tables import load_table
from autocompress.targets.target import find_target


def profile_command(arguments: argparse.Namespace) -> int:
    """`autocompress profile`."""
    target = find_target(arguments.target, portable=arguments.portable)
    task = on_student(prepared_task(arguments))
    builder = builder_for(task, find_modules(task.model, task.example_inputs, task.towers), target)
    space = SearchSpace.load(arguments.space).bind(builder.module_map, target)
    subject = subject_of(task, builder, layout_of(builder), space)
    table = measure_table(subject, target)
    for other in arguments.merge:
        table = table.merged(load_table(subject, target, Path(other)))
    table.save(Path(arguments.out))
    console.print(
        f"{arguments.out}: baseline {table.baseline_ms:.3f} ms; {check_words(table.check)}",
        highlight=False,
    )
    print_lines([words for words in (table.note, table.warning) if words])
    return 0


def export_probes_command(arguments: argparse.Namespace) -> int:
    """`autocompress export-probes`."""
    target = find_target(arguments.target, present=False, portable=arguments.portable)
    task = on_student(prepared_task(arguments))
    found = find_modules(task.model, task.example_inputs, task.towers)
    # Of a device that is not at hand neither the arithmetic nor the times are known: weights are what is exact everywhere.
    forms = {module.name: IntegerForm.REDUCED for module in found}
    builder = replace(builder_for(task, found, target), forms=forms, _sizes={})
    space = SearchSpace.load(arguments.space).bind(builder.module_map, target)
    count = export_probes(
        subject_of(task, builder, layout_of(builder), space), target, Path(arguments.to)
    )
    console.print(
        f"{arguments.to}: {count} models; on the device: python {SCRIPT_FILE}; then: autocompress "
        f"search TASK "
        f"--target-table {Path(arguments.to) / RESULT_FILE}",
        highlight=False,
    )
    return 0

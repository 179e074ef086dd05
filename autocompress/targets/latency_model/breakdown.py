"""Divide the latency of a model among modules and the operators around them.

`inspect --latency` and the report show it of the float model: modules can be compressed, the
operators cannot. The report shows it of the points, too.
"""

from __future__ import annotations

from typing import Any

from autocompress.candidate import Candidate
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.run import REST, Run
from autocompress.targets.workload import Layout, Work, workload


def where_time_goes(table: LatencyTable, layout: Layout) -> dict[str, Any]:
    """Return shares of the float model's wall time, and times of its modules in other forms.

    The profiler's own cost is subtracted from each operator. If the profile is not trusted, shares
    are those that the latency model predicts, as are all times if the table is of another model.

    Args:
        table: latency table of the model, or of one with the same kernels.
        layout: structure of the model.

    Returns:
        {"milliseconds": of the float model, "modules_share": share of all modules, "modules": rows
        of {module, share, milliseconds, forms: {form: predicted milliseconds}}, "operators": rows
        of {operator, share, milliseconds} that no module owns, "note": the table's}. Rows begin
        with the largest share.
    """
    untouched = next(run for run in table.runs if run.spent)
    run = untouched if table.is_of(layout) else None
    work = workload(layout, Candidate()) if run is None else run.work
    model_ms = table.predict(work) if run is None else run.milliseconds
    if run is None or table.doubt:
        modules, operators = _predicted(table, work)
    else:
        modules, operators = _profiled(table, run)
    total = max(sum(modules.values()) + sum(operators.values()), 1e-9)
    forms: dict[str, dict[str, float]] = {}
    for place, (microseconds, _) in table.model.grid.items():
        for module in layout.module_map:
            whole = (*module.weight_shape, 1)[:2]
            if (layout.signatures[module.name], module.positions, whole[1], whole[0]) == (
                *place[:2],
                *place[3:],
            ):
                forms.setdefault(module.name, {})[place[2]] = round(microseconds / 1e3, 5)
    ms = model_ms / total
    module_rows: list[dict[str, Any]] = []
    for name, us in sorted(modules.items(), key=lambda item: -item[1]):
        row = {"module": name, "share": us / total, "milliseconds": us * ms}
        module_rows.append({**row, "forms": forms.get(name, {})})
    operator_rows = []
    for name, us in sorted(operators.items(), key=lambda item: -item[1]):
        operator_rows.append({"operator": name, "share": us / total, "milliseconds": us * ms})
    return {
        "milliseconds": model_ms,
        "modules_share": sum(modules.values()) / total,
        "modules": module_rows,
        "operators": operator_rows,
        "note": table.note,
    }


def module_shares(table: LatencyTable, layout: Layout, candidate: Candidate) -> dict[str, float]:
    """Return the share that each module has in the latency of a candidate, as predicted.

    Args:
        table: latency table of the model.
        layout: structure of the model.
        candidate: config of each module.

    Returns:
        Shares of the whole latency; removed modules are missing. {} if a module runs in a form that
        was never measured.
    """
    work, model = workload(layout, candidate), table.model
    try:
        times = {name: model.kernel_us(kernel) for name, kernel in work.kernels.items()}
    except KeyError:
        return {}
    total = max(sum(times.values()) + model.around_us(work.surroundings), 1e-9)
    return {name: us / total for name, us in layout.divided(times, work.kernels).items()}


def _profiled(table: LatencyTable, run: Run) -> tuple[dict[str, float], dict[str, float]]:
    """Return microseconds by module and by operator, without the cost of profiling."""
    overhead = table.model.profiler_us
    net = {name: max(us - overhead * n, 0.02 * us) for name, (us, n) in run.spent.items()}
    around = net.pop(REST, 0.0)
    # Only sums are known of the operators, so the profiler's cost is spread in proportion.
    scale = around / max(sum(run.operators.values()), 1e-9)
    return net, {name: us * scale for name, us in run.operators.items()}


def _predicted(table: LatencyTable, work: Work) -> tuple[dict[str, float], dict[str, float]]:
    """Return microseconds by module and of all operators, as regressed over whole models."""
    modules = {name: table.model.kernel_us(kernel) for name, kernel in work.kernels.items()}
    return modules, {"all operators": table.model.around_us(work.surroundings)}

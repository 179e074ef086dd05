"""Where the time of a model goes: in modules, which can be compressed, and in the operators around them, which cannot."""

from __future__ import annotations

from typing import Any

from autocompress.targets.fit import REST
from autocompress.targets.latency_table import LatencyTable
from autocompress.targets.workload import Layout


def where_time_goes(table: LatencyTable, layout: Layout) -> dict[str, Any]:
    """Shares of the wall time of the float model, as it was profiled, and what its modules take in the other forms that were measured.

    "modules": rows of (module, share, milliseconds, {form: predicted milliseconds}); "operators": rows of (operator, share, milliseconds)
    of what no module owns (attention's products, normalisation, softmax); "modules_share" of the first in all. The profiler's own cost
    is taken out of each operator.
    """
    run = next(run for run in table.runs if run.spent)  # the first of a plan is the untouched model
    overhead = table.model.profiler_us
    modules = {name: max(us - overhead * n, 0.02 * us) for name, (us, n) in run.spent.items() if name != REST}
    rest, count = run.spent.get(REST, (0.0, 0))
    around = max(rest - overhead * count, 0.02 * rest)
    total = max(sum(modules.values()) + around, 1e-9)
    # Of the operators only sums are known, so that the profiler's cost is spread over them in proportion.
    scale = around / max(sum(run.operators.values()), 1e-9)
    forms: dict[str, dict[str, float]] = {}
    for place, (microseconds, _) in table.model.grid.items():
        for module in layout.module_map:
            whole = (*module.weight_shape, 1)[:2]
            if (layout.signatures[module.name], module.positions, whole[1], whole[0]) == (*place[:2], *place[3:]):
                forms.setdefault(module.name, {})[place[2]] = round(microseconds / 1e3, 5)
    ms = run.milliseconds / total
    return {
        "milliseconds": run.milliseconds,
        "modules_share": sum(modules.values()) / total,
        "modules": [
            {"module": name, "share": us / total, "milliseconds": us * ms, "forms": forms.get(name, {})}
            for name, us in sorted(modules.items(), key=lambda item: -item[1])
        ],
        "operators": [
            {"operator": name, "share": us * scale / total, "milliseconds": us * scale * ms}
            for name, us in sorted(run.operators.items(), key=lambda item: -item[1])
        ],
    }

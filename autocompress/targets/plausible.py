"""Whether the time that a profile gives to modules can be right: multiply-adds take time, on any machine."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.targets.fit import REST, Run
from autocompress.targets.workload import arithmetic

FASTER = 3.0  # than a large product, per multiply-add: more than any kernel of another shape or method (Winograd saves 2.25) gains
MISSING = 0.03  # share of the wall time that may lack, as when a runtime computes a constant product once


def missing_time(runs: Sequence[Run], product_rate: float) -> str:
    """Say in words that modules were given less time than their multiply-adds can take; "" where they were not.

    A float product of M multiply-adds takes at least M / (3 R), R being the rate of a large one on the same runtime, which `Found`
    states. What profiled modules lack of that is summed over the runs. Integer kernels have other limits on every machine, so that
    they are left to the check on whole models.

    Args:
        runs: whole models; those that were profiled count.
        product_rate: R in multiply-adds per microsecond; 0 where it is not known.
    """
    wall = given = least = missing = 0.0
    for run in (run for run in runs if run.spent):
        total = max(sum(us for us, _ in run.spent.values()), 1e-9)
        wall += run.milliseconds * 1e3
        given += (1 - run.spent.get(REST, (0.0, 0.0))[0] / total) * run.milliseconds * 1e3
        for name, kernel in run.work.kernels.items():
            if kernel.signature.startswith("embedding") or arithmetic(kernel) != "float":
                continue
            limit = kernel.rows * kernel.amount / (FASTER * product_rate) if product_rate > 0 else 0.0
            spent = run.spent.get(name, (0.0, 0.0))[0] / total * run.milliseconds * 1e3
            least += limit
            missing += max(0.0, limit - spent)
    if missing <= MISSING * wall:
        return ""
    return f"the profile gives modules {given / wall:.0%} of the time, while their float products alone take at least {least / wall:.0%}"

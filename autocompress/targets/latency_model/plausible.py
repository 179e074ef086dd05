"""Whether the time that a profile gives to modules can be right: multiply-adds take time, on any machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from autocompress.targets.latency_model.fit import Run
from autocompress.targets.workload import arithmetic

FASTER = 3.0  # than a large product, per multiply-add: more than any kernel of another shape or method (Winograd saves 2.25) gains
MISSING = (
    0.01  # share of the wall time that may lack, as when a runtime computes a constant product once
)


def missing_time(runs: Sequence[Run], product_rate: float) -> str:
    """Say in words that modules were given less time than their multiply-adds can take; "" where they were not.

    A float product of M multiply-adds takes at least M / (3 R), R being the rate of a large one on the same runtime, which `Found`
    states. What profiled modules lack of that is summed over the runs. Integer kernels have other limits on every machine, so that
    they are left to the check on whole models.

    Args:
        runs: whole models; those that were profiled count.
        product_rate: R in multiply-adds per microsecond; 0 where it is not known.
    """
    wall = missing = 0.0
    products: dict[str, float] = defaultdict(float)
    short: dict[str, float] = defaultdict(float)
    for run in (run for run in runs if run.spent and product_rate > 0):
        us = run.milliseconds * 1e3
        share = us / max(sum(spent for spent, _ in run.spent.values()), 1e-9)
        wall += us
        for name, kernel in run.work.kernels.items():
            if kernel.signature.startswith("embedding") or arithmetic(kernel) != "float":
                continue
            limit = kernel.rows * kernel.amount / (FASTER * product_rate)
            lack = max(0.0, limit - share * run.spent.get(name, (0.0, 0))[0])
            missing += lack
            products[name] += limit
            short[name] += limit if lack else 0.0
    if missing <= MISSING * wall:
        return ""
    return (
        f"the profile gives modules with {sum(short.values()) / sum(products.values()):.0%} of the float multiply-adds less time than "
        f"products can take here, such as {max(short, key=lambda name: short[name])}"
    )

"""Predict kernels of forms that were never measured, from the measured kernels of their class.

A kernel takes a constant, a time per multiply-add and a time per byte that it moves, as in a
roofline (Williams, Waterman and Patterson 2009). The three are regressed for each class, which is a
kind of module and an arithmetic.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from autocompress.targets.latency_model.fitting.costs import unit_costs
from autocompress.targets.workload import Kernel, arithmetic

BYTES = {"float": 4.0, "int8": 1.0, "nbits": 0.5}  # of a weight by arithmetic


def kernel_class(kernel: Kernel) -> str:
    """Return the class of a kernel: kind of module and arithmetic.

    Args:
        kernel: any kernel.
    """
    return f"{kernel.signature.split()[0]} {arithmetic(kernel)}"


def rooflines(kernels: Mapping[Kernel, float]) -> dict[str, dict[str, float]]:
    """Return the costs of each class of kernels.

    Args:
        kernels: microseconds of each measured kernel.

    Returns:
        By class, microseconds per call, multiply-add and byte.
    """
    members: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        members[kernel_class(kernel)].append(kernel)
    costs = {}
    for name, alike in members.items():
        times = [kernels[kernel] for kernel in alike]
        costs[name] = unit_costs(
            [_amounts(kernel) for kernel in alike], times, [max(us, 1e-3) for us in times]
        )
    return costs


def roofline_us(costs: Mapping[str, Mapping[str, float]], kernel: Kernel) -> float:
    """Return the microseconds of a kernel by the costs of its class.

    If no kernel of its class was measured, another arithmetic of the same kind is taken, float
    first, and then any class.

    Args:
        costs: from `rooflines`.
        kernel: of any form.

    Raises:
        KeyError: if there is no class at all.
    """
    kind = kernel.signature.split()[0]
    wanted = [kernel_class(kernel), f"{kind} float"]
    wanted += [name for name in costs if name.startswith(f"{kind} ")] + list(costs)
    for name in wanted:
        if name in costs:
            amounts = _amounts(kernel)
            return sum(costs[name].get(part, 0.0) * amount for part, amount in amounts.items())
    raise KeyError(kernel.form)


def _amounts(kernel: Kernel) -> dict[str, float]:
    """Return calls, multiply-adds and moved bytes; a lookup multiplies nothing."""
    looks_up = kernel.signature.startswith("embedding")
    moved = 4.0 * kernel.rows * (kernel.kept_out if looks_up else kernel.kept_in + kernel.kept_out)
    if looks_up:
        return {"calls": 1.0, "bytes": moved}
    moved += kernel.amount * BYTES[arithmetic(kernel)]
    return {"calls": 1.0, "products": kernel.rows * kernel.amount, "bytes": moved}

"""Count the processors that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

OPENMP = "OMP_NUM_THREADS"
CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def _available() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


# Read when this is imported: OpenMP may bind this thread to one processor later (OMP_PROC_BIND).
AVAILABLE = _available()


def processors(processes: int = 1) -> int:
    """Return the number of processors that this process may use, at least 1.

    That is its part of its affinity (`taskset`, the processors of a container) and of the quota of
    its control group (the share of a container; rounded up), and at most OMP_NUM_THREADS, which is
    a limit of each process.

    Args:
        processes: that share the machine.
    """
    quota, most = math.ceil(_quota(CGROUPS, OWN)), _openmp(os.environ.get(OPENMP))
    together = min(AVAILABLE, quota) if quota else AVAILABLE
    share = max(1, together // max(1, processes))
    return min(share, most) if most else share


def limit_words() -> str:
    """Return a line for the user if this process leaves processors of the machine alone, or ""."""
    count, there = processors(), os.cpu_count() or 1
    if count >= there:
        return ""
    names = {
        f"{OPENMP}={os.environ.get(OPENMP)}": _openmp(os.environ.get(OPENMP)),
        "the quota of the control group": math.ceil(_quota(CGROUPS, OWN)),
        "the affinity of the process": AVAILABLE,
    }
    reason = next(name for name, limit in names.items() if limit == count)
    return f"threads: {count} of {there} processors are used, by {reason}"


def _openmp(value: str | None) -> int:
    """Return the threads that OMP_NUM_THREADS allows; 0 if it says nothing.

    Args:
        value: a number, or several by nesting level, separated by commas.
    """
    first = (value or "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def _quota(mounted: Path, own: Path) -> float:
    """Return the processors that the control groups of this process allow; 0 if all of them.

    Source: cpu.max in the kernel's documentation of control groups version 2, and
    cpu.cfs_quota_us of version 1.

    Args:
        mounted: where control groups are mounted.
        own: file that names those of this process, one per line: number:controllers:path.
    """
    quotas = [quota for quota in _quotas(mounted, own) if quota > 0]
    return min(quotas, default=0.0)


def _quotas(mounted: Path, own: Path) -> Iterator[float]:
    """Yield the quota of each control group from that of this process up to the root."""
    for line in _text(own).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        is_second = controllers == ""
        if not is_second and "cpu" not in controllers.split(","):
            continue
        root = mounted if is_second else mounted / "cpu"
        # Inside a container the path may be that of the host, which is not there.
        place = root / path.lstrip("/")
        while True:
            if is_second:
                yield _ratio(*[*_text(place / "cpu.max").split(), "", ""][:2])
            else:
                parts = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                yield _ratio(*(_text(place / name).strip() for name in parts))
            if place == root or root not in place.parents:
                break
            place = place.parent


def _ratio(quota: str, period: str) -> float:
    """Return quota / period; 0 if there is none ("max", -1, or no such file)."""
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return 0.0
    return int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

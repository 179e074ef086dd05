"""Say what tests measure less often than users do: latencies would take half of a search."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from autocompress.search.finish import front_files
from autocompress.targets import kernel_timing
from autocompress.targets.device import job, timing
from autocompress.targets.latency_model import plan, profile


def fewer_measurements() -> list[tuple[ModuleType, str, Any]]:
    """Return (module, name, value) of the constants that are smaller in tests.

    Models whose run takes less than a millisecond are run as often as users run them.
    """
    models = [(plan, "LEAST", 6), (plan, "MOST", 12), (plan, "CHECKED", 6)]
    rounds = [(front_files, "ROUNDS", 24), (kernel_timing, "ROUNDS", 4), (job, "ROUNDS", (3, 36))]
    widths = [(kernel_timing, "WIDTHS", (33, 64))]
    slow = [(timing, "ENOUGH_S", 0.05), (timing, "FEWEST", 3), (profile, "BUDGET_S", 3.0)]
    profiles = [(job, "PROFILE_S", 0.03), (job, "PROFILE_RUNS", (4, 40))]
    return [*models, *rounds, *widths, *slow, *profiles]

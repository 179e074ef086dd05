"""Keep the times of kernels on this machine, for the latency tables of all models and runs.

A table writes the kernels that it measured, and a later one reads them before it plans: kernels
with a known time need no further model. A few models of its own show how fast the machine is now.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from autocompress.cache import Cache, cache_folder, key_of
from autocompress.targets.device.result import versions
from autocompress.targets.device.sessions import SessionSettings
from autocompress.targets.latency_model.fitting.fit import LatencyModel
from autocompress.targets.latency_model.fitting.kernel_times import profiled_kernels
from autocompress.targets.latency_model.run import SURROUNDINGS, Known, Place, Run
from autocompress.targets.latency_model.table_rows import COLUMNS, known_of

FORMAT = 2  # 1 gave all time of recurrent layers in .tflite files to one of their matrices
FORGOTTEN = 8  # models that an older mean counts as at most, so that it follows the machine
FEWEST_SHARED = 3  # kernels that show how much faster the machine is than it was


def known_kernels(settings: SessionSettings, signatures: Collection[str]) -> dict[Place, Known]:
    """Return the known times of kernels under some session settings.

    Args:
        settings: of the sessions; machine and runtime are those here.
        signatures: of the wanted kernels, see `Kernel`.

    Returns:
        Times by place, of any form and width, and costs of surrounding features; {} if none is
        known.
    """
    cache, name = _store(settings)
    wanted = {*signatures, SURROUNDINGS}
    kernels = cache.read(name, _read) or {}
    return {place: known for place, known in kernels.items() if place[0] in wanted}


def keep_kernels(settings: SessionSettings, runs: Sequence[Run], model: LatencyModel) -> None:
    """Add the kernels of new runs to the known times, and the costs of what surrounds them.

    Args:
        settings: of the measured sessions.
        runs: measured here; only profiled ones count.
        model: fitted to them, perhaps with others.
    """
    profiled = [run for run in runs if run.spent]
    if not profiled:
        return
    times, models = profiled_kernels(profiled, model.profiler_us)
    fresh = {place: Known(us, amount, models[place]) for place, (us, amount) in times.items()}
    features = {name for run in profiled for name in run.work.surroundings} - {"model"}
    for name in sorted(features & set(model.around)):
        fresh[SURROUNDINGS, 0, name, 0, 0] = Known(model.around[name], 1.0, len(profiled))
    cache, name = _store(settings)
    cache.update(name, _read, lambda kernels: _text(joined(kernels or {}, fresh)))


def joined(older: Mapping[Place, Known], fresh: Mapping[Place, Known]) -> dict[Place, Known]:
    """Return the mean times of both, at the speed that the machine had before.

    Args:
        older: known times.
        fresh: times of new runs.
    """
    logs = [
        float(np.log(fresh[place].microseconds / older[place].microseconds))
        for place in fresh
        if place[0] != SURROUNDINGS
        and place in older
        and fresh[place].microseconds > 0
        and older[place].microseconds > 0
    ]
    slower = float(np.exp(np.median(logs))) if len(logs) >= FEWEST_SHARED else 1.0
    kernels = dict(older)
    for place, (us, amount, models) in fresh.items():
        before = older.get(place, Known(0.0, amount, 0))
        weight = min(before.models, FORGOTTEN)
        mean = (weight * before.microseconds + models * us / slower) / (weight + models)
        kernels[place] = Known(mean, amount, before.models + models)
    return kernels


def _store(settings: SessionSettings) -> tuple[Cache, str]:
    """Return the cache, and the entry of this machine, runtime and settings."""
    content = (sorted(versions(settings).items()), sorted(asdict(settings).items()))
    return Cache(cache_folder() / "latency_kernels"), f"{key_of(repr(content))[:16]}.json"


def _text(kernels: Mapping[Place, Known]) -> str:
    rows = [json.dumps([*place, *known]) for place, known in sorted(kernels.items())]
    return f'{{"format": {FORMAT}, "kernels": [\n' + ",\n".join(rows) + "\n]}\n"


def _read(path: Path) -> dict[Place, Known]:
    data = json.loads(path.read_text())
    if data["format"] != FORMAT:
        raise ValueError("another format")
    columns = COLUMNS["known"]
    return known_of(dict(zip(columns, row, strict=True)) for row in data["kernels"])

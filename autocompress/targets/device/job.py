"""Run the measurements of a latency table.

Three steps: tune the session settings, time whole models in turn with the float model, and profile
them operator by operator. `targets.latency` runs a job here; `export-probes` ships this folder to a
device, where `main` runs it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .profiler import profile_nodes
from .result import JobResult, versions, write_result
from .sessions import Runnable, SessionSettings, open_session
from .timing import LONG_S, PASSES, WARM_UP, interleaved_timing
from .tuning import Source, tune

PROBES_FILE, FEED_FILE, RESULT_FILE = "probes.json", "inputs.npz", "measured.json"
PROFILE_S = 0.15  # seconds that a model runs under the profiler
PROFILE_RUNS = (12, 80)
ROUNDS = (6, 36)
TUNING_SHARE = 0.25  # of `limit_s`, for tuning
# (rows, columns, outputs) of the float product that shows the highest rate of the runtime.
PRODUCT = (256, 512, 512)
PRODUCT_RUNS = 20
PRECISION = 0.02  # relative half width of a 95 % interval that is not measured again

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Job:
    """Describe the models to measure, all on one feed.

    If all of it would take more than `limit_s` seconds, fewer models are measured.

    Attributes:
        baseline: the float model, denominator of all ratios.
        product: a model of the product PRODUCT alone.
        profiled: models to profile and time.
        timed: models to time only.
        tuned: models to tune the session settings on.
        feed: inputs by name.
        settings: start of tuning.
        threads: numbers of threads to choose from.
        budget_s: approximate seconds for timing.
        seed: of the order of the models.
        limit_s: limit in seconds for everything; None for no limit.
        least: number of first models of `profiled` to measure in any case.
    """

    baseline: Source
    product: Source
    profiled: Sequence[Source]
    timed: Sequence[Source]
    tuned: Sequence[Source]
    feed: Mapping[str, Any]
    settings: SessionSettings
    threads: Sequence[int]
    budget_s: float
    seed: int = 0
    limit_s: float | None = None
    least: int = 0


def measure(job: Job, report: Report = lambda what, share: None) -> JobResult:
    """Carry out a job on this machine.

    Args:
        job: models to time and to profile.
        report: called with (current step, done share of it).
    """
    begun = time.monotonic()

    def left_s() -> float:
        return float("inf") if job.limit_s is None else job.limit_s - (time.monotonic() - begun)

    report("tuning the session settings", 0.0)
    most = 0.0 if job.limit_s is None else (1 - TUNING_SHARE) * job.limit_s
    settings, tuning = tune(
        job.tuned, job.feed, job.settings, job.threads, job.seed, lambda: left_s() > most
    )
    opening, once = _cost(job, settings)
    repeats = 3 if once < LONG_S else 1
    # A round runs the baseline and a model that is mostly faster. A pass begins with warm-up.
    timed_s = PASSES * (opening + 2 * once * repeats * (WARM_UP + ROUNDS[0] / PASSES))
    profiled_s = timed_s + opening + max(PROFILE_S, once * PROFILE_RUNS[0])
    profiled, timed = affordable(
        len(job.profiled), len(job.timed), job.least, profiled_s, timed_s, left_s()
    )
    models = [*job.profiled[:profiled], *job.timed[:timed]]
    budget_s = min(job.budget_s, max(0.0, left_s() - profiled * (profiled_s - timed_s)))
    rounds = (budget_s / max(1, len(models)) - PASSES * opening) / (2 * once * repeats)
    openers = [partial(_open, source, settings) for source in models]
    timing = interleaved_timing(
        partial(open_session, job.baseline(), settings),
        openers,
        job.feed,
        int(np.clip(rounds, *ROUNDS)),
        job.seed,
        lambda share: report("timing whole models", share),
        PRECISION,
        budget_s,
    )
    profiles = []
    for i, source in enumerate(job.profiled[:profiled]):
        report("profiling whole models", i / profiled)
        runs = int(np.clip(PROFILE_S / (once * timing.ratios[i]), *PROFILE_RUNS))
        profiles.append(profile_nodes(source(), job.feed, settings, runs))
    left_out = len(job.profiled) + len(job.timed) - len(models)
    rate = _product_rate(job.product, settings)
    shares = (timing.baseline_ms, timing.ratios, timing.intervals)
    return JobResult(
        versions(settings),
        settings,
        tuning,
        *shares,
        profiles,
        timing.warning,
        rate,
        left_out=left_out,
    )


def _open(source: Source, settings: SessionSettings) -> Runnable:
    """Build a model and open it, so that only one of many is in memory."""
    session: Runnable = open_session(source(), settings)
    return session


def _product_rate(product: Source, settings: SessionSettings) -> float:
    """Return multiply-adds per microsecond of the fastest of some calls."""
    session, seconds = open_session(product(), settings), []
    feed = {
        session.get_inputs()[0].name: np.random.default_rng(0).standard_normal(
            PRODUCT[:2], dtype=np.float32
        )
    }
    for _ in range(PRODUCT_RUNS):
        started = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - started)
    return float(np.prod(PRODUCT)) / (min(seconds) * 1e6)


def _cost(job: Job, settings: SessionSettings) -> tuple[float, float]:
    """Return the seconds of building and opening a model, and of running the baseline once."""
    started = time.perf_counter()
    source = job.profiled[0] if job.profiled else job.baseline
    open_session(source(), settings)
    opening = time.perf_counter() - started
    reference = open_session(job.baseline(), settings)
    for _ in range(4):
        begun = time.perf_counter()
        reference.run(None, dict(job.feed))
    return opening, time.perf_counter() - begun


def affordable(
    profiled: int, timed: int, least: int, profiled_s: float, timed_s: float, left_s: float
) -> tuple[int, int]:
    """Return how many models can be measured in the remaining time.

    Of every three models that are cut, two are timed ones, since the fit needs the profiled ones.

    Args:
        profiled: models to profile and time.
        timed: models to time only.
        least: profiled models to keep in any case.
        profiled_s: seconds for one profiled model.
        timed_s: seconds for one timed model.
        left_s: remaining seconds.

    Returns:
        (number of profiled models, number of timed ones).
    """
    while profiled * profiled_s + timed * timed_s > left_s and (timed or profiled > least):
        if timed and (profiled <= least or (profiled + timed) % 3):
            timed -= 1
        else:
            profiled -= 1
    return profiled, timed


def main(folder: Path) -> None:
    """Measure the probes of a folder, and write the results beside them.

    Args:
        folder: as `export-probes` wrote it.
    """
    data = json.loads((folder / PROBES_FILE).read_text())

    def sources(names: Sequence[str]) -> list[Source]:
        return [partial(str, folder / name) for name in names]

    def say(what: str, share: float) -> None:
        print(f"\r{what}: {share:4.0%}", end="", file=sys.stderr)

    with np.load(folder / FEED_FILE) as arrays:
        feed = {name: arrays[name] for name in arrays.files}
    job = Job(
        sources([data["baseline"]])[0],
        sources([data["product"]])[0],
        sources(data["profiled"]),
        sources(data["timed"]),
        sources(data["tuned"]),
        feed,
        SessionSettings.from_json(data["settings"]),
        data["threads"],
        data["budget_s"],
        data["seed"],
    )
    result = replace(measure(job, say), plan=data["plan"])
    write_result(folder / RESULT_FILE, result)
    print(
        f"\nbaseline {result.baseline_ms:.3f} ms; wrote {folder / RESULT_FILE}"
        + (f"; {result.warning}" if result.warning else "")
    )

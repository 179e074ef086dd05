"""Run the measurements of a latency table.

Two steps: tune the session settings, then profile whole models operator by operator and time them
in turn with the float model. `targets.latency` runs a job here; `export-probes` ships this folder
to a device, where `main` runs it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from .feeds import read_feed, run_once
from .profiler import NodeTime, profiled_session
from .result import JobResult, versions, write_result
from .sessions import Runnable, SessionSettings, is_large, open_session
from .timing import LONG_S, PASSES, WARM_UP, interleaved_timing, quiet_clock
from .tuning import ROUNDS as TUNING_ROUNDS
from .tuning import Source, tune

PROBES_FILE, FEED_FILE, RESULT_FILE = "probes.json", "inputs.npz", "measured.json"
PROFILE_S = 0.15  # seconds that a model runs under the profiler
PROFILE_RUNS = (12, 40)
ROUNDS = (6, 36)
# With a limit: the same of one model, which is measured once before any is measured again.
SHORT_PROFILE_S, SHORT_PROFILE_RUNS = 0.06, (6, 24)
SHORT_TIMING_S, SHORT_ROUNDS = 0.15, (6, 15)
LEAST_TUNING = 6  # rounds
COMPARISONS = 4  # of a setting on a model, which the limit for tuning is divided among
TUNING_SHARE = 0.25  # of `limit_s`, for tuning
# (rows, columns, outputs) of the float product that shows the highest rate of the runtime.
PRODUCT = (256, 512, 512)
PRODUCT_RUNS = 20
PRECISION = 0.02  # relative half width of a 95 % interval that is not measured again

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Job:
    """Describe the models to measure, all on one feed.

    If all of it would take more than `limit_s` seconds, fewer models are measured, the first ones.

    Attributes:
        baseline: the float model, denominator of all ratios.
        product: a model of the product PRODUCT alone.
        profiled: models to profile and time.
        timed: models to time only.
        tuned: models to tune the session settings on; none leaves the settings as they are.
        feed: inputs by name.
        settings: start of tuning.
        threads: numbers of threads to choose from.
        budget_s: approximate seconds for timing.
        seed: of the order of the models.
        limit_s: limit in seconds for everything; None for no limit.
        least: number of first models of `profiled` to measure in any case.
        rest_s: seconds of the limit to leave for each measured model afterwards.
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
    rest_s: float = 0.0


@dataclass
class _Models:
    """Open the models of a job, and profile those to profile when they are first opened.

    Attributes:
        job: gives the models and the feed.
        settings: of the sessions.
        profiles: operators by number of the model.
    """

    job: Job
    settings: SessionSettings
    profiles: dict[int, list[NodeTime]] = field(default_factory=dict)

    def opened(self, i: int) -> Runnable:
        """Return a session of model number `i`, of the profiled ones and then the timed ones."""
        job = self.job
        content = [*job.profiled, *job.timed][i]()
        if i < len(job.profiled) and i not in self.profiles:
            self.profiles[i], session = profiled_session(
                content, job.feed, self.settings, self._profile_runs
            )
            if not is_large(content):
                return session
            del session  # it keeps weights in two layouts, since it wrote its graph
        return cast(Runnable, open_session(content, self.settings))

    def _profile_runs(self, seconds: float) -> int:
        if self.job.limit_s is None:
            return int(np.clip(PROFILE_S / seconds, *PROFILE_RUNS))
        return int(np.clip(SHORT_PROFILE_S / seconds, *SHORT_PROFILE_RUNS))


def measure(job: Job, report: Report = lambda what, share: None) -> JobResult:
    """Carry out a job on this machine.

    Args:
        job: models to time and to profile.
        report: called with (current step, done share of it).
    """
    begun = time.monotonic()
    machine = versions(job.settings)  # what fails must fail before all is measured

    def left_s() -> float:
        return float("inf") if job.limit_s is None else job.limit_s - (time.monotonic() - begun)

    settings, tuning = tune_settings(job, report)
    report("measuring whole models", 0.0)
    baseline = partial(open_session, job.baseline(), settings)
    models = _Models(job, settings)
    sources = [*job.profiled, *job.timed]
    rounds, passes, budget_s = _rounds(job, settings)
    started = time.monotonic()
    timing = interleaved_timing(
        baseline,
        [partial(models.opened, i) for i in range(len(sources))],
        job.feed,
        rounds,
        job.seed,
        lambda share: report("measuring whole models", share),
        PRECISION,
        budget_s,
        passes,
        job.least,
        lambda: left_s() - job.rest_s * (len(models.profiles) + 1),
        quiet_clock(settings),
        is_large(job.baseline()),
    )
    model_s = (time.monotonic() - started) / max(1, len(timing.ratios))
    rate = _product_rate(job.product, settings)
    shares = (timing.baseline_ms, timing.ratios, timing.intervals)
    return JobResult(
        machine,
        settings,
        tuning,
        *shares,
        [models.profiles[i] for i in sorted(models.profiles)],
        timing.warning,
        rate,
        left_out=len(sources) - len(timing.ratios),
        model_s=model_s,
    )


def tune_settings(
    job: Job, report: Report = lambda what, share: None
) -> tuple[SessionSettings, list[dict[str, Any]]]:
    """Tune the session settings of a job, within TUNING_SHARE of its limit.

    Args:
        job: its models to tune on, first settings and numbers of threads.
        report: called with (current step, done share of it).

    Returns:
        As `tune`.
    """
    if not job.tuned:
        return job.settings, []
    report("tuning the session settings", 0.0)
    if job.limit_s is None:
        return tune(job.tuned, job.feed, job.settings, job.threads, job.seed)
    begun, limit_s = time.monotonic(), TUNING_SHARE * job.limit_s
    once = _seconds(open_session(job.baseline(), job.settings), job.feed)
    repeats = 3 if once < LONG_S else 1
    rounds = limit_s / (2 * COMPARISONS * once * repeats) - WARM_UP
    return tune(
        job.tuned,
        job.feed,
        job.settings,
        job.threads,
        job.seed,
        lambda: limit_s - (time.monotonic() - begun),
        int(np.clip(rounds, LEAST_TUNING, TUNING_ROUNDS)),
        1,
    )


def _rounds(job: Job, settings: SessionSettings) -> tuple[int, int, float]:
    """Return (rounds of each model, passes over all of them, seconds for all of it)."""
    started = time.perf_counter()
    reference = open_session(job.baseline(), settings)
    again_s = time.perf_counter() - started if is_large(job.baseline()) else 0.0
    once = _seconds(reference, job.feed)
    del reference
    repeats = 3 if once < LONG_S else 1
    if job.limit_s is not None:
        rounds = SHORT_TIMING_S / (2 * once * repeats)
        return int(np.clip(rounds, *SHORT_ROUNDS)), 1, job.budget_s
    started = time.perf_counter()
    open_session((job.profiled[0] if job.profiled else job.baseline)(), settings)
    opening = time.perf_counter() - started + again_s
    # A round runs the baseline and a model that is mostly faster.
    models = max(1, len(job.profiled) + len(job.timed))
    rounds = (job.budget_s / models - PASSES * opening) / (2 * once * repeats)
    return int(np.clip(rounds, *ROUNDS)), PASSES, job.budget_s


def _seconds(session: Runnable, feed: Mapping[str, Any]) -> float:
    """Return the seconds of a run after some for warming up."""
    return [run_once(session, feed) for _ in range(WARM_UP + 1)][-1]


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
        feed = read_feed({name: arrays[name] for name in arrays.files})
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

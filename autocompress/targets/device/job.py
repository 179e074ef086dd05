"""The measurement of a latency table: tune the settings, time whole models against the float one, profile them operator by operator."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .profiler import NodeTime, profile_nodes
from .sessions import DEFAULT, SessionSettings, open_session
from .timing import LONG_S, PASSES, WARM_UP, interleaved_timing
from .tuning import Source, tune

FORMAT = 2
PROBES_FILE, FEED_FILE, FOUND_FILE = "probes.json", "inputs.npz", "measured.json"
PROFILE_S = 0.15  # how long a model is run under the profiler
PROFILE_RUNS = (12, 80)
ROUNDS = (6, 36)
TUNING_SHARE = 0.25  # of a limited time
PRODUCT = (
    256,
    512,
    512,
)  # rows, columns, outputs of the float product that shows what the runtime can do at best
PRODUCT_RUNS = 20
PRECISION = 0.02  # relative half width of the 95 % intervals below which nothing is measured again

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Job:
    """What is measured, all on one feed: `profiled` models are profiled and timed, `timed` ones only timed; the settings are tuned on
    the `tuned` ones, from `settings` and the numbers of `threads`; about `budget_s` seconds may go into timing. `product` is a model
    of the product `PRODUCT` alone.

    Where all of it would take more than `limit_s` seconds, fewer models are measured: the first `least` of `profiled` always.
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


@dataclass(frozen=True)
class Found:
    """What a job found; ratios and intervals are those of the profiled models, then of the timed ones, to the baseline.

    Attributes:
        product_rate: multiply-adds per microsecond of a large float product.
        plan: which candidates the models of exported probes are.
        left_out: how many models there was no time for, the last ones of each kind.
    """

    versions: Mapping[str, str]
    settings: SessionSettings
    tuning: Sequence[Mapping[str, Any]]
    baseline_ms: float
    ratios: Sequence[float]
    intervals: Sequence[tuple[float, float]]
    profiles: Sequence[Sequence[NodeTime]]
    warning: str
    product_rate: float
    plan: Mapping[str, Any] = field(default_factory=dict)
    left_out: int = 0


def measure(job: Job, report: Report = lambda what, share: None) -> Found:
    """Carry out a job."""
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
    # A round runs the baseline and one that is mostly faster; a pass begins with rounds that warm up.
    timed_s = PASSES * (opening + 2 * once * repeats * (WARM_UP + ROUNDS[0] / PASSES))
    profiled_s = timed_s + opening + max(PROFILE_S, once * PROFILE_RUNS[0])
    profiled, timed = affordable(
        len(job.profiled), len(job.timed), job.least, profiled_s, timed_s, left_s()
    )
    models = [*job.profiled[:profiled], *job.timed[:timed]]
    budget_s = min(job.budget_s, max(0.0, left_s() - profiled * (profiled_s - timed_s)))
    rounds = (budget_s / max(1, len(models)) - PASSES * opening) / (2 * once * repeats)
    timing = interleaved_timing(
        partial(open_session, job.baseline(), settings),
        [lambda source=source: open_session(source(), settings) for source in models],  # type: ignore[misc]
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
    return Found(
        versions(settings),
        settings,
        tuning,
        *shares,
        profiles,
        timing.warning,
        rate,
        left_out=left_out,
    )


def _product_rate(product: Source, settings: SessionSettings) -> float:
    """Multiply-adds per microsecond of the fastest of some calls."""
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
    """Seconds of making and opening a model, and of running the baseline once."""
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
    """How many models can be profiled and how many only timed within `left_s` seconds, given the seconds of one of each.

    The fit comes first: of every three models that are cut, two are of those that only check it, but `least` are always profiled.
    """
    while profiled * profiled_s + timed * timed_s > left_s and (timed or profiled > least):
        if timed and (profiled <= least or (profiled + timed) % 3):
            timed -= 1
        else:
            profiled -= 1
    return profiled, timed


def versions(settings: SessionSettings = DEFAULT) -> dict[str, str]:
    """Runtime and machine that a measurement belongs to."""
    found = {
        "onnxruntime": str(onnxruntime.__version__),
        "machine": platform.machine(),
        "processor": _processor(),
    }
    if settings.runtime == "openvino":
        import openvino

        found["openvino"] = str(openvino.__version__)
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor()
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    wanted = [
        line
        for line in lines
        if line.startswith(("model name", "flags", "cpu family", "model\t", "Features", "CPU part"))
    ]
    return hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:16]


def write_found(path: Path, found: Found) -> None:
    """Write as JSON what a job found."""
    path.write_text(json.dumps({"format": FORMAT, **asdict(found)}))


def read_found(path: Path) -> Found:
    """Reverse of `write_found`; ValueError, KeyError or TypeError when the file is another's."""
    data = json.loads(path.read_text())
    if data.pop("format") != FORMAT:
        raise ValueError("another format")
    data["settings"] = SessionSettings.from_json(data["settings"])
    data["intervals"] = [(float(low), float(high)) for low, high in data["intervals"]]
    data["profiles"] = [
        [
            NodeTime(
                n[0],
                tuple(n[1]),
                float(n[2]),
                _shapes(n[3]),
                _shapes(n[4]),
                None if n[5] is None else tuple(n[5]),
            )
            for n in profile
        ]
        for profile in data["profiles"]
    ]
    return Found(**data)


def _shapes(found: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((kind, tuple(shape)) for kind, shape in found)


def main(folder: Path) -> None:
    """Measure the probes of a folder and write what was found beside them."""
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
    found = replace(measure(job, say), plan=data["plan"])
    write_found(folder / FOUND_FILE, found)
    print(
        f"\nbaseline {found.baseline_ms:.3f} ms; wrote {folder / FOUND_FILE}"
        + (f"; {found.warning}" if found.warning else "")
    )

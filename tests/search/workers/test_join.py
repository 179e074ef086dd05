"""Workers that join while a search is set up, and what happens when one of them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folder import rows

from autocompress.errors import RunFolderError
from autocompress.results.files import SENSITIVITY_FILE
from autocompress.search.propose.sensitivity_table import read_rows
from autocompress.search.workers.plan import RUN
from autocompress.search.workers.storage import open_study

pytestmark = pytest.mark.slow

SPACE = {"modules": [{"match": "*", "weight_bits": [3, 4, 6, 8], "rank_ratio": [0.5, 1.0]}]}
LEASE_S = 6.0  # so that a killed search is soon known to be dead
SLOW_PROBES = str(Path(__file__).with_name("slow_probes.py"))


def slowly(pause_s: float, others: int, *command: str) -> list[str]:
    slow = [SLOW_PROBES, str(pause_s), str(others), str(LEASE_S)]
    return [sys.executable, "-W", "ignore", *slow, *command]


def search(spec: str, folder: Path, *more: str) -> list[str]:
    folder.parent.mkdir(exist_ok=True)
    space = folder.parent / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    place = ["--space", str(space), "--out", str(folder)]
    return ["search", spec, *place, "--trials", "3", "--finalize-steps", "0", *more]


def entries(url: str) -> dict[int, dict[str, Any]]:
    """Return what the board holds, by the index of the change."""
    try:
        study = open_study(url, create=False)
    except RunFolderError:  # it is being made
        return {}
    found = {
        int(name.rpartition(":")[2]): entry
        for name, entry in study.user_attrs.items()
        if name.startswith("probe:")
    }
    if "://" in url:
        study._storage._backend.engine.dispose()
    return found


def until(condition: Callable[[], bool], process: subprocess.Popen, limit_s: float = 600) -> None:
    limit = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.2)


def begun(url: str, folder: Path) -> Callable[[], bool]:
    """Return a function that is True once the search has taken a change."""
    there = Path(url.removeprefix("sqlite:///"))
    return lambda: (folder / "run.json").is_file() and there.is_file() and bool(entries(url))


def test_a_worker_that_is_killed_while_it_measures_costs_nothing_but_time(
    cnn_spec: str, tmp_path: Path, start
) -> None:
    folder = tmp_path / "run" / "out"
    url = f"sqlite:///{tmp_path}/study.db"
    first = start(slowly(0, 1, *search(cnn_spec, folder, "--storage", url)))
    until(begun(url, folder), first)
    worker = start(slowly(1, 0, "worker", "--storage", url, cnn_spec))

    def took_two() -> bool:
        workers = {entry["worker"] for entry in entries(url).values() if "effect" in entry}
        return len(workers) == 2 and any("effect" not in e for e in entries(url).values())

    until(took_two, worker)
    worker.kill()
    worker.communicate()
    _, errors = first.communicate(timeout=600)
    assert first.returncode == 0, errors
    told = entries(url)
    assert all("effect" in entry for entry in told.values()), "nobody waits for the dead"
    assert len({entry["worker"] for entry in told.values()}) == 2
    assert read_rows(folder / SENSITIVITY_FILE)
    assert len(rows(folder)) == 3


def test_workers_end_with_a_search_that_is_killed_and_the_same_command_goes_on(
    cnn_spec: str, tmp_path: Path, start
) -> None:
    folder = tmp_path / "run" / "out"
    url = f"sqlite:///{tmp_path}/study.db"
    first = start(slowly(0, 1000, *search(cnn_spec, folder, "--storage", url)))
    until(begun(url, folder), first)
    worker = start(slowly(0, 0, "worker", "--storage", url, cnn_spec))
    until(lambda: len(entries(url)) > 1, worker)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    _, errors = worker.communicate(timeout=600)
    assert worker.returncode == 1
    assert "the search has ended before its first trial; nearest: start it again" in errors
    assert not (folder / SENSITIVITY_FILE).exists()
    again = start(slowly(0, 0, *search(cnn_spec, folder, "--storage", url)))
    _, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert len(rows(folder)) == 3
    assert (folder / "front.json").is_file()


def test_workers_of_one_command_measure_together_and_end_with_it(
    cnn_spec: str, tmp_path: Path, start
) -> None:
    folder = tmp_path / "run" / "out"
    url = str(folder / "study.journal")
    command = slowly(0, 1, *search(cnn_spec, folder, "--workers", "2"))
    process = start(command)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    told = entries(url)
    assert len({entry["worker"] for entry in told.values()}) == 2
    assert all("effect" in entry for entry in told.values())
    assert open_study(url, create=False).user_attrs[RUN]["training"] is not None
    assert len(rows(folder)) in (3, 4)


def test_ctrl_c_while_changes_are_measured_ends_the_workers_and_leaves_the_front(
    cnn_spec: str, tmp_path: Path, start
) -> None:
    folder = tmp_path / "run" / "out"
    url = str(folder / "study.journal")
    # The first process would wait for ever: it looks for Ctrl-C before its second measurement.
    process = start(slowly(0.5, 1, *search(cnn_spec, folder, "--workers", "2")))
    until(lambda: (folder / "study.journal").is_file() and bool(entries(url)), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    assert children
    assert not any(os.path.exists(f"/proc/{child}") for child in children)
    assert (folder / "front.json").is_file()
    assert rows(folder) == []

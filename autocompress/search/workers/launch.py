"""Start the other workers of a search: as processes of this machine, or by Ray."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from autocompress.errors import RunFolderError
from autocompress.search.problem.options import Settings
from autocompress.targets.device.processors import OPENMP

CONNECT_S = 5.0


class Running(Protocol):
    """Describe a worker to wait for."""

    def wait(self) -> Any:
        """Block until it has ended."""

    def terminate(self) -> None:
        """End it."""


def launch_workers(
    spec: str, arguments: Mapping[str, Any], settings: Settings, url: str
) -> list[Running]:
    """Start all workers but this process.

    Args:
        spec: of the task, as `load_task` takes it.
        arguments: of the task.
        settings: how many workers, and where they run.
        url: of the storage.

    Returns:
        `settings.workers - 1` workers.

    Raises:
        RunFolderError: there is no such Ray cluster.
    """
    command = worker_arguments(spec, arguments, settings, url)
    count = settings.workers - 1
    if settings.ray is None:
        return start_workers(command, count)
    return start_on_ray(settings.ray, command, count, int(settings.device == "cuda"))


def worker_arguments(
    spec: str, arguments: Mapping[str, Any], settings: Settings, url: str
) -> list[str]:
    """Return the command line of one worker, without `python`.

    Args:
        spec: of the task, as `load_task` takes it.
        arguments: of the task.
        settings: study name and device; the rest is in the study.
        url: of the storage.
    """
    study = settings.study_name
    command = ["-m", "autocompress", "worker", "--storage", url, "--study", study, spec]
    if settings.device:
        command += ["--device", settings.device]
    for name, value in arguments.items():
        command += ["--task-arg", f"{name}={json.dumps(value, default=str)}"]  # JSON is YAML
    return command


def start_workers(arguments: list[str], count: int) -> list[Running]:
    """Start workers as processes of this machine.

    Args:
        arguments: command line without `python`.
        count: number of workers.

    Returns:
        The processes.
    """
    with _without_interrupts():
        return [subprocess.Popen([sys.executable, *arguments]) for _ in range(count)]


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C inside the block, in the main thread only.

    Processes that are started there ignore it too, until they handle it: Ctrl-C in a terminal goes
    to all of them, and would end those that still import.
    """
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # another thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class RayWorker:
    """Hold a task of a Ray cluster.

    Attributes:
        reference: Ray's reference of its result.
    """

    reference: Any

    def wait(self) -> Any:
        """Return its exit code, or None where its node died; then its trial is taken over."""
        import ray

        try:
            return ray.get(self.reference)
        except ray.exceptions.RayError:
            return None

    def terminate(self) -> None:
        """Cancel the task, which ends its process."""
        import ray

        ray.cancel(self.reference)


def start_on_ray(address: str, arguments: list[str], count: int, gpus: int) -> list[Running]:
    """Start workers as tasks of a Ray cluster, one processor each.

    Every node needs this package, and the run folder at the same path.

    Args:
        address: "auto", "ray://host:port", or "local" for a cluster of this machine.
        arguments: command line without `python`.
        count: number of workers.
        gpus: GPUs of each worker.

    Returns:
        The tasks.

    Raises:
        RunFolderError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError:
        raise RunFolderError("search: --ray needs Ray; pip install 'autocompress[ray]'") from None
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    try:
        if colon:  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        if not ray.is_initialized():
            local = {"include_dashboard": False} if address == "local" else {}
            ray.init(address=address, log_to_driver=True, logging_level="ERROR", **local)
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).split("\n")[0]
        raise RunFolderError(
            f"search: no Ray cluster at {address!r} ({first}); "
            "nearest: --ray local, or start one by ray start --head"
        ) from error
    # Ray need not retry: the trial of a node that died is taken over by another worker.
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_work)
    threads = os.environ.get(OPENMP)
    return [RayWorker(remote.remote(arguments, threads)) for _ in range(count)]


def _work(arguments: list[str], threads: str | None) -> int:
    """Run a worker on the node, in a process of its own.

    Ray sets OMP_NUM_THREADS to the processors that it counts for a task; the worker gets what the
    search has.
    """
    environment = {name: value for name, value in os.environ.items() if name != OPENMP}
    if threads is not None:
        environment[OPENMP] = threads
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=False, env=environment).returncode

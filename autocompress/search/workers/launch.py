"""Start the other workers of a search: processes of this machine, or wherever Ray places them."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from autocompress.errors import RunFolderError
from autocompress.search.problem.options import Settings

CONNECT_S = 5.0


class Running(Protocol):
    """A worker to wait for."""

    def wait(self) -> Any:
        """Block until it has ended."""


def worker_arguments(
    spec: str, arguments: Mapping[str, Any], settings: Settings, url: str
) -> list[str]:
    """What follows `python` in the command of one worker."""
    given = ["-m", "autocompress", "worker", "--storage", url, "--study", settings.study_name, spec]
    given += ["--device", settings.device] if settings.device else []
    for name, value in arguments.items():
        given += ["--task-arg", f"{name}={value}"]
    return given


def start_workers(arguments: list[str], count: int) -> list[Running]:
    """As processes of this machine."""
    return [subprocess.Popen([sys.executable, *arguments]) for _ in range(count)]


@dataclass
class RayWorker:
    """A task of a Ray cluster."""

    reference: Any

    def wait(self) -> Any:
        """Its exit code; a node that died gives None: its trial is taken over, the search goes on."""
        import ray

        try:
            return ray.get(self.reference)
        except ray.exceptions.RayError:
            return None


def start_on_ray(address: str, arguments: list[str], count: int, gpus: int) -> list[Running]:
    """As tasks of the Ray cluster at `address` ("auto", "ray://host:port", or "local" for one of this machine), each with a processor and
    `gpus` GPUs of its own. Every node needs this package, and the run folder at the same path. RunFolderError when there is no cluster.
    """
    try:
        import ray
    except ImportError:
        raise RunFolderError("search: --ray needs Ray; pip install 'autocompress[ray]'") from None
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    try:
        if colon:  # Ray itself waits for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        if not ray.is_initialized():
            local = {"include_dashboard": False} if address == "local" else {}
            ray.init(address=address, log_to_driver=True, logging_level="ERROR", **local)
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).split("\n")[0]
        raise RunFolderError(
            f"search: no Ray cluster at {address!r} ({first}); nearest: --ray local, or start one by ray start --head"
        ) from error
    # A node that dies takes its trial with it; another worker takes that over, so that Ray need not start it again.
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_work)
    return [RayWorker(remote.remote(arguments)) for _ in range(count)]


def _work(arguments: list[str]) -> int:
    """On the node: a process of its own, with the Python that Ray runs there."""
    return subprocess.run([sys.executable, *arguments], check=False).returncode

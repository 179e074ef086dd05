"""Give the fixtures that tests of workers share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], subprocess.Popen]]:
    """Start processes, which end with the test, whether it passes or not."""
    running: list[subprocess.Popen] = []

    def started(command: list[str]) -> subprocess.Popen:
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield started
    for process in running:
        if process.poll() is None:
            process.kill()
            process.communicate()

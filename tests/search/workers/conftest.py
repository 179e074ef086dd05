"""Give the fixtures that tests of workers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from forked import Popen


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], Popen]]:
    """Start processes, which end with the test, whether it passes or not."""
    running: list[Popen] = []

    def started(command: list[str]) -> Popen:
        running.append(Popen(command))
        return running[-1]

    yield started
    for process in running:
        if process.poll() is None:
            process.kill()
            process.communicate()

"""Load the example tasks, and give all tests a cache of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

# Threads that spin while they wait make a busy machine many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Workers of pytest-xdist share the machine: the threads of several workers, and of the processes
# that they start, get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

import hypothesis
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
hypothesis.settings.register_profile("untimed", deadline=None)  # no test hangs on a clock
hypothesis.settings.load_profile("untimed")

# They take longest. Begun last, one of them would run alone while the other workers are idle.
FIRST = (
    "search/test_loop.py",
    "search/workers/test_launch.py",
    "search/test_faults.py",
    "huggingface/out/test_numbers.py",
    "search/evaluate/test_recovery.py",
    "architectures/test_hugging_face.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first: workers get whole files, in this order."""
    tests = Path(__file__).parent
    order = {tests / name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path, len(FIRST)))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    os.environ["AUTOCOMPRESS_CACHE"] = str(folder)
    return folder


@contextmanager
def tables_of(least: int, most: int, checked: int, enough_s: float) -> Iterator[None]:
    """Measure so many models for a latency table, so many for its check, each for so long."""
    from autocompress.targets.device import timing
    from autocompress.targets.latency_model import plan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "ENOUGH_S", enough_s)
        for name, count in (("LEAST", least), ("MOST", most), ("CHECKED", checked)):
            patch.setattr(plan, name, count)
        yield


@pytest.fixture(scope="session")
def whole_tables() -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which latency tables are measured as users measure them."""
    from autocompress.targets.device.timing import ENOUGH_S
    from autocompress.targets.latency_model.plan import CHECKED, LEAST, MOST

    return partial(tables_of, LEAST, MOST, CHECKED, ENOUGH_S)


@pytest.fixture(scope="session", autouse=True)
def short_tables(whole_tables: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Measure fewer models for a latency table, in fewer rounds: they take half of a search."""
    with tables_of(6, 12, 6, 0.05):
        yield


@pytest.fixture(scope="session")
def task_files() -> Path:
    """Return the folder of tasks that a newcomer could have written."""
    return Path(__file__).parent / "example_tasks"


@pytest.fixture(scope="session")
def cnn_spec(task_files: Path) -> str:
    return f"{task_files / 'cnn.py'}:task"


@pytest.fixture(scope="session")
def transformer_spec(task_files: Path) -> str:
    return f"{task_files / 'transformer.py'}:task"


@pytest.fixture(scope="session")
def cnn_task(cnn_spec: str):
    from autocompress import load_task

    return load_task(cnn_spec)


@pytest.fixture(scope="session")
def transformer_task(transformer_spec: str):
    from autocompress import load_task

    return load_task(transformer_spec)

"""Load the example tasks, and give all tests a cache of their own."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

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
    "test_examples.py",
    "test_docs.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first: workers get whole files, in this order."""
    tests = Path(__file__).parent
    order = {tests / name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path, len(FIRST)))


def pytest_collection_finish() -> None:
    """Collect garbage less often, and leave out what stays until the end.

    An export makes so many objects that the default takes a tenth of its time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Let writes end in the system's memory: tests end processes, never the machine.

    Programs that tests start do wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    os.environ["AUTOCOMPRESS_CACHE"] = str(folder)
    return folder


@contextmanager
def measured(values: Sequence[tuple[ModuleType, str, Any]]) -> Iterator[None]:
    """Measure latencies with other constants."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in values:
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="session")
def whole_tables() -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which latencies are measured as users measure them."""
    from measuring import fewer_measurements

    values = [(module, name, getattr(module, name)) for module, name, _ in fewer_measurements()]
    return partial(measured, values)


@pytest.fixture(scope="session", autouse=True)
def short_tables(whole_tables: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Measure fewer models, in fewer rounds."""
    from measuring import fewer_measurements

    with measured(fewer_measurements()):
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

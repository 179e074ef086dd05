"""Measure whole latency tables here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest


@pytest.fixture(scope="module", autouse=True)
def tables(whole_tables: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with whole_tables():
        yield

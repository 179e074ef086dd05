"""Measure whole latency tables here."""

from __future__ import annotations

import pytest

from autocompress.targets.latency_model import plan

WHOLE = {name: getattr(plan, name) for name in ("LEAST", "MOST", "CHECKED")}


@pytest.fixture(scope="module", autouse=True)
def whole_tables() -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, count in WHOLE.items():
            patch.setattr(plan, name, count)
        yield

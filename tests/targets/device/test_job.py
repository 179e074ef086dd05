"""Cut a job to its time, and keep what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autocompress.targets.device.job import affordable
from autocompress.targets.device.profiler import NodeTime
from autocompress.targets.device.result import JobResult as Found
from autocompress.targets.device.result import read_result as read_found
from autocompress.targets.device.result import write_result as write_found
from autocompress.targets.device.sessions import SessionSettings


@pytest.mark.parametrize(
    ("left_s", "expected"),
    [
        (100.0, (9, 6)),
        (15.0, (9, 6)),
        (14.0, (8, 6)),
        (13.0, (8, 5)),
        (12.0, (8, 4)),
        (9.0, (7, 2)),
    ],
)
def test_of_three_models_that_are_cut_two_only_check(
    left_s: float, expected: tuple[int, int]
) -> None:
    assert affordable(9, 6, 2, 1.0, 1.0, left_s) == expected


def test_the_least_number_is_profiled_without_any_time() -> None:
    assert affordable(9, 6, 4, 1.0, 1.0, 0.0) == (4, 0)
    assert affordable(3, 0, 3, 1.0, 1.0, 0.0) == (3, 0)
    assert affordable(0, 0, 0, 1.0, 1.0, 0.0) == (0, 0)


def test_what_was_found_is_read_as_it_was_written(tmp_path: Path) -> None:
    node = NodeTime("MatMul", ("p", "n"), 1.5, (("float", (1, 8)),), (("float", (1, 4)),), ("w",))
    blind = NodeTime("FullyConnected", ("p",), 2.0, weights=None)
    found = Found(
        {"onnxruntime": "1"},
        SessionSettings(threads=2, disabled_optimizers=("A",)),
        [{"setting": "2 threads", "ratios": [0.5], "taken": True}],
        3.0,
        [1.0, 0.5],
        [(0.9, 1.1), (0.4, 0.6)],
        [[node, blind]],
        "busy",
        20.0,
        {"model": "m"},
        1,
    )
    path = tmp_path / "found.json"
    write_found(path, found)
    assert read_found(path) == found
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "format": 1}))
    with pytest.raises(ValueError, match="another format"):
        read_found(path)

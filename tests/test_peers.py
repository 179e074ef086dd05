"""Rows of other tools: made once, with a reason where they fail, and compared with ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peer_rows import (
    EQUAL,
    MISSING,
    Row,
    against,
    as_records,
    dominates,
    figures_of,
    print_table,
)
from benchmarks.peers import made, version_of

WIDE = 1000  # bytes of a file


def row(folder: Path, method: str, size: int, time: float, test: float) -> Row:
    path = folder / f"{method}.onnx"
    path.write_bytes(bytes(size))
    return Row(method, path, 1.0, "", test, time, (0.9 * time, 1.1 * time), "1.2")


def test_a_file_is_made_once(tmp_path: Path) -> None:
    calls = []

    def write(subject: object, path: Path) -> None:
        calls.append(subject)
        path.write_bytes(b"model")

    first = made("A tool, int8", write, "subject", tmp_path, "1.2")
    assert (first.path.read_bytes(), first.reason, first.version) == (b"model", "", "1.2")
    later = made("A tool, int8", write, "subject", tmp_path, "1.3")
    assert later == first, "of the version that made it"
    assert calls == ["subject"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no kernel\nand more"), "ValueError: no kernel"),
        (SystemExit("pip install it"), "SystemExit: pip install it"),
        (ModuleNotFoundError(), "ModuleNotFoundError: "),
    ],
)
def test_a_failure_is_a_row_with_its_reason(
    tmp_path: Path, error: BaseException, reason: str
) -> None:
    calls = []

    def write(subject: object, path: Path) -> None:
        calls.append(subject)
        raise error

    for _ in range(2):
        assert made("tool", write, None, tmp_path, "1.2").reason == reason
    assert len(calls) == 1, "what failed is not tried again"


def test_a_tool_that_is_not_installed_is_tried_when_it_is(tmp_path: Path) -> None:
    def write(subject: object, path: Path) -> None:
        path.write_bytes(b"model")

    assert version_of("onnxruntime")
    assert not version_of("no-such-tool")
    assert made("tool", write, None, tmp_path, "").reason == MISSING
    assert not made("tool", write, None, tmp_path, "1.2").reason


def test_weights_beside_a_file_count(tmp_path: Path) -> None:
    made_row = row(tmp_path, "a", 10, 1.0, 0.5)
    (tmp_path / "a.onnx.data").write_bytes(bytes(90))
    assert made_row.size == 100


def test_dominance_needs_all_three(tmp_path: Path) -> None:
    peer = row(tmp_path, "peer", 500, 0.5, 0.9)
    for size, time, test, expected in (
        (400, 0.5, 0.9, True),
        (500, 0.4, 0.9, True),
        (500, 0.5, 0.95, True),
        (500, 0.5, 0.9, False),
        (400, 0.6, 0.9, False),
        (400, 0.4, 0.8999, False),
    ):
        assert dominates(row(tmp_path, "ours", size, time, test), peer) == expected


def test_equal_accuracy_has_a_margin(tmp_path: Path) -> None:
    peer = row(tmp_path, "peer", 600, 0.5, 0.9)
    near = row(tmp_path, "near", 200, 0.4, 0.9 - 0.9 * EQUAL * 0.9)
    far = row(tmp_path, "far", 100, 0.1, 0.8)
    assert against(peer, [near, far], 0.9) == pytest.approx((3.0, 1.25))
    assert against(peer, [far], 0.9) == (0.0, 0.0)


def test_figures_and_failures_of_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = [
        row(tmp_path, "ours, trial 1", 200, 0.5, 0.9),
        row(tmp_path, "ours, trial 2", 400, 0.4, 0.92),
        Row("ours, trial 3", tmp_path / "none.onnx", 0.5, "compresses nothing: 990 bytes"),
    ]
    peers = [
        row(tmp_path, "static", 300, 0.6, 0.9),
        row(tmp_path, "weights", 300, 0.2, 0.91),
        Row("broken", tmp_path / "none.onnx", 0.5, "ValueError: no kernel"),
        Row("absent", tmp_path / "none.onnx", 0.0, MISSING),
    ]
    records = as_records([row(tmp_path, "float", WIDE, 1.0, 0.92), *ours, *peers])
    print_table("net", records)
    assert figures_of("net", records) == {
        "net_ours_dominates": 0.5,
        "net_smaller_at_equal_accuracy": 0.75,
        "net_faster_at_equal_accuracy": 0.5,
        "net_peers_failed": 1,
    }
    assert records[1]["faster_interval"] == pytest.approx([1 / 0.55, 1 / 0.45])
    printed = capsys.readouterr().out
    assert "ValueError: no kernel" in next(
        line for line in printed.splitlines() if line.startswith("broken")
    )
    assert "5.00x" in printed, "ours, trial 1, beside the float file"


def test_without_a_file_of_ours_nothing_is_compared(tmp_path: Path) -> None:
    rows = [row(tmp_path, "float", WIDE, 1.0, 0.92), row(tmp_path, "static", 300, 0.6, 0.9)]
    assert figures_of("net", as_records(rows)) == {"net_peers_failed": 0}

"""Count processors by affinity, control group and OMP_NUM_THREADS."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autocompress.targets.device import processors as module
from autocompress.targets.device.processors import processors


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the mount point of control groups of a machine with 8 processors and no limits."""
    monkeypatch.setattr(module, "AVAILABLE", 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "CGROUPS", tmp_path)
    monkeypatch.setattr(module, "OWN", tmp_path / "own")
    return tmp_path


def test_without_limits_all_processors_are_used(machine: Path) -> None:
    assert processors() == 8
    (machine / "own").write_text("0::/user\n")
    (machine / "user").mkdir()
    (machine / "user" / "cpu.max").write_text("max 100000\n")
    assert processors() == 8


def test_a_system_without_affinity_has_all_processors(machine: Path, monkeypatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert module._available() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert module._available() == 1


def test_processes_share_the_machine_and_not_the_limit_of_each(machine: Path, monkeypatch) -> None:
    assert [processors(n) for n in (1, 2, 3, 9)] == [8, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert [processors(n) for n in (1, 2, 3, 9)] == [4, 4, 2, 1]


def test_a_line_says_why_processors_are_left_alone(machine: Path, monkeypatch) -> None:
    assert module.limit_words() == ""
    monkeypatch.setattr(module, "AVAILABLE", 6)
    said = "threads: {} of 8 processors are used, by {}"
    assert module.limit_words() == said.format(6, "the affinity of the process")
    (machine / "own").write_text("0::/\n")
    (machine / "cpu.max").write_text("150000 100000\n")
    assert module.limit_words() == said.format(2, "the quota of the control group")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert module.limit_words() == said.format(1, "OMP_NUM_THREADS=1")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("3", 3), ("3,2", 3), (" 2 ", 2), ("20", 8), ("0", 8), ("", 8), ("all", 8), ("-1", 8)],
)
def test_openmp_limits_the_threads(machine: Path, monkeypatch, given: str, expected: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert processors() == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [("50000 100000", 1), ("200000 100000", 2), ("250000 100000", 3)]
)
def test_the_quota_of_a_control_group_is_rounded_up(
    machine: Path, quota: str, expected: int
) -> None:
    (machine / "own").write_text("0::/\n")
    (machine / "cpu.max").write_text(f"{quota}\n")
    assert processors() == expected


def test_the_tightest_of_nested_groups_counts(machine: Path) -> None:
    (machine / "own").write_text("12:memory:/a\n0::/slice/job\n")
    (machine / "slice" / "job").mkdir(parents=True)
    (machine / "slice" / "cpu.max").write_text("300000 100000\n")
    (machine / "slice" / "job" / "cpu.max").write_text("max 100000\n")
    assert processors() == 3
    (machine / "slice" / "job" / "cpu.max").write_text("100000 100000\n")
    assert processors() == 1


def test_control_groups_of_version_1_count(machine: Path) -> None:
    (machine / "own").write_text("5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n")
    (machine / "cpu").mkdir()
    (machine / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    (machine / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert processors() == 4, "the path of the host is not there"
    (machine / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert processors() == 8


def test_odd_files_limit_nothing(machine: Path) -> None:
    (machine / "own").write_text("\n0::/\nx\n")
    (machine / "cpu.max").write_text("")
    assert processors() == 8
    (machine / "cpu.max").write_text("5 0\n")
    assert processors() == 8

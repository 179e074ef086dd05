"""Cut a job to its time, and keep what it found."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from autocompress.targets.device import job as job_module
from autocompress.targets.device import profiler, sessions, timing
from autocompress.targets.device.job import Job, measure, tune_settings
from autocompress.targets.device.profiler import NodeTime
from autocompress.targets.device.result import JobResult as Found
from autocompress.targets.device.result import read_result as read_found
from autocompress.targets.device.result import versions
from autocompress.targets.device.result import write_result as write_found
from autocompress.targets.device.sessions import DEFAULT, SessionSettings
from autocompress.targets.kernel_models import product_model

FEED = {"x": np.zeros((1, 8, 64), np.float32)}


class Clock:
    """A clock that moves by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


def job(layered: bytes, models: int, **changes: object) -> Job:
    sources = [lambda: layered] * models
    product = product_model
    given = Job(lambda: layered, product, sources[:-1], sources[-1:], [], FEED, DEFAULT, [1], 1.0)
    return replace(given, **changes)


def test_models_are_profiled_and_timed_in_one_session(layered: bytes, monkeypatch) -> None:
    opened = []
    real = sessions.open_session

    def counted(model: bytes, *given: object, **named: object) -> object:
        opened.append(bool(given[1:2] and given[1]))
        return real(model, *given, **named)

    for module in (job_module, profiler):
        monkeypatch.setattr(module, "open_session", counted)
    result = measure(job(layered, 3, limit_s=600.0, least=2))
    assert len(result.ratios) == 3
    assert len(result.profiles) == 2
    assert result.left_out == 0
    assert opened.count(True) == 2, "each profiled model is opened for its profile"
    assert {node.operator for node in result.profiles[1]} >= {"MatMul"}
    assert result.model_s > 0


@pytest.mark.parametrize(("limit_s", "count"), [(0.0, 2), (18.0, 3), (25.0, 4), (100.0, 6)])
def test_the_last_models_are_left_out_when_the_time_is_over(
    layered: bytes, monkeypatch, limit_s: float, count: int
) -> None:
    """Each model takes 5 s of a clock that moves by hand."""
    clock = Clock()
    for module in (job_module, timing):
        monkeypatch.setattr(module.time, "monotonic", clock.monotonic)

    def slow() -> bytes:
        clock.seconds += 5
        return layered

    slow_job = replace(
        job(layered, 6, limit_s=limit_s, least=2), profiled=[slow] * 5, timed=[slow], budget_s=0.0
    )
    result = measure(replace(slow_job, rest_s=1.0))
    assert (len(result.ratios), result.left_out) == (count, 6 - count)
    assert len(result.profiles) == min(count, 5)


def test_without_models_to_tune_on_the_settings_stay(layered: bytes) -> None:
    settings = SessionSettings(disabled_optimizers=("SkipLayerNormFusion",))
    result = measure(job(layered, 2, limit_s=0.0, least=1, settings=settings))
    assert (result.settings, result.tuning) == (settings, [])


def test_tuning_takes_its_share_of_the_limit(layered: bytes, monkeypatch) -> None:
    asked = []

    def tuned(models, feed, settings, threads, seed, left_s, rounds, passes):
        asked.append((left_s(), rounds, passes))
        return settings, []

    monkeypatch.setattr(job_module, "tune", tuned)
    tune_settings(job(layered, 2, limit_s=1000.0, tuned=[lambda: layered]))
    ((left_s, rounds, passes),) = asked
    assert left_s <= 250
    assert (rounds, passes) == (30, 1)


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


ARM = "processor\t: 0\nBogoMIPS\t: {mips}\nFeatures\t: fp asimd\nCPU implementer\t: {maker}\n"
ARM += "CPU variant\t: {variant}\nCPU part\t: 0xd40\n\nprocessor\t: 1\n"
RISC_V = "processor\t: 0\nhart\t: {hart}\nisa\t: rv64gc\nuarch\t: {name}\n\nprocessor\t: 1\n"


def test_processors_on_linux_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(cpuinfo: str) -> str:
        monkeypatch.setattr(Path, "is_file", lambda path: True)
        monkeypatch.setattr(Path, "read_text", lambda path, *_: cpuinfo)
        return versions()["processor"]

    monkeypatch.setattr(sys, "platform", "linux")
    usual = named(ARM.format(mips=50, maker="0x41", variant="0x1"))
    assert named(ARM.format(mips=51, maker="0x41", variant="0x1")) == usual
    assert named(ARM.format(mips=50, maker="0x48", variant="0x1")) != usual, "another maker's part"
    assert named(ARM.format(mips=50, maker="0x41", variant="0x3")) != usual
    usual = named(RISC_V.format(hart=1, name="sifive,u74-mc"))
    assert named(RISC_V.format(hart=2, name="sifive,u74-mc")) == usual
    assert named(RISC_V.format(hart=1, name="thead,c910")) != usual


def test_chips_of_apple_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.processor", lambda: "arm")
    for chip in ("Apple M1", "Apple M3 Max"):

        def sysctl(command: list[str], chip: str = chip, **_: object) -> SimpleNamespace:
            assert command[1:] == ["-n", "machdep.cpu.brand_string"]
            return SimpleNamespace(stdout=f"{chip}\n")

        monkeypatch.setattr("subprocess.run", sysctl)
        assert versions()["processor"] == chip

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("sysctl")

    monkeypatch.setattr("subprocess.run", missing)
    assert versions()["processor"] == "arm"

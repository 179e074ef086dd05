"""Kernels are chosen by measuring them, once, and whether one rounds its inputs is seen from what it returns."""

from __future__ import annotations

import json
from pathlib import Path

from autocompress.targets import kernels
from autocompress.targets.kernels import FOLDED, KernelChoice


def test_answers_are_measured_once_and_remembered(tmp_path: Path, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(kernels, "_time_matmul", lambda *shape: calls.append(shape) or 4)
    path = tmp_path / "kernels" / "one.json"
    choice = KernelChoice(1, path)
    assert [choice.matmul_level(4, 64, 32, 4, 32) for _ in range(2)] == [4, 4]
    assert KernelChoice(1, path).matmul_level(4, 64, 32, 4, 32) == 4
    assert calls == [(1, 4, 64, 32, 4, 32)]
    path.write_text("{")
    assert KernelChoice(1, path).matmul_level(4, 64, 32, 4, 32) == 4, "a damaged file is measured again"
    assert json.loads(path.read_text())


def test_real_measurements_give_a_kernel_that_runs() -> None:
    choice = KernelChoice(1)
    for bits in (2, 4, 8):
        assert choice.matmul_level(1, 256, 64, bits, 32) in (FOLDED, 0, 4)
        assert choice.gather_stays_packed(3, 100, 64, bits, 32) in (True, False)


def test_float_arithmetic_does_not_round_inputs() -> None:
    choice = KernelChoice(1)
    for bits in (2, 4, 8):
        assert not choice.matmul_rounds_inputs(3, 100, 48, bits, 32, 0)

"""Kernels are chosen by measuring them, once, and whether one rounds its inputs is seen from what
it returns.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from autocompress.targets import kernel_timing, kernels
from autocompress.targets.device.sessions import DEFAULT, open_session
from autocompress.targets.device.timing import Timing
from autocompress.targets.kernel_timing import FOLDED, liked_multiple
from autocompress.targets.kernels import KernelChoice, kernel_choice
from autocompress.targets.target import parse_target


def test_answers_are_measured_once_and_remembered(tmp_path: Path, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(kernels, "fastest_matmul", lambda *shape: calls.append(shape) or 4)
    path = tmp_path / "kernels" / "one.json"
    choice = KernelChoice(path=path)
    assert [choice.matmul_level(4, 64, 32, 4, 32) for _ in range(2)] == [4, 4]
    assert KernelChoice(path=path).matmul_level(4, 64, 32, 4, 32) == 4
    assert calls == [(DEFAULT, 4, 64, 32, 4, 32)]
    path.write_text("{")
    assert KernelChoice(path=path).matmul_level(4, 64, 32, 4, 32) == 4, (
        "a damaged file is measured again"
    )
    assert json.loads(path.read_text())


def test_the_width_that_a_kernel_likes_is_read_from_its_times() -> None:
    steps = {width: float(-(-width // 8)) for width in range(33, 97)}
    assert liked_multiple(steps) == 8, "time grows by steps of eight channels"
    assert liked_multiple({width: float(width) for width in steps}) == 1, "each channel costs"
    odd = {width: 1.0 + 0.3 * (width % 16 > 0) for width in steps}
    assert liked_multiple(odd) == 16, "an odd width takes longer than the full one"


@pytest.mark.slow
def test_widths_are_measured_for_both_kinds_of_kernel(tmp_path: Path) -> None:
    choice = KernelChoice(path=tmp_path / "kernels.json")
    found = {kind: choice.width_multiple(kind) for kind in ("linear", "conv")}
    assert set(found.values()) <= {1, 2, 4, 8, 16}
    assert set(json.loads((tmp_path / "kernels.json").read_text())) == {
        "linear width multiple",
        "conv width multiple",
    }


def test_all_kernels_that_are_timed_run_and_give_the_same_shape(monkeypatch) -> None:
    compared = []

    def run(baseline: bytes, others: dict[int, bytes], feed: dict, threads: int) -> int:
        shapes = {
            open_session(model, threads).run(None, feed)[0].shape
            for model in (baseline, *others.values())
        }
        compared.append((sorted(others), shapes))
        return FOLDED

    monkeypatch.setattr(kernel_timing, "_fastest", run)
    choice = KernelChoice()
    for bits in (2, 4, 8):
        assert choice.matmul_level(3, 100, 64, bits, 32) == FOLDED
        assert not choice.gather_stays_packed(3, 100, 64, bits, 32)
    assert compared == [([0, 4], {(3, 64)}), ([1], {(3, 64)})] * 3


def test_the_faster_kernel_is_chosen(monkeypatch) -> None:
    for ratios, expected in (((0.5, 0.9), 4), ((0.9, 0.5), 0), ((1.2, 1.1), FOLDED)):
        timing = Timing(1.0, ratios, ((0.0, 1.0), (0.0, 1.0)))
        monkeypatch.setattr(
            kernel_timing, "interleaved_timing", lambda *arguments, timing=timing: timing
        )
        assert KernelChoice().matmul_level(1, 64, 32, 4, 32) == expected


def test_float_arithmetic_does_not_round_inputs() -> None:
    choice = KernelChoice()
    for bits in (2, 4, 8):
        assert not choice.matmul_rounds_inputs(3, 100, 48, bits, 32, 0)


def test_answers_of_another_version_of_the_runtime_do_not_count(monkeypatch) -> None:
    def path(runtime: str, version: str, present: bool = True) -> Path | None:
        monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(__version__=version))
        monkeypatch.setattr(kernels, "missing_here", lambda target: "" if present else "missing")
        return kernel_choice(parse_target("t", {"runtime": runtime})).path

    assert path("openvino", "1") == path("openvino", "1")
    assert path("openvino", "1") != path("openvino", "2")
    assert path("onnxruntime", "1") == path("onnxruntime", "2")
    absent = path("openvino", "1", present=False)
    assert absent not in (path("openvino", "1"), path("onnxruntime", "1"))
    monkeypatch.setitem(sys.modules, "openvino", None)  # an import of it fails
    monkeypatch.setattr(kernels, "missing_here", lambda target: "missing")
    assert kernel_choice(parse_target("t", {"runtime": "openvino"})).path == absent

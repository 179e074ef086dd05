"""Targets are small files; what is wrong in one is said in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import yaml

from autocompress.errors import TargetError
from autocompress.targets import target as target_module
from autocompress.targets.target import FILES, find_target, parse_target, target_names

DEVICE = {
    "float_gops": {"value": 10, "source": "data sheet"},
    "int8_gops": {"value": 100, "source": "data sheet"},
    "bandwidth_gb_s": {"value": 5, "source": "data sheet"},
    "overhead_us": {"value": 2, "source": "measured"},
}


def test_built_in_targets_are_read() -> None:
    names = target_names()
    assert {"onnxruntime-cpu", "onnxruntime-cuda", "openvino-cpu"} <= set(names)
    assert {"analytic:phone-npu", "analytic:microcontroller", "analytic:jetson-orin"} <= set(names)
    for name in names:
        target = find_target(name, present=False)
        assert target.name == name
        is_computed = name.startswith("analytic:") or name == "litert-micro"
        assert (target.figures is not None) == is_computed
        if target.figures is not None:
            assert all(target.figures.sources.values())


def test_microcontrollers_compute_with_integers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    target = find_target("litert-micro", present=False)
    assert target.litert
    assert target.settings.runtime == "litert", "files are verified in LiteRT"
    assert target.integers_only
    assert target.integer_ends
    assert target.dynamic_kinds == ()
    assert {"CONV_2D", "QUANTIZE"} <= set(target.operators)
    assert "EMBEDDING_LOOKUP" not in target.operators
    phone = find_target("litert-cpu", present=False)
    assert (phone.integers_only, phone.integer_ends, phone.operators) == (False, False, ())
    monkeypatch.setattr(target_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TargetError, match="LiteRT is not installed; pip install 'autocompress"):
        find_target("litert-micro")


def test_a_file_is_a_target(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    data = yaml.safe_load((FILES / "onnxruntime-cpu.yaml").read_text())
    path.write_text(yaml.safe_dump({**data, "threads": 2}))
    target = find_target(str(path))
    assert target.settings.threads == 2
    assert target.weight_bits == find_target("onnxruntime-cpu").weight_bits
    assert parse_target("t", {"runtime": "onnxruntime", "threads": [1, 2]}).threads == (1, 2)
    assert target.described == {**{k: v for k, v in data.items() if k != "portable"}, "threads": 2}
    assert find_target(str(path), portable=False).described == target.described
    assert parse_target("t", {"runtime": "onnxruntime", "threads": 2}) == replace(
        parse_target("t", {"runtime": "onnxruntime"}), threads=(2,)
    ), "its words are no part of it"
    assert parse_target("t", {"runtime": "onnxruntime", "threads": "all"}).threads[0] == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"runtime": "onnxruntim"},
            "target t: runtime 'onnxruntim' is unknown; nearest: onnxruntime",
        ),
        (
            {"runtime": "onnxruntime", "thread": 1},
            "target t: unknown key 'thread'; nearest: threads",
        ),
        (
            {"runtime": "onnxruntime", "threads": 0},
            "threads must be a whole number of at least 1, a list of them, or all, got 0",
        ),
        (
            {"runtime": "onnxruntime", "stores": {"weight_bits": [9, 32]}},
            "stores: weight_bits 9 is unknown; nearest: ",
        ),
        (
            {"runtime": "onnxruntime", "stores": {"weight_bits": [8]}},
            "weight_bits must hold 32",
        ),
        (
            {"runtime": "onnxruntime", "executes": {"weight_only": "yes"}},
            "weight_only must be true or false, got 'yes'",
        ),
        ({"runtime": "analytic"}, "figures belong to runtime 'analytic'"),
        ({"runtime": "onnxruntime", "device": DEVICE}, "figures belong to runtime 'analytic'"),
        (
            {
                "runtime": "analytic",
                "device": {**DEVICE, "int8_gops": {"value": -3, "source": "x"}},
            },
            "int8_gops -3 is impossible; nearest valid",
        ),
        (
            {
                "runtime": "analytic",
                "device": {**DEVICE, "bandwidth_gb_s": {"value": float("nan"), "source": "x"}},
            },
            "bandwidth_gb_s nan is imp",
        ),
        (
            {"runtime": "analytic", "device": {**DEVICE, "float_gops": 10}},
            "float_gops needs a value and its source, got 10",
        ),
        (
            {"runtime": "analytic", "device": {**DEVICE, "flops": 10}},
            "unknown key 'flops'; nearest: float_gops",
        ),
        (
            {"runtime": "onnxruntime", "stores": {"integer_ends": True}},
            "stores: integer_ends is of .tflite files; nearest: runtime litert",
        ),
        (
            {"runtime": "litert", "executes": {"operators": "CONV_2D"}},
            "executes: operators must be a list of names such as [CONV_2D], got 'CONV_2D'",
        ),
        ({"runtime": "openvino", "device": DEVICE}, "which needs them, and to 'litert'"),
        ("cpu", "expected a mapping with the keys runtime"),
        ({"runtime": "litert"}, "stores: weight_bits: .tflite files have no 2; nearest: [4, 8,"),
        (
            {"runtime": "litert", "stores": {"weight_bits": [8, 32]}},
            "stores: sparsity: .tflite files have none; nearest: false",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_said(data: object, message: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse_target("t", data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_here_is_said(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(TargetError) as caught:
        find_target("onnxruntime-cup")
    assert str(caught.value) == (
        "target 'onnxruntime-cup' is unknown; nearest: onnxruntime-cpu; "
        f"valid: {', '.join(target_names())}"
    )
    with pytest.raises(
        TargetError,
        match="target 'zzz' is unknown; valid: litert-cpu, litert-micro, onnxruntime-cpu, ",
    ):
        find_target("zzz")
    with pytest.raises(
        TargetError, match=r"no such file; built in: litert-cpu, litert-micro, onnxruntime-cpu"
    ):
        find_target("mine.yaml")
    path = tmp_path / "t.yaml"
    path.write_text("runtime: onnxruntime\nprovider: NoSuchProvider\n")
    with pytest.raises(
        TargetError,
        match=r"ONNX Runtime has no NoSuchProvider here; it has: .*CPUExecutionProvider",
    ):
        find_target(str(path))
    path.write_text("runtime: [")
    with pytest.raises(TargetError, match="cannot be read"):
        find_target(str(path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        TargetError, match=r"OpenVINO is not installed; pip install 'autocompress\[openvino\]'"
    ):
        find_target("openvino-cpu")


def test_a_provider_that_cannot_start_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package for CUDA lists the provider also where the GPU or its libraries are missing."""
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    opened = ["CPUExecutionProvider"]
    stand_in = SimpleNamespace(get_providers=lambda: opened, disable_fallback=lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: stand_in)
    target_module._provider_fault.cache_clear()
    words = r"target onnxruntime-cuda: .* cannot start CUDA"
    with pytest.raises(TargetError, match=words) as error:
        find_target("onnxruntime-cuda")
    assert "\n" not in str(error.value)
    target_module._provider_fault.cache_clear()
    opened.insert(0, "CUDAExecutionProvider")
    assert find_target("onnxruntime-cuda").provider == "CUDAExecutionProvider"
    target_module._provider_fault.cache_clear()


def test_a_device_of_openvino_that_is_not_here_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "t.yaml"
    path.write_text("runtime: openvino\nprovider: NOSUCH\n")
    with pytest.raises(TargetError, match="no session opens on NOSUCH here"):
        find_target(str(path))


def test_what_a_target_cannot_execute_is_refused_by_name() -> None:
    target = find_target("openvino-cpu", present=False)
    assert target.executes("weight_bits", 4)
    assert not target.executes("weight_bits", 3)
    assert not target.executes("sparsity", 0.5)
    assert target.executes("rank_ratio", 0.5)
    assert target.plain_kinds == ("embedding",), (
        "a factorised one ends OpenVINO 2026.4.1 with a division by zero"
    )
    with pytest.raises(
        TargetError,
        match="weight_bits 3 cannot be stored by target openvino-cpu; nearest valid value: 4",
    ):
        target.check("space: rule 1", "weight_bits", 3)

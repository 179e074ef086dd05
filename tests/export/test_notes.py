"""Write the README of a point: its numbers, and lines that open its session."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from autocompress import Candidate, FrontPoint, Measurement, ModuleConfig
from autocompress.export.arithmetic import PORTABLE
from autocompress.export.artifact import RECIPE_FORMAT, write_model
from autocompress.export.notes import DYNAMIC_RANGES, UNPACKED, write_notes
from autocompress.targets.device.litert.flat_file import FlatFile, Rows
from autocompress.targets.device.sessions import SessionSettings
from autocompress.task.task import Pretrained

BASE = Measurement(1000, 2.0, 0.9, 0.89, {"f1_score": 0.8, "gone": 1.0}, True, 4000)
MEASURED = Measurement(250, 0.5, 0.875, None, {"f1_score": 0.75}, True, 2000)


def readme(
    folder: Path,
    settings: SessionSettings,
    config: ModuleConfig | None = None,
    kind: str = "",
    **more: object,
) -> str:
    recipe = {"format": RECIPE_FORMAT, "portable": True, "modules": {"a": {"kind": kind}}, **more}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    candidate = Candidate.of({} if config is None else {"a": config})
    point = FrontPoint(7, candidate, MEASURED, MEASURED, "models/0007")
    write_notes(folder, point, BASE, ("ids", "mask"), "onnxruntime-cpu", settings)
    return (folder / "README.md").read_text()


def test_the_readme_says_before_and_after(tmp_path: Path) -> None:
    text = readme(tmp_path, SessionSettings())
    for line in (
        "# model.onnx, trial 7",
        "| size (bytes) | 1000 | 250 | 4.00x smaller |",
        "| in memory (bytes) | 4000 | 2000 | |",
        "| latency (ms, onnxruntime-cpu) | 2.000 | 0.500 | 4.00x as fast |",
        "| accuracy (validation) | 0.9000 | 0.8750 | |",
        "| accuracy (test) | 0.8900 | not measured | |",
        "| f1 score (validation) | 0.8000 | 0.7500 | |",
    ):
        assert line in text.splitlines()
    assert "gone" not in text


def test_an_error_is_shown_by_its_name_and_without_the_sign(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        json.dumps({"format": RECIPE_FORMAT, "portable": True, "modules": {}})
    )
    metrics = {"accuracy": 0.38, "accuracy_token_dropout": -250.0, "cer": -0.02}
    metrics["accuracy_top5"] = 0.7
    base = Measurement(1000, 2.0, -55.0, None, metrics)
    measured = Measurement(500, 1.0, -57.0, None, {**metrics, "accuracy_token_dropout": -260.0})
    point = FrontPoint(7, Candidate(), measured, measured, "models/0007")
    more = ("onnxruntime-cpu", SessionSettings(), Pretrained("m", "t", "perplexity"))
    write_notes(tmp_path, point, base, ("ids",), *more)
    lines = (tmp_path / "README.md").read_text().splitlines()
    for line in (
        "| perplexity (validation) | 55.0000 | 57.0000 | |",
        "| accuracy (validation) | 0.3800 | 0.3800 | |",
        "| cer (validation) | 0.0200 | 0.0200 | |",
        "| accuracy top5 (validation) | 0.7000 | 0.7000 | |",
        "| perplexity token dropout (validation) | 250.0000 | 260.0000 | |",
    ):
        assert line in lines
    assert "in memory" not in "".join(lines), "nobody measured it"


@pytest.mark.parametrize(
    ("config", "kind", "lines"),
    [
        (ModuleConfig(pruning_ratio=0.5), "linear", set()),
        (ModuleConfig(8), "linear", {UNPACKED}),
        (ModuleConfig(8, 8), "conv", {UNPACKED, PORTABLE}),
        (ModuleConfig(8, 8, activation_mode="static"), "linear", {UNPACKED, PORTABLE}),
        (ModuleConfig(8, 8), "linear", {UNPACKED, PORTABLE, DYNAMIC_RANGES}),
    ],
)
def test_the_readme_tells_only_what_applies(
    config: ModuleConfig, kind: str, lines: set[str], tmp_path: Path
) -> None:
    text = readme(tmp_path, SessionSettings(), config, kind).splitlines()
    assert {line for line in (UNPACKED, PORTABLE, DYNAMIC_RANGES) if line in text} == lines


def test_the_lines_of_a_readme_open_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are run, with a file that has the inputs."""
    settings = SessionSettings(threads=2, disabled_optimizers=("GeluFusionL2",), spinning=False)
    code = re.search(r"```python\n(.*?)```", readme(tmp_path, settings), flags=re.S)
    assert code is not None
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("ids", "mask", "y")
    ]
    graph = helper.make_graph(
        [helper.make_node("Add", ["ids", "mask"], ["y"])], "g", ends[:2], ends[2:]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    write_model(tmp_path, proto)
    monkeypatch.chdir(tmp_path)
    values = {"ids": torch.ones(1).numpy(), "mask": torch.ones(1).numpy()}
    exec(code.group(1), values)
    assert values["outputs"][0] == 2
    assert isinstance(values["session"], onnxruntime.InferenceSession)
    assert values["options"].intra_op_num_threads == 2
    assert "disabled_optimizers=['GeluFusionL2']" in code.group(1)


def test_ends_of_integers_are_rounded_by_the_lines_of_a_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ai_edge_litert")
    settings = SessionSettings("litert", "XNNPACK")
    code = re.search(
        r"```python\n(.*?)```", readme(tmp_path, settings, integer_ends=True), flags=re.S
    )
    assert code is not None
    file, step = FlatFile(), Rows(np.array([0.5], np.float32), 0, 3)
    file.inputs = [file.tensor((1,), "int8", name, step) for name in ("ids", "mask")]
    file.outputs = [file.tensor((1,), "int8", "y", step)]
    file.add("ADD", file.inputs, file.outputs, "AddOptions")
    (tmp_path / "model.tflite").write_bytes(file.content())
    monkeypatch.chdir(tmp_path)
    values = {"ids": np.array([1.2], np.float32), "mask": np.array([-4.0], np.float32)}
    exec(code.group(1).replace("model.onnx", "model.tflite"), values)
    assert values["outputs"][0] == [1.0 - 4.0]


def test_openvino_has_lines_of_its_own(tmp_path: Path) -> None:
    text = readme(tmp_path, SessionSettings("openvino", "CPU", 3))
    assert 'options = {"INFERENCE_NUM_THREADS": 3, "NUM_STREAMS": 1}' in text
    assert 'compile_model("model.onnx", "CPU", options)' in text
    assert 'outputs = session({"ids": ids, "mask": mask})' in text

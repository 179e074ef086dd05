"""The commands on ONNX files: what they time, how, and what they say of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

import autocompress as ac
from autocompress.cli import file_commands
from autocompress.cli.main import main
from autocompress.errors import TargetError
from autocompress.export.artifact import RECIPE_FORMAT
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.runtime import EXAMPLE
from autocompress.task.source import load_task

WEIGHT = np.ones((4, 3), np.float32)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def product(shape: tuple[int | str, ...] = (2, 4), kind: int = TensorProto.FLOAT) -> Any:
    """A file that casts its input to float and multiplies it by a matrix."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def written(folder: Path, model: Any, **session: object) -> Path:
    """Write a model, and a recipe with its settings if there are any."""
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    if session:
        recipe = {"format": RECIPE_FORMAT, "portable": True, "session": session}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "model.onnx"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, SessionSettings]]:
    """Paths and settings of the sessions that are opened."""
    seen: list[tuple[str, SessionSettings]] = []
    real = file_commands.open_session

    def look(path: str, settings: SessionSettings) -> Any:
        seen.append((Path(path).parent.name, settings))
        return real(path, settings)

    monkeypatch.setattr(file_commands, "open_session", look)
    return seen


def test_two_files_are_timed_with_the_same_settings(tmp_path: Path, capsys, opened) -> None:
    """The float file of a run has no recipe beside it."""
    point = written(tmp_path / "point", product(), threads=2, disabled_optimizers=["GeluFusionL2"])
    plain = written(tmp_path / "plain", product())
    for first, second in ((point, plain), (plain, point)):
        code, out, _ = run(capsys, "bench", first, "--against", second, "--rounds", 3)
        assert code == 0
        assert (
            "both files in ONNX Runtime, CPUExecutionProvider, 2 threads, without GeluFusionL2 "
            f"(the recipe of {point})" in out
        )
    assert {folder for folder, _ in opened} == {"point", "plain"}
    assert {settings for _, settings in opened} == {
        SessionSettings(threads=2, disabled_optimizers=("GeluFusionL2",))
    }
    other = written(tmp_path / "other", product(), threads=1)
    opened.clear()
    _, out, _ = run(capsys, "bench", point, "--against", other, "--rounds", 3, "--threads", 3)
    assert {settings.threads for _, settings in opened} == {3}
    assert f"(the recipe of {point}; that of {other} says otherwise)" in out
    code, out, _ = run(capsys, "bench", plain, "--rounds", 3)
    assert "timed in ONNX Runtime, CPUExecutionProvider, 1 thread (no recipe)" in out


def test_external_data_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = written(tmp_path / "one", product())
    (tmp_path / "two").mkdir()
    beside = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0}
    onnx.save(product(), tmp_path / "two" / "model.onnx", **beside)
    two = tmp_path / "two" / "model.onnx"
    weights = tmp_path / "two" / "w.data"
    assert weights.stat().st_size >= WEIGHT.nbytes
    size = two.stat().st_size + weights.stat().st_size
    code, out, _ = run(capsys, "bench", one, "--against", two, "--rounds", 3)
    assert code == 0
    assert f"{one.stat().st_size} B ({size / one.stat().st_size:.2f}x smaller)" in out
    assert f"{two}: {size} B" in run(capsys, "bench", two, "--rounds", 3)[1]


def noted(model: Any, *shape: int) -> Any:
    model.metadata_props.add(key=EXAMPLE, value=json.dumps({"x": list(shape)}))
    return model


def test_the_shapes_that_are_timed_are_those_of_the_example(tmp_path: Path, capsys) -> None:
    free = ("batch", 4)
    ours = written(tmp_path / "ours", noted(product(free), 6, 4))
    foreign = written(tmp_path / "foreign", product(free))
    fixed = written(tmp_path / "fixed", product((3, 4)))
    for files, shape in (
        ((ours,), (6, 4)),
        ((foreign,), (1, 4)),
        ((ours, "--against", foreign), (6, 4)),
        ((foreign, "--against", ours), (6, 4)),
        ((ours, "--against", fixed), (3, 4)),
    ):
        code, out, _ = run(capsys, "bench", *files, "--rounds", 3)
        assert code == 0
        assert f"inputs: x {shape}" in out


def test_openvino_is_timed_at_the_example_too(tmp_path: Path, capsys) -> None:
    pytest.importorskip("openvino")
    model = noted(product(("batch", 4)), 6, 4)
    path = written(tmp_path / "ours", model, runtime="openvino", provider="CPU")
    code, out, _ = run(capsys, "bench", path, "--rounds", 3)
    assert code == 0
    assert "timed in OpenVINO, CPU, 1 thread" in out
    assert "inputs: x (6, 4)" in out


def test_a_busy_machine_is_said_of_one_file_too(tmp_path: Path, capsys, monkeypatch) -> None:
    path = written(tmp_path / "one", product())
    real = file_commands.interleaved_timing

    def busy(*given: Any, **named: Any) -> Any:
        return replace(real(*given, **named), disturbance=0.4)

    monkeypatch.setattr(file_commands, "interleaved_timing", busy)
    for against in ((), ("--against", path)):
        assert "the machine was busy" in run(capsys, "bench", path, "--rounds", 3, *against)[1]


PAIRS = """import torch
import autocompress as ac

class Pairs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.out = torch.nn.Linear(4, 3)

    def forward(self, x, y, z):
        return self.out(x - 2 * y + 3 * z)

def task():
    torch.manual_seed(0)
    inputs = {name: torch.randn(8, 4) for name in "xyz"}
    model = Pairs().eval()
    labels = model(**inputs).argmax(1)
    metric = lambda outputs, targets: float((outputs.argmax(1) == targets).float().mean())
    return ac.Task("pairs", model, inputs, [(inputs, labels)], metric)
"""


def test_a_file_is_fed_by_the_names_that_agree(tmp_path: Path, capsys) -> None:
    """A file with its inputs in another order, all of one shape: x - 2 y + 3 z."""
    (tmp_path / "pairs.py").write_text(PAIRS)
    spec = f"{tmp_path / 'pairs.py'}:task"
    weight, bias = (parameter.detach().numpy() for parameter in load_task(spec).model.parameters())
    constants = {"two": np.float32(2), "three": np.float32(3), "w": weight, "b": bias}

    def written_with(x: str, z: str) -> Path:
        nodes = [
            helper.make_node("Mul", ["y", "two"], ["y2"]),
            helper.make_node("Mul", [z, "three"], ["z3"]),
            helper.make_node("Sub", [x, "y2"], ["d"]),
            helper.make_node("Add", ["d", "z3"], ["s"]),
            helper.make_node("Gemm", ["s", "w", "b"], ["logits"], transB=1),
        ]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ("y", x, z)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        opsets = [helper.make_opsetid("", 21)]
        path = tmp_path / f"{x}{z}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return path

    code, out, _ = run(capsys, "evaluate", written_with("x", "other"), spec)
    assert code == 0
    assert "accuracy 1.0000" in out
    code, _, error = run(capsys, "evaluate", written_with("p", "q"), spec)
    assert code == 1
    assert "a batch has the inputs x, y, z, the file takes y, p, q, and 2 of them fit x" in error


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.DOUBLE])
def test_inputs_of_other_types_are_timed(kind: int, tmp_path: Path, capsys) -> None:
    path = written(tmp_path / "one", product(kind=kind))
    code, out, error = run(capsys, "bench", path, "--rounds", 3)
    assert (code, error) == (0, "")
    assert "inputs: x (2, 4)" in out


def test_openvino_names_types_as_onnxruntime_does(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    for kind in (TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64):
        path = written(tmp_path / str(kind), product(kind=kind))
        openvino, usual = SessionSettings("openvino", "CPU"), SessionSettings()
        kinds = {open_session(str(path), one).get_inputs()[0].type for one in (openvino, usual)}
        assert len(kinds) == 1, kinds


def test_a_file_that_does_not_run_is_named(tmp_path: Path, capsys) -> None:
    """Its product takes four columns, and neither its input nor its notes say so."""
    path = written(tmp_path / "one", product(("batch", "width")))
    code, _, error = run(capsys, "bench", path, "--rounds", 3)
    assert code == 1
    assert f"autocompress: {path}: ONNX Runtime cannot run it on x (1, 1) (" in error
    assert "a fault of autocompress" not in error
    text = written(tmp_path / "text", product(kind=TensorProto.STRING))
    code, _, error = run(capsys, "bench", text, "--rounds", 3)
    assert code == 1
    assert "input x is a tensor(string); nearest: one of tensor(float)" in error
    eight = written(tmp_path / "eight", product((8, 4)))
    two = written(tmp_path / "two", product((2, 4)))
    code, _, error = run(capsys, "bench", two, "--against", eight, "--rounds", 3)
    assert code == 1
    assert f"{eight}: takes x as tensor(float) of shape (8, 4), {two} as" in error


def test_a_provider_that_is_not_here_is_told_in_one_line(tmp_path: Path, capsys) -> None:
    path = written(tmp_path / "point", product(), provider="NoSuchProvider")
    words = f"{path}: ONNX Runtime has no NoSuchProvider here; it has: "
    code, _, error = run(capsys, "bench", path)
    assert code == 1
    assert "cannot load it (ONNX Runtime has no NoSuchProvider here; it has: " in error
    with pytest.raises(TargetError) as caught:
        ac.open_session(path)
    assert str(caught.value).startswith(words)

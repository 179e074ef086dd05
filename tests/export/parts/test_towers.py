"""Cut a file into one per tower: what each part reads and gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.errors import ExportError
from autocompress.export.artifact import write_model
from autocompress.export.parts import towers
from autocompress.export.parts.towers import write_towers
from autocompress.targets.device.sessions import DEFAULT


def write(folder: Path, mixed: bool = False, masked: bool = False) -> None:
    """Write a model of two towers, whose text takes its number of rows from the pixels."""
    draw = np.random.default_rng(0)
    own = [numpy_helper.from_array(np.array([3], np.int64), "width")]
    for part in ("text", "image"):
        own.append(numpy_helper.from_array(draw.random((3, 4), dtype=np.float32), f"{part}.weight"))
    nodes = [
        helper.make_node("Shape", ["pixels"], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["rows", "width"], ["shape"], axis=0),
        helper.make_node("Reshape", ["ids", "shape"], ["table"]),
        helper.make_node("Cast", ["table"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["floats", "pixels" if mixed else "floats"], ["sum"]),
        helper.make_node("MatMul", ["sum", "text.weight"], ["text_embeds"]),
        helper.make_node("MatMul", ["pixels", "image.weight"], ["image_embeds"]),
        helper.make_node("Add", ["text_embeds", "image_embeds"], ["embeddings"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [
        value("ids", TensorProto.INT64, ["n", 3]),
        value("pixels", TensorProto.FLOAT, ["n", 3]),
    ]
    if masked:
        inputs.append(value("mask", TensorProto.BOOL, ["n", 3]))
        nodes[3:5] = [
            helper.make_node("Cast", ["table"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["mask"], ["shown"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["numbers", "shown"], ["sum"]),
        ]
    names = ("embeddings", "image_embeds", "text_embeds")
    outputs = [value(name, TensorProto.FLOAT, ["n", 4]) for name in names]
    graph = helper.make_graph(nodes, "g", inputs, outputs, own)
    opset = [helper.make_opsetid("", 21)]
    write_model(folder, helper.make_model(graph, opset_imports=opset, ir_version=10))


def test_a_boolean_mask_goes_with_its_tower(tmp_path: Path) -> None:
    write(tmp_path, masked=True)
    text, _ = write_towers(tmp_path, DEFAULT)
    graph = onnx.load(text).graph
    assert [value.name for value in graph.input] == ["ids", "mask"]


def test_each_part_has_its_inputs_and_weights(tmp_path: Path) -> None:
    write(tmp_path)
    parts = write_towers(tmp_path, DEFAULT)
    assert [part.name for part in parts] == ["text_model.onnx", "vision_model.onnx"]
    draw = np.random.default_rng(1)
    feed: dict[str, Any] = {
        "ids": draw.integers(0, 9, (2, 3)),
        "pixels": draw.random((2, 3), dtype=np.float32),
    }
    providers = ["CPUExecutionProvider"]
    whole = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=providers)
    for part, name, output, weight in (
        (parts[0], "ids", "text_embeds", "text.weight"),
        (parts[1], "pixels", "image_embeds", "image.weight"),
    ):
        session = onnxruntime.InferenceSession(part, providers=providers)
        assert [value.name for value in session.get_inputs()] == [name]
        assert [value.name for value in session.get_outputs()] == [output]
        (found,) = session.run(None, {name: feed[name]})
        np.testing.assert_array_equal(found, whole.run([output], feed)[0])
        held = {tensor.name for tensor in onnx.load(part).graph.initializer}
        assert held - {"width"} == {weight}


def test_models_without_towers_are_refused(tmp_path: Path) -> None:
    write(tmp_path, mixed=True)
    with pytest.raises(ExportError, match=r"both towers read pixels; nearest: an export without"):
        write_towers(tmp_path, DEFAULT)
    model = onnx.load(tmp_path / "model.onnx")
    del model.graph.output[2:]
    write_model(tmp_path, model)
    with pytest.raises(ExportError) as caught:
        write_towers(tmp_path, DEFAULT)
    assert str(caught.value) == (
        f"{tmp_path / 'model.onnx'}: has the outputs embeddings, image_embeds, so no towers that "
        "can be split; nearest: an export without --split-towers, or a model with text_embeds and "
        "image_embeds"
    )


def test_parts_that_compute_something_else_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)

    class Wrong(towers.Extractor):
        def extract_model(self, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
            model = super().extract_model(inputs, outputs)
            for tensor in model.graph.initializer:
                if "weight" in tensor.name:
                    values = numpy_helper.to_array(tensor) + 1
                    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            return model

    monkeypatch.setattr(towers, "Extractor", Wrong)
    with pytest.raises(ExportError, match=r"gives another text_embeds than model\.onnx; nearest: "):
        write_towers(tmp_path, DEFAULT)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]

"""Write and read the files of a point."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import onnxruntime
import pytest
import torch
import yaml
from onnx import TensorProto, helper

from autocompress import Candidate, FrontPoint, Measurement
from autocompress.errors import ExportError
from autocompress.export.artifact import (
    RECIPE_FORMAT,
    copy_artifact,
    describe_inputs,
    described_inputs,
    read_recipe,
    session_settings,
    write_model,
    write_notes,
)
from autocompress.targets.device.sessions import SessionSettings

X = torch.zeros(1, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (X, {"shape": [1, 3], "type": "int64"}),
        (
            (torch.zeros(2), None, True),
            {"tuple": [{"shape": [2], "type": "float32"}, {"constant": None}, {"constant": True}]},
        ),
        ([X], {"list": [{"shape": [1, 3], "type": "int64"}]}),
        (
            {"ids": X, "more": {"k": (X,)}},
            {
                "entries": {
                    "ids": {"shape": [1, 3], "type": "int64"},
                    "more": {"entries": {"k": {"tuple": [{"shape": [1, 3], "type": "int64"}]}}},
                }
            },
        ),
        ((), {"tuple": []}),
    ],
)
def test_inputs_are_described_by_plain_types(inputs: object, words: object) -> None:
    assert describe_inputs(inputs) == words
    again = described_inputs(yaml.safe_load(yaml.safe_dump(words)))
    assert describe_inputs(again) == words
    assert type(again) is type(inputs)


def test_tensors_of_a_description_are_zeros() -> None:
    found = described_inputs({"shape": [2, 2], "type": "bool"})
    assert torch.equal(found, torch.zeros(2, 2, dtype=torch.bool))
    ordered = describe_inputs(OrderedDict(a=torch.ones(1)))
    assert described_inputs(ordered) == {"a": torch.zeros(1)}


def test_a_recipe_that_cannot_be_used_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        read_recipe(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: has no recipe.yaml; give the folder that `autocompress export` wrote"
    )
    path = tmp_path / "recipe.yaml"
    for text in ("[1, 2]", f"format: {RECIPE_FORMAT - 1}", "", "text"):
        path.write_text(text)
        with pytest.raises(ExportError) as caught:
            read_recipe(tmp_path)
        assert str(caught.value) == (
            f"{path}: not a recipe of format {RECIPE_FORMAT}; export the point again"
        )
    path.write_text("a: [1,\nb: }")
    with pytest.raises(ExportError, match=re.escape(f"{path}: not YAML: ")) as caught:
        read_recipe(tmp_path)
    assert "\n" not in str(caught.value)
    path.write_text(f"format: {RECIPE_FORMAT}\nportable: true")
    assert read_recipe(tmp_path) == {"format": RECIPE_FORMAT, "portable": True}


def test_sessions_are_opened_as_the_recipe_beside_a_file_says(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    assert session_settings(model) is None
    settings = SessionSettings(threads=3, disabled_optimizers=("A",), spinning=False)
    session = {**asdict(settings), "disabled_optimizers": ["A"]}
    recipe = {"format": RECIPE_FORMAT, "session": session}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert session_settings(model) == settings
    assert session_settings(tmp_path / "other.onnx") is None, "the recipe is not of this file"


def test_a_model_is_written_with_its_size(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    size = write_model(tmp_path / "made", proto)
    content = (tmp_path / "made" / "model.onnx").read_bytes()
    assert size == len(content)
    assert content == proto.SerializeToString(deterministic=True)


BASE = Measurement(1000, 2.0, 0.9, 0.89, {"f1_score": 0.8, "gone": 1.0}, True, 4000)
MEASURED = Measurement(250, 0.5, 0.875, None, {"f1_score": 0.75}, True, 2000)


def readme(folder: Path, settings: SessionSettings) -> str:
    (folder / "recipe.yaml").write_text(f"format: {RECIPE_FORMAT}\nportable: true")
    point = FrontPoint(7, Candidate(), MEASURED, MEASURED, "models/0007")
    write_notes(folder, point, BASE, ("ids", "mask"), "onnxruntime-cpu", settings)
    return (folder / "README.md").read_text()


def test_the_readme_says_before_and_after(tmp_path: Path) -> None:
    text = readme(tmp_path, SessionSettings())
    for line in (
        "# model.onnx, trial 7",
        "| size (bytes) | 1000 | 250 | 4.00x smaller |",
        "| weights in a session (bytes) | 4000 | 2000 | |",
        "| latency (ms, onnxruntime-cpu) | 2.000 | 0.500 | 4.00x faster |",
        "| accuracy (validation) | 0.9000 | 0.8750 | |",
        "| accuracy (test) | 0.8900 | not measured | |",
        "| f1 score | 0.8000 | 0.7500 | |",
    ):
        assert line in text.splitlines()
    assert "gone" not in text


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


def test_openvino_has_lines_of_its_own(tmp_path: Path) -> None:
    text = readme(tmp_path, SessionSettings("openvino", "CPU", 3))
    assert (
        'compile_model("model.onnx", "CPU", {"INFERENCE_NUM_THREADS": 3, "NUM_STREAMS": 1})' in text
    )
    assert 'outputs = session({"ids": ids, "mask": mask})' in text


def test_the_files_of_a_point_are_copied(tmp_path: Path) -> None:
    point = FrontPoint(7, Candidate(), MEASURED, MEASURED, "models/0007")
    source, to = tmp_path / "run" / "models" / "0007", tmp_path / "deep" / "to"
    with pytest.raises(ExportError) as caught:
        copy_artifact(tmp_path / "run", point, to)
    assert str(caught.value) == (
        f"{source}: has no model.onnx; run the search again, it rebuilds what is missing"
    )
    assert not to.exists()
    source.mkdir(parents=True)
    names = ("model.onnx", "recipe.yaml", "model.safetensors", "README.md")
    for name in names:
        (source / name).write_text(name)
    assert copy_artifact(tmp_path / "run", point, to) == to
    assert {path.name: path.read_text() for path in to.iterdir()} == {n: n for n in names}
    assert copy_artifact(tmp_path / "run", point, to) == to, "once more"

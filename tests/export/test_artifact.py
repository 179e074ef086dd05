"""Write and read the files of a point."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fixture import Fixture
from onnx import TensorProto, helper

from autocompress import Candidate, FrontPoint, Measurement, Task
from autocompress.errors import ExportError, RunFolderError
from autocompress.export import artifact
from autocompress.export.artifact import (
    RECIPE_FORMAT,
    copy_artifact,
    open_graph,
    read_recipe,
    renew_recipe,
    session_settings,
    write_model,
    write_recipe,
)
from autocompress.integer_form import IntegerForm
from autocompress.targets.device.sessions import DEFAULT, SessionSettings
from autocompress.targets.kernels import KernelChoice

X = torch.zeros(1, 3, dtype=torch.int64)


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


def test_a_renewed_recipe_goes_on_saying_how_its_file_was_made(tmp_path: Path) -> None:
    origin = {"task": "old.py", "seed": 0, "threads": 2, "versions": {"torch": "1"}}
    recipe = {"format": RECIPE_FORMAT, "origin": origin, "kernels": {"a": 1}, "sha256": "abc"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    settings = SessionSettings(disabled_optimizers=("A",))
    renew_recipe(tmp_path, {"task": "new.py"}, settings)
    renewed = read_recipe(tmp_path)
    assert session_settings(tmp_path / "model.onnx") == settings
    del renewed["session"]
    assert renewed == {**recipe, "origin": {**origin, "task": "new.py"}}


def test_a_model_is_written_with_its_size(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    size = write_model(tmp_path / "made", proto)
    content = (tmp_path / "made" / "model.onnx").read_bytes()
    assert size == len(content)
    assert content == proto.SerializeToString(deterministic=True)


POINT = FrontPoint(
    7, Candidate(), Measurement(250, 0.5, 0.875), Measurement(250, 0.5, 0.875), "models/0007"
)


def test_a_graph_is_opened_from_the_disk_or_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", ends[:1], ends[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    feed = {"x": np.array([1.0, -2.0], np.float32)}
    monkeypatch.setattr(artifact.tempfile, "tempdir", str(tmp_path))
    assert open_graph(proto).run(None, feed)[0].tolist() == [-1.0, 2.0]
    assert not list(tmp_path.iterdir())

    def full(path: Path, content: object) -> int:
        raise RunFolderError("no room")

    monkeypatch.setattr(artifact, "write_graph", full)
    assert open_graph(proto).run(None, feed)[0].tolist() == [-1.0, 2.0]


def test_the_files_of_a_point_are_copied(tmp_path: Path) -> None:
    source, to = tmp_path / "run" / "models" / "0007", tmp_path / "deep" / "to"
    with pytest.raises(ExportError) as caught:
        copy_artifact(tmp_path / "run", POINT, to)
    assert str(caught.value) == (
        f"{source}: has no model.onnx; run the search again, it rebuilds what is missing"
    )
    source.mkdir(parents=True)
    names = ("model.onnx", "recipe.yaml", "model.safetensors", "README.md")
    for name in names:
        with pytest.raises(ExportError, match=f"^{source}: has no {name}; run the search again"):
            copy_artifact(tmp_path / "run", POINT, to)
        (source / name).write_text(name)
    with pytest.MonkeyPatch.context() as patch:  # root may read everything
        patch.setattr(artifact.os, "access", lambda path, mode: path.name != "recipe.yaml")
        with pytest.raises(ExportError, match=r"0007/recipe.yaml: cannot be read \(Permission "):
            copy_artifact(tmp_path / "run", POINT, to)
    assert not to.exists(), "nothing is written before all is there"
    assert copy_artifact(tmp_path / "run", POINT, to) == to
    assert {path.name: path.read_text() for path in to.iterdir()} == {n: n for n in names}
    assert copy_artifact(tmp_path / "run", POINT, to) == to, "once more"


class RoundingKernels(KernelChoice):
    """Weight-only products that are the fastest and round their inputs."""

    def matmul_level(self, *_: object) -> int:
        return 4

    def matmul_rounds_inputs(self, *_: object) -> bool:
        return True

    def integer_form(self, *_: object) -> IntegerForm:
        return IntegerForm.REDUCED


def test_a_recipe_does_not_depend_on_what_was_applied(cnn_task: Task, tmp_path: Path) -> None:
    fixture = Fixture(cnn_task, RoundingKernels())
    candidate = fixture.uniform(weight_bits=4, group_size=32)
    write_model(tmp_path, fixture.compressor.graph(candidate))
    fixture.stitcher.apply(Candidate())
    write_recipe(
        tmp_path, fixture.compressor, candidate, None, cnn_task.example_inputs, {}, DEFAULT
    )
    assert read_recipe(tmp_path)["modules"]["fc"]["block_size"] == 32

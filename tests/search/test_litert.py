"""A whole search on LiteRT: front, recipe, reproduction, evaluation and timing of its files."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("ai_edge_litert")

import autocompress as ac
from autocompress.cli.main import main
from autocompress.errors import ExportError
from autocompress.targets.device.litert.operators import flat_graph
from autocompress.targets.target import find_target

SPACE = {
    "modules": [
        {
            "match": "*",
            "weight_bits": [4, 8],
            "activation_bits": [8, 32],
            "pruning_ratio": [0.0, 0.5],
        }
    ],
    "distillation": {"steps": 0},
}
TASK = Path(__file__).parents[1] / "example_tasks" / "cnn.py"


def command(*arguments: object) -> None:
    """Run a command, which ends with exit code 0."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0


@pytest.mark.slow
def test_a_front_of_flat_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = f"{TASK}:task"
    run = tmp_path / "run"
    task = ac.load_task(spec)
    result = ac.search(task, space=SPACE, target="litert-cpu", n_trials=3, out=run, quiet=True)
    front = json.loads((run / "front.json").read_text())
    assert front["points"]
    baseline = run / "models" / "baseline" / "model.tflite"
    assert baseline.stat().st_size == front["baseline"]["size_bytes"]
    for point in front["points"]:
        file = run / point["artifact"] / "model.tflite"
        assert file.stat().st_size == point["size_bytes"] < front["baseline"]["size_bytes"]
        assert point["verified"]
        assert point["latency_ms"] > 0
        assert point["predicted"]["size_bytes"] == point["size_bytes"]
        assert not (run / point["artifact"] / "model.onnx").exists()
    with (run / "front.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if row["file"]]
    assert all(row["file"].endswith("/model.tflite") for row in rows)

    point = result.front.smallest()
    place = ac.export(result, point, tmp_path / "point")
    assert sorted(os.listdir(place)) == [
        "README.md",
        "model.safetensors",
        "model.tflite",
        "recipe.yaml",
    ]
    assert "ai_edge_litert" in (place / "README.md").read_text()
    inputs = task.example_inputs
    session = ac.open_session(place)
    (output,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    simulated = ac.load(place, task.model)(inputs).detach().numpy()
    assert np.linalg.norm(output - simulated) < 0.02 * np.linalg.norm(simulated)
    again = ac.reproduce(place, tmp_path / "again", task)
    assert again.read_bytes() == (place / "model.tflite").read_bytes()

    command("evaluate", place / "model.tflite", spec)
    assert f"accuracy {point.measured.accuracy:.4f}" in capsys.readouterr().out
    command("bench", place / "model.tflite", "--against", baseline, "--rounds", 5)
    assert "both files in LiteRT, XNNPACK, 1 thread" in capsys.readouterr().out


@pytest.mark.slow
def test_a_front_of_files_for_microcontrollers(tmp_path: Path) -> None:
    task = ac.load_task(f"{TASK}:task")
    more = {"target": "litert-micro", "finalize_steps": 0, "quiet": True, "max_memory": "2KB"}
    result = ac.search(task, space=SPACE, n_trials=8, out=tmp_path / "run", **more)
    assert result.shortfall == ""
    for point in result.front:
        measured = point.measured
        assert measured.latency_source == "analytic"
        assert 0 < measured.latency_ms < result.front.baseline.latency_ms
        assert measured.activation_bytes <= 2000
        file = tmp_path / "run" / point.artifact / "model.tflite"
        session = ac.open_session(file)
        interpreter = session.interpreter
        ends = [*interpreter.get_input_details(), *interpreter.get_output_details()]
        assert {np.dtype(one["dtype"]).name for one in ends} == {"int8"}
        codes = {node.operator for node in flat_graph(str(file)).nodes}
        assert codes <= set(find_target("litert-micro").operators)
        assert not codes & {"QUANTIZE", "DEQUANTIZE"}, "this network is of integers throughout"
    point = result.front.most_accurate()
    place = ac.export(result, point, tmp_path / "point")
    inputs = task.example_inputs
    (output,) = ac.open_session(place).run(None, {"x": inputs.numpy()})
    simulated = ac.load(place, task.model)(inputs).detach().numpy()
    assert np.linalg.norm(output - simulated) < 0.05 * np.linalg.norm(simulated)
    again = ac.reproduce(place, tmp_path / "again", task)
    assert again.read_bytes() == (place / "model.tflite").read_bytes()
    command("evaluate", place / "model.tflite", f"{TASK}:task")


@pytest.mark.slow
def test_operators_that_microcontrollers_lack_are_said_before_the_search(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(48, 4)).eval()
    words = torch.randint(0, 50, (16, 6))
    batches = [(words, torch.zeros(16, dtype=torch.long))]
    task = ac.Task("words", model, words[:1], batches, lambda outputs, targets: 1.0)
    with pytest.raises(ExportError) as caught:
        ac.search(task, target="litert-micro", n_trials=1, out=tmp_path, quiet=True)
    assert str(caught.value) == (
        "export: EMBEDDING_LOOKUP in 0: target litert-micro runs no such operator; nearest: "
        "--target litert-cpu"
    )
    assert not (tmp_path / "front.json").exists()

"""A whole search on LiteRT: front, recipe, reproduction, evaluation and timing of its files."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

import autocompress as ac
from autocompress.cli.main import main

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

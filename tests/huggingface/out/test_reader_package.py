"""Searches of models that read pictures for onnxruntime-genai, up to a package that answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_decoders import TARGET, genai
from small_readers import reader_task

import autocompress as ac

pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")
SPACE = {
    "modules": [
        {"tower": "vision", "weight_bits": [8], "group_size": 16},
        {"match": "*", "weight_bits": [4, 8], "group_size": 16, "symmetric": False},
    ],
    "distillation": {"steps": 0},
}


# The others are searched alike.
FAMILIES = [
    "llava",
    *(pytest.param(n, marks=pytest.mark.extensive) for n in ("gemma3", "qwen2_vl")),
]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_search_ends_in_packages_that_answer(tmp_path: Path, family: str) -> None:
    task, out, best = reader_task(tmp_path, family), tmp_path / "run", tmp_path / "best"
    options = {"target": TARGET, "n_trials": 3, "max_size": "90%", "quiet": True}
    result = ac.search(task, SPACE, out=str(out), **options)
    front = json.loads((out / "front.json").read_text())
    for point in result.front.points:
        place = out / point.artifact
        files = [place / "model.onnx", place / "model.onnx.data"]
        files += [place / f"model.{name}.onnx" for name in ("vision", "embedding", "decoder")]
        size = sum(file.stat().st_size for file in files)
        assert size == point.measured.size_bytes == point.predicted.size_bytes
        assert size <= 0.9 * front["baseline"]["size_bytes"]
        metrics = point.measured.metrics
        assert metrics["greedy tokens as simulated"] > 0.8
        assert all(metrics[f"latency at {name} (ms)"] > 0 for name in ("decode", "prefill"))
        assert genai.Model(str(place)).type == "gemma3"
    ac.export(result, result.front.smallest(), best)
    shutil.copyfile(tmp_path / "0.png", best / "picture.png")
    card = (best / "README.md").read_text()
    program = card.split("```python\n")[1].split("```")[0]
    assert "num_image_tokens" in program
    if family != "qwen2_vl":  # its processor needs torchvision
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=best, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
    again = ac.reproduce(str(best), str(tmp_path / "again"))
    for name in ("model.onnx", "model.onnx.data", "model.decoder.onnx"):
        assert (Path(again).parent / name).read_bytes() == (best / name).read_bytes()

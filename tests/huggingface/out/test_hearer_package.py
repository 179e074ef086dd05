"""Searches of Whisper for onnxruntime-genai, up to a package that writes down a sound."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_decoders import TARGET, genai
from small_hearers import hearer_task

import autocompress as ac

SPACE = {
    "modules": [
        {"tower": "audio", "weight_bits": [8]},
        {"match": "*", "weight_bits": [4, 8], "group_size": 16, "symmetric": False},
    ],
    "distillation": {"steps": 0},
}


@pytest.mark.slow
def test_a_search_ends_in_packages_that_write_down_a_sound(tmp_path: Path) -> None:
    task, out, best = hearer_task(tmp_path), tmp_path / "run", tmp_path / "best"
    options = {"target": TARGET, "n_trials": 2, "max_size": "90%", "quiet": True}
    result = ac.search(task, SPACE, out=str(out), **options)
    front = json.loads((out / "front.json").read_text())
    for point in result.front.points:
        place = out / point.artifact
        files = [place / "model.onnx", place / "model.onnx.data"]
        files += [place / f"model.{name}.onnx" for name in ("encoder", "decoder")]
        size = sum(file.stat().st_size for file in files)
        assert size == point.measured.size_bytes == point.predicted.size_bytes
        assert size <= 0.9 * front["baseline"]["size_bytes"]
        metrics = point.measured.metrics
        assert metrics["greedy tokens as simulated"] > 0.8
        assert all(metrics[f"latency at {name} (ms)"] > 0 for name in ("decode", "prefill"))
        assert genai.Model(str(place)).type == "whisper"
    ac.export(result, result.front.smallest(), best)
    shutil.copyfile(tmp_path / "0.wav", best / "sound.wav")
    card = (best / "README.md").read_text()
    assert "`model.encoder.onnx`, `model.decoder.onnx`." in card
    program = card.split("```python\n")[1].split("```")[0]
    assert "audio_features" in program
    done = subprocess.run([sys.executable, "-c", program], cwd=best, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    again = ac.reproduce(str(best), str(tmp_path / "again"))
    for name in ("model.onnx", "model.onnx.data", "model.decoder.onnx"):
        assert (Path(again).parent / name).read_bytes() == (best / name).read_bytes()

"""Searches for onnxruntime-genai, from the model folder to the exported package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from small_decoders import TARGET, decoder_task, genai

import autocompress as ac
from autocompress.errors import RunFolderError, TargetError

SPACE = {
    "modules": [
        {"match": "*", "weight_bits": [4, 8], "group_size": 32, "symmetric": False},
    ],
    "distillation": {"steps": 0},
}


Runs = Callable[[str], tuple[Any, Any]]


def searched(task: Any, out: Path, **options: Any) -> Any:
    return ac.search(task, SPACE, target=TARGET, n_trials=2, out=str(out), quiet=True, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return a function: phase -> the task and the result of a search for its latency."""

    @cache
    def run(phase: str) -> tuple[Any, Any]:
        place = tmp_path_factory.mktemp(phase)
        task = decoder_task(place)
        return task, searched(task, place / "run", latency=phase)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["decode", pytest.param("prefill", marks=pytest.mark.extensive)])
def test_points_are_packages_with_both_latencies(runs: Runs, phase: str) -> None:
    task, result = runs(phase)
    out = Path(result.folder)
    front = json.loads((out / "front.json").read_text())
    for entry in (front["baseline"], *front["points"]):
        metrics = entry["metrics"]
        assert metrics[f"latency at {phase} (ms)"] == pytest.approx(entry["latency_ms"])
        assert all(metrics[f"latency at {name} (ms)"] > 0 for name in ("decode", "prefill"))
    for point in result.front.points:
        place = out / point.artifact
        assert point.measured.metrics["greedy tokens as simulated"] > 0.8
        model = genai.Model(str(place))
        assert model.type == "llama"
    with pytest.raises(RunFolderError, match="was searched with --latency"):
        searched(task, out, latency="prefill" if phase == "decode" else "decode")


@pytest.mark.slow
def test_an_export_generates(runs: Runs, tmp_path: Path) -> None:
    _, result = runs("decode")
    best = tmp_path / "best"
    ac.export(result, result.front.smallest(), best)
    assert {"genai_config.json", "tokenizer.json", "model.onnx"} <= {f.name for f in best.iterdir()}
    config = json.loads((best / "config.json").read_text())
    assert config.get("use_cache", True)
    card = (best / "README.md").read_text()
    assert 'model = genai.Model(".")' in card
    program = card.split("```python\n")[1].split("```")[0]
    lines = [line for line in program.splitlines() if "tokenizer" not in line]
    lines = [*lines, "print([int(token) for token in generator.get_sequence(0)])"]
    code = "prompt = [5, 6, 7]\n" + "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", code], cwd=best, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[5, 6, 7, ")
    again = ac.reproduce(str(best), str(tmp_path / "again"))
    assert Path(again).read_bytes() == (best / "model.onnx").read_bytes()


def test_a_latency_is_refused_for_other_targets(tmp_path: Path) -> None:
    task = decoder_task(tmp_path)
    with pytest.raises(TargetError, match="has no latency 'decode'; nearest: none"):
        ac.search(task, SPACE, n_trials=1, out=str(tmp_path / "run"), latency="decode")
    with pytest.raises(TargetError, match="has no latency 'decoding'; nearest: decode"):
        searched(task, tmp_path / "run", latency="decoding")

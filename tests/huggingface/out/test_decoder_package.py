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
from autocompress.errors import RunFolderError, TargetError, TaskError
from autocompress.export.float_graph import large_files
from autocompress.measure import size

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
@pytest.mark.parametrize(
    "phase",
    ["decode", *(pytest.param(one, marks=pytest.mark.extensive) for one in ("prefill", "mix:0.3"))],
)
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


@pytest.mark.slow
def test_weights_that_a_file_cannot_hold_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may have 80 kB of weights here: the float one and those of 8 bits have more."""
    monkeypatch.setattr(size, "FILE_BYTES", size.GRAPH_BYTES + 80_000)
    monkeypatch.setattr(large_files, "FILE_BYTES", size.GRAPH_BYTES + 80_000)
    task, out, best = decoder_task(tmp_path), tmp_path / "run", tmp_path / "best"
    result = searched(task, out)
    assert (out / "models" / "baseline" / "model.onnx.data").is_file()
    for point in result.front.points:
        place = out / point.artifact
        files = (place / "model.onnx", place / "model.onnx.data")
        there = [file.stat().st_size for file in files if file.is_file()]
        assert sum(there) == point.measured.size_bytes == point.predicted.size_bytes
    ac.export(result, result.front.pick("accurate").point, best)
    assert (best / "model.onnx.data").is_file()
    assert genai.Model(str(best)).type == "llama"
    with pytest.raises(TaskError, match="onnxruntime-genai alone"):
        ac.search(task, SPACE, n_trials=1, out=str(tmp_path / "other"), quiet=True)


def test_a_latency_is_refused_for_other_targets(tmp_path: Path) -> None:
    task = decoder_task(tmp_path)
    with pytest.raises(TargetError, match="has no latency 'decode', which is for dec"):
        ac.search(task, SPACE, n_trials=1, out=str(tmp_path / "run"), latency="decode")
    with pytest.raises(TargetError, match="got 'decoding'; nearest: decode"):
        searched(task, tmp_path / "run", latency="decoding")

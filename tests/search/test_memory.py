"""Whole searches with a limit of memory: trials of the sampler and all files keep it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_folder import rows

import autocompress as ac
from autocompress.errors import LimitError
from autocompress.targets.memory.activations import activation_bytes

pytestmark = pytest.mark.slow

SPACE = {
    "modules": [
        {
            "match": "*",
            "weight_bits": [4, 8],
            "activation_bits": [8, 32],
            "pruning_ratio": [0.0, 0.25, 0.5],
        }
    ],
    "distillation": {"steps": 0},
}


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "litert-cpu"])
def test_a_limit_of_memory(target: str, cnn_task: ac.Task, tmp_path: Path) -> None:
    file, runtime = "model.onnx", "onnxruntime"
    if target == "litert-cpu":
        pytest.importorskip("ai_edge_litert")
        file, runtime = "model.tflite", "litert"

    def search(trials: int, out: str, limit: str | None) -> ac.SearchResult:
        more = {"target": target, "finalize_steps": 0, "quiet": True, "max_memory": limit}
        return ac.search(cnn_task, SPACE, n_trials=trials, out=tmp_path / out, **more)

    result = search(20, "a", "20%")
    base = result.front.baseline
    most = 0.2 * base.activation_bytes
    feed = {"x": cnn_task.example_inputs.numpy()}
    assert result.limits.max_memory_bytes == pytest.approx(most)
    assert len(result.front)
    assert result.shortfall == ""
    for point in result.front:
        assert point.measured.activation_bytes <= most
        assert activation_bytes(str(tmp_path / "a" / point.artifact / file), feed) == (
            point.measured.activation_bytes
        ), runtime
    causes = [row["cause"] for row in rows(tmp_path / "a")]
    first = sum(cause.startswith("over budget: max_memory by") for cause in causes)
    assert first >= 1, "the uniform candidates of 8 bits without pruning are over it"
    assert not any("max_memory" in cause for cause in causes[3:]), "no proposal was"
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    assert run["limits"]["max_memory_bytes"] == pytest.approx(most)
    assert run["asked"]["max_memory"] == "20%"
    assert run["baseline"]["activation_bytes"] == base.activation_bytes

    # A run without the limit goes on with it, and its earlier trials are judged by it.
    free = search(8, "b", None)
    assert max(point.measured.activation_bytes for point in free.front) > most
    again = search(12, "b", "20%")
    assert again.shortfall == ""
    assert again.front.pick("knee", max_memory_bytes=most).shortfall == ""
    with pytest.raises(LimitError, match="the least memory of activations that a candidate of the"):
        search(12, "b", "20B")

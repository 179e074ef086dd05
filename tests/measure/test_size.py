"""Models that are too large for one ONNX file are refused before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.measure import size
from autocompress.measure.size import check_size, float_bytes


def weight(rows: int, columns: int) -> nn.Module:
    """Return a module whose weight takes no memory."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.empty(rows, columns, device="meta"))
    return module


def test_shared_weights_count_once_and_all_take_four_bytes() -> None:
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False))
    model[1].weight = model[0].weight
    assert float_bytes(model) == 100
    assert float_bytes(model.half()) == 100


def test_the_error_names_the_largest_part_that_fits() -> None:
    model = nn.ModuleDict({"small": weight(10, 20000), "encoder": weight(20000, 20000)})
    check_size("big", model)
    model["head"] = weight(20000, 16000)
    with pytest.raises(TaskError) as caught:
        check_size("big", model)
    assert str(caught.value) == (
        "task big: the weights of the model take 2.88 GB in float32, and one ONNX file holds "
        "2.15 GB (weights lie beside files of --target onnxruntime-genai alone); nearest: a part "
        "of it as a task of its own, such as encoder with 1.60 GB"
    )


def test_one_layer_that_is_too_large_has_no_part() -> None:
    with pytest.raises(TaskError, match=r"nearest: a smaller model$"):
        check_size("big", weight(30000, 30000))


@pytest.mark.parametrize("entry", ["search", "compress", "export_onnx"])
def test_every_entry_refuses_before_the_model_runs(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("it ran")

    monkeypatch.setattr(size, "FILE_BYTES", size.GRAPH_BYTES + 100)
    x = torch.zeros(1, 8)
    task = ac.Task("big", Model(8, 8), x, [(x, None)], lambda outputs, targets: 0.0)
    arguments: dict[str, dict[str, Any]] = {
        "search": {"out": tmp_path / "run", "quiet": True},
        "compress": {"candidate": {}},
        "export_onnx": {"candidate": {}, "path": tmp_path / "model.onnx"},
    }
    with pytest.raises(TaskError, match=r"^task big: the weights of the model take 0\.00 GB"):
        getattr(ac, entry)(task, **arguments[entry])


def test_layers_without_weights_yet_are_left_to_the_check_of_the_task() -> None:
    assert float_bytes(nn.Sequential(nn.LazyLinear(3), nn.Linear(2, 2, bias=False))) == 16


def test_buffers_count_too() -> None:
    model = weight(20000, 24000)
    check_size("big", model)
    model.register_buffer("mask", torch.empty(30000, 2000, dtype=torch.bool, device="meta"))
    model.register_buffer("table", torch.empty(10000, 4000, dtype=torch.half, device="meta"))
    assert float_bytes(model) == 4 * 20000 * 24000 + 30000 * 2000 + 4 * 10000 * 4000
    with pytest.raises(TaskError, match=r"take 2\.14 GB in float32"):
        check_size("big", model)
    lazy = nn.Sequential(nn.LazyBatchNorm1d())
    assert float_bytes(lazy) == 8, "of the counter of its batches"

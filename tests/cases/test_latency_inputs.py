"""Latency at several sizes of the inputs: reported for every file, and free in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import autocompress
from autocompress import Task
from autocompress.errors import ExportError, TaskError

pytestmark = pytest.mark.slow

SPACE = {"modules": [{"match": "*", "weight_bits": [4, 8]}], "distillation": {"steps": 0}}


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.first, self.head = (
            nn.Embedding(30, 16),
            nn.Linear(16, 32),
            nn.Linear(32, 3),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(self.words(ids))).mean(1))


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.recurrent, self.head = (
            nn.Embedding(30, 16),
            nn.LSTM(16, 16, batch_first=True),
            nn.Linear(16, 3),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.recurrent(self.words(ids))[0][:, -1])


def task(net: nn.Module, inputs: Tensor, **more: object) -> Task:
    net.eval()
    with torch.no_grad():
        data = [(part, net(part).argmax(1)) for part in inputs.split(8)]
    return Task(
        "sizes",
        net,
        inputs[:1],
        data,
        lambda o, t: float((o.argmax(1) == t).float().mean()),
        train=data,
        **more,
    )


def words(batch: int, length: int) -> Tensor:
    return torch.randint(0, 30, (batch, length))


def test_the_latency_of_every_file_is_reported_at_each_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = task(Text(), words(32, 8), latency_inputs={"long": words(1, 64), "many": words(16, 8)})
    result = autocompress.search(given, SPACE, n_trials=2, out=tmp_path, quiet=True)
    front = json.loads((tmp_path / "front.json").read_text())
    for entry in (front["baseline"], *front["points"]):
        assert entry["metrics"]["latency at long (ms)"] > 0
        assert entry["metrics"]["latency at many (ms)"] > 0
    place = tmp_path / result.front.points[0].artifact
    assert "latency at long (ms)" in (place / "README.md").read_text()
    session = onnxruntime.InferenceSession(
        str(place / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    ids = words(16, 64)
    with torch.no_grad():
        expected = autocompress.load(place, given.model)(ids).numpy()
    np.testing.assert_allclose(session.run(None, {"ids": ids.numpy()})[0], expected, atol=1e-4)


def test_what_differs_there_is_free_though_no_batch_and_no_name_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = task(
        Image(), torch.rand(32, 3, 8, 8), latency_inputs={"large": torch.rand(1, 3, 16, 12)}
    )
    result = autocompress.search(given, SPACE, n_trials=1, out=tmp_path, quiet=True)
    session = onnxruntime.InferenceSession(
        str(tmp_path / result.front.points[0].artifact / "model.onnx"),
        providers=["CPUExecutionProvider"],
    )
    assert [isinstance(size, str) for size in session.get_inputs()[0].shape] == [
        True,
        False,
        True,
        True,
    ]


def test_a_size_that_a_file_cannot_take_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    long = task(Recurrent(), words(16, 8), latency_inputs={"long": words(1, 64)})
    with pytest.raises(
        ExportError,
        match=r"ids: dimension 1 is fixed at 8 .*LSTM.*but latency_inputs has batches of 64 there",
    ):
        autocompress.search(long, SPACE, n_trials=1, out=tmp_path, quiet=True)
    wrong = task(Text(), words(16, 8), latency_inputs={"floats": torch.rand(1, 8)})
    with pytest.raises(
        TaskError, match=r"model.forward fails on latency_inputs\['floats'\]: RuntimeError"
    ):
        autocompress.search(wrong, SPACE, n_trials=1, out=tmp_path, quiet=True)

"""torch.cond, torch.while_loop, scan and loops over time in Python: searched, exported, loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop
from torch._higher_order_ops.scan import scan

import autocompress
from autocompress import Task, find_modules

pytestmark = pytest.mark.slow

SPACE = {
    "modules": [{"match": "*", "weight_bits": [4, 8], "activation_bits": [32]}],
    "distillation": {"steps": 2},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)


class Branches(Net):
    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        hidden = torch.cond(
            x.mean() > 0, lambda h: torch.relu(self.inner(h)), lambda h: h * 0.5, (hidden,)
        )
        return self.head(hidden)


class Loop(Net):
    def forward(self, x: Tensor) -> Tensor:
        count, hidden = torch.zeros((), dtype=torch.int64), torch.relu(self.first(x))
        _, hidden = while_loop(
            lambda i, h: i < 3, lambda i, h: (i + 1, torch.tanh(self.inner(h))), (count, hidden)
        )
        return self.head(hidden)


class PlainLoop(Net):
    def forward(self, x: Tensor) -> Tensor:
        count, hidden = torch.zeros((), dtype=torch.int64), torch.relu(self.inner(self.first(x)))
        _, hidden = while_loop(
            lambda i, h: i < 3, lambda i, h: (i + 1, h * 0.5 + 1.0), (count, hidden)
        )
        return self.head(hidden)


class Scanned(Net):
    def forward(self, x: Tensor) -> Tensor:
        values = self.inner(self.first(x))
        hidden, _ = scan(
            lambda h, value: (h * 0.5 + value, h + value), values[:, 0] * 0, values, dim=1
        )
        return self.head(hidden)


class Unrolled(Net):
    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(x.shape[0], 16)
        for step in range(x.shape[1]):
            hidden = torch.tanh(self.first(x[:, step]) + self.inner(hidden))
        return self.head(hidden)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = memory = torch.zeros(x.shape[0], 16)
        for value in x.unbind(1):
            hidden, memory = self.cell(value, (hidden, memory))
        return self.head(hidden)


def task(kind: type[nn.Module]) -> Task:
    torch.manual_seed(0)
    net, data = kind().eval(), []
    shape = (16, 8) if kind in (Branches, Loop, PlainLoop) else (16, 5, 8)
    for i in range(4):
        x = torch.randn(shape) + (0.5 if i % 2 else -0.5)
        with torch.no_grad():
            data.append((x, net(x).argmax(1)))
    example = data[0][0] if kind is Branches else data[0][0][:1]
    return Task(
        "flow",
        net,
        example,
        data,
        lambda o, t: float((o.argmax(1) == t).float().mean()),
        train=data,
    )


@pytest.mark.parametrize(
    "kind",
    [Branches, Loop, Scanned, Cell]
    + [pytest.param(k, marks=pytest.mark.extensive) for k in (PlainLoop, Unrolled)],
)
def test_files_compute_what_the_loaded_model_computes(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    given = task(kind)
    result = autocompress.search(given, SPACE, n_trials=2, out=tmp_path, quiet=True)
    point = result.front.points[0]
    assert point.measured.accuracy == pytest.approx(point.predicted.accuracy, abs=0.02)
    assert point.measured.accuracy > 0.8
    loaded = autocompress.load(tmp_path / point.artifact, given.model)
    session = onnxruntime.InferenceSession(
        str(tmp_path / point.artifact / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    for inputs, _ in given.validation:
        for x in (inputs,) if kind is Branches else (inputs, inputs[:3]):
            with torch.no_grad():
                expected = loaded(x).numpy()
            np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, atol=1e-4)


@pytest.mark.parametrize("kind", [Branches, Loop])
def test_what_lies_in_a_branch_or_a_loop_is_listed(kind: type[nn.Module]) -> None:
    given = task(kind)
    found = find_modules(given.model, given.example_inputs)
    assert [module.name for module in found] == ["first", "head"]
    assert ("inner", "read by a branch, a loop or another operator") in {
        (item.name, item.what) for item in found.uncovered
    }
    with torch.no_grad():
        given.model(given.example_inputs)  # as before

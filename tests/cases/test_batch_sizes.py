"""Models that read the size of their batch.

The file computes the same at every size, or its one size is said.
"""

from __future__ import annotations

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

SPACE = {
    "modules": [{"match": "*", "weight_bits": [8], "activation_bits": [32]}],
    "distillation": {"steps": 0},
}


class Scaled(nn.Module):
    """The hook makes the exported program necessary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.a.register_forward_hook(lambda module, inputs, output: output * 1.5)

    def body(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class Views(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        rows = int(x.shape[0])
        return (
            self.body(x.view(x.shape[0], -1)).reshape(rows, 4)
            + torch.zeros(x.size(0), 1)
            + torch.zeros(len(x), 4)
        )


class Sizes(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        shape = list(x.shape)
        shape[-1] = 4
        y = self.body(x).view(shape)
        return y * 1.0 if x.shape[0] > 1 else y


class Halves(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 0) if x.shape[0] > 1 else (x, x[:0])
        return torch.cat([self.body(first), self.body(second)])


class Rows(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.body(x[i]) for i in range(x.size(0))])


class Unbound(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(row[None]) for row in x.unbind(0)])


class Iterated(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.body(row) for row in x])


class ByCount(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * (2.0 if x.shape[0] > 4 else 1.0)


class ByLargeCount(nn.Sequential):
    """Not seen where the first samples are looked at, and plain without a program."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if x.shape[0] > 10 else 1.0)


def task(kind: type[nn.Module]) -> Task:
    torch.manual_seed(0)
    net = kind().eval()
    data = []
    for _ in range(3):
        x = torch.randn(16, 8)
        with torch.no_grad():
            data.append((x, net(x).argmax(1)))
    return Task(
        "sizes",
        net,
        data[0][0][:1],
        data,
        lambda o, t: float((o.argmax(1) == t).float().mean()),
        train=data,
    )


def file_of(given: Task, folder: Path) -> tuple[onnxruntime.InferenceSession, float, float]:
    """(session, simulated accuracy, accuracy of the file) of the first point."""
    result = autocompress.search(given, SPACE, n_trials=1, out=folder)
    point = result.front.points[0]
    session = onnxruntime.InferenceSession(
        str(folder / point.artifact / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    return session, point.predicted.accuracy, point.measured.accuracy


@pytest.mark.parametrize("kind", [Views, Sizes, Halves])
def test_the_batch_stays_free(kind: type[nn.Module], tmp_path: Path) -> None:
    given = task(kind)
    session, simulated, measured = file_of(given, tmp_path)
    assert simulated == measured
    for size in (1, 2, 3, 16):
        x = torch.randn(size, 8)
        with torch.no_grad():
            np.testing.assert_allclose(
                session.run(None, {"x": x.numpy()})[0], given.model(x).numpy(), atol=0.03
            )


@pytest.mark.parametrize(
    "kind", [Rows, Unbound, pytest.param(Iterated, marks=pytest.mark.extensive)]
)
def test_a_loop_over_the_batch_gives_a_file_of_the_examples_size_which_is_said(
    kind: type[nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = task(kind)
    session, simulated, measured = file_of(given, tmp_path)
    assert (
        "export: x: dimension 0 (batch) is fixed: the traced program needs exactly 1"
        in capsys.readouterr().err
    )
    assert session.get_inputs()[0].shape == [1, 8]
    assert simulated == measured
    x = torch.randn(1, 8)
    with torch.no_grad():
        np.testing.assert_allclose(
            session.run(None, {"x": x.numpy()})[0], given.model(x).numpy(), atol=0.03
        )


def test_a_model_that_does_something_else_at_the_size_of_the_batches_is_an_error(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        TaskError,
        match=r"something else with inputs of \[\(16, 8\)\] \(validation\) than with those of "
        r"\[\(1, 8\)\]",
    ):
        autocompress.search(task(ByCount), SPACE, n_trials=1, out=tmp_path, quiet=True)


def test_a_model_that_does_something_else_in_large_batches_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError,
        match="differs from the model on a batch of 16, not on one of 4: the model does something "
        "else",
    ):
        autocompress.search(task(ByLargeCount), SPACE, n_trials=1, out=tmp_path, quiet=True)

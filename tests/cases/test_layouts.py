"""Models whose outputs are time-first, as CTC loss takes them, or have a loss in front."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autocompress as ac

SPACE = {
    "modules": [{"match": "*", "weight_bits": [8], "activation_bits": [8, 32]}],
    "distillation": {"steps": 2},
}


class CRNN(nn.Module):
    """Pictures of words (n, 1, 16, 16) -> (steps, n, classes), as text recognition has it."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, (8, 1)))
        self.rnn = nn.GRU(16, 12, bidirectional=True)
        self.head = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.cnn(x).squeeze(2).permute(2, 0, 1)
        states, _ = self.rnn(columns)
        steps, samples, width = states.shape
        scores = self.head(states.view(steps * samples, width)).view(steps, samples, -1)
        return scores.log_softmax(2)


class Learns(nn.Module):
    """Return (loss, logits), as code for training does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.body(x)
        return F.cross_entropy(logits, labels), logits


def steps_right(outputs: Tensor, targets: Tensor) -> float:
    return float((targets == outputs.argmax(2).T).float().mean())


def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
    steps, samples, _ = outputs.shape
    sizes = torch.full((samples,), steps), torch.full((samples,), 3)
    return F.ctc_loss(outputs, targets.clamp_min(1)[:, :3], *sizes)


def recognition(sizes: tuple[int, ...] = (8, 8, 5)) -> ac.Task:
    """The first batches have as many steps as samples."""
    torch.manual_seed(0)
    net = CRNN().eval()

    def batch(size: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(size, 1, 16, 16)
        with torch.no_grad():
            return x, net(x).argmax(2).T

    data = [batch(size) for size in sizes]
    return ac.Task(
        "words", net, data[0][0][:1], data, steps_right, train=[batch(8)], test=data, loss=ctc
    )


def with_loss() -> ac.Task:
    torch.manual_seed(0)
    net, data = Learns().eval(), []
    for x in torch.randn(40, 8).split(16):
        with torch.no_grad():
            y = net.body(x).argmax(1)
        data.append(((x, y), y))
    (x, y), _ = data[0]
    return ac.Task(
        "loss",
        net,
        (x[:1], y[:1]),
        data,
        lambda o, t: float((o.argmax(1) == t).float().mean()),
        train=data,
    )


@pytest.mark.slow
@pytest.mark.parametrize("task_of", [recognition, with_loss])
def test_files_are_searched_and_take_any_batch(
    task_of: Callable[[], ac.Task], tmp_path: Path
) -> None:
    task = task_of()
    result = ac.search(task, SPACE, n_trials=2, out=tmp_path, quiet=True)
    assert result.front.baseline.accuracy == 1.0
    assert list(result.front)
    for point in result.front:
        assert point.predicted.accuracy == pytest.approx(point.measured.accuracy, abs=0.02)
    session = onnxruntime.InferenceSession(tmp_path / point.artifact / "model.onnx")
    module = ac.load(tmp_path / point.artifact, model=task.model)
    for inputs, _ in task.validation:
        tensors = inputs if isinstance(inputs, tuple) else (inputs,)
        names = [value.name for value in session.get_inputs()]
        feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        expected = module(*tensors)
        primary = expected if isinstance(expected, Tensor) else expected[1]
        output = session.run(None, feed)[0]
        assert output.shape == primary.shape
        assert np.abs(output - primary.detach().numpy()).max() < 0.1 * primary.std()

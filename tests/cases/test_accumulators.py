"""Whole searches whose metric gets a split batch by batch, beside the same metric as a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.errors import RunFolderError

pytestmark = pytest.mark.slow

SPACE = {
    "modules": [{"match": "*", "weight_bits": [4, 8], "activation_bits": [8, 32]}],
    "distillation": {"steps": 4},
}


class Right:
    """Compute the share of right classes; it has no reset."""

    def __init__(self) -> None:
        self.right = self.count = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.right += int((outputs.argmax(-1) == targets).sum())
        self.count += targets.numel()

    def compute(self) -> Tensor:
        return torch.tensor(self.right / self.count)


def right(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(-1) == targets).float().mean())


class Words(nn.Module):
    """Give a class to each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = (
            nn.Embedding(40, 16),
            nn.Linear(16, 32),
            nn.Linear(32, 5),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.embedding(ids))))


def task_of(lengths: tuple[int, ...], **more: Any) -> ac.Task:
    torch.manual_seed(0)
    net, data = Words().eval(), []
    for length in lengths:
        ids = torch.randint(0, 40, (8, length))
        with torch.no_grad():
            target = net(ids).argmax(-1)
        wrong = torch.rand(target.shape) < 0.1
        data.append((ids, torch.where(wrong, (target + 1) % 5, target)))
    settings = {"metric": Right, "extra_metrics": {"function": right, "object": Right()}, **more}
    return ac.Task("words", net, data[0][0][:1], data, train=data, test=data[1:], **settings)


@pytest.mark.parametrize("lengths", [(12, 12, 12, 12), (12, 9, 15, 12)])
@pytest.mark.parametrize("mixed", [False, True])
def test_accumulators_and_functions_score_the_same(
    lengths: tuple[int, ...], mixed: bool, tmp_path: Path
) -> None:
    task = task_of(lengths, rows_independent=mixed)
    limits: dict[str, Any] = {"min_metric": {"object": "50%"}, "quiet": True, "out": tmp_path}
    result = ac.search(task, SPACE, n_trials=2, **limits)
    for measured in (result.front.baseline, *(point.measured for point in result.front)):
        assert measured.accuracy == pytest.approx(measured.metrics["function"], abs=1e-6)
        assert measured.accuracy == measured.metrics["object"]
        assert measured.test_accuracy is not None
    for point in result.front:
        assert point.predicted.accuracy == pytest.approx(point.measured.accuracy, abs=0.02)
    assert task.extra_metrics["object"].count == 0
    # The same metric as a function goes on with the run, another one does not.
    again = task_of(lengths, rows_independent=mixed, metric=right)
    ac.search(again, SPACE, n_trials=3, **limits)
    other = task_of(lengths, rows_independent=mixed, metric=lambda o, t: right(o, t) / 2)
    with pytest.raises(RunFolderError, match="with another metric or other data: accuracy of the"):
        ac.search(other, SPACE, n_trials=4, **limits)

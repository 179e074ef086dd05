"""Check which groups may be pruned, and that the float file computes what the model computes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import lowered
from onnx import helper
from torch import Tensor, nn

from autocompress import Task, find_modules
from autocompress.export import prepare as module
from autocompress.export.artifact import open_graph
from autocompress.export.build import Builder
from autocompress.export.prepare import prepare
from autocompress.targets.device.sessions import open_session
from autocompress.targets.kernels import KernelChoice

pytestmark = pytest.mark.slow


def prepared(model: nn.Module, inputs: Tensor) -> Builder:
    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().flatten(1).mean(1)

    batches = [(inputs, None)]
    task = Task("t", model, inputs, batches, lambda o, t: 0.0, divergence=divergence)
    return prepare(task, find_modules(model, inputs), KernelChoice())


def scaled(scale: float) -> nn.Module:
    """Return a model with outputs of about that size, and one group that can be pruned."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).requires_grad_(False)
    for parameter in model[2].parameters():
        parameter *= scale
    return model.eval()


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-9])
def test_a_wrong_pruning_is_seen_in_small_outputs_too(
    monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    class Wrong:
        """Give other numbers than the file does."""

        def __init__(self, session: Any) -> None:
            self.session = session

        def run(self, names: Any, feed: Any) -> list[np.ndarray]:
            return [1.1 * output for output in self.session.run(names, feed)]

    def wrong(*arguments: Any, **options: Any) -> Wrong:
        return Wrong(open_graph(*arguments, **options))

    x = torch.rand(2, 6)
    (group,) = [g for g in prepared(scaled(scale), x).module_map.groups if g.reason is None]
    assert group.name == "0"
    monkeypatch.setattr(module, "open_graph", wrong)
    reasons = {g.name: g.reason for g in prepared(scaled(scale), x).module_map.groups}
    assert reasons["0"] == "the exported graph does not compute the same without half of it"


class Words(nn.Module):
    def __init__(self, recurrent: bool, **options: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(12, 4, **options)
        self.layer = nn.GRU(4, 4, batch_first=True) if recurrent else nn.Linear(4, 4)
        self.head = nn.Linear(4, 12)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.layer(self.table(ids))
        return self.head(rows[0] if isinstance(rows, tuple) else rows)


@pytest.mark.parametrize(
    ("recurrent", "options"),
    [
        (False, {"max_norm": 0.5}),
        (False, {"max_norm": 1.0, "norm_type": 1.0}),
        (True, {"max_norm": 0.5}),
    ],
)
def test_the_float_file_reads_rows_as_lookups_shorten_them(
    recurrent: bool, options: dict[str, float]
) -> None:
    """The example has three of the twelve words."""
    model = Words(recurrent, **options).eval()
    table = model.table.weight.detach().clone()
    builder = prepared(model, torch.tensor([[0, 1, 2], [2, 1, 0]]))
    assert torch.equal(model.table.weight, table)
    ids = torch.arange(12).view(4, 3)
    expected = copy.deepcopy(model)(ids).detach().numpy()
    for session in (builder.lowered.shared.session(), open_session(builder.baseline)):
        (output, *_) = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


class Deciding(nn.Module):
    """Returns booleans and integers beside its scores."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.last(torch.relu(self.first(x)))
        return scores, scores > 100, (scores > 100).long()


def test_outputs_that_are_no_floats_are_compared_too() -> None:
    groups = prepared(Deciding().eval(), torch.rand(2, 6)).module_map.groups
    assert {group.name: group.reason for group in groups}["first"] is None


def test_calls_are_found_by_a_calibration_batch_where_the_graph_has_one_size() -> None:
    example, few, many = torch.zeros(2, 4), torch.ones(1, 4), torch.arange(12.0).view(3, 4)
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    graph = lowered(nodes, {}, {"x": [2, 4]}, ["y"])
    fixed = replace(graph, dynamic_batch=False)
    assert torch.equal(module._shown(fixed, [example, few, many], 2), many[:2])
    assert module._shown(fixed, [example, few], 2) is example
    assert module._shown(graph, [few, many], 2) is few

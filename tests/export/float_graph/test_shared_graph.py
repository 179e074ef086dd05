"""Hold graphs beside the weights of their model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fixture import Fixture
from onnx import TensorProto
from torch import Tensor, nn

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.export.float_graph import float_cache, shared_graph
from autocompress.export.float_graph.float_cache import exported
from autocompress.export.float_graph.float_graph import export_float

X = torch.rand(3, 6)


class Net(nn.Module):
    """Has weights of its own, a tied one and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 32)
        self.second = nn.Linear(32, 6)
        self.tied = nn.Linear(6, 32)
        self.tied.weight = self.first.weight
        self.register_buffer("table", torch.rand(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.second(self.first(x).relu()) @ self.table)


@pytest.fixture
def small_weights_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_graph, "LEAST_BYTES", 256)
    monkeypatch.setattr(float_cache, "LEAST_BYTES", 256)


def aside(proto) -> set[str]:
    return {
        tensor.name
        for tensor in proto.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    }


def test_the_file_is_the_same_and_the_weights_are_the_models(monkeypatch) -> None:
    model = Net().eval()
    whole = export_float(model, X).proto.SerializeToString()
    monkeypatch.setattr(shared_graph, "LEAST_BYTES", 256)
    graph = export_float(model, X)
    assert aside(graph.proto) == {"second.weight", "tied.weight"}
    shared = graph.shared
    assert {weight.data_ptr() for weight in shared.weights.values()} == {
        model.first.weight.data_ptr(),
        model.second.weight.data_ptr(),
    }
    assert shared.content() == whole
    assert shared.size_bytes == len(whole)
    (output,) = shared.session().run(None, {"x": X.numpy()})
    np.testing.assert_allclose(output, model(X).detach().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("small_weights_are_large")
def test_a_graph_from_the_cache_has_the_weights_of_the_model(tmp_path: Path) -> None:
    content = exported(Net().eval(), X, (), tmp_path).shared.content()
    other = Net().eval()
    known = exported(other, X, (), tmp_path)
    assert aside(known.proto) == {"second.weight", "tied.weight"}
    assert known.shared.content() == export_float(other, X).shared.content() != content


def test_candidates_are_the_same_files(cnn_task, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [module.name for module in Fixture(cnn_task).builder.module_map]
    candidates = [Candidate(), Candidate.of({names[-1]: ModuleConfig(weight_bits=8)})]
    expected = [graph_of(Fixture(cnn_task), candidate) for candidate in candidates]
    monkeypatch.setattr(shared_graph, "LEAST_BYTES", 64)
    fixture = Fixture(cnn_task)
    assert aside(fixture.builder.lowered.proto)
    for candidate, content in zip(candidates, expected, strict=True):
        assert graph_of(fixture, candidate) == content
        assert fixture.builder.size_bytes(candidate) == len(content)


def graph_of(fixture: Fixture, candidate: Candidate) -> bytes:
    return fixture.compressor.graph(candidate).SerializeToString()

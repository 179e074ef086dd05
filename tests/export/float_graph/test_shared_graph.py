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
from autocompress.targets.device.sessions import open_session

X = torch.rand(3, 6)


class Net(nn.Module):
    """Has weights of its own, a tied one and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 32)
        self.second = nn.Linear(32, 6)
        self.tied = nn.Linear(6, 32)
        self.tied.weight = self.first.weight
        self.register_buffer("table", torch.rand(6, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.second(self.first(x).relu()) @ self.table[:, :6])


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
    assert max(len(part) for part in shared.parts()) < len(whole) / 2, "one weight at a time"
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


@pytest.mark.slow
def test_candidates_are_the_same_files(
    cnn_task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [module.name for module in Fixture(cnn_task).builder.module_map]
    candidates = [Candidate(), Candidate.of({names[-1]: ModuleConfig(weight_bits=8)})]
    expected = [graph_of(Fixture(cnn_task), candidate) for candidate in candidates]
    monkeypatch.setattr(shared_graph, "LEAST_BYTES", 64)
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))  # so that it is exported anew
    fixture = Fixture(cnn_task)
    assert aside(fixture.builder.lowered.proto)
    for candidate, content in zip(candidates, expected, strict=True):
        assert graph_of(fixture, candidate) == content
        assert fixture.builder.size_bytes(candidate) == len(content)


def graph_of(fixture: Fixture, candidate: Candidate) -> bytes:
    return fixture.compressor.graph(candidate).SerializeToString()


class Transposed(nn.Module):
    """Has a square parameter on the memory of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = nn.Parameter(self.first.weight.detach().t())

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class Masked(nn.Module):
    """Adds a large parameter to scores where they are not masked."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.rand(2, 8, 8))
        self.register_buffer("causal", torch.ones(8, 8).tril().bool())

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.where(self.causal, self.bias, float("-inf"))
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


@pytest.mark.usefixtures("small_weights_are_large")
@pytest.mark.parametrize(
    ("model", "x"), [(Transposed(), torch.rand(3, 16)), (Masked(), torch.rand(3, 2, 8, 4))]
)
def test_files_compute_what_the_model_computes(model: nn.Module, x: Tensor) -> None:
    graph = export_float(model.eval(), x)
    expected = model(x).detach().numpy()
    for session in (graph.shared.session(), open_session(graph.shared.content())):
        (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small_weights_are_large")
def test_buffers_of_a_graph_from_the_cache_are_copies(tmp_path: Path) -> None:
    exported(Net().eval(), X, (), tmp_path)
    model = Net().eval()
    known = exported(model, X, (), tmp_path)
    assert aside(known.proto) == {"second.weight", "tied.weight"}

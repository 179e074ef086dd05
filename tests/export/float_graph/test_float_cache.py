from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.export.float_graph import float_cache
from autocompress.export.float_graph.float_cache import exported
from autocompress.export.float_graph.float_graph import FloatGraph

pytestmark = pytest.mark.slow


class Net(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.factor = factor  # neither a weight nor printed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * self.last(torch.relu(self.norm(self.first(x))))


X = torch.rand(2, 6)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found, original = [], float_cache.export_float

    def counted(*given):
        found.append(1)
        return original(*given)

    monkeypatch.setattr(float_cache, "export_float", counted)
    return found


def test_a_model_is_exported_once_and_its_graph_takes_the_weights_of_today(
    tmp_path: Path, exports: list[int]
) -> None:
    torch.manual_seed(0)
    first = exported(Net().eval(), X, (), tmp_path)
    (file,) = tmp_path.iterdir()
    trained = Net().eval()
    second = exported(trained, X, (), tmp_path)
    assert len(exports) == 1
    assert second[0].SerializeToString() != first[0].SerializeToString()
    assert second[0].SerializeToString() == exported(trained, X)[0].SerializeToString(), (
        "to the byte"
    )
    assert second[1] is first[1] is True
    assert len(exports) == 2, "without a folder nothing is kept"
    assert trained.first.weight.detach().numpy().tobytes() not in file.read_bytes()


def test_what_computes_something_else_is_exported_again(tmp_path: Path, exports: list[int]) -> None:
    torch.manual_seed(0)
    exported(Net().eval(), X, (), tmp_path)
    other = Net(2.0).eval()
    assert (
        exported(other, X, (), tmp_path)[0].SerializeToString()
        == exported(other, X)[0].SerializeToString()
    )
    assert len(exports) == 3
    exported(Net().eval(), torch.rand(3, 6), (), tmp_path)
    assert len(exports) == 4, "for inputs of another shape"


def test_a_damaged_graph_is_made_again(tmp_path: Path, exports: list[int]) -> None:
    model = Net().eval()
    whole = exported(model, X, (), tmp_path)[0].SerializeToString()
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    for damaged in (bytes(content), b"", file.read_bytes()[:50]):
        file.write_bytes(damaged)
        assert exported(model, X, (), tmp_path)[0].SerializeToString() == whole
    assert len(exports) == 4
    assert exported(model, X, (), tmp_path)[0].SerializeToString() == whole
    assert len(exports) == 4


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert exported(Net().eval(), X, (), tmp_path / "file" / "graphs")[1]


class Branching(nn.Module):
    """Decides by values that are no float32 weights; they change nothing at the example."""

    def __init__(self, **changed: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 3)
        self.limit = changed.get("limit", 10.0)
        self.settings = {"limits": [changed.get("inner", 10.0)]}
        self.loose = torch.tensor(changed.get("loose", 10.0))
        self.register_buffer("count", torch.tensor(changed.get("count", 10)))
        self.register_buffer("on", torch.tensor(changed.get("on", True)))
        self.register_buffer("known", torch.tensor(changed.get("known", 10.0)))
        self.register_buffer("hidden", torch.tensor(changed.get("hidden", 10.0)), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        limits = (self.limit, *self.settings["limits"], self.loose, self.count, self.hidden)
        for limit in (*limits, self.known.item()):
            y = torch.where(x[:, :1] > limit, -y, y)
        return torch.where((x[:, :1] > 20) & self.on, 2 * y, y)


def computed(graph: FloatGraph, x: torch.Tensor) -> np.ndarray:
    session = graph.shared.session()
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def test_values_that_decide_beyond_the_example_are_part_of_the_key(
    tmp_path: Path, exports: list[int]
) -> None:
    others = {"limit": 5.0, "inner": 5.0, "loose": 5.0, "count": 5, "hidden": 5.0, "on": False}
    others["known"] = 5.0  # a float32 that the tracer writes into the graph
    x = torch.tensor([[0.5], [7.0], [12.0], [30.0]]) * torch.ones(1, 6)
    exported(Branching().eval(), X, (), tmp_path)
    for i, (name, value) in enumerate(others.items()):
        model = Branching(**{name: value}).eval()
        for _ in range(2):
            graph = exported(model, X, (), tmp_path)
            np.testing.assert_allclose(computed(graph, x), model(x).detach(), rtol=1e-4)
        assert len(exports) == i + 2, name


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.fc(x)
        return {"logits": y, "scaled": FACTORS[0] * y, "best": y.argmax(1), "large": y > FACTORS[1]}


FACTORS = [1.0, 0.0]


@pytest.mark.parametrize("place", [0, 1])
def test_all_outputs_are_compared(
    tmp_path: Path, exports: list[int], monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """A global that the forward reads is in no key, and changes an output behind the first."""
    torch.manual_seed(0)
    model = Several().eval()
    for _ in range(2):
        exported(model, X, (), tmp_path)
    assert len(exports) == 1
    factors = list(FACTORS)
    factors[place] = (1.5, -9.0)[place]
    monkeypatch.setitem(globals(), "FACTORS", factors)
    graph = exported(model, X, (), tmp_path)
    assert len(exports) == 2
    session = graph.shared.session()
    outputs = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    for output, expected in zip(outputs, model(X).values(), strict=True):
        np.testing.assert_allclose(output, expected.detach().numpy(), rtol=1e-4)

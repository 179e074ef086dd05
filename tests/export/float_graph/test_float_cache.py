from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.export.float_graph import float_cache
from autocompress.export.float_graph.float_cache import exported

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

"""Outputs of different lengths.

Their metrics, and searches of models that give a row per position.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import autocompress
from autocompress import Task
from autocompress.cli.main import main
from autocompress.errors import ExportError
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.ragged import ragged_score
from autocompress.search.problem import problem
from autocompress.task.user_code import UserCodeError

pytestmark = pytest.mark.slow

SPACE = {
    "modules": [{"match": "*", "weight_bits": [4, 8], "activation_bits": [8, 32]}],
    "distillation": {"steps": 4},
}
LENGTHS = (12, 9, 15, 12)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(ids)))


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


def tokens_right(o: Tensor, t: Tensor) -> float:
    return float((o.argmax(-1) == t).float().mean())


def pixels_right(o: Tensor, t: Tensor) -> float:
    return float((o.argmax(1) == t).float().mean())


def sentences_right(o: Tensor, t: Tensor) -> float:
    return float((o.argmax(-1) == t).all(1).float().mean())


def of_lists(o: Any, t: Any) -> float:
    assert isinstance(o, list)
    return float(
        np.mean([float((a.argmax(-1) == b).float().mean()) for a, b in zip(o, t, strict=True)])
    )


def tagger(metric: Any = tokens_right) -> Task:
    torch.manual_seed(0)
    net, generator = Tagger().eval(), torch.Generator().manual_seed(1)
    data = []
    for length in LENGTHS:
        ids = torch.randint(0, 40, (8, length), generator=generator)
        with torch.no_grad():
            target = net(ids).argmax(-1)
        wrong = torch.rand(target.shape, generator=generator) < 0.1
        data.append((ids, torch.where(wrong, (target + 1) % 5, target)))
    return Task("tagger", net, data[0][0][:1], data, metric, train=data, test=data[1:])


def maps(metric: Any = pixels_right) -> Task:
    torch.manual_seed(0)
    net, data = Maps().eval(), []
    for size in (8, 6, 12):
        x = torch.randn(4, 3, size, size)
        with torch.no_grad():
            data.append((x, net(x).argmax(1)))
    return Task("maps", net, data[0][0][:1], data, metric, train=data)


def ragged(metric: Any, task: Task) -> float:
    with torch.no_grad():
        outputs = [row for ids, _ in task.validation for row in task.model(ids)]
    return ragged_score(metric, outputs, [row for _, target in task.validation for row in target])


def test_means_over_positions_are_weighted_by_positions_and_means_over_samples_by_samples() -> None:
    task = tagger()
    with torch.no_grad():
        right = [task.model(ids).argmax(-1) == target for ids, target in task.validation]
    every = float(torch.cat([found.flatten() for found in right]).float().mean())
    whole = float(torch.cat([found.all(1) for found in right]).float().mean())
    by_sample = float(torch.cat([found.float().mean(1) for found in right]).mean())
    assert len({round(value, 6) for value in (every, whole, by_sample)}) == 3
    assert ragged(tokens_right, task) == pytest.approx(every, abs=1e-6)
    assert ragged(sentences_right, task) == pytest.approx(whole, abs=1e-6)
    assert ragged(of_lists, task) == pytest.approx(by_sample, abs=1e-6)
    assert evaluate_model(task, task.model, task.validation, torch.device("cpu"))[
        0
    ].accuracy == pytest.approx(every, abs=1e-6)


def test_a_metric_that_is_no_mean_and_takes_no_lists_is_refused() -> None:
    def spread(o: Tensor, t: Tensor) -> float:
        return float(o.std())

    with pytest.raises(
        UserCodeError,
        match=r"takes no lists and is no mean over samples; outputs have shapes \(12, 5\) and "
        r"\(9, 5\)",
    ):
        ragged(spread, tagger())


@pytest.mark.parametrize("make", [tagger, maps])
def test_models_with_a_row_per_position_are_searched(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = make()
    result = autocompress.search(task, SPACE, n_trials=3, out=tmp_path)
    assert "outputs differ in shape among batches" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "report.html").is_file()
    for point in result.front:
        assert point.measured.accuracy == pytest.approx(point.predicted.accuracy, abs=0.02)
        session = onnxruntime.InferenceSession(
            str(tmp_path / point.artifact / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        dim = -1 if make is tagger else 1
        right = [
            session.run(None, {session.get_inputs()[0].name: x.numpy()})[0].argmax(dim) == y.numpy()
            for x, y in task.validation
        ]
        assert point.measured.accuracy == pytest.approx(
            float(np.concatenate([found.ravel() for found in right]).mean()), abs=1e-6
        )


def test_evaluate_takes_several_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lengths.py").write_text(Path(__file__).read_text())
    spec = f"{tmp_path / 'lengths.py'}:tagger"
    out = tmp_path / "run"
    result = autocompress.search(spec, SPACE, n_trials=2, out=out, quiet=True)
    point = result.front.points[0]
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(out / point.artifact / "model.onnx"), spec, "--split", "test"])
    assert caught.value.code == 0
    assert f"accuracy {point.measured.test_accuracy:.4f} on 24 samples of test" in " ".join(
        capsys.readouterr().out.split()
    )
    assert json.loads((out / "front.json").read_text())["points"]


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:  # (length, batch, 8) -> (batch, 4)
        return self.head(self.encoder(self.first(x)).mean(0))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][-1])


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        hidden = torch.relu(self.first(nodes))
        return self.head(hidden + torch.zeros_like(hidden).index_add(0, edges[1], hidden[edges[0]]))


def first_dimensions(net: nn.Module, inputs: list[Any]) -> Task:
    data = []
    for given in inputs:
        with torch.no_grad():
            data.append((given, net(*(given if isinstance(given, tuple) else (given,))).argmax(1)))
    return Task("first", net, inputs[0], data, pixels_right, train=data)


def time_first(kind: type[nn.Module] = TimeFirst) -> Task:
    torch.manual_seed(0)
    return first_dimensions(kind().eval(), [torch.randn(length, 8, 8) for length in (16, 12, 20)])


def graphs() -> Task:
    torch.manual_seed(0)
    sizes = ((10, 20), (12, 30), (9, 25))
    return first_dimensions(
        Graph().eval(), [(torch.randn(n, 8), torch.randint(0, n, (2, e))) for n, e in sizes]
    )


@pytest.mark.parametrize("make", [time_first, graphs])
def test_a_first_dimension_that_is_not_the_batch_is_free_where_batches_differ_in_it(
    make: Any, tmp_path: Path
) -> None:
    task = make()
    result = autocompress.search(task, SPACE, n_trials=2, out=tmp_path, quiet=True)
    for point in result.front:
        session = onnxruntime.InferenceSession(
            str(tmp_path / point.artifact / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        names, right = [value.name for value in session.get_inputs()], []
        for inputs, target in task.validation:
            tensors = inputs if isinstance(inputs, tuple) else (inputs,)
            found = session.run(
                None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
            )[0]
            right.append(found.argmax(1) == target.numpy())
        assert point.measured.accuracy == pytest.approx(
            float(np.concatenate(right).mean()), abs=1e-6
        )


def test_a_length_that_cannot_be_free_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problem, "cached_table", None)
    with pytest.raises(
        ExportError,
        match=r"dimension 0 is fixed at 16 .*GRU.*validation has batches of 20 there; pad all "
        r"batches to 16",
    ):
        autocompress.search(time_first(Recurrent), SPACE, n_trials=2, out=tmp_path, quiet=True)

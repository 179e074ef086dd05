"""Data in any order and any form, models with state, inputs that are written to.

Right numbers, or one line before the search.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import autocompress as ac
from autocompress.cli.main import main
from autocompress.errors import AutocompressError, TaskError
from autocompress.measure.accuracy import model_outputs
from autocompress.measure.prepare import prepared
from autocompress.measure.probing import check_steady, sample_dimensions
from autocompress.results.measurement import Measurement
from autocompress.search.evaluate.racing import Rival, surely_dominated
from autocompress.search.problem.race import open_race
from autocompress.search.problem.scoring import SampleScores, sample_scores
from autocompress.task.batches import take_samples
from autocompress.task.loading import Kept
from autocompress.task.user_code import UserCodeError

CPU = torch.device("cpu")
SPACE = {
    "modules": [{"match": "*", "weight_bits": [4, 8], "activation_bits": [8, 32]}],
    "distillation": {"steps": 0},
}


def top1(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


def classifier(inputs: int = 16, classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, classes)).eval()


def labelled(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` with the classes that `net`, whose bias is moved so that all are there, gives it."""
    with torch.no_grad():
        net[2].bias -= net(x).mean(0)
        return x, net(x).argmax(1)


def plain(count: int = 256, size: int = 32, **more: Any) -> ac.Task:
    net = classifier()
    x, y = labelled(net, torch.randn(count, 16))
    data = list(zip(x.split(size), y.split(size), strict=True))
    return ac.Task("plain", net, x[:1], data, top1, **more)


def searched(task: ac.Task, folder: Path, **more: Any) -> ac.SearchResult:
    """A small search, in whose front the search and the files agree."""
    result = ac.search(task, SPACE | more, n_trials=2, out=folder, quiet=True)
    for point in result.front:
        assert point.predicted.accuracy == pytest.approx(point.measured.accuracy, abs=0.02)
    assert list(result.front)
    return result


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True)
    )


# Loaders: every pass is the same.


class OwnOrder:
    """Another order on each pass, from a generator that nobody can seed, and the same buffer for
    each batch.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.generator, self.buffer, self.passes = (
            x,
            y,
            np.random.default_rng(),
            torch.empty(32, 16),
            0,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        for rows in torch.as_tensor(self.generator.permutation(len(self.x))).split(32):
            yield self.buffer.copy_(self.x[rows]), self.y[rows]


class Drawn(IterableDataset):
    """Augmented anew on each pass, by three generators."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for i in range(96):
            yield torch.rand(16) + random.random() + float(np.random.rand()), i % 4


def data_of(kind: str) -> tuple[Any, int]:
    x, y = torch.randn(256, 16), torch.arange(256) % 4
    if kind == "own":
        return OwnOrder(x, y), 256
    if kind == "drawn":
        return DataLoader(Drawn(), 32), 96
    return DataLoader(
        TensorDataset(x, y),
        32,
        shuffle=True,
        generator=torch.Generator() if kind == "generator" else None,
    ), 256


@pytest.mark.parametrize("kind", ["shuffle", "generator", "own", "drawn"])
def test_each_pass_of_a_loader_is_the_same_whatever_it_does(kind: str) -> None:
    loader, count = data_of(kind)
    assert not same([(x.clone(), y) for x, y in loader], [(x.clone(), y) for x, y in loader])
    task = prepared(replace(plain(), validation=loader, test=loader))
    first = list(task.validation)
    assert sum(len(x) for x, _ in first) == count
    assert len({tuple(x.flatten().tolist()) for x, _ in first}) == len(first), (
        "a buffer that is written again is copied"
    )
    assert same(first, list(task.validation))
    assert same([next(iter(task.validation))], first[:1])
    state = torch.get_rng_state()
    list(task.test)
    assert torch.equal(state, torch.get_rng_state()), "the loader has random generators of its own"


def test_a_loader_is_read_once_and_only_as_far_as_it_is_asked_for() -> None:
    loader = OwnOrder(torch.randn(256, 16), torch.arange(256) % 4)
    task = prepared(replace(plain(), validation=loader))
    next(iter(task.validation))
    again = [list(task.validation) for _ in range(3)]
    assert loader.passes == 1
    assert same(again[0], again[2])


def test_what_does_not_fit_in_memory_is_read_anew_or_named() -> None:
    x, y = torch.randn(256, 16), torch.arange(256) % 4
    for shuffle in (False, True):  # seeded, both give the same passes
        kept = Kept(DataLoader(TensorDataset(x, y), 32, shuffle=shuffle), "validation", x[:1], 5000)
        assert same(list(kept), list(kept))
        assert len(list(kept)) == 8
        assert not kept.in_memory
    with pytest.raises(
        TaskError,
        match=r"task: validation comes in another order on each pass and takes more than .*; "
        r"nearest: shuf",
    ):
        list(Kept(OwnOrder(x, y), "validation", x[:1], 5000))
    with pytest.raises(
        TaskError,
        match=r"task: test can be read only once and takes more than 5e-06 GB, which "
        r"Task.data_memory allows",
    ):
        list(
            Kept(
                ((a, b) for a, b in zip(x.split(32), y.split(32), strict=True)), "test", x[:1], 5000
            )
        )


ONCE: dict[str, Callable[[list[Any]], Any]] = {
    "generator": lambda data: (batch for batch in data),
    "iterator": iter,
    "zip": lambda data: zip([b[0] for b in data], [b[1] for b in data], strict=True),
    "map": lambda data: map(tuple, data),
}


@pytest.mark.parametrize("kind", ONCE)
@pytest.mark.parametrize("where", ["validation", "train", "calibration", "test"])
def test_what_can_be_read_once_is_read_once(kind: str, where: str) -> None:
    task = plain()
    found = prepared(replace(task, **{where: ONCE[kind](task.validation)}))
    for _ in range(3):
        assert same(list(getattr(found, where)), task.validation)


@pytest.mark.slow
def test_a_shuffled_validation_and_generators_are_searched(tmp_path: Path) -> None:
    task = plain(512)
    x, y = (torch.cat(parts) for parts in zip(*task.validation, strict=True))
    loader = DataLoader(TensorDataset(x, y), 64, shuffle=True)
    result = searched(
        replace(
            task, validation=loader, train=iter(task.validation), test=(b for b in task.validation)
        ),
        tmp_path,
    )
    assert result.front.baseline.accuracy == 1.0
    assert result.front.baseline.test_accuracy == 1.0


# The order of samples: metrics of pairs and groups.


def pairs(outputs: Tensor, targets: Tensor) -> float:
    """How often the first of two neighbours has the higher score, as in the targets."""
    return float(
        ((outputs[::2, 0] > outputs[1::2, 0]) == (targets[::2] > targets[1::2])).float().mean()
    )


def groups(outputs: Tensor, targets: Tensor) -> float:
    """Reciprocal rank of the right one of each eight."""
    ranks = (
        (
            outputs[:, 0].reshape(-1, 8).argsort(1, descending=True)
            == targets.reshape(-1, 8).argmax(1, keepdim=True)
        )
        .int()
        .argmax(1)
    )
    return float((1 / (1 + ranks)).mean())


def recall(outputs: Tensor, targets: Tensor) -> float:
    """Retrieval inside each batch of 32."""
    found = [(part @ part.T).fill_diagonal_(-1e9).argmax(1) for part in outputs.split(32)]
    right = [
        (wanted[nearest] > 0) == (wanted > 0)
        for nearest, wanted in zip(found, targets.split(32), strict=True)
    ]
    return float(torch.cat(right).float().mean())


@pytest.mark.parametrize("metric", [pairs, groups, recall])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("loader", [False, True])
def test_a_metric_of_pairs_and_groups_gets_them_in_their_order(
    metric: Any, mixed: bool, loader: bool
) -> None:
    task = plain()
    x, y = torch.cat([x for x, _ in task.validation]), torch.randn(256)
    given = (
        DataLoader(TensorDataset(x, y), 32)
        if loader
        else list(zip(x.split(32), y.split(32), strict=True))
    )
    task = prepared(replace(task, validation=given, metric=metric, rows_independent=mixed))
    race = open_race(task, task.model, CPU, seed=1)
    assert race.mixed == mixed
    with torch.no_grad():
        expected, outputs = (
            metric(task.model(x), y),
            [{"": task.model(inputs)} for inputs, _ in race.batches],
        )
    raced = torch.cat([found[""] for found in outputs])
    joined = race.joined(outputs)[""]
    assert metric(joined, race.answers) == pytest.approx(expected)
    assert not torch.equal(raced, joined), "the race has another order"
    torch.testing.assert_close(raced, race.teacher.take(race.rows.tolist(), x))
    whole = {tuple(inputs.flatten().tolist()) for inputs, _ in given}
    assert all((tuple(inputs.flatten().tolist()) in whole) != mixed for inputs, _ in race.batches)
    assert race.scored == "divergence"


def test_the_order_of_a_race_depends_on_the_seed_alone() -> None:
    task = prepared(plain())
    orders = [open_race(task, task.model, CPU, seed) for seed in (0, 0, 1)]
    assert orders[0].digest == orders[1].digest != orders[2].digest
    assert sorted(orders[2].order) == list(range(8))


def test_batches_of_different_lengths_are_judged_whole() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(50, 16), nn.Linear(16, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embedding(ids).amax(1))

    data = [(torch.randint(1, 50, (8, length)), torch.arange(8) % 4) for length in (8, 12, 9, 15)]
    task = prepared(
        ac.Task("words", Words().eval(), data[0][0][:1], data, top1, rows_independent=True)
    )
    race = open_race(task, task.model, CPU, 0)
    assert not race.mixed
    with torch.no_grad():
        outputs = [{"": task.model(x)} for x, _ in race.batches]
        assert torch.equal(race.joined(outputs)[""], torch.cat([task.model(x) for x, _ in data]))


def test_outputs_of_different_lengths_are_named() -> None:
    data = [(torch.rand(4, length, 8), None) for length in (5, 6)]
    task = prepared(
        ac.Task("tokens", nn.Linear(8, 3), data[0][0], data, lambda o, t: float(o.std()))
    )
    with pytest.raises(
        TaskError,
        match=r"no mean over samples; outputs have shapes \(5, 3\) and \(6, 3\), which are not "
        r"one tensor; nearest: a",
    ):
        open_race(task, task.model, CPU, 0)


def test_batches_of_one_class_each_do_not_stop_a_candidate_that_is_better_on_the_others() -> None:
    generator = np.random.default_rng(0)
    sizes = [64, 64, 64, 64]
    better = np.repeat(np.float32([2.0, -2.0, 1.5, 0.2]), 64) + generator.normal(
        0, 0.2, 256
    ).astype(np.float32)
    candidate, rival = (
        SampleScores(None, 5 + better),
        Rival(4, SampleScores(None, np.full(256, 5, dtype=np.float32))),
    )
    assert surely_dominated(candidate, [rival]) == 4, "as random samples these are sure"
    assert surely_dominated(candidate, [rival], sizes) is None
    everywhere = SampleScores(None, 5 + np.abs(generator.normal(0.5, 0.2, 256).astype(np.float32)))
    assert surely_dominated(everywhere, [rival], sizes) == 4


# The first dimension.


class Recurrent(nn.Module):
    """(length, batch, 8) -> (batch, 4), or of every step."""

    def __init__(self, every_step: bool = False) -> None:
        super().__init__()
        self.rnn, self.head, self.every_step = nn.GRU(8, 24), nn.Linear(24, 4), every_step

    def forward(self, x: Tensor) -> Tensor:
        states = self.rnn(x)[0]
        return self.head(states if self.every_step else states[-1])


class Graph(nn.Module):
    """Nodes (n, 8) and edges (2, e) -> nodes (n, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.own(x) + torch.zeros(len(x), 4).index_add(0, edges[1], self.other(x)[edges[0]])


class InBatch(nn.Module):
    """Similarities of a batch of pairs (n, n)."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 16), nn.Linear(8, 16)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.left(a) @ self.right(b).T


class MeanOfBatch(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Flattened(nn.Module):
    """(n, 5, 8) -> (5 n, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).flatten(0, 1)


FIRST: dict[str, tuple[nn.Module, Any, bool]] = {
    "features": (classifier(), torch.randn(12, 16), True),
    "one sample": (classifier(), torch.randn(1, 16), True),
    "images": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), torch.randn(5, 3, 8, 8), True),
    "rows of a sample": (Flattened(), torch.randn(6, 5, 8), True),
    "batch norm": (nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 4)), torch.randn(9, 8), True),
    "time": (Recurrent(), torch.randn(16, 16, 8), False),
    "time, every step": (Recurrent(every_step=True), torch.randn(16, 16, 8), False),
    "time, one step": (Recurrent(), torch.randn(1, 16, 8), False),
    "edges": (Graph(), (torch.randn(10, 8), torch.randint(0, 10, (2, 30))), False),
    "an image": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)),
        torch.randn(3, 8, 8),
        False,
    ),
    "statistics of the batch": (
        nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 4)),
        torch.randn(9, 8),
        False,
    ),
    "similarities": (InBatch(), (torch.randn(8, 8), torch.randn(8, 8)), False),
    "mean of the batch": (
        MeanOfBatch(8, 4),
        torch.randn(9, 8),
        False,
    ),
}


@pytest.mark.parametrize("name", FIRST)
def test_whether_the_first_dimension_is_the_batch_is_found_out(name: str) -> None:
    model, inputs, expected = FIRST[name]
    task = ac.Task(name, model.eval(), inputs, [(inputs, None)], lambda o, t: 0.0)
    assert (sample_dimensions(task, model, inputs) is not None) == expected
    said: list[str] = []
    found = prepared(task, said.append)
    assert found.batch_first == expected
    every_step = name == "time, every step"  # its outputs are said to be time-first too
    assert len(said) == (not expected) + every_step
    assert found.sample_dims == ({"": 1} if every_step else {})
    if name == "statistics of the batch":
        assert said[0].startswith("0 normalises by the batch that it is given")
    if not expected:
        assert not found.can_cut(inputs, None)
        assert found.first_samples(found.validation, 2)[0][0] is found.validation[0][0]
    assert prepared(replace(task, batch_first=False)).batch_first is False, "the task may say so"


class OneImage(nn.Module):
    """(3, 8, 8) -> (1, 4), or (4,)."""

    def __init__(self, row: bool = True) -> None:
        super().__init__()
        self.conv, self.head, self.row = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), row

    def forward(self, x: Tensor) -> Tensor:
        found = self.head(torch.relu(self.conv(x)).amax((1, 2)))
        return found[None] if self.row else found


@pytest.mark.slow
@pytest.mark.parametrize("label", [int, torch.tensor, lambda y: torch.tensor([y])])
def test_one_image_at_a_time_is_searched(label: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, images = OneImage().eval(), torch.randn(48, 3, 8, 8)
    with torch.no_grad():
        net.head.bias -= torch.cat([net(x) for x in images]).mean(0)
        data = [(x, label(int(net(x).argmax()))) for x in images]
    front = searched(
        ac.Task("image", net, images[0], data, top1, train=data),
        tmp_path,
        distillation={"steps": 4},
    ).front
    assert front.baseline.accuracy == 1.0
    assert set(front.baseline.metrics) == {"accuracy_gaussian_noise"}, (
        "what samples are is not known to the others"
    )


def test_outputs_without_a_row_per_sample_are_named() -> None:
    x = torch.randn(3, 8, 8)
    with pytest.raises(
        TaskError,
        match=r"outputs of shape \(4,\) for one sample; expected a row per sample, \(1, 4\)",
    ):
        prepared(ac.Task("image", OneImage(row=False), x, [(x, 2)], top1))


@pytest.mark.slow
def test_graphs_are_searched(tmp_path: Path) -> None:
    """Whole graphs: neither nodes nor edges are cut, though there are more of both than samples are
    asked for.
    """
    torch.manual_seed(0)
    net, data = Graph().eval(), []
    for _ in range(6):
        graph = torch.randn(60, 8), torch.randint(0, 60, (2, 150))
        with torch.no_grad():
            data.append((graph, net(*graph).argmax(1)))
    front = searched(
        ac.Task("graph", net, data[0][0], data, top1, train=data),
        tmp_path,
        distillation={"steps": 4},
    ).front
    assert front.baseline.accuracy == 1.0


@pytest.mark.slow
def test_time_first_data_is_searched(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, data = Recurrent().eval(), []
    for i in range(12):
        x = torch.randn(16, 16, 8)
        with torch.no_grad():
            if i == 0:
                net.head.bias -= net(x).mean(0)
            data.append((x, net(x).argmax(1)))
    result = searched(
        ac.Task("timefirst", net, data[0][0], data[:8], top1, train=data[8:]), tmp_path
    )
    assert result.front.baseline.accuracy == 1.0
    assert max(point.predicted.accuracy for point in result.front) > 0.9


# State and chance.


class Streaming(nn.Module):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.rnn, self.key = nn.GRU(8, 4, batch_first=True), key
        self.register_buffer("seen", torch.zeros(()))
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        known = self.state if self.state is not None and self.state.shape[1] == len(x) else None
        y, h = self.rnn(x, known if self.key == "state" else None)
        self.state = h.detach()
        if self.key == "seen":
            self.seen += x.mean()
            return y[:, -1] + self.seen
        return y[:, -1]


class Chance(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.draw = nn.Linear(8, 4), draw

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.draw(x))


def steady(model: nn.Module, x: Tensor) -> None:
    check_steady(ac.Task("t", model, x, [(x, None)], lambda o, t: 0.0), model, x)


@pytest.mark.parametrize("key", ["state", "seen"])
def test_a_model_that_keeps_state_is_named(key: str) -> None:
    with pytest.raises(
        TaskError,
        match=rf"model.forward gives other outputs .* by up to 0.*: it keeps state \(.*{key}.* "
        r"changed\)",
    ):
        steady(Streaming(key), torch.randn(16, 4, 8))
    steady(Streaming("none"), torch.randn(16, 4, 8))  # it keeps what it does not use


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: nn.functional.dropout(x, 0.2, training=True),
        lambda x: x + 0.01 * torch.randn_like(x),
        lambda x: x[:, torch.randperm(8)],
    ],
)
def test_a_model_that_draws_numbers_is_named(draw: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(TaskError, match="it draws random numbers in eval mode"):
        steady(Chance(draw), torch.randn(16, 8))


def test_a_lazy_model_is_named() -> None:
    x = torch.randn(2, 8)
    task = ac.Task("lazy", nn.Sequential(nn.LazyLinear(4)), x, [(x, None)], lambda o, t: 0.0)
    with pytest.raises(
        TaskError,
        match=r"task lazy: model's 0.weight has no shape yet; call the model once before the task "
        r"is made",
    ):
        prepared(task)
    task.model(x)
    prepared(task)


@pytest.mark.slow
def test_a_model_that_keeps_state_is_said_before_the_search(tmp_path: Path) -> None:
    x = torch.randn(64, 4, 8)
    task = ac.Task(
        "stateful",
        Streaming("state"),
        x[:1],
        list(zip(x.split(32), torch.zeros(64).long().split(32), strict=True)),
        top1,
    )
    with pytest.raises(TaskError, match="it keeps state"):
        ac.search(task, SPACE, n_trials=1, out=tmp_path, quiet=True)


# Inputs that are written to, other precisions, inference tensors.


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(5.0).div_(2.0)
        return self.b(torch.relu(self.a(x)))


@pytest.mark.slow
def test_a_model_that_writes_to_its_inputs_leaves_the_users_data_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = InPlace().eval(), 5 + 2 * torch.randn(256, 16)
    before = x.clone()
    with torch.no_grad():
        net.b.bias -= net(x.clone()).mean(0)
        y = net(x.clone()).argmax(1)
    data = list(zip(x.split(32), y.split(32), strict=True))
    result = searched(
        ac.Task("inplace", net, x[:1], data, top1, train=data), tmp_path, distillation={"steps": 4}
    )
    assert torch.equal(x, before)
    assert result.front.baseline.accuracy == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_searched_in_float32_which_is_said(dtype: torch.dtype) -> None:
    task = plain()
    data = [(x.to(dtype), {"label": y, "weight": y.to(dtype)}) for x, y in task.validation]
    said: list[str] = []
    given = replace(
        task,
        model=task.model.to(dtype),
        example_inputs=task.example_inputs.to(dtype),
        validation=data,
    )
    found = prepared(given, said.append)
    assert said == [
        f"the model is in {str(dtype).removeprefix('torch.')}: a float32 copy of it and of its "
        "data is searched"
    ]
    x, target = next(iter(found.validation))
    assert {
        x.dtype,
        target["weight"].dtype,
        found.example_inputs.dtype,
        found.model[0].weight.dtype,
    } == {torch.float32}
    assert target["label"].dtype == torch.int64
    assert given.model[0].weight.dtype == dtype


@pytest.mark.slow
def test_double_precision_is_searched(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = (
        nn.Sequential(nn.Conv1d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
        .double()
        .eval()
    )
    x = torch.randn(256, 1, 16, dtype=torch.float64)
    with torch.no_grad():
        net[3].bias -= net(x).mean(0)
        y = net(x).argmax(1)
    data = list(zip(x.split(32), y.split(32), strict=True))
    result = searched(ac.Task("double", net, x[:1], data[:4], top1, train=data[4:]), tmp_path)
    assert result.front.baseline.accuracy == 1.0
    assert net[0].weight.dtype == torch.float64


@pytest.mark.slow
def test_tensors_made_in_inference_mode_are_searched(tmp_path: Path) -> None:
    with torch.inference_mode():
        task = plain()
    assert task.model[0].weight.is_inference()
    assert task.validation[0][0].is_inference()
    result = searched(replace(task, train=task.validation), tmp_path, distillation={"steps": 4})
    assert result.front.baseline.accuracy == 1.0


# Arguments that are no tensors.


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 4)

    def forward(
        self,
        x: Any,
        mask: Any = None,
        double: bool = False,
        scale: float = 1.0,
        more: Any = None,
        mode: str = "sum",
    ) -> Tensor:
        y = self.a(x if mask is None else x * mask) * scale
        y = y + y.sin() if double else y
        for extra in (
            [] if more is None else list(more.values()) if isinstance(more, dict) else more
        ):
            y = y + self.a(extra) if mode == "sum" else y - self.a(extra)
        return y


ARGUMENTS: dict[str, Callable[[Tensor], Any]] = {
    "positional": lambda x: (x, None, True, 2.0),
    "named": lambda x: {"x": x, "mask": None, "double": True, "scale": 0.5},
    "a list": lambda x: [x, x.abs(), False, 1, [x, x * x]],
    "nested": lambda x: {"more": {"one": x, "two": x.abs()}, "x": x * 2, "mode": "difference"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_are_no_tensors_are_constants_of_the_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Many().eval(), torch.randn(128, 16)
    form = ARGUMENTS[name]
    y = model_outputs(net, form(x), CPU).argmax(1)
    data = [(form(part), wanted) for part, wanted in zip(x.split(32), y.split(32), strict=True)]
    if isinstance(data[1][0], dict):  # in another order
        data[1] = (dict(reversed(data[1][0].items())), data[1][1])
    result = searched(
        ac.Task(name.replace(" ", "_"), net, form(x[:1]), data, top1, train=data), tmp_path
    )
    assert result.front.baseline.accuracy == 1.0


X = torch.randn(4, 16)


@pytest.mark.parametrize(
    ("inputs", "example", "text"),
    [
        (
            X.numpy(),
            X,
            "validation gives inputs of type ndarray; expected a tensor, a tuple or a dict of "
            "arguments",
        ),
        (
            (X, X.numpy()),
            (X, X),
            "validation: argument 1 is a ndarray; expected a tensor, None, a number",
        ),
        (
            {"x": X, "graph": object()},
            {"x": X, "graph": None},
            "validation: graph is a object; expected",
        ),
        ({"x": {"y": [X, object()]}}, {"x": {"y": [X, X]}}, "validation: x['y'][1] is a object"),
        (
            (X, X.to_sparse()),
            (X, X),
            "validation: argument 1 is a sparse tensor, which no ONNX input can be",
        ),
        (X.to(torch.complex64), X, "validation: argument 0 is a complex tensor"),
        (
            nn.utils.rnn.pack_sequence([X]),
            X,
            "validation gives a PackedSequence; expected tensors, nearest: pad_packed_sequence",
        ),
        (
            (X, 3),
            (X, 2),
            "validation: argument 1 is 3, and 2 in example_inputs; an argument that is not a "
            "tensor is a constant of the file",
        ),
        ((X, None), (X, X), "validation: argument 1 is None, and a tensor in example_inputs"),
        ({"x": X}, {"x": X, "mask": X}, "example_inputs has mask, which validation lacks"),
        ({"x": X, "mask": X}, {"x": X}, "validation has mask, which example_inputs lacks"),
        ((None, 2), (X, 2), "validation has no tensor among its inputs"),
        (None, X, "validation gives inputs of type NoneType"),
    ],
)
def test_arguments_that_cannot_be_are_named(inputs: Any, example: Any, text: str) -> None:
    for batches in ([(inputs, None)], iter([(inputs, None)])):
        with pytest.raises(TaskError) as caught:
            prepared(ac.Task("t", Many(), example, batches, lambda o, t: 0.0))
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        (7, "validation is a int; expected a list or a loader of (inputs, target) batches"),
        ([X], "validation yields Tensor; expected (inputs, target), target may be None"),
        (
            [(X, None), {"input_ids": X}],
            "validation yields dict; expected (inputs, target), target may be None",
        ),
        (iter([]), "validation is empty"),
        ([], "validation is empty"),
    ],
)
def test_batches_that_are_none_are_named(batches: Any, text: str) -> None:
    with pytest.raises(TaskError) as caught:
        list(prepared(ac.Task("t", Many(), X, batches, lambda o, t: 0.0)).validation)
    assert text in str(caught.value)


# Errors of the user's code.


def auc(outputs: Tensor, targets: Tensor) -> float:
    right, wrong = (outputs[targets == label].diff(dim=1)[:, 0] for label in (1, 0))
    if not len(right) or not len(wrong):
        raise ValueError("Only one class present in y_true.")
    return float((right[:, None] > wrong[None]).float().mean())


def nan_auc(outputs: Tensor, targets: Tensor) -> float:
    right, wrong = (outputs[targets == label].diff(dim=1)[:, 0] for label in (1, 0))
    return float((right[:, None] > wrong[None]).float().mean())


def sorted_by_class(metric: Any) -> ac.Task:
    net = classifier(classes=2)
    x, y = labelled(net, torch.randn(1600, 16))
    order = y.argsort()
    data = DataLoader(TensorDataset(x[order], y[order]), 64)
    test = [(x[y == 1], y[y == 1])]
    return ac.Task("auc", net, x[:1], data, metric, train=data, test=test)


@pytest.mark.slow
@pytest.mark.parametrize("metric", [auc, nan_auc])
def test_a_metric_that_fails_on_a_part_of_the_data_leaves_out_that_figure(
    metric: Any, tmp_path: Path
) -> None:
    result = searched(sorted_by_class(metric), tmp_path)
    front = result.front
    assert front.baseline.accuracy == 1.0
    assert front.baseline.metrics == {}, "the first 512 samples are of one class"
    assert front.baseline.test_accuracy is None
    figures = [
        f"accuracy ({name})" for name in ("test", "undisturbed", "gaussian noise", "contrast")
    ]
    reason = (
        "ValueError: Only one class present in y_true. ("
        if metric is auc
        else "task: metric returned nan on"
    )
    saved = json.loads((result.folder / "front.json").read_text())
    for entry in (saved["baseline"], *saved["points"]):
        assert list(entry["left_out"]) == figures
        assert all(reason in words for words in entry["left_out"].values())
    notes = (result.folder / front.points[0].artifact / "README.md").read_text()
    assert "| accuracy (test) | not measured | not measured | |" in notes
    assert "\nleft out: accuracy (test)" in notes
    assert reason in notes


@pytest.mark.slow
def test_figures_that_a_metric_does_not_give_are_said_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    ac.search(sorted_by_class(auc), SPACE, n_trials=2, out=tmp_path)
    said = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("left out: accuracy")
    ]
    assert len(said) == 1
    words = (
        "left out: accuracy (test), accuracy (undisturbed), accuracy (gaussian noise), accuracy "
        "(contrast): task: metric fails: ValueError: Only one class"
    )
    assert said[0].startswith(words)
    with pytest.raises(SystemExit):
        main(["front", str(tmp_path)])
    assert words in capsys.readouterr().out


def test_fronts_without_reasons_are_read() -> None:
    assert (
        Measurement.from_json({"size_bytes": 1, "latency_ms": 1.0, "accuracy": 1.0}).left_out == {}
    )


def test_a_metric_of_one_sample_that_fails_later_leaves_the_divergence() -> None:
    def careful(outputs: Tensor, targets: Tensor) -> float:
        if bool((targets == 3).all()):
            raise ZeroDivisionError
        return top1(outputs, targets)

    outputs, targets = torch.randn(4, 4), torch.tensor([0, 1, 2, 3])
    found = sample_scores(replace(plain(), metric=careful), outputs, targets, outputs, "metric")
    assert found.metric is None
    assert (
        SampleScores.joined(
            [found, SampleScores(np.ones(2, np.float32), np.ones(2, np.float32))]
        ).metric
        is None
    )


def failing(*_: Any) -> Any:
    raise KeyError("no such column")


class Broken(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        yield torch.zeros(16), 0
        raise RuntimeError("page 7 of the file is torn")


class BrokenModel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            raise ValueError("one at a time")
        return x


def set_up(task: ac.Task) -> None:
    """What comes before the export, and one pass over the training batches."""
    task = prepared(task)
    open_race(task, task.model, CPU, 0)
    list(task.training_batches())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"metric": failing}, "task: metric fails: KeyError: 'no such column'"),
        ({"extra_metrics": {"f1": failing}}, "task: f1 fails: KeyError: 'no such column'"),
        ({"metric": lambda o, t: failing()}, "task: metric fails: KeyError"),
        ({"divergence": failing}, "task: divergence fails: KeyError"),
        ({"loss": failing}, "task: loss fails: KeyError"),
        (
            {"validation": DataLoader(Broken(), 1)},
            "task: validation cannot be read: RuntimeError: page 7 of the file is torn",
        ),
        (
            {"train": DataLoader(Broken(), 1)},
            "task: train cannot be read: RuntimeError: page 7 of the file is torn",
        ),
        (
            {"model": BrokenModel()},
            "task plain: model.forward fails on validation: ValueError: one at a time",
        ),
    ],
)
def test_errors_of_the_users_code_are_told_as_theirs_with_their_place(
    change: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserCodeError) as caught:
        set_up(replace(plain(), **({"train": plain().validation} | change)))
    assert str(caught.value).startswith(text)
    assert f"({__file__}:" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_divergence_or_loss_of_another_shape_is_named() -> None:
    with pytest.raises(
        TaskError,
        match=r"divergence of a batch from itself gave shape \(\); expected \(32,\) finite numbers",
    ):
        set_up(
            replace(
                plain(), divergence=lambda student, teacher: (student - teacher).square().mean()
            )
        )
    with pytest.raises(
        TaskError,
        match=r"loss returned a tensor of shape \(32,\) of the first training batch; expected one "
        r"number",
    ):
        prepared(
            replace(
                plain(),
                train=plain().validation,
                loss=lambda o, t: nn.functional.cross_entropy(o, t, reduction="none"),
            )
        )


def test_our_own_errors_are_not_told_as_the_users() -> None:
    def metric(outputs: Tensor, targets: Tensor) -> float:
        return float(len(take_samples(None, 3)))  # type: ignore[arg-type]

    with pytest.raises(TypeError):
        prepared(replace(plain(), metric=metric))


def test_every_error_is_one_of_this_package() -> None:
    assert issubclass(UserCodeError, AutocompressError)

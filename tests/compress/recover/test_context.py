"""Check what recovery shares.

Batches in a fixed order, distances from the teacher, parameters, recomputed blocks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from autocompress import ModuleConfig, Task
from autocompress.compress.assemble.calls import CallRanges, Calls
from autocompress.compress.assemble.fake_quant import SimulatedModule
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.quantize.activation import ActivationRange, RangeQuantizer
from autocompress.compress.quantize.affine import StoredTensor
from autocompress.compress.quantize.integer_matmul import Rounding
from autocompress.compress.recover.context import (
    WATCHED,
    Trainer,
    learning,
    parameter_groups,
    recomputing,
    stream,
)
from autocompress.compress.recover.teacher import Teacher

CPU = torch.device("cpu")
X = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(4, 3).eval()


def trainer(model: nn.Module, size: int = 50) -> Trainer:
    data = [(x, x[:, :3].argmax(1)) for x in X.split(size)]
    task = Task("t", model, X[:1], data, lambda o, t: 0.0, train=data)
    return Trainer(task, Teacher(task, model, CPU))


def test_the_divergence_is_the_mean_over_the_first_samples() -> None:
    model, student = linear(), linear(1)
    found = trainer(model)
    assert found.device == CPU
    batches, answers = found.watched
    assert [len(inputs) for inputs, _ in batches] == [50, 50, WATCHED - 100]
    second = answers.take(range(50, 100), batches[1][0])
    torch.testing.assert_close(second, model(X[50:100]).detach())
    p, q = model(X[:WATCHED]).softmax(1), student(X[:WATCHED]).softmax(1)
    expected = (p * (p / q).log()).sum(1).mean()
    assert found.divergence(student) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert found.divergence(model) == pytest.approx(0.0, abs=1e-6)


class Tokens(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(9, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


def test_positions_that_do_not_count_play_no_part_in_the_divergence() -> None:
    ids = torch.arange(8).view(2, 4)
    target = torch.tensor([[1, -100, -100, -100], [1, 2, 3, -100]])
    model, student = Tokens(0), Tokens(1)
    task = Task("t", model, ids, [(ids, target)], lambda o, t: 0.0)
    found = Trainer(task, Teacher(task, model, CPU)).divergence(student)
    p, q = model(ids).softmax(-1), student(ids).softmax(-1)
    counted = (p * (p / q).log()).sum(-1)[target != -100]
    assert found == pytest.approx(float(counted.mean().detach()), rel=1e-4)
    nothing = Task("t", model, ids, [(ids, torch.full((2, 4), -100))], lambda o, t: 0.0)
    assert Trainer(nothing, Teacher(nothing, model, CPU)).divergence(student) == 0


def test_the_parameters_of_a_plain_model_are_weights_each_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    model.empty = nn.Parameter(torch.zeros(0))
    model.count = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    groups = parameter_groups(model)
    assert [id(p) for p in groups["weights"]] == [id(model["a"].weight), id(model["a"].bias)]
    assert groups["scales"] == groups["float"] == []


def simulated(calls: Calls | None = None) -> SimulatedModule:
    read = RangeQuantizer(ActivationRange(0.1, 128))
    source = linear()
    module = SimulatedModule(
        source, "linear", "owner", [CallRanges(read, None, False)], calls or Calls(), Rounding()
    )
    stored = StoredTensor(torch.ones(3, 4, dtype=torch.int8), 8, torch.ones(3, 1))
    variant = Variant((stored,), source.bias.detach())
    module.set_variant(variant, ModuleConfig(8, 8, activation_mode="static"), (None, None))
    return module


def test_simulated_modules_have_weights_scales_and_a_float_bias() -> None:
    module = simulated()
    norm = nn.LayerNorm(3)
    model = nn.Sequential(module, norm)
    assert parameter_groups(model)["weights"] == []
    module.start_training((torch.ones(3, 4),))
    groups = parameter_groups(model)

    def same(parameters: list[nn.Parameter], *expected: object) -> bool:
        return {id(p) for p in parameters} == {id(p) for p in expected}

    assert same(groups["weights"], module.trained[0])
    assert same(groups["scales"], module.trained_steps[0], module.ranges[0].read.factor)
    assert same(groups["float"], module.trained_bias, norm.weight, norm.bias)
    assert sum(map(len, groups.values())) == 6


def test_what_the_user_froze_does_not_learn_unless_all_is_frozen() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)
            self.table = nn.Parameter(torch.zeros(3), requires_grad=False)

    model = Table()
    trained = [*model.fc.parameters(), *model.norm.parameters()]
    assert {id(p) for p in parameter_groups(model)["weights"]} == {id(p) for p in trained}
    model.requires_grad_(False)
    assert len(parameter_groups(model)["weights"]) == 5, "a model that is only run"
    for learns in (True, False):
        module = simulated()
        module._source[0].requires_grad_(learns)
        module.start_training((torch.ones(3, 4),))
        whole = nn.Sequential(module, nn.LayerNorm(3).requires_grad_(False), nn.PReLU())
        whole[2].requires_grad_(learns)
        assert len(parameter_groups(whole)["float"]) == (2 if learns else 4)
        assert len(parameter_groups(whole)["weights"]) == 1


def test_a_part_that_the_user_froze_does_not_learn_beside_others() -> None:
    frozen = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)).requires_grad_(False)
    model = nn.Sequential(frozen, nn.Linear(3, 3))
    assert parameter_groups(frozen, model)["weights"] == []
    assert len(parameter_groups(model[1], model)["weights"]) == 2
    assert len(parameter_groups(frozen)["weights"]) == 4, "a model that is only run"


def test_parameters_learn_inside_a_context_alone() -> None:
    free, frozen = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)
    with learning([free, frozen]):
        (free * frozen).sum().backward()
        assert frozen.grad is not None
    assert (free.requires_grad, frozen.requires_grad) == (True, False)
    assert free.grad is frozen.grad is None


class Shuffled:
    def __iter__(self) -> Iterator[tuple[Tensor, None]]:
        order = torch.randperm(3).tolist()
        for i in order:
            yield torch.tensor([[float(i), random.random()]]), None


def test_the_stream_depends_on_the_seed_and_goes_on_where_it_was() -> None:
    task = Task("t", nn.Identity(), X[:1], [(X, None)], lambda o, t: 0.0, train=Shuffled())

    def first(seed: int, skip: int, count: int) -> list[list[float]]:
        batches = stream(task, seed, skip)
        return [next(batches)[0][0].tolist() for _ in range(count)]

    whole = first(5, 0, 9)
    assert sorted(row[0] for row in whole[:3]) == [0, 1, 2]
    assert whole[:3] != whole[3:6], "each pass has an order of its own"
    assert first(5, 0, 9) == whole
    assert first(5, 4, 5) == whole[4:], "skipped batches are drawn as well"
    assert first(6, 0, 9) != whole
    assert first(6, 0, 3) == whole[3:6], "a pass is that of its seed"


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(x).relu()


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Counting() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("wanted", [True, False])
def test_blocks_are_computed_again_only_inside_and_only_when_wanted(wanted: bool) -> None:
    model = Blocks()
    model(X[:5]).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    assert [block.calls for block in model.blocks] == [1, 1]
    with recomputing(model, wanted):
        model(X[:5]).sum().backward()
    assert [block.calls for block in model.blocks] == [3, 3] if wanted else [2, 2]
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], expected)
    assert not any("forward" in vars(block) for block in model.blocks)
    model(X[:5]).sum().backward()
    assert model.blocks[0].calls == (4 if wanted else 3)


def test_blocks_are_as_before_after_an_error() -> None:
    model = Blocks()

    def fails() -> None:
        with recomputing(model, True):
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fails()
    assert not any("forward" in vars(block) for block in model.blocks)

"""Static integer convolutions whose normalisation is unusual, or that are called several times.

The file computes what was simulated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from arithmetic import Formed
from fixture import Fixture, optimized, relative_difference, trainer_of
from torch import Tensor, nn

import autocompress as ac
from autocompress import Candidate, Distillation, Task
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.recover.cycle import Cycle
from autocompress.integer_form import IntegerForm

pytestmark = pytest.mark.slow

AXES = [
    {"weight_bits": 8},
    {"weight_bits": 4},
    {"weight_bits": 5, "symmetric": False},
    {"weight_bits": 4, "symmetric": False, "group_size": -1},
    {"weight_bits": 4, "symmetric": False, "group_size": 16},
]


def task_of(model: nn.Module, x: Tensor) -> Task:
    with torch.no_grad():
        labels = model.eval()(x).flatten(1).argmax(1)
    data = list(zip(x.split(16), labels.split(16), strict=True))
    return Task(
        "convs",
        model,
        x[:1],
        data,
        lambda o, t: float((o.flatten(1).argmax(1) == t).float().mean()),
        train=data,
    )


def fixture_of(model: nn.Module, x: Tensor, form: IntegerForm = IntegerForm.REDUCED) -> Fixture:
    return Fixture(task_of(model, x), Formed(form))


def static(fixture: Fixture, **axes: float | str | bool) -> Candidate:
    """All convolutions and linear layers on calibrated ranges."""
    return fixture.uniform(
        **{
            "weight_bits": 4,
            "activation_bits": 8,
            "activation_mode": "static",
            "algorithm": "nearest",
            **axes,
        }
    )


def integer_convolutions(fixture: Fixture, candidate: Candidate) -> int:
    operators = [node.op_type for node in optimized(fixture.build(candidate)).node]
    assert not {"Conv", "FusedConv"} & set(operators), operators
    return operators.count("QLinearConv")


def agrees(fixture: Fixture, candidate: Candidate, emulated: bool = False) -> None:
    proto, simulated = fixture.build(candidate), fixture.simulate(candidate)
    assert proto.ByteSize() == fixture.builder.size_bytes(candidate), candidate
    outputs = [
        fixture.run(proto),
        *([fixture.run_as(proto, saturates) for saturates in (True, False)] if emulated else []),
    ]
    for output in outputs:
        assert same_but_for_ties(output, simulated), (
            relative_difference(output, simulated),
            candidate,
        )


def same_but_for_ties(found: np.ndarray, expected: np.ndarray) -> bool:
    """At most one value of 500 may round to the next step, of 255 or fewer, where sums of floats in
    another order break a tie.
    """
    apart = np.abs(found - expected) / max(float(np.abs(expected).max()), 1e-12)
    few = float((apart > 1e-4).mean()) <= 1 / 500 and float(apart.max()) <= 1e-2
    return found.shape == expected.shape and (few or relative_difference(found, expected) <= 1e-3)


ACTIVATIONS = {"relu": [nn.ReLU()], "relu6": [nn.ReLU6()], "none": [], "silu": [nn.SiLU()]}
GAINS: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": lambda gain: torch.zeros_like(gain),
    "negative": lambda gain: -gain,
    "tiny": lambda gain: gain * 1e-7,
    "tinier and negative": lambda gain: -gain * 1e-20,
    "smallest float": lambda gain: torch.full_like(gain, 1e-45),
}


def normed(gains: str, activation: str, bias: bool, groups: int = 1) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=bias, groups=groups),
        nn.BatchNorm2d(16),
        *ACTIVATIONS[activation],
        nn.Conv2d(16, 4, 1),
    )
    x = torch.randn(32, 3, 8, 8)
    model.train()(x)
    with torch.no_grad():
        model[3].weight.uniform_(0.5, 1.5)
        model[3].bias.normal_()
        if gains == "each":  # on channels of its own, beside others that stay
            for i, change in enumerate(GAINS.values()):
                model[3].weight[i::6] = change(model[3].weight[i::6])
        else:
            model[3].weight[::4] = GAINS[gains](model[3].weight[::4])
    return model.eval(), x


ALONE = [pytest.param(gains, marks=pytest.mark.extensive) for gains in GAINS]


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("gains", ["each", *ALONE])
def test_gains_of_zero_and_negative_ones(gains: str, activation: str) -> None:
    for bias in (True, False):
        fixture = fixture_of(*normed(gains, activation, bias))
        for axes in AXES:
            agrees(fixture, static(fixture, **axes), emulated=activation == "relu" and bias)
        assert integer_convolutions(fixture, static(fixture)) == 3


def test_a_channel_of_gain_zero_is_its_constant() -> None:
    """The simulation alone could be wrong in the same way: what such a channel holds is known."""
    model, x = normed("zero", "none", True)
    fixture = fixture_of(model[:4], x)
    step = next(
        r
        for name, r in fixture.builder.ranges.items()
        if name == fixture.builder.lowered.sites["2"][0].output
    ).scale
    found = fixture.run(fixture.build(static(fixture, weight_bits=4)))
    for channel in range(0, 16, 4):
        assert np.ptp(found[:, channel]) == 0
        assert abs(found[0, channel, 0, 0] - float(model[3].bias[channel].detach())) <= 0.51 * step


@pytest.mark.parametrize("gains", ["each", ALONE[0], ALONE[1]])
def test_depthwise_gains(gains: str) -> None:
    fixture = fixture_of(*normed(gains, "relu6", True, groups=16))
    for axes in AXES:
        agrees(fixture, static(fixture, **axes))
    assert integer_convolutions(fixture, static(fixture)) == 3


def with_norm(change: Callable[[nn.Sequential], None]) -> tuple[nn.Module, Tensor]:
    model, x = normed("negative", "relu", True)
    with torch.no_grad():
        change(model)
    return model, x


def _dead_filters(model: nn.Sequential) -> None:
    model[2].weight[::2] = 0
    model[2].bias.uniform_(0.5, 1.5)


def _dead_and_unnormed(model: nn.Sequential) -> None:
    _dead_filters(model)
    model[3] = nn.Identity()


def _one_dead_input(model: nn.Sequential) -> None:
    model[0].weight[:] = 0
    model[0].bias[:] = -1  # what the second convolution reads is 0 everywhere


def _tiny_variance(model: nn.Sequential) -> None:
    model[3].running_var[::3] = 0
    model[3].running_var[1::3] = 1e-12


def _without_parameters(model: nn.Sequential) -> None:
    plain = nn.BatchNorm2d(16, affine=False).eval()
    plain.running_mean.copy_(model[3].running_mean)
    plain.running_var.copy_(model[3].running_var)
    model[3] = plain


def _huge_shift(model: nn.Sequential) -> None:
    model[3].bias[::3] = -1e6  # shut for good by the ReLU
    model[3].weight[::3] *= 1e-3


def _all_gains_zero(model: nn.Sequential) -> None:
    model[3].weight[:] = 0
    model[3].bias[::2] = 0


@pytest.mark.parametrize(
    "change",
    [
        _dead_filters,
        _dead_and_unnormed,
        _one_dead_input,
        _tiny_variance,
        _without_parameters,
        _huge_shift,
        _all_gains_zero,
    ],
)
def test_other_normalisations_and_weights_at_their_limits(
    change: Callable[[nn.Sequential], None],
) -> None:
    fixture = fixture_of(*with_norm(change))
    for axes in AXES:
        agrees(fixture, static(fixture, **axes), emulated=True)


def test_a_dead_filter_keeps_its_bias_exactly() -> None:
    """Its weights have the scale 1, of which its bias would be a coarse multiple where inputs are
    large.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    with torch.no_grad():
        model[0].weight[:] /= 255
        model[0].weight[1] = 0
        model[0].bias[1] = 0.4
    fixture = fixture_of(model, torch.rand(32, 3, 8, 8) * 255)
    candidate = static(fixture)
    agrees(fixture, candidate, emulated=True)
    step = fixture.builder.ranges[fixture.builder.lowered.sites["0"][0].output].scale
    assert float(np.abs(fixture.run(fixture.build(candidate))[:, 1] - 0.4).max()) <= 0.51 * step


def test_a_normalisation_at_the_end_and_in_one_dimension() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 6, 3, bias=False),
        nn.BatchNorm1d(6),
    )
    x = torch.randn(32, 3, 20)
    model.train()(x)
    with torch.no_grad():
        model[1].weight[::2] = 0
        model[1].bias.normal_()
        model[4].weight[:3] = torch.tensor([0.0, -1.0, 1e-9])
        model[4].bias.normal_()
    fixture = fixture_of(model, x)
    for axes in AXES:
        agrees(fixture, static(fixture, **axes), emulated=True)


class Shared(nn.Module):
    """One convolution on branches whose values differ by a factor of 50, each with a normalisation
    of its own, the same, or none.
    """

    def __init__(self, norms: str) -> None:
        super().__init__()
        self.norms = norms
        self.stem, self.shared, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.Linear(48, 4),
        )
        self.bn, self.other = nn.BatchNorm2d(16), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        branches = [
            self.shared(h),
            self.shared(0.02 * nn.functional.avg_pool2d(h, 2)),
            self.shared(5 * h),
        ]
        after = {
            "none": [],
            "same": [self.bn] * 3,
            "own": [self.bn, self.other],
            "some": [nn.Identity(), self.bn],
        }[self.norms]
        for i, norm in enumerate(after):
            branches[i] = norm(branches[i])
        near, far, large = (torch.relu(branch).mean((2, 3)) for branch in branches)
        return self.head(torch.cat([near, 50 * far, large / 5], 1))


def shared(norms: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Shared(norms).eval(), torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        for norm in (model.bn, model.other):
            norm.weight.uniform_(-1, 1)
            norm.weight[::5] = 0
            norm.bias.normal_()
            norm.running_mean.normal_()
        model.head.bias -= model(x).mean(0)
    return model, x


@pytest.mark.parametrize("norms", ["none", "same", "own", "some"])
def test_each_call_has_its_ranges(norms: str) -> None:
    fixture = fixture_of(*shared(norms))
    names = {(call.reads, call.writes) for call in fixture.builder.plan.calls["shared"]}
    assert len(names) == 3
    assert len({fixture.builder.ranges[reads].scale for reads, _ in names}) == 3
    for axes in AXES:
        agrees(fixture, static(fixture, **axes), emulated=axes == AXES[0])
    assert integer_convolutions(fixture, static(fixture)) == 4
    weights = [
        t
        for t in fixture.build(static(fixture, weight_bits=4)).graph.initializer
        if tuple(t.dims) == (16, 8, 3, 3)
    ]
    assert len(weights) == 1, "the shared weight is stored once"


class Recursive(nn.Module):
    """A module reads what it has made, so that one tensor is an input of one call and the output of
    another.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.step = nn.Linear(12, 12) if kind == "linear" else nn.Conv1d(12, 12, 3, padding=1)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + 2 * torch.tanh(self.step(x))
        return self.out(x if x.dim() == 2 else x.mean(2))


class Tied(nn.Module):
    """Two modules that are one weight, with biases and inputs of their own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        make = (
            (lambda: nn.Linear(12, 12))
            if kind == "linear"
            else (lambda: nn.Conv1d(12, 12, 3, padding=1))
        )
        self.first, self.second, self.out = make(), make(), nn.Linear(12, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(30 * torch.relu(self.first(x)))
        x = self.first(0.01 * torch.relu(x))
        return self.out(x if x.dim() == 2 else x.mean(2))


@pytest.mark.parametrize("model", [Recursive, Tied])
@pytest.mark.parametrize(("kind", "shape"), [("linear", (32, 12)), ("conv", (32, 12, 9))])
def test_called_again_on_its_own_output_and_under_another_name(
    model: type[nn.Module], kind: str, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    fixture = fixture_of(model(kind), torch.randn(shape))
    for axes in AXES:
        agrees(fixture, static(fixture, **axes))
    assert fixture.difference(static(fixture, weight_bits=6, activation_mode="dynamic")) <= 1e-2, (
        "ranges of the batch have ties"
    )


class Functional(nn.Module):
    """The normalisation's parameters are used, but not by a call of its module.

    The other one does more than normalise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn, self.act = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3),
            nn.BatchNorm2d(8),
            NormAct(8),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.batch_norm(
            self.a(x), self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias
        )
        return self.act(self.b(x)).mean((2, 3))


class NormAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(super().forward(x))


def test_normalisations_that_are_no_plain_modules_stay_apart() -> None:
    torch.manual_seed(0)
    model = Functional().eval()
    with torch.no_grad():
        for norm in (model.bn, model.act):
            norm.running_mean.normal_()
            norm.weight.uniform_(-1, 1)
    fixture = fixture_of(model, torch.randn(32, 3, 9, 9))
    for axes in AXES:
        agrees(fixture, static(fixture, **axes))
    assert integer_convolutions(fixture, static(fixture)) == 2


class Unused(nn.Module):
    """What one of three calls makes is never used.

    Which range belongs to which call cannot be told from the graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.out = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.shared(x)
        self.shared(100 * x)
        return self.out(first + self.shared(0.1 * x)).mean((2, 3))


def test_calls_that_the_graph_does_not_show() -> None:
    torch.manual_seed(0)
    fixture = fixture_of(Unused(), torch.randn(32, 3, 9, 9))
    assert [module.name for module in fixture.builder.module_map] == ["out"]
    assert [lost.name for lost in fixture.builder.module_map.uncovered] == ["shared"]
    agrees(fixture, static(fixture))


class Blocks(nn.Module):
    """A block that uses a shared convolution, computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Conv2d(8, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            [nn.Sequential(shared, nn.BatchNorm2d(8), nn.ReLU6()) for _ in range(3)]
        )
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for i, block in enumerate(self.blocks):
            x = block(x * 10**i)
        return self.head(x.mean((2, 3)))


def blocks() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Blocks(), torch.randn(64, 3, 8, 8)
    model.train()(x)
    with torch.no_grad():
        for block in model.blocks:
            block[1].weight[::3] = 0
            block[1].weight[1::3] *= -1
            block[1].bias.normal_()
    return model.eval(), x


def trained_of(fixture: Fixture, candidate: Candidate) -> Trained:
    """As training may leave it.

    Every step, bias and normalisation has moved, those of zero gains off zero.
    """
    model = fixture.stitcher.apply(candidate)
    fixture.stitcher.start_training(candidate)
    torch.manual_seed(1)
    with torch.no_grad():
        for quantizer in fixture.stitcher.quantizers.values():
            if quantizer.factor is not None:
                quantizer.factor.mul_(torch.empty(()).uniform_(0.8, 1.2))
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    return fixture.stitcher.trained_state()


def after_training(fixture: Fixture, candidate: Candidate, trained: Trained) -> float:
    """Relative difference of the file from the simulation."""
    proto = fixture.compressor.graph(candidate, trained)
    with torch.no_grad():
        simulated = fixture.stitcher.apply(candidate, trained)(fixture.inputs).numpy()
    return relative_difference(fixture.run(proto), simulated)


@pytest.mark.parametrize(
    "make",
    [lambda: shared("same"), lambda: shared("own"), blocks, lambda: normed("zero", "relu6", True)],
)
def test_recovered_candidates_are_exported_as_simulated(
    make: Callable[[], tuple[nn.Module, Tensor]],
) -> None:
    model, x = make()
    fixture = fixture_of(nn.Sequential(model, nn.Flatten()), x)
    candidate = static(fixture)
    trained = trained_of(fixture, candidate)
    assert any(
        at.scale != fixture.builder.ranges[tensor].scale for tensor, at in trained.ranges.items()
    )
    # As tests/compress/test_training.py: the classes are sums over positions, of which some round
    # to the next step.
    assert after_training(fixture, candidate, trained) <= 1e-2


def test_recomputed_blocks_have_the_ranges_of_their_calls() -> None:
    """Gradients with and without recomputation are the same only where each call meets its own
    ranges again.
    """
    fixture = fixture_of(*blocks())
    found = []
    for checkpointing in (False, True):
        recovery = Distillation(steps=2, learning_rate=1e-3, checkpointing=checkpointing)
        candidate = Candidate.of(dict(static(fixture, weight_bits=4).modules), recovery)
        trainer, model = (
            trainer_of(fixture.task, fixture.stitcher),
            fixture.stitcher.apply(candidate),
        )
        fixture.stitcher.start_training(candidate)
        Cycle(trainer, model, recovery, 2).run()
        found.append({name: value.clone() for name, value in model.state_dict().items()})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], msg=name)


def points(result: ac.SearchResult) -> Iterator[tuple[ac.FrontPoint, Path]]:
    for point in result.front:
        yield point, Path(result.folder) / point.artifact


def test_search_load_and_reproduce_agree_with_the_file(task_files: Path, tmp_path: Path) -> None:
    spec = f"{task_files / 'shared_convolution.py'}:task"
    rule = {"match": "*", "weight_bits": [4, 8], "activation_bits": 8, "activation_mode": "static"}
    result = ac.search(
        spec,
        {"modules": [rule], "distillation": {"steps": 6}},
        n_trials=3,
        out=tmp_path / "run",
        quiet=True,
    )
    x = ac.load_task(spec).validation[0][0]
    for point, folder in points(result):
        assert point.predicted.accuracy == pytest.approx(point.measured.accuracy, abs=0.02)
        assert point.predicted.size_bytes == point.measured.size_bytes
        session = ac.open_session(folder)
        (found, *_) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        module = ac.load(folder)
        with torch.no_grad():
            assert relative_difference(found, module(x).numpy()) <= 1e-3
            assert relative_difference(found, copy.deepcopy(module)(x).numpy()) <= 1e-3, (
                "a copy computes the same"
            )
        ac.reproduce(folder, to=tmp_path / "again" / str(point.trial))


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_other_paddings_are_right_at_any_batch_size(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr("autocompress.model.dependency_graph.GROUP_SECONDS", 2.0)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode=mode),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=(2, 1), stride=(1, 2), padding_mode=mode),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Conv1d(8, 4, 3, padding=1, padding_mode=mode),
    )
    model.train()(torch.randn(4, 3, 6, 6))
    fixture = fixture_of(model, torch.randn(4, 3, 6, 6))
    for axes in (
        {},
        {"pruning_ratio": 0.5},
        {"activation_mode": "dynamic", "pruning_ratio": 0.5},
        {"activation_bits": 32, "rank_ratio": 0.5, "decomposition": "spatial"},
    ):
        candidate = static(fixture, **axes)
        proto = fixture.build(candidate)
        for size in (1, 4, 7):
            fixture.inputs = torch.randn(size, 3, 6, 6)
            assert same_but_for_ties(fixture.run(proto), fixture.simulate(candidate)), (axes, size)

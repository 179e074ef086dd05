"""Measure how far outputs are apart, and see faults of each side at the module that makes them."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from fixture import Fixture
from onnx import ModelProto, numpy_helper

from autocompress import Task
from autocompress.candidate import Candidate, ModuleConfig
from autocompress.errors import ExportError
from autocompress.export import identity
from autocompress.export.identity import (
    Identity,
    _eight_bits,
    check_identity,
)
from autocompress.targets.target import find_target


def test_words_for_the_terminal() -> None:
    assert Identity(1e-7, 2.3e-6, 0.0123).words == (
        "what is simulated is what runs: the simulation differs from the model by 1e-07, the "
        "float file by "
        "2e-06, a file of 8-bit weights from its simulation by 0.01"
    )


def test_words_on_roundings_that_add_up() -> None:
    words = Identity(1e-7, 2.3e-6, 0.3, 0.0012).words
    assert "from its simulation by 0.3, but no module by more than 0.001: roundings" in words


def test_the_candidate_of_eight_bits_uses_what_the_target_has() -> None:
    modules = [SimpleNamespace(name=kind, kind=kind) for kind in ("linear", "conv", "embedding")]
    builder = SimpleNamespace(module_map=modules)
    parts = {"activation_bits": (8, 32), "weight_bits": (4, 8), "integer_kinds": ("linear",)}
    target = SimpleNamespace(**parts, integers_only=False)
    found = _eight_bits(builder, target)
    quick = {"algorithm": "nearest", "weight_range": "min_max"}
    assert dict(found.modules) == {
        "linear": ModuleConfig(8, 8, **quick),
        "conv": ModuleConfig(8, **quick),
        "embedding": ModuleConfig(8, **quick),
    }
    target.activation_bits = (32,)
    assert _eight_bits(builder, target).config("linear") == ModuleConfig(8, **quick)
    target.weight_bits = (4,)
    assert _eight_bits(builder, target).modules == ()
    micro = SimpleNamespace(**parts, integers_only=True)
    assert dict(_eight_bits(builder, micro).modules) == {
        "linear": ModuleConfig(8, 8, activation_mode="static", **quick)
    }, "nothing is rounded under floats"


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    batches = [(x[:8], torch.zeros(8)), (x[8:], torch.zeros(8))]
    return Fixture(Task("t", Net().eval(), x[:1], batches, lambda outputs, targets: 1.0))


@pytest.fixture
def check(fixture: Fixture) -> Iterator[object]:
    target = find_target("onnxruntime-cpu")
    whole = ModelProto()
    whole.CopyFrom(fixture.builder.lowered.proto)
    yield lambda: check_identity(fixture.compressor, target, fixture.task)
    fixture.builder.lowered.proto.CopyFrom(whole)


def test_a_model_that_is_simulated_and_exported_right(check) -> None:
    found = check()
    assert found.simulation < 1e-6
    assert found.float_file < 1e-5
    assert found.rounded_file < 0.05


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_wrong_weight_of_the_file_is_found_at_its_module(
    check, fixture: Fixture, name: str
) -> None:
    tensor = next(
        t for t in fixture.builder.lowered.proto.graph.initializer if t.name == f"{name}.weight"
    )
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.1, tensor.name))
    message = f"^export: the float file differs from the model at module {name}; no number of a"
    with pytest.raises(ExportError, match=message):
        check()


def test_where_roundings_add_up_each_module_is_compared_alone(
    check, fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "ROUNDED_ERROR", -1.0)
    found = check()
    assert found.rounded_module is not None
    assert found.rounded_module < 1e-3
    monkeypatch.setattr(identity, "TOGETHER", 1)
    assert check() == found, "one module, then all that fit into the memory"
    monkeypatch.setattr(identity, "HELD_BYTES", 0)
    assert check() == found, "one module at a time"


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_wrong_kernel_is_found_where_roundings_add_up(
    check, fixture: Fixture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(identity, "ROUNDED_ERROR", -1.0)
    right = fixture.stitcher.apply

    def wrong(candidate: Candidate) -> torch.nn.Module:
        model = right(candidate)
        if candidate.modules:
            module = fixture.stitcher.simulated[name]
            module.integers = None
            module.dense = [1.1 * factor for factor in module._full_factors()]
        return model

    monkeypatch.setattr(fixture.stitcher, "apply", wrong)
    with pytest.raises(ExportError, match=f"differs from its simulation at module {name}; no numb"):
        check()


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20, bias=False)
        self.inner = torch.nn.Linear(8, 8)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.inner(self.embed(ids))))


def test_a_tied_head_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ids = torch.randint(20, (8, 5))
    batches = [(ids, torch.zeros(8))]
    given = Fixture(Task("t", Tied().eval(), ids[:1], batches, lambda outputs, targets: 1.0))
    target = find_target("onnxruntime-cpu")
    monkeypatch.setattr(identity, "ROUNDED_ERROR", -1.0)
    assert check_identity(given.compressor, target, given.task).rounded_module < 1e-3
    heads = [name for name in given.stitcher.simulated if name != "inner"]
    assert sorted(heads) == ["embed", "head"]
    head = given.stitcher.simulated["head"]
    right = head.forward
    monkeypatch.setattr(head, "forward", lambda x: 1.1 * right(x))
    monkeypatch.setattr(identity, "UNTOUCHED_ERROR", 1.0)  # the wrong head is wrong untouched too
    with pytest.raises(ExportError, match="differs from its simulation at module head; no number"):
        check_identity(given.compressor, target, given.task)


class Listed(torch.nn.Module):
    """Hold the layers in a list, beside their names."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = []
        for i in range(3):
            self.add_module(f"layer{i}", torch.nn.Linear(8, 8))
            self.layers.append(getattr(self, f"layer{i}"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x)) * 2
        return x


@pytest.fixture(scope="module")
def listed() -> Fixture:
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    batches = [(x, torch.zeros(16))]
    return Fixture(Task("t", Listed().eval(), x[:1], batches, lambda outputs, targets: 1.0))


def test_modules_that_a_model_holds_in_a_list_are_simulated(listed: Fixture) -> None:
    configs = {f"layer{i}": ModuleConfig(2, algorithm="nearest") for i in range(3)}
    assert listed.difference(Candidate.of(configs)) < 1e-3
    simulated = listed.stitcher.apply(Candidate.of(configs))(listed.inputs)
    changed = simulated.detach() - listed.builder.teacher(listed.inputs).detach()
    assert changed.norm() > 0.1 * simulated.norm()


def test_a_module_that_the_simulation_does_not_call_is_told(listed: Fixture) -> None:
    target, layers = find_target("onnxruntime-cpu"), listed.stitcher.model.layers
    inner, layers[1] = layers[1], listed.builder.teacher.layer1
    try:
        message = "the model calls module layer1 1 times, its simulation calls it 0 times; no num"
        with pytest.raises(ExportError, match=message):
            check_identity(listed.compressor, target, listed.task)
    finally:
        layers[1] = inner


class Filled(Net):
    """Write -1e4 beside the answer, as a mask of classes does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return torch.cat([y, torch.full_like(y, -1e4)], 1)


def test_a_wrong_weight_is_found_beside_fillers_of_a_mask() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 8)
    metric = lambda outputs, targets: 1.0  # noqa: E731
    given = Fixture(Task("t", Filled().eval(), x[:1], [(x, torch.zeros(8))], metric))
    target = find_target("onnxruntime-cpu")
    assert check_identity(given.compressor, target, given.task).rounded_file < 0.05
    weights = given.builder.lowered.proto.graph.initializer
    tensor = next(t for t in weights if t.name == "first.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.1, tensor.name))
    with pytest.raises(ExportError, match="the float file differs from the model at module first"):
        check_identity(given.compressor, target, given.task)

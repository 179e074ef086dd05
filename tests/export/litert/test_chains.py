"""Integers flow through what lies between rounded layers; the simulation rounds at those places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hand_made import lowered
from onnx import helper
from torch import Tensor, nn

pytest.importorskip("ai_edge_litert")

import autocompress as ac
from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.between import Place
from autocompress.compress.quantize.activation import ActivationRange
from autocompress.export.compressor import Compressor
from autocompress.export.identity import check_identity
from autocompress.export.litert.chains import places, rounded_between
from autocompress.export.litert.check import flat_outputs
from autocompress.export.subject import builder_for
from autocompress.model.modules import find_modules
from autocompress.targets.device.litert.operators import flat_graph
from autocompress.targets.target import find_target

CONVERSIONS = {"QUANTIZE", "DEQUANTIZE"}


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int, last: nn.Module) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        mean = F.adaptive_avg_pool2d(x, 1)
        return x * self.last(self.up(torch.relu(self.down(mean))))


class Net(nn.Module):
    """Two residual blocks with gates, whose sums the next block adds again, and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.gates = nn.ModuleList([Gate(8, nn.Hardsigmoid()), Gate(8, nn.Sigmoid())])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.gates[0](F.hardswish(self.first(x))))
        x = x + self.gates[1](F.silu(self.second(x)))
        x = F.relu6(torch.tanh(self.third(x)) + x)
        return self.head(F.avg_pool2d(x, 2).mean((2, 3))).softmax(-1)


class Joined(nn.Module):
    """Pictures of two sizes joined, and operators that keep a step."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = (nn.Conv2d(n, 8, 3, padding=1) for n in (1, 8))
        self.last, self.head = nn.Conv2d(16, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        large = F.interpolate(F.max_pool2d(x, 2), scale_factor=2)
        x = torch.cat([F.leaky_relu(self.side(x), 0.2), large], 1)
        x = self.last(F.pad(x, (1, 1, 1, 1)).clamp(-0.05, 0.8))
        x = (1 - torch.sigmoid(x)) * x
        return self.head(x.amax((2, 3)))


def task(kind: type[nn.Module] = Net) -> ac.Task:
    torch.manual_seed(0)
    model: Any = kind().eval()
    with torch.no_grad():
        model.head.weight *= 4  # no two classes are alike
    images = torch.randn(24, 1, 8, 8)
    batches = [(part, model(part).argmax(1)) for part in images.split(8)]
    return ac.Task(
        "gates",
        model,
        example_inputs=images[:1],
        validation=batches[:2],
        metric=lambda outputs, targets: float((outputs.argmax(1) == targets).float().mean()),
        test=batches[2:],
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        net = task()
        modules = find_modules(net.model, net.example_inputs)
        builder = builder_for(net, modules, find_target("litert-micro"))
        yield net, Compressor.of(builder)


def uniform(compressor: Compressor, **without: ModuleConfig) -> Candidate:
    whole = ModuleConfig(8, 8, activation_mode="static", algorithm="nearest")
    return Candidate.of({m.name: without.get(m.name, whole) for m in compressor.builder.module_map})


def codes_of(compressor: Compressor, candidate: Candidate) -> list[str]:
    content = compressor.builder.content(compressor.graph(candidate))
    return [node.operator for node in flat_graph(content).nodes]


def test_a_network_of_gates_and_sums_is_of_integers_throughout(built: Any) -> None:
    _, compressor = built
    candidate = uniform(compressor)
    codes = codes_of(compressor, candidate)
    assert not CONVERSIONS & {*codes}
    kinds = {"ADD", "MUL", "MEAN", "AVERAGE_POOL_2D", "LOGISTIC", "TANH", "HARD_SWISH", "SOFTMAX"}
    assert kinds <= {*codes}
    assert not {"RELU6", "MINIMUM"} & {*codes}, "the end of a Clip is that of the range"


def test_the_simulation_rounds_what_the_file_rounds(built: Any) -> None:
    net, compressor = built
    candidate = uniform(compressor)
    graph = compressor.graph(candidate)
    between = compressor.stitcher.between
    model, gaps, floats = compressor.stitcher.apply(candidate), [], []
    assert between.quantizers
    images = torch.cat([inputs for inputs, _ in net.validation])
    for image in images.split(1):
        (output,) = flat_outputs(compressor.builder, graph, image)
        with torch.no_grad():
            gaps.append(np.abs(output - model(image).numpy()).max())
            rounded, between.quantizers = between.quantizers, {}
            floats.append(np.abs(output - model(image).numpy()).max())
            between.quantizers = rounded
    # Outputs are multiples of 1/256. A few roundings at a tie go the other way.
    assert np.median(gaps) <= 1.01 / 256
    assert np.mean(gaps) < np.mean(floats)


def test_what_reads_floats_is_computed_in_floats(built: Any) -> None:
    _, compressor = built
    whole = uniform(compressor)
    candidate = uniform(compressor, second=ModuleConfig())
    rounded = compressor.builder.between(candidate)
    assert rounded.keys() < compressor.builder.between(whole).keys()
    codes = codes_of(compressor, candidate)
    assert {*codes} >= CONVERSIONS
    assert compressor.builder.between(Candidate()) == {}
    content = compressor.builder.content(compressor.graph(candidate))
    assert len(content) == compressor.builder.size_bytes(candidate)


def test_the_check_of_files_takes_the_network(built: Any) -> None:
    net, compressor = built
    assert check_identity(compressor, find_target("litert-micro"), net).rounded_file <= 0.05


def test_pictures_of_two_sizes_meet_as_integers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    net = task(Joined)
    modules = find_modules(net.model, net.example_inputs)
    compressor = Compressor.of(builder_for(net, modules, find_target("litert-micro")))
    candidate = uniform(compressor)
    codes = {*codes_of(compressor, candidate)}
    kinds = {"CONCATENATION", "RESIZE_NEAREST_NEIGHBOR", "PAD", "LEAKY_RELU", "SUB", "REDUCE_MAX"}
    assert codes >= {*kinds, "MAXIMUM", "MINIMUM"}
    assert codes & CONVERSIONS == {"QUANTIZE"}, "integers of one scale become those of another"
    graph, image = compressor.graph(candidate), net.example_inputs
    (output,) = flat_outputs(compressor.builder, graph, image)
    simulated = compressor.stitcher.apply(candidate)(image).detach().numpy()
    step = compressor.builder.ranges[compressor.builder.lowered.sites["head"][0].output].scale
    assert np.abs(output - simulated).max() < 2.01 * step


@pytest.mark.slow
def test_files_of_a_point_give_the_same_again(tmp_path: Path) -> None:
    net = task()
    result = ac.search(
        net, target="litert-micro", n_trials=3, out=tmp_path / "run", quiet=True, seed=1
    )
    point = result.front.smallest()
    place = ac.export(result, point, tmp_path / "point")
    model, (inputs, _) = ac.load(place, net.model), net.validation[0]
    session = ac.open_session(place)
    for image in inputs.split(1):
        (output,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        assert np.abs(output - model(image).detach().numpy()).max() < 3.01 / 256
    again = ac.reproduce(place, tmp_path / "again", net)
    assert again.read_bytes() == (place / "model.tflite").read_bytes()


def test_calls_are_found_by_what_they_compute() -> None:
    first, second = np.array([[1.0, 2.0]]), np.array([1.0, 3.0])
    calls = [(Place("add", 0), second), (Place("mul", 0), first), (Place("add", 1), first)]
    values = {"a": first.reshape(2, 1), "b": second, "c": np.array([9.0]), "d": first}
    assert places(values, calls) == {
        "a": Place("mul", 0),
        "b": Place("add", 0),
        "d": Place("add", 1),
    }
    zeros = np.zeros(2)
    calls = [(Place("add", 0), zeros), (Place("mul", 0), zeros)]
    assert places({"a": zeros, "b": np.zeros(0)}, calls) == {}, "any call may compute zeros"


class Masked(nn.Module):
    """Attention to the words before, with the mask added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.joint, self.head = nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.joint(x).chunk(3, -1)  # one head
        inner = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.head((inner + query).mean((1, 2)))


def test_masked_scores_stay_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    net = task(Masked)
    modules = find_modules(net.model, net.example_inputs)
    compressor = Compressor.of(builder_for(net, modules, find_target("litert-micro")))
    candidate = uniform(compressor)
    codes = codes_of(compressor, candidate)
    assert "SOFTMAX" in codes
    assert all(np.isfinite(at.low) for at in compressor.builder.ranges.values())
    (output,) = flat_outputs(compressor.builder, compressor.graph(candidate), net.example_inputs)
    simulated = compressor.stitcher.apply(candidate)(net.example_inputs).detach().numpy()
    step = compressor.builder.ranges[compressor.builder.lowered.sites["head"][0].output].scale
    assert np.abs(output - simulated).max() < 2.01 * step


@pytest.mark.parametrize(("low", "zero", "rounds"), [(0, 0, 1), (-1, 0, 1), (-1, 51, 0)])
def test_a_clip_below_zero_stays(low: float, zero: int, rounds: int) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", [f"{name}8", "step"], [name]) for name in ("a", "b")
    ]
    nodes.append(helper.make_node("Add", ["a", "b"], ["sum"]))
    nodes.append(helper.make_node("Clip", ["sum", "low", "high"], ["end"]))
    nodes.append(helper.make_node("QuantizeLinear", ["end", "step"], ["y"]))
    constants = {"step": 0.1, "low": low, "high": 6}
    weights = {name: np.array(value, np.float32) for name, value in constants.items()}
    graph = lowered(nodes, weights, {"a8": [4], "b8": [4]}, ["y"])
    step = (4 if zero else 5) / 255
    ranges = {"end": ActivationRange(step, zero, -zero * step, (255 - zero) * step)}
    found = rounded_between(graph.proto, ranges, ["end"])
    assert found == ({"end": "end"} if rounds else {}), "training may stretch the range"

"""Hold the sum of the sampler's tables to the prediction of the latency model."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress import Candidate, Task, find_modules
from autocompress.export.prepare import prepare
from autocompress.export.subject import layout_of
from autocompress.search.propose.allocation import Allocator
from autocompress.search.propose.sensitivity import probes
from autocompress.space.search_space import SearchSpace
from autocompress.targets.device.sessions import SessionSettings
from autocompress.targets.kernels import KernelChoice
from autocompress.targets.latency_model.fitting.fit import LatencyModel
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.target import find_target

SPACE = {
    "modules": [
        {
            "match": "*",
            "weight_bits": [8, 32],
            "activation_bits": [8, 32],
            "pruning_ratio": [0.0, 0.5],
            "importance": "l2",
        }
    ]
}


class Block(nn.Module):
    """Two convolutions beside which the input passes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


class Residual(nn.Module):
    """A stem, two blocks, and two heads that read the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.left, self.right = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.stem(x))).mean((2, 3))
        return self.left(x) * self.right(x)


class Times(LatencyModel):
    """Times that follow from names alone."""

    def kernel_us(self, kernel) -> float:
        return number(kernel.signature + kernel.form) * (1 + 1e-5 * kernel.rows * kernel.amount)


def number(text: str) -> float:
    """Return a number in [1, 2)."""
    return 1 + int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 16**6


def cost_of_features(scale: float) -> defaultdict[str, float]:
    """Conversions cost most, as they do in a runtime, and elements less than whole tensors."""

    class Costs(defaultdict):
        def get(self, name: str, default: float = 0.0) -> float:
            factor = 3.0 if "floats to integers" in name or "integers to floats" in name else 1.0
            return scale * factor * number(name) * (0.002 if name.startswith("elements") else 0.5)

    return Costs(float)


def table_of(scale: float) -> LatencyTable:
    table = LatencyTable("made up", {}, SessionSettings(), {}, 1.0, ())
    table.__dict__["model"] = Times({}, cost_of_features(scale), {}, 0.0)
    return table


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    images = torch.rand(8, 3, 8, 8)
    model = Residual().eval()
    task = Task("residual", model, images[:1], [(images, torch.zeros(8, dtype=torch.long))], len)
    modules = find_modules(model, task.example_inputs)
    builder = prepare(task, modules, KernelChoice(weight_only=False, present=False))
    space = SearchSpace.load(SPACE).bind(builder.module_map, find_target("onnxruntime-cpu"))
    return space, layout_of(builder)


def allocator_of(parts, scale: float, losses=None) -> tuple[Allocator, LatencyTable, float]:
    space, layout = parts
    table = table_of(scale)
    float_ms = table.predict_ms(layout, Candidate())
    return Allocator.of(space, layout, table, losses or {}, 100_000, float_ms), table, float_ms


def predicted(parts, table: LatencyTable, float_ms: float, allocator: Allocator, row) -> float:
    space, layout = parts
    candidate = Candidate(space.candidate(allocator.parameters(row)).modules)
    return table.predict_ms(layout, candidate) / float_ms


def rows_where(allocator: Allocator, integer: dict[str, bool], pruned: int = 0) -> np.ndarray:
    """Return the allocation whose modules read and write integers or floats."""
    row = []
    for name, table in allocator.modules.items():
        bits = 8 if integer.get(name, False) else 32
        wanted = [c.weight_bits == bits and c.activation_bits == bits for c in table.configs]
        row.append(wanted.index(True))
    return np.array(row + [pruned] * len(allocator.group_configs))


HALVES = {
    "floats": lambda i, name: False,
    "integers": lambda i, name: True,
    "every second": lambda i, name: i % 2 == 0,
    "the first half": lambda i, name: i < 4,
    "convolutions": lambda i, name: "conv" in name or name == "stem",
    "one head": lambda i, name: name == "left",
    "all but a shortcut": lambda i, name: name != "blocks.0.conv2",
}


@pytest.mark.parametrize("pruned", [0, 1])
@pytest.mark.parametrize("which", HALVES)
def test_the_tables_add_up_to_the_prediction(parts, which: str, pruned: int) -> None:
    allocator, table, float_ms = allocator_of(parts, 1.0)
    integer = {name: HALVES[which](i, name) for i, name in enumerate(allocator.modules)}
    row = rows_where(allocator, integer, pruned)
    own = allocator.costs(row[None])[0, 1]
    assert own == pytest.approx(predicted(parts, table, float_ms, allocator, row), rel=1e-9)


def test_random_allocations_add_up_too(parts) -> None:
    allocator, table, float_ms = allocator_of(parts, 1.0)
    generator = np.random.default_rng(0)
    counts = [len(t.configs) for t in allocator.modules.values()]
    counts += [len(configs) for configs in allocator.group_configs.values()]
    rows = generator.integers(0, counts, (40, len(counts)))
    own = allocator.costs(rows)[:, 1]
    right = [predicted(parts, table, float_ms, allocator, row) for row in rows]
    np.testing.assert_allclose(own, right, rtol=1e-9)
    assert np.ptp(own) > 0.2
    apart = allocator.between.beyond(rows.T, allocator._ends) - allocator.between.constant
    assert apart.max() > 0.05, "mixtures convert"


def test_uniform_candidates_need_no_correction(parts) -> None:
    allocator, _, _ = allocator_of(parts, 1.0)
    between = allocator.between
    for integer in (False, True):
        row = rows_where(allocator, dict.fromkeys(allocator.modules, integer))
        beyond = between.beyond(row[:, None], allocator._ends)
        assert beyond == pytest.approx(between.constant)


@pytest.mark.parametrize("seed", range(4))
def test_dear_conversions_are_avoided(parts, seed: int) -> None:
    """No other choice of a single module is cheaper, also where all neighbours count."""
    space, _ = parts
    generator = np.random.default_rng(seed)
    losses = {probe: 0.02 * generator.random() for probe in probes(space)}
    allocator, _, _ = allocator_of(parts, 4.0, losses)
    prices = np.exp(generator.uniform(-4, 1, (20, 2)))
    chosen = allocator.allocate(prices)
    for price, row in zip(prices, chosen, strict=True):
        others = [row]
        for i, table in enumerate(allocator.modules.values()):
            for config in range(len(table.configs)):
                other = row.copy()
                other[i] = config
                others.append(other)
        total = allocator.losses(np.array(others)).sum(1)
        total = total + allocator.costs(np.array(others)) @ price
        assert total[0] <= total.min() + 1e-9


def test_the_fast_allocation_keeps_floats_where_integers_gain_nothing(parts) -> None:
    """Kernels take as long with integers; without conversions nothing tells them apart."""
    space, layout = parts
    table = table_of(1.0)

    class Alike(Times):
        def kernel_us(self, kernel) -> float:
            return 20 * kernel.kept_in * kernel.kept_out / 64 + 1e-6 * (kernel.form == "int8")

    table.__dict__["model"] = Alike({}, cost_of_features(1.0), {}, 0.0)
    float_ms = table.predict_ms(layout, Candidate())
    losses = {}
    for probe in probes(space):
        losses[probe] = 0.1 if probe[1].pruning_ratio > 0 else 1e-3
    allocator = Allocator.of(space, layout, table, losses, 100_000, float_ms)
    row = allocator.least_lossy(np.array([np.inf, 0.6]))
    assert predicted(parts, table, float_ms, allocator, row) <= 0.6
    names = list(allocator.modules)
    for i, name in enumerate(names):
        config = allocator.modules[name].configs[row[i]]
        assert not layout.computes_integers(layout.module_map[name], config), name
    assert row[len(names) :].any(), "it is pruned"


def test_floats_are_found_where_conversions_surround_each_module(parts) -> None:
    """Integers are a little faster in all but one convolution, and converting takes long."""
    space, layout = parts
    table = table_of(1.0)

    class Uneven(Times):
        def kernel_us(self, kernel) -> float:
            integer, stem = kernel.form == "int8", "8x3x" in kernel.signature
            return 20.0 + (60.0 if stem else -2.0) * integer

    class Dear(dict):
        def get(self, name: str, default: float = 0.0) -> float:
            return 15.0 if name in ("from floats to integers", "from integers to floats") else 0.0

    table.__dict__["model"] = Uneven({}, Dear(), {}, 0.0)
    float_ms = table.predict_ms(layout, Candidate())
    allocator = Allocator.of(space, layout, table, {}, 100_000, float_ms)
    (row,) = allocator.allocate(np.array([(0.0, 1e3)]))
    uniform = [
        rows_where(allocator, dict.fromkeys(allocator.modules, integer))
        for integer in (False, True)
    ]
    least = allocator.costs(np.array(uniform))[:, 1]
    assert least[0] < least[1]
    assert allocator.costs(row[None])[0, 1] <= least[0] + 1e-9

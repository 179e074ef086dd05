from __future__ import annotations

import itertools

import optuna
import pytest

from autocompress import ModuleConfig, find_modules
from autocompress.export.build import prepare
from autocompress.recovery_space import ALPHA
from autocompress.search.allocation import Allocator
from autocompress.search.bench import layout_of, subject_of
from autocompress.search.sampler import PriceSampler, distributions
from autocompress.search.sensitivity import probes
from autocompress.search.storage import open_study
from autocompress.search_space import BoundSpace, SearchSpace
from autocompress.targets.kernels import KernelChoice
from autocompress.targets.profile import cached_table
from autocompress.targets.target import find_target

SPACE = {
    "modules": [
        {
            "match": "*",
            "weight_bits": [4, 8, 16],
            "activation_bits": [8, 32],
            "rank_ratio": [0.25, 1.0],
            "pruning_ratio": {"low": 0.0, "high": 0.5, "step": 0.25},
        }
    ],
    "distillation": {"alpha": {"low": 0.2, "high": 0.8}, "steps": 5},
}
LOSS = {16: 1e-6, 8: 1e-4, 4: 1e-2}


@pytest.fixture(scope="module")
def parts(cnn_task) -> tuple[BoundSpace, Allocator]:
    """An allocator over made-up sensitivities, in which fewer bits, channels and ranks always lose more."""
    builder = prepare(cnn_task, find_modules(cnn_task.model, cnn_task.example_inputs), KernelChoice())
    target = find_target("onnxruntime-cpu")
    space = SearchSpace.load(SPACE).bind(builder.module_map, target)
    layout = layout_of(builder)
    table = cached_table(subject_of(cnn_task, builder, layout, space), target)
    losses = {
        (name, config): LOSS.get(config.weight_bits, 0.0) + 0.05 * config.pruning_ratio + 0.01 * (1 - config.rank_ratio)
        for name, config in probes(space)
    }
    return space, Allocator.of(space, layout, table, losses, len(builder.baseline))


def test_every_choice_is_probed_one_axis_at_a_time(parts: tuple[BoundSpace, Allocator]) -> None:
    space, _ = parts
    found = probes(space)
    assert len(found) == len(set(found))
    for module, config in found:
        changed = set(config.to_json()) - {"activation_bits"}
        assert len(changed) == 1, (module, config)
    assert ("stem.0", ModuleConfig(pruning_ratio=0.25)) in found
    assert ("fc", ModuleConfig(rank_ratio=0.25)) in found


def test_without_prices_nothing_is_lost_and_higher_prices_save_more(parts: tuple[BoundSpace, Allocator]) -> None:
    _, allocator = parts
    configs, _, _ = allocator.allocate(0.0, 0.0)
    assert all((c.weight_bits, c.rank_ratio, c.pruning_ratio) == (16, 1.0, 0.0) for c in configs.values())
    sizes = [allocator.allocate(price, 0.0)[1] for price in (0.0, 1e-3, 1e-2, 1e-1, 1.0, 100.0)]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(sizes))
    assert sizes[-1] < sizes[0] / 3
    for low, high in allocator.price_ranges:
        assert 0 < low < high


def test_proposals_depend_on_seed_and_number_only(parts: tuple[BoundSpace, Allocator], tmp_path) -> None:
    space, allocator = parts

    def proposals(seed: int, path: str) -> list[dict]:
        study = open_study(str(tmp_path / path), PriceSampler(space, allocator, seed))
        found = []
        for _ in range(20):
            trial = study.ask(distributions(space))
            found.append(trial.params)
            study.tell(trial, [float(sum(trial.params.values())), 1.0, 0.5])
            # A resumed search has another sampler object and the same storage.
            study = open_study(str(tmp_path / path), PriceSampler(space, allocator, seed))
        return found

    first = proposals(0, "a")
    assert first == proposals(0, "b")
    assert first != proposals(1, "c")
    assert all(0.2 <= params[ALPHA] <= 0.8 for params in first)
    assert all(set(params) == set(distributions(space)) for params in first)


def test_anchors_are_the_most_accurate_and_the_uniform_integer_models(parts: tuple[BoundSpace, Allocator]) -> None:
    space, allocator = parts
    study = optuna.create_study(directions=["minimize", "minimize", "maximize"], sampler=PriceSampler(space, allocator, 0))
    expected = [(16, None), (8, 8), (4, 8)]
    for bits, activation_bits in expected:
        params = study.ask(distributions(space)).params
        candidate = space.candidate(params)
        for name, config in candidate.modules:
            assert config.weight_bits == bits
            assert config.pruning_ratio == 0.0
            if activation_bits is not None and space.kinds[name] != "embedding":
                assert config.activation_bits == activation_bits

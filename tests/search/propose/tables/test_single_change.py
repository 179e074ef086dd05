"""Sizes of single changes by arithmetic against those of their graphs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from autocompress import find_modules
from autocompress.candidate import Candidate, ModuleConfig
from autocompress.export.prepare import prepare
from autocompress.export.subject import layout_of
from autocompress.search.propose.sensitivity import probes
from autocompress.search.propose.tables.single_change import SingleChanges
from autocompress.space.search_space import SearchSpace
from autocompress.targets.kernels import KernelChoice
from autocompress.targets.target import find_target

SPACE = {
    "modules": [
        {
            "match": "*",
            "weight_bits": [3, 8, 16, 32],
            "rank_ratio": [0.25, 1.0],
            "pruning_ratio": [0.0, 0.25, 0.5],
            "sparsity": [0.0, 0.5],
        }
    ]
}


def module_us(layout, module, config, rows: int, columns: int) -> float:
    """Return a time that depends on widths and bits."""
    return rows * columns * (1 if config.weight_bits == 32 else 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn_task", "transformer_task"])
def test_sizes_are_those_of_the_graphs_within_a_share_of_the_whole(
    name: str, request: pytest.FixtureRequest
) -> None:
    task = request.getfixturevalue(name)
    builder = prepare(task, find_modules(task.model, task.example_inputs), KernelChoice())
    space = SearchSpace.load(SPACE).bind(builder.module_map, find_target("onnxruntime-cpu"))
    table = SimpleNamespace(alone_us=module_us)
    float_bytes = builder.size_bytes(Candidate())
    changes = SingleChanges(layout_of(builder), table, float_bytes, 4.0, 2.0)
    pruned = 0
    for module, config in probes(space):
        size, milliseconds = changes.costs(module, config)
        exact = builder.size_bytes(Candidate.of({module: config}))
        # Nodes that a change adds to the graph are not counted.
        nodes = abs(size - exact)
        assert nodes < max(0.01 * exact, 4500), (module, config, size, exact)
        if config.pruning_ratio > 0:
            pruned += 1
            assert size < float_bytes - 100
            assert milliseconds < 4.0
    assert pruned > 0


def test_a_change_of_one_module_is_added_to_the_float_model() -> None:
    module = SimpleNamespace(
        name="a", kind="linear", weight_shape=(10, 20), has_bias=True, factorisable=True
    )
    layout = SimpleNamespace(
        module_map=[module], integer_form=lambda module: SimpleNamespace(bits=8)
    )
    table = SimpleNamespace(alone_us=module_us)
    changes = SingleChanges(layout, table, 5000, 4.0, 2.0)
    size, milliseconds = changes.costs("a", ModuleConfig(weight_bits=8))
    assert size == 5000 - 200 * 3 + 10 * 4  # a scale per row
    assert milliseconds == pytest.approx(4.0 * (1 - 0.1 / 2.0))

from __future__ import annotations

import numpy as np
import pytest
import torch
from arithmetic import Formed
from fixture import Fixture
from onnx import numpy_helper
from torch import nn

from autocompress import Candidate, Task
from autocompress.integer_form import IntegerForm
from autocompress.task.calls import call_model


@pytest.fixture(scope="module")
def fixture(cnn_task: Task) -> Fixture:
    return Fixture(cnn_task, Formed(IntegerForm.REDUCED))


@torch.no_grad()
def output_of(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return call_model(model, inputs)


@torch.no_grad()
def ruin(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.zero_()


def test_a_module_is_of_its_own(fixture: Fixture) -> None:
    compressor, inputs = fixture.compressor, fixture.inputs
    candidates = [fixture.uniform(weight_bits=4, activation_bits=8), fixture.random(5), Candidate()]
    expected = [output_of(compressor.stitcher.apply(c), inputs) for c in candidates]
    modules = [compressor.module(candidate) for candidate in candidates]
    for module, output in zip(modules, expected, strict=True):
        assert torch.equal(output_of(module, inputs), output)
    compressor.stitcher.apply(Candidate())
    ruin(compressor.stitcher.model)
    assert torch.equal(output_of(modules[0], inputs), expected[0])
    for module in modules:
        ruin(module)
    assert torch.equal(output_of(compressor.stitcher.apply(candidates[0]), inputs), expected[0])


def test_files_hold_the_statistics_of_the_candidate(fixture: Fixture) -> None:
    candidate = fixture.uniform(weight_bits=2)
    graph, statistics = fixture.compressor.graph(candidate), fixture.stitcher.statistics(candidate)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    float_state = fixture.stitcher.teacher.state_dict()
    names = [name for name in statistics if name in stored]
    assert names
    for name in names:
        np.testing.assert_array_equal(stored[name], statistics[name].numpy())
        assert not torch.equal(statistics[name], float_state[name])
    assert fixture.difference(candidate) < 1e-3
    assert fixture.stitcher.statistics(Candidate()) == {}


def test_a_graph_does_not_depend_on_what_was_applied(fixture: Fixture) -> None:
    candidate = fixture.uniform(weight_bits=5)
    first = fixture.compressor.graph(candidate)
    fixture.stitcher.apply(fixture.random(6))
    assert fixture.compressor.graph(candidate) == first
    assert first.ByteSize() == fixture.builder.size_bytes(candidate)

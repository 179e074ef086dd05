"""Which ranks are offered: those whose factors are smaller or faster than the whole module."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.model.modules import ModuleMap
from autocompress.search.problem.ranks import RankVerdict, no_gain, rank_verdicts
from autocompress.space.search_space import BoundSpace, SearchSpace
from autocompress.targets.target import find_target


@pytest.fixture(scope="module")
def modules() -> ModuleMap:
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    return find_modules(model, torch.rand(1, 8, 4, 4))


@pytest.fixture(scope="module")
def space(modules: ModuleMap) -> BoundSpace:
    rules = [
        {
            "match": "*",
            "rank_ratio": [0.25, 0.5, 0.9, 1.0],
            "decomposition": ["svd", "tucker"],
            "activation_bits": [8, 32],
            "weight_bits": 8,
        }
    ]
    return SearchSpace.load({"modules": rules}).bind(modules, find_target("onnxruntime-cpu"))


def test_weights_of_factors_are_counted_exactly(space: BoundSpace, modules: ModuleMap) -> None:
    found = {(v.module, v.rank_ratio, v.decomposition): v for v in rank_verdicts(space, modules)}
    linear = found["3", 0.5, "svd"]
    assert (linear.weights, linear.whole, linear.smaller, linear.faster) == (
        16 * (64 + 32),
        64 * 32,
        True,
        None,
    )
    assert found["3", 0.9, "svd"].words == "no gain"
    assert found["0", 0.9, "svd"].weights == 14 * 8 * 9 + 16 * 14
    assert found["0", 0.9, "tucker"].weights == 7 * 8 + 14 * 7 * 9 + 16 * 14
    assert found["0", 0.5, "tucker"].words == "gain"
    assert found["5", 0.25, "svd"].words == "gain"
    assert found["5", 0.9, "svd"].words == "no gain"


def test_time_is_asked_of_every_form_that_is_offered(space: BoundSpace, modules: ModuleMap) -> None:
    asked = []

    def slower_but_in_integers(module, config: ModuleConfig) -> float:
        asked.append((module.name, config.activation_bits))
        return 0.9 if config.activation_bits == 8 else 1.3

    verdicts = rank_verdicts(space, modules, slower_but_in_integers)
    assert {bits for name, bits in asked if name == "3"} == {8, 32}
    assert {bits for name, bits in asked if name == "0"} == {32}, (
        "factors of convolutions run on float kernels"
    )
    words = {(v.module, v.rank_ratio, v.decomposition): v.words for v in verdicts}
    assert words["3", 0.9, "svd"] == "no gain in size"
    assert words["0", 0.5, "tucker"] == "no gain in time"
    assert ("3", 0.9, "svd") not in no_gain(verdicts), "offered, since the other objective gains"
    assert ("0", 0.9, "svd") in no_gain(verdicts), "neither smaller nor faster"


def test_a_rank_without_gain_leaves_the_module_whole(space: BoundSpace, modules: ModuleMap) -> None:
    guarded = replace(space, no_gain=no_gain(rank_verdicts(space, modules)))
    indices = {knob.parameter: 0 for knob in space.knobs} | {"3/rank_ratio": 1, "0/rank_ratio": 1}
    assert space.numbers("3", "rank_ratio")[1] == 0.9
    assert guarded.candidate(indices).config("3").rank_ratio == 1.0
    assert space.candidate(indices).config("3").rank_ratio == 0.9
    assert all(config.rank_ratio != 0.9 for config in guarded.configs("3"))
    assert guarded.candidate(indices) != Candidate()


def test_verdicts_read_well() -> None:
    assert [
        RankVerdict("m", 0.5, "svd", w, 10, t).words
        for w, t in ((5, None), (12, None), (5, 1.2), (12, 0.8), (12, 1.2), (5, 0.5))
    ] == [
        "gain",
        "no gain",
        "no gain in time",
        "no gain in size",
        "no gain",
        "gain",
    ]

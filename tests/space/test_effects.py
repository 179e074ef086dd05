"""Axes become knobs where they change a module; a rule whose axis changes none of them is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autocompress import ModuleConfig, find_modules
from autocompress.model.modules import NormGroup
from autocompress.space.effects import Applicability
from autocompress.space.search_space import SearchSpace
from autocompress.targets.target import find_target

TARGET = find_target("onnxruntime-cpu")


def test_axes_of_a_group_apply_to_its_root_only(cnn_task) -> None:
    modules = find_modules(cnn_task.model, cnn_task.example_inputs)
    applies = Applicability(modules, TARGET)
    roots = {group.name for group in modules.groups if group.reason is None}
    assert roots
    for module in modules:
        assert applies("pruning_ratio", module) == (module.name in roots)
        assert applies("weight_bits", module)
        assert not applies("smoothing", module), "the model has no layer normalisation"


@pytest.mark.parametrize(
    ("rule", "lines"),
    [
        (
            {"match": "*", "smoothing": [0.0, 0.5]},
            ["smoothing has no effect: no module of the rule is the first reader of a normalisat"],
        ),
        ({"match": "*", "smoothing": 0.0}, []),
        ({"match": "*", "pruning_ratio": [0.0, 0.5], "rank_ratio": [0.5, 1.0]}, []),
        (
            {"match": "fc", "pruning_ratio": [0.0, 0.5], "importance": "l1"},
            [
                "pruning_ratio has no effect: no module of the rule is the root of a channel group",
                "importance has no effect: no module of the rule is the root of a channel group",
            ],
        ),
    ],
)
def test_an_axis_that_changes_none_of_its_modules_is_said(
    cnn_task, rule: dict[str, Any], lines: list[str]
) -> None:
    modules = find_modules(cnn_task.model, cnn_task.example_inputs)
    rules = [rule, {"match": "*", "weight_bits": 8}] if rule["match"] != "*" else [rule]
    words = SearchSpace.load({"modules": rules}).bind(modules, TARGET).without_effect
    assert len(words) == len(lines)
    for line, expected in zip(words, lines, strict=True):
        assert line.startswith(f"space: rule 1: {expected}")


def test_smoothing_has_an_effect_on_the_first_reader_of_a_normalisation(cnn_task) -> None:
    modules = find_modules(cnn_task.model, cnn_task.example_inputs)
    modules = replace(modules, norms=(NormGroup("norm", ("fc",)),))
    space = SearchSpace.load({"modules": [{"match": "*", "smoothing": [0.0, 0.5]}]})
    bound = space.bind(modules, TARGET)
    assert bound.without_effect == ()
    assert [knob.module for knob in bound.knobs] == ["fc"]
    config = bound.config("fc", {"weight_bits": 8, "activation_bits": 8, "smoothing": 0.5})
    assert config == ModuleConfig(8, 8, smoothing=0.5)


def test_axes_of_recurrent_weights_and_embeddings_are_said(transformer_task) -> None:
    modules = find_modules(transformer_task.model, transformer_task.example_inputs)
    rules = [
        {"kind": "embedding", "activation_bits": [8, 32], "algorithm": "gptq"},
        {"match": "*", "weight_bits": [4, 8]},
    ]
    space = SearchSpace.load({"modules": rules})
    assert space.bind(modules, TARGET).without_effect == (
        "space: rule 1: activation_bits has no effect: target onnxruntime-cpu has no integer "
        "kernel for the rule's modules",
        "space: rule 1: algorithm has no effect: no module of the rule is linear or a convolution",
    )
    openvino = find_target("openvino-cpu", present=False)
    rules[0] = {"kind": "embedding", "rank_ratio": [0.5, 1.0], "group_size": 32}
    assert SearchSpace.load({"modules": rules}).bind(modules, openvino).without_effect == (
        "space: rule 1: rank_ratio has no effect: no weight of the rule's modules can be "
        "factorised",
        "space: rule 1: group_size has no effect: target openvino-cpu has one scale per channel "
        "for the rule's modules",
    )
    shipped = SearchSpace.load("transformer").bind(modules, TARGET)
    assert shipped.without_effect == (), "spaces that fit any model say nothing"


def test_modes_of_convolutions_are_no_choice_in_litert(cnn_task) -> None:
    modules = find_modules(cnn_task.model, cnn_task.example_inputs)
    target = find_target("litert-cpu", present=False)
    rules = [
        {"kind": "conv", "activation_bits": 8, "activation_mode": ["static", "dynamic"]},
        {"match": "*", "activation_bits": 8, "activation_mode": ["static", "dynamic"]},
    ]
    bound = SearchSpace.load({"modules": rules}).bind(modules, target)
    kinds = {modules[knob.module].kind for knob in bound.knobs}
    assert kinds == {"linear"}
    assert bound.without_effect == (
        "space: rule 1: activation_mode has no effect: target litert-cpu has no choice of ranges "
        "for the rule's modules",
    )

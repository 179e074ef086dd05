from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from autocompress import ModuleConfig, find_modules
from autocompress.errors import AutocompressError, SpaceError, TargetError
from autocompress.space.search_space import SearchSpace
from autocompress.targets.target import find_target

TARGET = find_target("onnxruntime-cpu")


@pytest.fixture(scope="module")
def found(cnn_task):
    return find_modules(cnn_task.model, cnn_task.example_inputs)


def test_first_match_wins_and_knobs_sit_where_they_mean_something(found) -> None:
    space = SearchSpace.load(
        {
            "modules": [
                {"role": "head", "weight_bits": 8},
                {
                    "match": "*",
                    "weight_bits": [4, 8],
                    "pruning_ratio": {"low": 0, "high": 0.5, "step": 0.25},
                    "rank_ratio": [0.5, 1],
                },
            ]
        }
    ).bind(found, TARGET)
    assert space.fixed == {("fc", "weight_bits"): 8}
    names = {k.parameter for k in space.knobs}
    assert "stem.0/pruning_ratio" in names
    assert "body.0.conv2/pruning_ratio" not in names, "the residual's knob is on its root"
    assert {k.module for k in space.knobs if k.axis == "rank_ratio"} == {
        m.name for m in found if m.kind == "conv"
    }
    assert next(k.choices for k in space.knobs if k.parameter == "stem.0/pruning_ratio") == (
        0.0,
        0.25,
        0.5,
    )


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        ({"module": []}, SpaceError, "space: unknown key 'module'; nearest: modules"),
        (
            {"modules": [{"match": "*", "weigth_bits": [4]}]},
            SpaceError,
            "space: rule 1: unknown key 'weigth_bits'; nearest: weight_bits",
        ),
        (
            {"modules": [{"match": "vison.*", "weight_bits": [4]}]},
            SpaceError,
            "space: rule 1 {'match': 'vison.*'} matches no module; nearest match:",
        ),
        (
            {"modules": [{"match": "*", "weight_bits": [4]}, {"kind": "conv", "weight_bits": [8]}]},
            SpaceError,
            "space: rule 2 {'kind': 'conv'} matches only modules that an earlier rule takes",
        ),
        (
            {"modules": [{"match": "*", "weight_bits": [9]}]},
            TargetError,
            "space: rule 1: weight_bits 9 cannot be stored by target onnxruntime-cpu; nearest "
            "valid value: 8",
        ),
        (
            {"modules": [{"match": "*", "pruning_ratio": 1.0}]},
            SpaceError,
            "pruning_ratio 1.0 is outside 0 <= ratio < 1; nearest valid value: 0.95",
        ),
        (
            {"modules": [{"match": "*", "pruning_ratio": {"low": 0.5, "high": 0.1, "step": 0.1}}]},
            SpaceError,
            "needs low <= high and step > 0",
        ),
        (
            {"modules": [{"match": "*", "group_size": 48}]},
            SpaceError,
            "space: rule 1: group_size 48 is not one of (-1, 0, 16, 32, 64, 128, 256); nearest "
            "valid value: 32",
        ),
        (
            {"modules": [{"match": "*", "algorithm": ["gtpq"]}]},
            SpaceError,
            "space: rule 1: algorithm 'gtpq' is unknown; nearest: gptq",
        ),
        (
            {"modules": [{"match": "*", "weight_range": "entrop"}]},
            SpaceError,
            "space: rule 1: weight_range 'entrop' is unknown; nearest: entropy",
        ),
        (
            {"modules": [{"match": "*", "activation_mode": 8}]},
            SpaceError,
            "space: rule 1: activation_mode 8 is unknown; nearest: ",
        ),
        (
            {"modules": [{"match": "*", "symmetric": 1}]},
            SpaceError,
            "space: rule 1: symmetric must be true or false, got 1",
        ),
        (
            {"modules": [{"match": "*", "smoothing": [0.5, 1.5]}]},
            SpaceError,
            "smoothing 1.5 is outside 0 <= alpha <= 1; nearest valid value: 1.0",
        ),
        (
            {"modules": [{"match": "*", "weight_bits": ["four"]}]},
            SpaceError,
            "weight_bits must hold numbers, got 'four'",
        ),
        (
            {"modules": [{"match": "*"}], "calibration": {"range": "minmax"}},
            SpaceError,
            "space: calibration: range 'minmax' is unknown; nearest: min_max",
        ),
        (
            {"modules": [{"match": "*"}], "calibration": {"rnge": 1}},
            SpaceError,
            "space: calibration: unknown key 'rnge'; nearest: range",
        ),
        (
            {"modules": [{"weight_bits": [8]}]},
            SpaceError,
            "rule 1 matches on nothing; give one of match, tower, role, kind",
        ),
        (
            {"modules": [{"match": "*"}], "distillation": {"alpha": 2}},
            SpaceError,
            "alpha must be a number or {low, high} in [0, 1], got 2",
        ),
    ],
)
def test_bad_spaces(found, data, error, text) -> None:
    with pytest.raises(error) as caught:
        SearchSpace.load(data).bind(found, TARGET)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, AutocompressError)


def test_every_field_of_a_config_can_be_searched(found) -> None:
    rule = {
        "match": "*",
        "weight_bits": [2, 4],
        "activation_bits": [8, 16, 32],
        "group_size": [0, 32, -1],
        "symmetric": [True, False],
        "weight_range": ["min_max", "entropy"],
        "algorithm": ["nearest", "gptq"],
        "activation_mode": ["dynamic", "static"],
    }
    space = SearchSpace.load({"modules": [rule]}).bind(found, TARGET)
    knobs = {knob.parameter: knob.choices for knob in space.knobs}
    assert knobs["fc/group_size"] == (32, 0, -1), "from careful to small"
    assert knobs["fc/algorithm"] == ("nearest", "gptq")
    last = {parameter: len(choices) - 1 for parameter, choices in knobs.items()}
    config = space.candidate({**last, "fc/activation_bits": 2}).config("fc")
    assert config == ModuleConfig(
        2,
        8,
        -1,
        symmetric=False,
        weight_range="entropy",
        algorithm="gptq",
        activation_mode="static",
    )
    assert len(space.configs("fc")) == len(set(space.configs("fc")))
    assert all(
        c.activation_mode == "auto" for c in space.configs("fc") if c.activation_bits != 8
    ), "what does nothing is not offered twice"


def test_the_range_of_static_activations_is_the_spaces(found) -> None:
    rules = [{"match": "*", "weight_bits": [4, 8]}]
    plain, entropy = (
        SearchSpace.load({"modules": rules, **more})
        for more in ({}, {"calibration": {"range": "entropy"}})
    )
    assert (plain.activation_range, entropy.activation_range) == ("squared_error", "entropy")
    assert plain.bind(found, TARGET).digest != entropy.bind(found, TARGET).digest, (
        "a run is not resumed over other ranges"
    )


def test_files(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("modules: [{match: '*', weight_bits: [8]}]")
    with pytest.raises(SpaceError, match=r"god\.yaml: no such file; nearest: good\.yaml"):
        SearchSpace.load(tmp_path / "god.yaml")
    (tmp_path / "bad.yaml").write_text("modules: [")
    with pytest.raises(SpaceError, match=r"bad\.yaml: not YAML"):
        SearchSpace.load(tmp_path / "bad.yaml")


def test_the_default_space_fits_any_model(found, transformer_task) -> None:
    assert SearchSpace.load(None).bind(found, TARGET).knobs
    text = find_modules(transformer_task.model, transformer_task.example_inputs)
    assert SearchSpace.load(None).bind(text, TARGET).knobs


def test_microcontrollers_round_weights_and_inputs_together(found, transformer_task) -> None:
    target = find_target("litert-micro", present=False)
    text = find_modules(transformer_task.model, transformer_task.example_inputs)
    rule = {"match": "*", "weight_bits": [4, 8, 16, 32], "activation_bits": [8, 32]}
    rule["rank_ratio"] = [0.5, 1.0]
    for modules in (found, text):
        space = SearchSpace.load({"modules": [rule]}).bind(modules, target)
        assert {knob.axis for knob in space.knobs} == {"weight_bits"}
        for name, kind in space.kinds.items():
            for config in space.configs(name):
                rounded = kind in ("linear", "conv") and config.weight_bits < 32
                assert config.activation_bits == (8 if rounded else 32)
                assert config.weight_bits in ((4, 8, 32) if rounded else (32,))
                assert not rounded or config.static(kind)
    assert any("rounds inputs to 8 bits where it rounds" in line for line in space.without_effect)
    assert any("weight_bits 16" in line for line in space.left_out)


def test_what_a_target_cannot_execute_is_left_out_and_said(transformer_task) -> None:
    target = find_target("openvino-cpu", present=False)
    rules = [
        {
            "match": "*",
            "weight_bits": [2, 3, 4, 8],
            "activation_bits": [8, 32],
            "rank_ratio": [0.5, 1.0],
            "group_size": [0, 32],
        }
    ]
    found = find_modules(transformer_task.model, transformer_task.example_inputs)
    space = SearchSpace.load({"modules": rules}).bind(found, target)
    assert space.left_out == ("space: rule 1: weight_bits 2, 3",)
    assert {
        choice for knob in space.knobs if knob.axis == "weight_bits" for choice in knob.choices
    } == {4, 8}
    table = next(module for module in found if module.kind == "embedding")
    assert {knob.axis for knob in space.knobs if knob.module == table.name} == {"weight_bits"}
    assert all(
        config.activation_bits == 32
        for module in found
        if module.kind == "linear"
        for config in space.configs(module.name)
    )
    with pytest.raises(
        TargetError,
        match="weight_bits 3 cannot be stored by target openvino-cpu; nearest valid value: 4",
    ):
        SearchSpace.load({"modules": [{"match": "*", "weight_bits": 3}]}).bind(found, target)


@pytest.mark.parametrize(
    "data",
    [
        {"distillation": {"steps": 0}},
        {"constraints": {"max_size": "50%"}},
        {"calibration": {"range": "percentile"}},
        {},
    ],
)
def test_a_space_without_modules_takes_the_default_rules(data: dict, found, tmp_path: Path) -> None:
    default = SearchSpace.load(None)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(data))
    for source in (data, tmp_path / "space.yaml"):
        space = SearchSpace.load(source)
        assert space.rules == default.rules
        assert [k.parameter for k in space.bind(found, TARGET).knobs] == [
            k.parameter for k in default.bind(found, TARGET).knobs
        ]
    linear = find_modules(torch.nn.Linear(4, 2), torch.zeros(1, 4))
    assert SearchSpace.load(data).bind(linear, TARGET).knobs, (
        "default rules need not match: there is no convolution"
    )


@pytest.mark.parametrize(
    ("text", "came"),
    [
        (
            "",
            "expected a mapping such as modules: [{match: '*', weight_bits: [4, 8]}], got an "
            "empty file",
        ),
        (
            "- match: x",
            "expected a mapping such as modules: [{match: '*', weight_bits: [4, 8]}], got list",
        ),
        (
            "modules:",
            "'modules' must be a list of rules, got None; nearest: modules: [{match: '*', "
            "weight_bits: [4, 8]}], or none for",
        ),
        (
            "modules: {match: '*'}",
            "'modules' must be a list of rules, got {'match': '*'}; nearest: modules: [{match:",
        ),
        ("modul: []", "unknown key 'modul'; nearest: modules"),
    ],
)
def test_spaces_whose_modules_are_none_say_what_to_add(
    text: str, came: str, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(SpaceError) as caught:
        SearchSpace.load(tmp_path / "space.yaml")
    assert came in str(caught.value)

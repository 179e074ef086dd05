"""One candidate without a search: the bytes of a search, and one line for what is not valid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import autocompress as ac
from autocompress import Candidate, ModuleConfig, SearchResult, Task
from autocompress.errors import (
    ArgumentError,
    ExportError,
    RunFolderError,
    SpaceError,
    TargetError,
    TaskError,
)
from autocompress.search.single import _check_groups, checked_candidate
from autocompress.targets.device.sessions import open_session
from autocompress.targets.target import find_target
from autocompress.task.batches import feed_of
from autocompress.task.calls import call_model

SPACE = {
    "modules": [
        {
            "match": "*",
            "weight_bits": [2, 8],
            "activation_bits": [8, 32],
            "pruning_ratio": [0.0, 0.5],
        }
    ],
    "distillation": {"alpha": 0.5, "steps": 8},
}
SEED = 3


@pytest.fixture(scope="module")
def result(cnn_spec: str, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    out = tmp_path_factory.mktemp("run")
    return ac.search(cnn_spec, SPACE, n_trials=6, seed=SEED, out=out, quiet=True)


@pytest.mark.slow
def test_files_are_those_of_a_search(cnn_spec: str, result: SearchResult, tmp_path: Path) -> None:
    by_training = {}
    for point in result.front:
        folder = result.folder / point.artifact
        trained = yaml.safe_load((folder / "recipe.yaml").read_text())["trained"]
        by_training[trained] = (point.candidate, (folder / "model.onnx").read_bytes())
    for trained, (candidate, expected) in by_training.items():
        path = tmp_path / str(trained) / "one.onnx"
        assert ac.export_onnx(cnn_spec, candidate, path, seed=SEED) == path
        assert path.read_bytes() == expected
    candidate, expected = by_training.get(True) or by_training[False]
    steps = replace(candidate, distillation=replace(candidate.distillation, steps=8))
    path = ac.export_onnx(cnn_spec, steps, tmp_path / "untrained.onnx", recover=False)
    again = ac.export_onnx(cnn_spec, dict(candidate.modules), tmp_path / "mapping.onnx")
    assert path.read_bytes() == again.read_bytes(), "a mapping is not trained"


def test_modules_compute_what_files_compute(cnn_task: Task, tmp_path: Path) -> None:
    config = ModuleConfig(4, 8)
    candidate = {m.name: config for m in ac.find_modules(cnn_task.model, cnn_task.example_inputs)}
    before = [parameter.clone() for parameter in cnn_task.model.parameters()]
    threads = torch.get_num_threads()
    module = ac.compress(cnn_task, candidate)
    inputs = next(iter(cnn_task.validation))[0]
    with torch.no_grad():
        simulated = call_model(module, inputs).numpy()
    assert not module.training
    session = open_session(str(ac.export_onnx(cnn_task, candidate, tmp_path / "one.onnx")))
    (output,) = session.run(None, feed_of(inputs, [i.name for i in session.get_inputs()]))
    assert np.linalg.norm(output - simulated) <= 0.01 * np.linalg.norm(simulated)
    for parameter, value in zip(cnn_task.model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("candidate", "text"),
    [
        ({"fcc": ModuleConfig(8)}, "candidate: no compressible module 'fcc'; nearest: fc"),
        (
            {"fc": ModuleConfig(9)},
            "candidate: module 'fc': weight_bits 9 cannot be stored by target onnxruntime-cpu; "
            "nearest valid value: 8",
        ),
        (
            {"fc": ModuleConfig(8, algorithm="gtpq")},
            "candidate: module 'fc': algorithm 'gtpq' is unknown; nearest: gptq",
        ),
        (
            {"fc": ModuleConfig(16, 8)},
            "candidate: module 'fc': activation_bits 8 needs integer weights, got weight_bits 16; "
            "nearest valid value: weight_bits 8",
        ),
        (
            {"stem.0": ModuleConfig(8, 8, rank_ratio=0.5)},
            "candidate: module 'stem.0': activation_bits 8 with rank_ratio 0.5: factors of a "
            "convolution run on float kernels; nearest valid value: activation_bits 32",
        ),
        (
            {"fc": ModuleConfig(8, smoothing=0.5)},
            "candidate: module 'fc': smoothing 0.5 needs activation_bits 8, got 32; "
            "nearest valid value: 0",
        ),
        (
            {"fc": 8},
            "candidate: module 'fc': expected a ModuleConfig, got 8; "
            "nearest: ModuleConfig(weight_bits=8)",
        ),
        (
            None,
            "candidate: expected a Candidate or a mapping from names to configs, got None; "
            "nearest: {'name': ModuleConfig(weight_bits=8)}",
        ),
        (
            Candidate.of({"fc": ModuleConfig(8)}, ac.Distillation(alpha=2.0, steps=3)),
            "candidate: distillation: alpha must be a number or {low, high} in [0, 1], got 2.0; "
            "nearest valid value: 0.5",
        ),
    ],
)
def test_what_is_not_valid_is_one_line(cnn_task: Task, candidate: object, text: str) -> None:
    module_map = ac.find_modules(cnn_task.model, cnn_task.example_inputs)
    with pytest.raises((SpaceError, TargetError)) as caught:
        checked_candidate(candidate, module_map, find_target("onnxruntime-cpu"))
    assert str(caught.value) == text


def test_kinds_without_integer_kernels_are_one_line(transformer_task: Task) -> None:
    module_map = ac.find_modules(transformer_task.model, transformer_task.example_inputs)
    with pytest.raises(SpaceError, match="no integer kernel for kind embedding; nearest valid"):
        checked_candidate(
            {"embedding": ModuleConfig(8, 8)}, module_map, find_target("onnxruntime-cpu")
        )


def test_convolutions_of_litert_have_calibrated_ranges(cnn_task: Task) -> None:
    module_map = ac.find_modules(cnn_task.model, cnn_task.example_inputs)
    target = find_target("litert-cpu", present=False)
    conv = next(m.name for m in module_map if m.kind == "conv")
    checked_candidate({conv: ModuleConfig(8, 8, activation_mode="static")}, module_map, target)
    checked_candidate({"fc": ModuleConfig(8, 8, activation_mode="static")}, module_map, target)
    with pytest.raises(SpaceError, match="calibrated ranges alone for kind conv; nearest valid"):
        checked_candidate({conv: ModuleConfig(8, 8, activation_mode="dynamic")}, module_map, target)


def test_microcontrollers_have_no_rounded_weights_under_floats(cnn_task: Task) -> None:
    pytest.importorskip("ai_edge_litert")
    for config, text in (
        (ModuleConfig(8), "weight_bits 8: target litert-micro computes with rounded weights on 8"),
        (ModuleConfig(8, 8), "activation_mode auto: target litert-micro has calibrated ranges al"),
    ):
        with pytest.raises(SpaceError, match=text):
            ac.compress(cnn_task, Candidate.of({"fc": config}), target="litert-micro")


def test_groups_are_pruned_by_their_root(cnn_task: Task, tmp_path: Path) -> None:
    module_map = ac.find_modules(cnn_task.model, cnn_task.example_inputs)
    member = next(m for m in module_map if m.group not in (None, m.name))
    half = ModuleConfig(pruning_ratio=0.5)
    for configs, text in (
        (
            {member.name: half},
            f"candidate: module {member.name!r}: pruning_ratio 0.5: it is not the root of a "
            f"channel group; nearest valid value: 0, and the ratio on {member.group!r}",
        ),
        (
            {"fc": half},
            "candidate: module 'fc': pruning_ratio 0.5: its channels cannot be removed (its "
            "channels are the model's output); nearest valid value: 0",
        ),
        (
            {"fc": ModuleConfig(8, 8, smoothing=0.5)},
            "candidate: module 'fc': smoothing 0.5: it is not the first reader of a normalisation; "
            "nearest valid value: 0",
        ),
    ):
        with pytest.raises(SpaceError) as caught:
            ac.export_onnx(cnn_task, configs, tmp_path / "one.onnx")
        assert str(caught.value) == text
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file(cnn_task: Task, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"is a folder; nearest: .*model\.onnx"):
        ac.export_onnx(cnn_task, {}, tmp_path)
    with pytest.raises(
        SpaceError, match="compress: activation_range 'entropi' is unknown; nearest: entropy"
    ):
        ac.compress(cnn_task, {}, activation_range="entropi")


def test_a_path_that_cannot_be_written_is_one_line(cnn_task: Task, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"; choose a path that can be written$"):
        ac.export_onnx(cnn_task, {}, tmp_path / "file" / "one.onnx")


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(8, 4)
        self.out = torch.nn.Linear(4, 8, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.emb(x))


def test_a_shared_weight_is_configured_at_its_owner() -> None:
    module_map = ac.find_modules(Tied(), torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(SpaceError, match=r"'out' shares the weight of 'emb'; configure 'emb'$"):
        checked_candidate({"out": ModuleConfig(8)}, module_map, find_target("onnxruntime-cpu"))


def test_a_member_of_a_group_that_cannot_be_pruned_gets_its_reason(cnn_task: Task) -> None:
    module_map = ac.find_modules(cnn_task.model, cnn_task.example_inputs)
    member = next(m for m in module_map if m.group not in (None, m.name))
    groups = [
        replace(group, reason="why") if group.name == member.group else group
        for group in module_map.groups
    ]
    candidate = Candidate.of({member.name: ModuleConfig(pruning_ratio=0.5)})
    with pytest.raises(SpaceError, match=r"cannot be removed \(why\); nearest valid value: 0$"):
        _check_groups(candidate, replace(module_map, groups=tuple(groups)))


@pytest.mark.slow
def test_wrong_arguments_are_one_line(cnn_task: Task, result: SearchResult) -> None:
    with pytest.raises(
        TaskError, match=r"expected an autocompress\.Task or a text, got Sequential"
    ):
        ac.compress(torch.nn.Sequential(), {})
    with pytest.raises(TaskError, match=r"expected an autocompress\.Task or a text, got int"):
        ac.search(5)
    with pytest.raises(
        ExportError, match=r"^export: expected a point of the front, got 3; nearest"
    ):
        ac.export(result, 3, "z")
    with pytest.raises(ExportError, match=r"^export: expected the result of a search, got None; "):
        ac.export(None, 3, "z")
    with pytest.raises(ArgumentError, match=r"^export: to must be a path, got 3; nearest"):
        ac.export(result, result.front.smallest(), 3)

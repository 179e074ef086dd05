"""What was exported comes back as a PyTorch module, and its recipe makes the same file again."""

from __future__ import annotations

import copy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from fixture import trainer_of
from torch import nn

import autocompress
from autocompress import (
    Candidate,
    Distillation,
    ModuleConfig,
    SearchResult,
    Task,
    find_modules,
    load_task,
    read_front,
)
from autocompress.compress.recover.recover import recover
from autocompress.errors import ExportError, TaskError
from autocompress.export.artifact import write_model, write_recipe
from autocompress.export.compressor import Compressor
from autocompress.export.prepare import prepare
from autocompress.export.reload import reproduce_model
from autocompress.targets.device.sessions import DEFAULT
from autocompress.targets.kernels import KernelChoice
from autocompress.task.batches import feed_of
from autocompress.task.calls import call_model

pytestmark = pytest.mark.slow

SPACE = {
    "modules": [
        {"kind": "embedding", "weight_bits": [3, 8], "group_size": 16, "rank_ratio": [0.5, 1.0]},
        {
            "match": "*",
            "weight_bits": [2, 3, 5],
            "activation_bits": [8, 32],
            "group_size": [0, 32],
            "symmetric": [True, False],
            "activation_mode": ["dynamic", "static"],
            "smoothing": [0.0, 0.5],
            "rank_ratio": [0.5, 1.0],
            "pruning_ratio": [0.0, 0.5],
            "importance": ["obs", "taylor"],
            "sparsity": [0.0, 0.6],
            "sparsity_criterion": ["auto", "hessian"],
        },
    ],
    "distillation": {"alpha": 0.5, "steps": 12, "schedule": ["one_shot", "cubic"], "rounds": 3},
}


# What a network of convolutions adds, tests/cases/test_convs.py loads and reproduces in every run.
@pytest.fixture(
    scope="module",
    params=[pytest.param("cnn", marks=pytest.mark.extensive), "transformer"],
)
def searched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Task, SearchResult]:
    task = load_task(request.getfixturevalue(f"{request.param}_spec"))
    space = SPACE if request.param == "transformer" else {**SPACE, "modules": SPACE["modules"][1:]}
    if request.param == "cnn":
        space["modules"] = [{k: v for k, v in space["modules"][0].items() if k != "smoothing"}]
    return task, autocompress.search(
        task, space, n_trials=8, out=tmp_path_factory.mktemp("run"), quiet=True
    )


@pytest.fixture
def exported(searched: tuple[Task, SearchResult], tmp_path: Path) -> list[Path]:
    _, result = searched
    picked = {
        p.trial: p
        for p in (result.front.smallest(), result.front.fastest(), result.front.most_accurate())
    }
    return [
        autocompress.export(result, point, tmp_path / str(trial)) for trial, point in picked.items()
    ]


def test_loaded_modules_compute_what_the_file_computes(
    searched: tuple[Task, SearchResult], exported: list[Path]
) -> None:
    task, _ = searched
    inputs = next(iter(task.validation))[0]
    for folder in exported:
        module = autocompress.load(folder, task.model)
        assert not module.training
        with torch.no_grad():
            found = call_model(module, inputs).numpy()
        session = onnxruntime.InferenceSession(
            folder / "model.onnx", providers=["CPUExecutionProvider"]
        )
        (expected,) = session.run(None, feed_of(inputs, [i.name for i in session.get_inputs()]))
        assert np.linalg.norm(found - expected) <= 0.01 * np.linalg.norm(expected)


def test_the_weights_of_the_given_architecture_play_no_part(
    searched: tuple[Task, SearchResult], exported: list[Path]
) -> None:
    task, _ = searched
    inputs = next(iter(task.validation))[0]
    other = copy.deepcopy(task.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    folder = exported[0]
    found, expected = autocompress.load(folder, other), autocompress.load(folder)
    with torch.no_grad():
        assert torch.equal(call_model(found, inputs), call_model(expected, inputs))


def test_recipes_make_the_same_file_byte_for_byte(
    searched: tuple[Task, SearchResult], exported: list[Path], tmp_path: Path
) -> None:
    expected = (exported[0] / "model.onnx").read_bytes()
    assert (
        autocompress.reproduce(exported[0], tmp_path / "again", searched[0]).read_bytes()
        == expected
    )
    for folder in exported:
        (folder / "model.safetensors").unlink()  # what was trained is trained again
        path = autocompress.reproduce(folder, tmp_path / "again", searched[0])
        assert path.read_bytes() == (folder / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("name", "method", "lesson"),
    [
        ("cnn_task", "min_max", Distillation(steps=30, learning_rate=0.002)),
        ("transformer_task", "squared_error", Distillation(steps=12, learning_rate=0.0005)),
    ],
    ids=["cnn", "transformer"],
)
def test_training_starts_again_from_calibrated_ranges(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, method: str, lesson: Distillation
) -> None:
    """The recipe records the ranges that training ended with."""
    task = request.getfixturevalue(name)
    modules = find_modules(task.model, task.example_inputs)
    builder = prepare(task, modules, KernelChoice(), activation_range=method)
    compressor = Compressor.of(builder)
    axes = {"weight_bits": 2, "activation_bits": 8, "activation_mode": "static"}
    configs = {module.name: ModuleConfig(**axes) for module in modules}
    candidate = replace(Candidate.of(configs), distillation=lesson)
    origin = {
        "student": Distillation(steps=0).to_json(),
        "seed": 3,
        "threads": torch.get_num_threads(),
        "activation_range": method,
        "training_dtype": "float32",
    }
    trained = recover(trainer_of(task, compressor.stitcher, seed=3), compressor.stitcher, candidate)
    learned = trained[0].ranges
    assert any(learned[tensor] != builder.ranges[tensor] for tensor in learned)
    write_model(tmp_path, compressor.graph(candidate, trained[0]))
    write_recipe(tmp_path, compressor, candidate, trained[0], task.example_inputs, origin, DEFAULT)
    path = reproduce_model(tmp_path, task, tmp_path / "again")
    assert path.read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_recipes_say_which_points_were_trained(searched: tuple[Task, SearchResult]) -> None:
    _, result = searched
    for point in result.front:
        trained = yaml.safe_load((result.folder / point.artifact / "recipe.yaml").read_text())[
            "trained"
        ]
        assert trained == (result.folder / "recovered" / f"{point.trial:04d}.safetensors").is_file()


def test_memory_is_reported_beside_the_size(searched: tuple[Task, SearchResult]) -> None:
    _, result = searched
    front = read_front(result.folder)
    assert front.baseline.memory_bytes > 0.9 * front.baseline.size_bytes - 50_000
    for point in front:
        assert 0 < point.measured.memory_bytes <= front.baseline.memory_bytes * 1.01


def test_what_does_not_fit_is_one_line(
    searched: tuple[Task, SearchResult], exported: list[Path], tmp_path: Path
) -> None:
    folder = exported[0]
    with pytest.raises(
        ExportError, match="has another architecture than the one that was compressed"
    ):
        autocompress.load(folder, nn.Linear(3, 3))
    with pytest.raises(ExportError, match=r"has no recipe\.yaml"):
        autocompress.load(tmp_path / "nowhere")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ExportError, match="cannot be read"):
        autocompress.load(broken)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (broken / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "sha256": "0" * 64}))
    shutil.copy(folder / "model.safetensors", broken / "model.safetensors")
    with pytest.raises(ExportError, match="differs from the file that"):
        autocompress.reproduce(broken, tmp_path / "other", searched[0])
    recipe["origin"]["source"] = None
    (broken / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(TaskError, match="the recipe names no task"):
        autocompress.load(broken)
    (broken / "recipe.yaml").write_text("format: 99")
    with pytest.raises(ExportError, match="not a recipe of format"):
        autocompress.load(broken)


def test_a_model_is_made_plain_with_the_threads_of_the_search(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Sums of floats depend on the threads, those in a parametrization's weight too."""
    before = torch.get_num_threads()
    recipe = {"candidate": Candidate().to_json(), "origin": {"threads": before + 1}}
    seen = []

    def stop(task: Task, beside: bool) -> Task:
        seen.append(torch.get_num_threads())
        raise TaskError("enough")

    reload = sys.modules[reproduce_model.__module__]
    monkeypatch.setattr(reload, "read_recipe", lambda folder: recipe)
    monkeypatch.setattr(reload, "prepared", stop)
    model, x = torch.nn.Linear(4, 2), torch.rand(2, 4)
    task = Task("threads", model, x, [(x, None)], lambda o, t: 0.0)
    with pytest.raises(TaskError, match="enough"):
        reproduce_model(tmp_path, task, tmp_path / "again")
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_a_student_is_taught_with_the_threads_the_seed_and_the_type_that_it_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A search with several workers teaches it with all threads, and computes with a share.

    A search that goes on may have another seed than the one that taught it.
    """
    before = torch.get_num_threads()
    threads = {"threads": before + 1, "student_threads": before + 2}
    seeds = {"seed": 1, "student_seed": 7}
    origin = {
        **threads,
        **seeds,
        "student_dtype": "bfloat16",
        "student": Distillation(steps=3).to_json(),
    }
    recipe = {"candidate": Candidate().to_json(), "kernels": {}, "origin": origin}
    seen = []

    def teach(task: Task, lesson: Distillation, seed: int, *rest: object) -> Task:
        seen.append(torch.get_num_threads())
        assert (seed, rest[-1]) == (7, torch.bfloat16)
        return task

    def stop(*rest: object) -> None:
        seen.append(torch.get_num_threads())
        raise TaskError("enough")

    reload = sys.modules[reproduce_model.__module__]
    monkeypatch.setattr(reload, "read_recipe", lambda folder: recipe)
    monkeypatch.setattr(reload, "_check_weights", lambda *rest: None)
    monkeypatch.setattr(reload, "taught", teach)
    monkeypatch.setattr(reload, "find_modules", stop)
    model, x = torch.nn.Linear(4, 2), torch.rand(2, 4)
    task = Task("threads", model, x, [(x, None)], lambda o, t: 0.0)
    with pytest.raises(TaskError, match="enough"):
        reproduce_model(tmp_path, task, tmp_path / "again")
    assert seen == [before + 2, before + 1]
    assert torch.get_num_threads() == before

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import pytest
import torch

from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.checks import check_task
from autocompress.model.modules import find_modules
from autocompress.tasks import easy_vqa
from autocompress.tasks.easy_vqa_data import load_easy_vqa
from autocompress.tasks.train_easy_vqa import accuracy, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def task():
    return easy_vqa()


def test_size_towers_and_files(task) -> None:
    check_task(task)
    assert 1e6 <= sum(p.numel() for p in task.model.parameters()) <= 3e6
    assert (
        len(files("autocompress.tasks").joinpath("data/easy_vqa.safetensors").read_bytes()) <= 6e6
    )
    assert "MIT" in files("autocompress.tasks").joinpath("data/LICENSE.easy_vqa").read_text()
    found = find_modules(task.model, task.example_inputs, task.towers)
    assert list(dict.fromkeys(m.tower for m in found)) == [
        "vision",
        "projector",
        "language",
        "fusion",
        "head",
    ]


def test_splits_share_no_image() -> None:
    data = load_easy_vqa()
    assert len(data.train.images) + len(data.validation.images) == 4000
    assert len(data.test.answers) == 9673
    assert len(data.answers) == 13
    train_rows = {row.numpy().tobytes() for row in data.train.images}
    shared = sum(row.numpy().tobytes() in train_rows for row in data.validation.images)
    assert shared == 0


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.extensive)])
def test_shipped_weights_reach_the_stated_accuracy(task, every: int) -> None:
    batches = list(task.test)[::every]
    scores, _ = evaluate_model(task, task.model, batches, torch.device("cpu"))
    assert scores.accuracy >= 0.985


def test_both_inputs_are_needed(task) -> None:
    """Questions alone give about 0.67."""
    batches = [
        ({**inputs, "image": inputs["image"].roll(1, 0)}, target)
        for inputs, target in list(task.validation)[::4]
    ]
    scores, _ = evaluate_model(task, task.model, batches, torch.device("cpu"))
    assert scores.accuracy < 0.8


@pytest.mark.extensive
def test_training_learns() -> None:
    data = load_easy_vqa(validation_images=3900)  # 100 images are left to train on
    few = replace(
        data.validation,
        **{
            name: getattr(data.validation, name)[:64]
            for name in ("tokens", "answers", "image_index")
        },
    )
    model = train(replace(data, validation=few), epochs=8, seed=0)
    majority = float(torch.bincount(data.train.answers).max()) / len(data.train.answers)
    assert accuracy(model, data.train) > majority + 0.1

"""Check what is refused before a search."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autocompress import Task, load_task
from autocompress.errors import TaskError
from autocompress.measure.checks import check_augment, check_model, check_outputs, check_task


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (
            "failing_forward",
            "task quarters: model.forward fails on example_inputs: RuntimeError: Given groups=1",
        ),
        ("empty_loader", "task: validation is empty; expected at least one (inputs, target) batch"),
    ],
)
def test_tasks_that_cannot_work(task_files: Path, function: str, text: str) -> None:
    with pytest.raises(TaskError) as caught:
        check_task(load_task(f"{task_files}/cnn.py:{function}"))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def failing(images: Tensor) -> Tensor:
    raise ValueError("no such view")


CALLS = itertools.count()
AUGMENTS = {
    "task: augment fails: ValueError: no such view (": failing,
    "augment is 'flip'; expected a function of inputs": "flip",
    "augment returned float64 of shape (2, 3, 4, 4) for argument 0; nearest: float32 of shape "
    "(2, 3, 4, 4), as it came": lambda x: x.double(),
    "augment returned float32 of shape (2, 3, 2, 4) for argument 0; nearest": lambda x: x[:, :, 2:],
    "augment returned nothing for argument 0; nearest": lambda x: {"images": x},
    "augment makes NaN or infinity in argument 0 of the first": lambda x: x / 0,
    "augment gives another argument 0 under the same seed": lambda x: x + next(CALLS),
}


@pytest.mark.parametrize("text", list(AUGMENTS))
def test_views_that_cannot_take_the_place_of_a_batch(text: str) -> None:
    x = torch.rand(2, 3, 4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    task = Task("t", model, x, [(x, None)], lambda outputs, targets: 0.0)
    flipped = replace(task, augment=lambda images: images.add_(torch.rand(())).flip(3))
    before = x.clone()
    check_augment(flipped)
    assert torch.equal(x, before), "the function may write to what it gets"
    with pytest.raises(TaskError) as caught:
        check_augment(replace(task, augment=AUGMENTS[text]))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_checking_changes_nothing(cnn_task) -> None:
    cnn_task.model.train()
    check_task(cnn_task)
    assert cnn_task.model.training
    cnn_task.model.eval()


class Widens(nn.Module):
    """Take inputs of any type."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.fc(x.float() if scale is None else x.float() * scale.float())


def taking(model: nn.Module, inputs: Any) -> Task:
    batches = [(inputs, None)]
    return Task(
        "t", model, inputs, batches, lambda o, t: 0.0, divergence=lambda a, b: (a - b)[:, 0]
    )


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("example_inputs", "task t: example_inputs has argument 0 in bfloat16, which a file of a"),
        ("validation", "task t: validation has argument 0 in bfloat16, which a file of a float32"),
        ("calibration", "task t: calibration has argument 0 in bfloat16, which a file of a"),
        ("latency_inputs", "task t: latency_inputs['long'] has argument 0 in bfloat16, which a"),
    ],
)
def test_bfloat16_inputs_of_a_float32_model_are_named(place: str, words: str) -> None:
    x = torch.rand(6, 4)
    task = taking(Widens(), x)
    check_task(task)
    narrow = x.bfloat16()
    values = {"example_inputs": narrow, "latency_inputs": {"long": narrow}}
    changed = replace(task, **{place: values.get(place, [(narrow, None)])})
    with pytest.raises(TaskError) as caught:
        check_task(changed)
    assert str(caught.value).startswith(words)
    assert str(caught.value).endswith("; nearest: float32")


def test_bfloat16_inputs_of_a_model_that_is_copied_in_float32_are_taken() -> None:
    class Narrow(Widens):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            return self.fc(x)

    x = torch.rand(6, 4).bfloat16()
    check_task(taking(Narrow().bfloat16(), x))


def test_another_bfloat16_argument_is_named() -> None:
    inputs = {"x": torch.rand(6, 4), "scale": torch.rand(4).bfloat16()}
    with pytest.raises(TaskError, match="task t: example_inputs has scale in bfloat16, which a"):
        check_task(taking(Widens(), inputs))


@pytest.mark.filterwarnings("ignore:.*torch:Warning")
def test_a_model_that_is_quantized_already_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    integers = torch.ao.quantization.quantize_dynamic(model)
    with pytest.raises(
        TaskError, match=r"model's 0 is quantized already .*; nearest: the float mo"
    ):
        check_model(taking(integers, torch.randn(2, 8)), integers, "model")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_model_that_is_prepared_for_quantization_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    observed = torch.ao.quantization.prepare_qat(model)
    with pytest.raises(
        TaskError, match=r"model's 0\.weight_fake_quant observes .*; nearest: the float"
    ):
        check_model(taking(observed, torch.randn(2, 8)), observed, "model")


def test_single_samples_in_place_of_batches_are_named() -> None:
    data = TensorDataset(torch.randn(6, 4), torch.zeros(6, dtype=torch.int64))
    task = replace(taking(nn.Linear(4, 3), torch.randn(1, 4)), validation=data)
    with pytest.raises(TaskError, match=r"validation yields inputs of shape \(4,\) .*DataLoader"):
        check_outputs(task)

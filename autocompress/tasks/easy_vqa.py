"""Provide visual question answering on easy-VQA as a task, with the shipped weights.

It is a small multimodal task that needs no download; `make demo` and the tests search it.
"""

from __future__ import annotations

from importlib.resources import files

import torch
from safetensors.torch import load
from torch import Tensor

from autocompress.task.task import Task
from autocompress.tasks.easy_vqa_data import QUESTION_LENGTH, Loader, load_easy_vqa
from autocompress.tasks.easy_vqa_model import EasyVqaModel


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of right answers.

    Args:
        outputs: (n, answers) logits.
        targets: (n,) indices of answers.

    Returns:
        Between 0 and 1.
    """
    return float((outputs.argmax(-1) == targets).float().mean())


def easy_vqa(batch_size: int = 64, validation_images: int = 200) -> Task:
    """Return the task: a 192-wide transformer of vision, text and fusion on 64 x 64 images.

    Args:
        batch_size: of validation, calibration and test.
        validation_images: number of images in the validation split.

    Returns:
        The task; latency is measured for one question.
    """
    data = load_easy_vqa(int(validation_images))
    model = EasyVqaModel(len(data.vocabulary), len(data.answers), QUESTION_LENGTH)
    weights = load(files("autocompress.tasks").joinpath("data/easy_vqa.safetensors").read_bytes())
    model.load_state_dict(weights)
    example, _ = data.validation.batch(torch.tensor([0]))
    parts = ("vision", "projector", "language", "fusion", "head")
    return Task(
        "easy_vqa",
        model.eval(),
        example,
        Loader(data.validation, int(batch_size), seed=0),
        accuracy,
        train=Loader(data.train, 16, seed=1),
        calibration=Loader(data.train, int(batch_size), seed=2),
        test=Loader(data.test, int(batch_size)),
        towers={name: [f"{name}*"] for name in parts},
    )
